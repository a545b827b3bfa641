"""Lists of token ids to padded tensors, and lists of lengths to micro-batches.

What does not belong here: tokenizing (`accord.models.encoding`) and running a model (`accord.models.lora`, `accord.models.logprobs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TokenSequence = tuple[Sequence[int], Sequence[int]]  # prompt ids, response ids


@dataclass(frozen=True)
class Batch:
    """Padded sequences. All tensors have shape (batch, T); masks are True where the token counts.

    `response_mask` marks response tokens; `predicting_mask` the positions whose logits predict them (one to the left).
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    response_mask: Tensor

    @property
    def predicting_mask(self) -> Tensor:
        """True where the next token is a response token."""
        shifted = torch.zeros_like(self.response_mask)
        shifted[:, :-1] = self.response_mask[:, 1:]
        return shifted

    @property
    def last_token_index(self) -> Tensor:
        """Index of each sequence's last real token, shape (batch,)."""
        positions = torch.arange(self.attention_mask.shape[1], device=self.attention_mask.device)
        return (self.attention_mask * positions).argmax(dim=1)

    @property
    def last_token_mask(self) -> Tensor:
        """True at each sequence's last real token."""
        mask = torch.zeros_like(self.attention_mask)
        mask[torch.arange(len(mask), device=mask.device), self.last_token_index] = True
        return mask

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.position_ids.to(device), self.response_mask.to(device))


def collate(
    sequences: Sequence[TokenSequence], *, pad_id: int, side: Literal["left", "right"] = "right", device: torch.device | str = "cpu"
) -> Batch:
    """A padded batch of (prompt ids, response ids). Positions count real tokens from 0 whatever the side; pads stand at position 0.

    Raises:
        ValueError: there is no sequence, or one has no token at all.
    """
    rows = [[*prompt, *response] for prompt, response in sequences]
    if not rows or not all(rows):
        raise ValueError("a batch needs at least one sequence, and each sequence at least one token")
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.bool)
    position_ids = torch.zeros((len(rows), width), dtype=torch.long)
    response_mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, (row, (prompt, _)) in enumerate(zip(rows, sequences, strict=True)):
        start = 0 if side == "right" else width - len(row)
        end = start + len(row)
        input_ids[index, start:end] = torch.tensor(row)
        attention_mask[index, start:end] = True
        position_ids[index, start:end] = torch.arange(len(row))
        response_mask[index, start + len(prompt) : end] = True
    return Batch(input_ids, attention_mask, position_ids, response_mask).to(device)


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of sequences grouped so that each group's padded size (rows x longest) is at most `max_tokens`.

    Longest first, so that memory peaks at the first group; a sequence longer than `max_tokens` stands alone. Each index comes once.

    Raises:
        ValueError: max_tokens is not positive.
    """
    if max_tokens <= 0:
        raise ValueError(f"max_tokens must be positive, got {max_tokens}")
    groups: list[list[int]] = []
    width = 0
    for index in sorted(range(len(lengths)), key=lambda each: (-lengths[each], each)):
        if groups and (len(groups[-1]) + 1) * width <= max_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
            width = lengths[index]
    return groups
