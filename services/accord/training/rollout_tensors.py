"""The tensors of a batch of rollouts, padded to (rollouts, longest response), and the passes that make them.

What does not belong here: gradients and updates (`accord.training.ppo`, `groups`), services (`accord.training.rollout`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from accord.algos.logprobs import token_entropy, token_logprobs
from accord.models.batching import collate
from accord.models.logprobs import pad_rows
from accord.models.lora import AdaptedModel
from accord.training.distribution import World
from accord.training.rollout import Rollout


@dataclass(frozen=True)
class RolloutTensors:
    """What a batch of rollouts is learned from; (rollouts, T) each but `scores` (rollouts,). No gradient.

    `old_logprobs` are those of the policy before the update; `behaviour_logprobs` those of the policy that sampled, the same where that is it.
    `checked` are the rows on which this process has computed the behaviour policy's logprobs; `entropy` is NaN where it was not computed.
    """

    mask: Tensor
    old_logprobs: Tensor
    reference_logprobs: Tensor
    entropy: Tensor
    scores: Tensor
    behaviour_logprobs: Tensor
    checked: tuple[int, ...]

    @property
    def log_ratio(self) -> Tensor:
        """log pi - log pi_ref of each token of the policy that sampled it, whose mean alone estimates a KL; 0 where the mask is False."""
        return torch.where(self.mask, self.behaviour_logprobs - self.reference_logprobs, torch.zeros_like(self.old_logprobs))


class Adapters(NamedTuple):
    """What to run over rollouts: the policy that learns, its reference (None is the bare base), the policy that sampled."""

    policy: str
    reference: str | None
    behaviour: str


class RolloutModel:
    """Runs policy and reference over rollouts.

    Args:
        adapted: holds the adapters.
        world: whose processes share the passes.
        temperature: of sampling; logprobs of policy and reference are taken at it.
        before_pass: is called before each pass of `tensors`.
    """

    def __init__(self, adapted: AdaptedModel, world: World, *, temperature: float, before_pass: Callable[[], None] = lambda: None) -> None:
        self._adapted = adapted
        self._world = world
        self._temperature = temperature
        self._before_pass = before_pass

    def tensors(
        self, rollouts: Sequence[Rollout], adapters: Adapters, *, micro_batch_size: int, checked: Sequence[int] | None = None
    ) -> RolloutTensors:
        """What policy and reference say of rollouts now, without gradient; so many rollouts a pass.

        With `checked`, the behaviour policy's logprobs are computed for those rows alone, and are the sampler's for the others.
        """
        every = range(len(rollouts))
        rows = every if checked is None else checked
        with torch.no_grad():
            reference, _ = self._filled(rollouts, every, adapters.reference, micro_batch_size, entropy=False)
            behaviour, entropy = self._filled(rollouts, rows, adapters.behaviour, micro_batch_size)
            chosen = torch.zeros(len(rollouts), 1, dtype=torch.bool, device=behaviour.device)
            chosen[list(rows)] = True
            behaviour = torch.where(chosen, behaviour, sampler_logprobs(rollouts, behaviour))
            old = behaviour
            if adapters.behaviour != adapters.policy:
                old, entropy = self._filled(rollouts, every, adapters.policy, micro_batch_size)
        lengths = torch.tensor([[len(each.response_ids)] for each in rollouts], device=old.device)
        mask = torch.arange(old.shape[1], device=old.device) < lengths
        scores = torch.tensor([rollout.score for rollout in rollouts])
        return RolloutTensors(mask, old, reference, entropy, scores, behaviour, tuple(rows))

    def _filled(
        self, rollouts: Sequence[Rollout], members: Sequence[int], adapter: str | None, size: int, *, entropy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Logprobs and entropies of the members' tokens, (rollouts, longest response) both; 0 and NaN elsewhere, and where none is asked for."""
        table = self._world.rows(len(rollouts), max(len(each.response_ids) for each in rollouts), 2)
        for part in self._world.share(micro_batches(rollouts, members, size)):
            self._before_pass()
            rows, spread = self._token_rows([rollouts[index] for index in part], adapter, entropy=entropy)
            found = pad_rows(rows)[0]
            table.put(part, torch.stack([found, pad_rows(spread)[0] if entropy else torch.full_like(found, torch.nan)], dim=2))
        logprobs, entropies = table.whole().unbind(dim=2)
        computed = torch.zeros(len(rollouts), 1, dtype=torch.bool, device=entropies.device)
        computed[list(members)] = True
        return logprobs.contiguous(), torch.where(computed, entropies, torch.nan)

    def logprobs(self, rollouts: Sequence[Rollout], adapter: str | None) -> tuple[Tensor, Tensor]:
        """Logprobs of the sampled tokens in nats, and their mask: (rollouts, T) both. The caller's grad mode holds."""
        rows, _ = self._token_rows(rollouts, adapter, entropy=False)
        return pad_rows(rows)

    def logprobs_and_entropy(self, rollouts: Sequence[Rollout], adapter: str | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `logprobs`, with the entropy of each token's distribution."""
        rows, entropies = self._token_rows(rollouts, adapter, entropy=True)
        padded, mask = pad_rows(rows)
        return padded, mask, pad_rows(entropies)[0]

    def _token_rows(self, rollouts: Sequence[Rollout], adapter: str | None, *, entropy: bool) -> tuple[list[Tensor], list[Tensor]]:
        base = self._adapted.base
        batch = collate([(each.prompt_ids, each.response_ids) for each in rollouts], pad_id=base.pad_token_id, device=base.device)
        hidden = self._adapted.hidden(
            batch.input_ids, batch.attention_mask, adapter=adapter, position_ids=batch.position_ids, asked=batch.predicting_mask
        )
        logits = self._adapted.logits_at(hidden, batch.predicting_mask)
        lengths = [len(each.response_ids) for each in rollouts]
        flat = token_logprobs(logits, batch.input_ids[batch.response_mask], temperature=self._temperature)
        entropies = token_entropy(logits, temperature=self._temperature).split(lengths) if entropy else ()
        return list(flat.split(lengths)), list(entropies)


def sampler_logprobs(rollouts: Sequence[Rollout], like: Tensor) -> Tensor:
    """What the policy service said of the tokens that it sampled, nats, in the shape of `like` (rollouts, T); 0 behind a response."""
    found = torch.zeros_like(like)
    for index, rollout in enumerate(rollouts):
        found[index, : len(rollout.sampler_logprobs)] = torch.tensor(rollout.sampler_logprobs)
    return found


def micro_batches(rollouts: Sequence[Rollout], members: Sequence[int], size: int) -> list[list[int]]:
    """Indices of `members` in parts of at most `size`, rollouts of alike lengths together."""
    ordered = sorted(members, key=lambda index: (len(rollouts[index].prompt_ids) + len(rollouts[index].response_ids), index))
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]
