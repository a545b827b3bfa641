"""The tensors of a batch of rollouts: logprobs, values, rewards and advantages, padded to (rollouts, longest response).

What does not belong here: gradients and updates (`accord.training.ppo`), services (`accord.training.rollout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accord.algos.logprobs import token_entropy, token_logprobs
from accord.models.batching import collate
from accord.models.heads import ScalarHead
from accord.models.logprobs import pad_rows
from accord.models.lora import AdaptedModel
from accord.training.rollout import Rollout


@dataclass(frozen=True)
class RolloutTensors:
    """What a batch of rollouts is learned from; (rollouts, T) each but `scores` (rollouts,). No gradient."""

    mask: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor
    old_values: Tensor
    entropy: Tensor
    scores: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """log pi - log pi_ref of each token, 0 where the mask is False."""
        return torch.where(self.mask, self.old_logprobs - self.reference_logprobs, torch.zeros_like(self.old_logprobs))


class RolloutModel:
    """Runs policy, reference and critic over rollouts.

    Args:
        adapted: holds the adapters.
        temperature: of sampling; logprobs of policy and reference are taken at it.
        head: of the critic.
    """

    def __init__(self, adapted: AdaptedModel, head: ScalarHead, *, temperature: float) -> None:
        self._adapted = adapted
        self._head = head
        self._temperature = temperature

    def logprobs(self, rollouts: Sequence[Rollout], adapter: str | None) -> tuple[Tensor, Tensor]:
        """Logprobs of the sampled tokens in nats, and their mask: (rollouts, T) both. The caller's grad mode holds."""
        rows, _ = self._token_rows(rollouts, adapter, entropy=False)
        return pad_rows(rows)

    def logprobs_and_entropy(self, rollouts: Sequence[Rollout], adapter: str | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `logprobs`, with the entropy of each token's distribution."""
        rows, entropies = self._token_rows(rollouts, adapter, entropy=True)
        padded, mask = pad_rows(rows)
        return padded, mask, pad_rows(entropies)[0]

    def values(self, rollouts: Sequence[Rollout], adapter: str) -> Tensor:
        """Value of the state before each response token, (rollouts, T)."""
        base = self._adapted.base
        batch = collate([(each.prompt_ids, each.response_ids) for each in rollouts], pad_id=base.pad_token_id, device=base.device)
        hidden = self._adapted.hidden(batch.input_ids, batch.attention_mask, adapter=adapter, position_ids=batch.position_ids)
        flat = self._head(hidden[batch.predicting_mask])
        return pad_rows(flat.split([len(each.response_ids) for each in rollouts]))[0]

    def _token_rows(self, rollouts: Sequence[Rollout], adapter: str | None, *, entropy: bool) -> tuple[list[Tensor], list[Tensor]]:
        base = self._adapted.base
        batch = collate([(each.prompt_ids, each.response_ids) for each in rollouts], pad_id=base.pad_token_id, device=base.device)
        hidden = self._adapted.hidden(batch.input_ids, batch.attention_mask, adapter=adapter, position_ids=batch.position_ids)
        logits = self._adapted.logits_at(hidden, batch.predicting_mask)
        lengths = [len(each.response_ids) for each in rollouts]
        flat = token_logprobs(logits, batch.input_ids[batch.response_mask], temperature=self._temperature)
        entropies = token_entropy(logits, temperature=self._temperature).split(lengths) if entropy else ()
        return list(flat.split(lengths)), list(entropies)


def stack_padded(parts: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """Parts of (rows, T_i) as one tensor (all rows, longest T) with row `order[i]` at place i of the parts' concatenation."""
    width = max(part.shape[1] for part in parts)
    padded = torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])
    result = torch.empty_like(padded)
    result[torch.tensor(list(order))] = padded
    return result
