"""Several responses to one prompt in one row, so that the prompt is computed once: DPO pairs, samples of one prompt, a judge's candidates.

A row is the prompt followed by all its responses. Each response sees the prompt and itself, not its siblings, and its positions go on from
the end of the prompt, so the logprobs are those of separate rows. Worth it where prompts are long beside responses: a pair with a
400-token prompt and 50-token responses is 500 tokens instead of 900.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accord.algos.logprobs import token_logprobs
from accord.models.batching import micro_batches
from accord.models.logprobs import check_sequences
from accord.models.lora import AdaptedModel

PromptGroup = tuple[Sequence[int], Sequence[Sequence[int]]]


@dataclass(frozen=True)
class PackedBatch:
    """Rows of shared prompts, padded on the right.

    `attention_mask` is (batch, 1, T, T), True where a position (row) may look at another (column). The response tokens of all rows, by
    group and response, are `tokens` (N,); they are predicted at the positions (`rows`, `columns`), each (N,), and stand at
    (`rows`, `token_columns`). `lengths` are those of the responses, `widths` those of the rows.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    rows: Tensor
    columns: Tensor
    token_columns: Tensor
    lengths: tuple[int, ...]
    widths: tuple[int, ...]

    @property
    def real_mask(self) -> Tensor:
        """True at tokens, False at padding, (batch, T)."""
        widths = torch.tensor(self.widths, device=self.input_ids.device)
        return torch.arange(self.input_ids.shape[1], device=self.input_ids.device) < widths[:, None]

    @property
    def predicting_mask(self) -> Tensor:
        """True at the positions that predict response tokens, (batch, T)."""
        return self._mask(self.rows, self.columns)

    @property
    def last_token_mask(self) -> Tensor:
        """True at the last token of each response, (batch, T)."""
        last = torch.tensor(self.lengths, device=self.rows.device).cumsum(0) - 1
        return self._mask(self.rows[last], self.token_columns[last])

    def _mask(self, rows: Tensor, columns: Tensor) -> Tensor:
        mask = torch.zeros_like(self.input_ids, dtype=torch.bool)
        mask[rows, columns] = True
        return mask

    @property
    def tokens(self) -> Tensor:
        """Response tokens, shape (N,)."""
        return self.input_ids[self.rows, self.token_columns]


def pack(groups: Sequence[PromptGroup], *, pad_id: int, device: torch.device | str = "cpu") -> PackedBatch:
    """One row for each (prompt ids, responses' ids).

    Raises:
        ValueError: there is no group, or one has an empty prompt, no response, or an empty response.
    """
    if not groups or not all(prompt and responses and all(responses) for prompt, responses in groups):
        raise ValueError("each group needs a prompt and at least one response, none of them empty")
    width = max(packed_length(group) for group in groups)
    input_ids = torch.full((len(groups), width), pad_id, dtype=torch.long)
    position_ids = torch.zeros((len(groups), width), dtype=torch.long)
    # Everything sees itself at least: a softmax over nothing is NaN, at padding too.
    mask = torch.eye(width, dtype=torch.bool).repeat(len(groups), 1, 1)
    rows: list[int] = []
    columns: list[int] = []
    token_columns: list[int] = []
    for row, (prompt, responses) in enumerate(groups):
        shared = len(prompt)
        input_ids[row, :shared] = torch.tensor(prompt)
        position_ids[row, :shared] = torch.arange(shared)
        mask[row, :shared, :shared] = torch.ones(shared, shared, dtype=torch.bool).tril()
        start = shared
        for response in responses:
            end = start + len(response)
            input_ids[row, start:end] = torch.tensor(response)
            position_ids[row, start:end] = torch.arange(shared, shared + len(response))
            mask[row, start:end, :shared] = True
            mask[row, start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
            rows += [row] * len(response)
            columns += [shared - 1, *range(start, end - 1)]
            token_columns += range(start, end)
            start = end
    return PackedBatch(
        input_ids.to(device), mask[:, None].to(device), position_ids.to(device), torch.tensor(rows, device=device),
        torch.tensor(columns, device=device), torch.tensor(token_columns, device=device),
        tuple(len(response) for _, responses in groups for response in responses), tuple(map(packed_length, groups)),
    )  # fmt: skip


def packed_length(group: PromptGroup) -> int:
    """Tokens of a group's row."""
    prompt, responses = group
    return len(prompt) + sum(map(len, responses))


def group_logprobs(
    adapted: AdaptedModel,
    groups: Sequence[PromptGroup],
    *,
    adapter: str | None,
    temperature: float = 1.0,
    micro_batch_tokens: int = 4096,
) -> list[list[Tensor]]:
    """Logprobs of each response token, one list a group, one tensor (response length,) a response; as `response_logprobs` to rounding.

    Runs in the caller's grad mode. A group is never split; one longer than `micro_batch_tokens` runs alone.

    Raises:
        InvalidArgumentError: an empty prompt or response.
        OutOfRangeError: a prompt with one of its responses is longer than the context.
    """
    check_sequences(adapted, [(prompt, response) for prompt, responses in groups for response in responses])
    results: dict[int, list[Tensor]] = {}
    for members in micro_batches([packed_length(group) for group in groups], micro_batch_tokens):
        batch = pack([groups[index] for index in members], pad_id=adapted.base.pad_token_id, device=adapted.base.device)
        hidden = adapted.hidden(
            batch.input_ids, batch.attention_mask, adapter=adapter, position_ids=batch.position_ids, asked=batch.predicting_mask, real=batch.real_mask
        )
        logits = adapted.logits_of(hidden[batch.rows, batch.columns])
        parts = iter(token_logprobs(logits, batch.tokens, temperature=temperature).split(list(batch.lengths)))
        for index in members:
            results[index] = [next(parts) for _ in groups[index][1]]
    return [results[index] for index in range(len(groups))]
