"""Direct Preference Optimization and its family: the policy learns from pairs without a reward model or rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accord.algos.preference import PreferenceLoss
from accord.checkpoint import Checkpoint
from accord.models.packing import group_logprobs
from accord.runspec import DpoSpec
from accord.training.adapter_state import POLICY, load_adapter, save_adapter, start_adapter, start_reference
from accord.training.context import RunContext
from accord.training.examples import EncodedPair, batch_at
from accord.training.loop import ADAPTER_FOLDER
from accord.training.optim import Optimizer
from accord.training.pairs import (
    agreement,
    content_key,
    hard_label,
    length_baseline,
    micro_batches_of_pairs,
    read_encoded_pairs,
    tokens_of,
    wilson_interval,
)

_ONE_PASS = 2**62  # the run's micro-batches are cut already


class DirectPreferenceOptimization:
    """DPO with LoRA: the reference is the parent adapter (or the bare base) on the same weights. Implements `loop.Algorithm`.

    Reference logprobs are computed once, for the pairs that the run will see, and kept in the run's directory by content.
    """

    def __init__(self, context: RunContext, spec: DpoSpec) -> None:
        self._context = context
        self._spec = spec
        self._loss = PreferenceLoss(spec.loss, spec.beta, spec.label_smoothing)
        self._parents: tuple[str, ...] = ()
        self._data_digest = ""
        self._pairs: Sequence[EncodedPair] = ()
        self._eval_pairs: Sequence[EncodedPair] = ()
        self._reference: dict[str, tuple[float, float]] = {}

    def setup(self) -> None:
        """Reads the pairs, starts policy and reference, computes the reference's logprobs."""
        ordered = self._spec.loss != "sigmoid"
        pairs, self._data_digest = read_encoded_pairs(self._context, self._spec.data, ordered=ordered)
        self._pairs = pairs.at_least_one("pairs", "dpo.data").rows
        if self._spec.eval_data is not None:
            self._eval_pairs = read_encoded_pairs(self._context, self._spec.eval_data, ordered=ordered)[0].rows
        self._parents = start_adapter(self._context, POLICY, self._context.spec.parent_adapter)
        reference = start_reference(self._context, self._parents)
        spec = self._context.spec
        batches = [batch_at(self._pairs, step, spec.batch_size, spec.seed) for step in range(spec.steps)]
        self._context.events.state("reference")
        self._reference = self._reference_logprobs([*batches, self._eval_pairs], reference)

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """The policy's adapter."""
        return {POLICY: self._context.adapted.parameters(POLICY)}

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """Implicit reward margin and accuracy on held-out pairs."""
        if not self._eval_pairs:
            return {}
        margins: list[float] = []
        preferences: list[float] = []
        losses: list[float] = []
        with torch.no_grad():
            for part in micro_batches_of_pairs(self._eval_pairs, self._context.micro_batch_size):
                output = self._loss(*self._sums(part, POLICY), *self._reference_of(part), self._labels(part))
                margins += output.margins.tolist()
                losses += output.losses.tolist()
                preferences += [pair.preference for pair in part]
        signed = [margin if preference >= 0.5 else -margin for margin, preference in zip(margins, preferences, strict=True)]
        hits, n = agreement(margins, preferences)
        low, high = wilson_interval(hits, n)
        return {
            "eval_margin": sum(signed) / len(signed), "eval_accuracy": hits / n if n else 0.5, "eval_accuracy_low": low,
            "eval_accuracy_high": high, "eval_loss": sum(losses) / len(losses), "eval_pairs": n,
            "eval_length_baseline": length_baseline(self._eval_pairs),
        }  # fmt: skip

    def step(self, step: int, optimizer: Optimizer) -> dict[str, float]:
        """One update on one batch of pairs."""
        batch = batch_at(self._pairs, step, self._context.spec.batch_size, self._context.spec.seed)
        total = {"loss": 0.0, "margin": 0.0, "accuracy": 0.0, "chosen_reward": 0.0, "rejected_reward": 0.0}
        for part in micro_batches_of_pairs(batch, self._context.micro_batch_size):
            self._context.stop.check()
            output = self._loss(*self._sums(part, POLICY), *self._reference_of(part), self._labels(part))
            part_loss = output.losses.sum() / len(batch)
            part_loss.backward()
            total["loss"] += float(part_loss.detach())
            total["margin"] += float(output.margins.sum()) / len(batch)
            total["accuracy"] += float(output.accuracies.sum()) / len(batch)
            total["chosen_reward"] += float(output.chosen_rewards.sum()) / len(batch)
            total["rejected_reward"] += float(output.rejected_rewards.sum()) / len(batch)
        return total | {"grad_norm": optimizer.apply(), "tokens": tokens_of(batch)}

    def save(self, folder: Path) -> None:
        """The policy's adapter."""
        save_adapter(self._context, POLICY, folder / ADAPTER_FOLDER)

    def load(self, checkpoint: Checkpoint) -> None:
        """The policy's adapter."""
        load_adapter(self._context, POLICY, checkpoint)

    def state(self) -> dict[str, Any]:
        """Nothing: order and reference have no state."""
        return {}

    def publication(self) -> dict[str, Any]:
        """A policy."""
        facts = {"algorithm": "dpo", "loss": self._spec.loss, "beta": self._spec.beta, "spec_digest": self._context.spec.digest}
        return {"kind": "policy", "parents": list(self._parents), "data_digest": self._data_digest, "facts": facts}

    def _labels(self, pairs: Sequence[EncodedPair]) -> Tensor:
        return torch.tensor([pair.preference if self._spec.soft_labels else hard_label(pair.preference) for pair in pairs])

    def _sums(self, pairs: Sequence[EncodedPair], adapter: str | None) -> tuple[Tensor, Tensor]:
        """Summed logprobs of chosen and rejected responses, (pairs,) each: one forward pass, each prompt computed once for both."""
        groups = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
        rows = group_logprobs(self._context.adapted, groups, adapter=adapter, micro_batch_tokens=_ONE_PASS)
        chosen, rejected = zip(*((first.sum(), second.sum()) for first, second in rows), strict=True)
        return torch.stack(chosen), torch.stack(rejected)

    def _reference_of(self, pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
        chosen, rejected = zip(*(self._reference[pair.id] for pair in pairs), strict=True)
        return torch.tensor(chosen), torch.tensor(rejected)

    def _reference_logprobs(self, batches: Sequence[Sequence[EncodedPair]], adapter: str | None) -> dict[str, tuple[float, float]]:
        """Logprobs of each pair under the reference, from the same micro-batches in which the policy will see it first.

        So the policy's first step has margins of exactly 0. Kept in the run's directory by content: a resumed run pays nothing.
        """
        ids = list(dict.fromkeys(pair.id for batch in batches for pair in batch))
        digest = self._context.store.manifest(self._parents[0]).digest if self._parents else "base"
        key = content_key([pair for batch in batches for pair in batch], digest, self._context.base.digests.base_model)
        path = self._context.directory.path / f"reference-{key[:16]}.safetensors"
        if path.exists():
            table = load_file(path)["logprobs"]
        else:
            found = self._compute_reference(batches, adapter)
            table = torch.tensor([found[pair_id] for pair_id in ids])
            temporary = path.with_suffix(".tmp")
            save_file({"logprobs": table}, temporary)
            temporary.replace(path)
        return {pair_id: (float(row[0]), float(row[1])) for pair_id, row in zip(ids, table, strict=True)}

    def _compute_reference(self, batches: Sequence[Sequence[EncodedPair]], adapter: str | None) -> dict[str, tuple[float, float]]:
        found: dict[str, tuple[float, float]] = {}
        for batch in batches:
            for part in micro_batches_of_pairs(batch, self._context.micro_batch_size):
                if all(pair.id in found for pair in part):
                    continue
                self._context.stop.check()
                with torch.no_grad():
                    chosen, rejected = self._sums(part, adapter)
                for pair, first, second in zip(part, chosen.tolist(), rejected.tolist(), strict=True):
                    found.setdefault(pair.id, (first, second))
        return found
