"""Log-probabilities of given responses under an adapted model: one function for the trainer, the policy service and the judge.

Logprobs are natural logarithms at the sampling temperature. What does not belong here: the arithmetic (`accord.algos.logprobs`) and losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.algos.logprobs import token_logprobs
from accord.errors import InvalidArgumentError, OutOfRangeError
from accord.models.batching import Batch, TokenSequence, collate, micro_batches
from accord.models.lora import AdaptedModel


def response_logprobs(
    adapted: AdaptedModel,
    sequences: Sequence[TokenSequence],
    *,
    adapter: str | None,
    temperature: float = 1.0,
    micro_batch_tokens: int = 4096,
) -> list[Tensor]:
    """Logprob of each response token given its prompt and the tokens before it: one tensor (response length,) a sequence, in order.

    Runs in the caller's grad mode. With gradients all micro-batches' graphs live until backward: pass what fits one backward pass.

    Args:
        sequences: (prompt ids, response ids); neither may be empty.
        adapter: the adapter's name, None for the bare base.
        temperature: logits are divided by it.
        micro_batch_tokens: most padded tokens (rows x longest) in one forward pass; a longer sequence runs alone.

    Raises:
        InvalidArgumentError: an empty prompt or response, naming which.
        OutOfRangeError: a sequence is longer than the context.
    """
    check_sequences(adapted, sequences)
    results: list[Tensor | None] = [None] * len(sequences)
    for group in micro_batches([len(prompt) + len(response) for prompt, response in sequences], micro_batch_tokens):
        members = [sequences[index] for index in group]
        batch = collate(members, pad_id=adapted.base.pad_token_id, device=adapted.base.device)
        flat = batch_logprobs(adapted, batch, adapter=adapter, temperature=temperature)
        for index, part in zip(group, flat.split([len(response) for _, response in members]), strict=True):
            results[index] = part
    return [result for result in results if result is not None]


def batch_logprobs(adapted: AdaptedModel, batch: Batch, *, adapter: str | None, temperature: float = 1.0) -> Tensor:
    """Logprobs of all response tokens of a batch in row order, shape (N,): one forward pass, the head on N positions only."""
    hidden = adapted.hidden(batch.input_ids, batch.attention_mask, adapter=adapter, position_ids=batch.position_ids, asked=batch.predicting_mask)
    logits = adapted.logits_at(hidden, batch.predicting_mask)
    return token_logprobs(logits, batch.input_ids[batch.response_mask], temperature=temperature)


def pad_rows(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor (batch, longest), zero where there is nothing, and its mask."""
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), mask


def check_sequences(adapted: AdaptedModel, sequences: Sequence[TokenSequence]) -> None:
    """Raises InvalidArgumentError for an empty prompt or response and OutOfRangeError for one past the context, naming the item."""
    for index, (prompt, response) in enumerate(sequences):
        if not prompt or not response:
            raise InvalidArgumentError("a sequence needs at least one prompt token and one response token", field=f"sequences[{index}]")
        if len(prompt) + len(response) > adapted.base.context_tokens:
            raise OutOfRangeError(
                f"prompt of {len(prompt)} and response of {len(response)} tokens exceed the context of {adapted.base.context_tokens}",
                field=f"sequences[{index}]",
            )
