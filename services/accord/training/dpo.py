"""Direct Preference Optimization and its family: the policy learns from pairs without a reward model or rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from accord.checkpoint import Checkpoint
from accord.runspec_parts import DpoSpec
from accord.training.adapter_state import POLICY, load_adapter, save_adapter, start_adapter, start_reference
from accord.training.context import RunContext
from accord.training.examples import EncodedPair, batch_at, rows_from
from accord.training.loop import ADAPTER_FOLDER
from accord.training.optim import Optimizer
from accord.training.pair_loss import PairLoss
from accord.training.pairs import read_encoded_pairs, read_ratings, tokens_of
from accord.training.reference import ReferenceLogprobs


class DirectPreferenceOptimization:
    """DPO with LoRA: the reference is the parent adapter (or the bare base) on the same weights. Implements `loop.Algorithm`.

    Reference logprobs are computed once, for the pairs that the run will see, and kept by content for all runs.
    """

    _reference: ReferenceLogprobs

    def __init__(self, context: RunContext, spec: DpoSpec) -> None:
        self._context = context
        self._spec = spec
        self._loss = PairLoss(context, spec, spec.nll_coefficient)
        self._parents: tuple[str, ...] = ()
        self._data_digest = ""
        self._labelled_by: dict[str, list[str]] = {}
        self._pairs: Sequence[EncodedPair] = ()
        self._eval_pairs: Sequence[EncodedPair] = ()

    def setup(self) -> None:
        """Reads the pairs, starts policy and reference, has the reference's logprobs at hand."""
        spec, run = self._spec, self._context.spec
        hard = not spec.soft_labels
        pairs, self._data_digest = read_encoded_pairs(self._context, spec.data, hard=hard)
        self._pairs = pairs.at_least_one("pairs", "dpo.data").rows
        self._labelled_by = {"label_jobs": list(pairs.label_jobs)} if pairs.label_jobs else {}
        self._loss.ratings = read_ratings(self._pairs, margin=spec.rating_margin, weights=spec.rating_weights, part="dpo")
        if spec.eval_data is not None:
            held, _ = read_encoded_pairs(self._context, spec.eval_data, hard=hard)
            self._eval_pairs = held.at_least_one("pairs", "dpo.eval_data").rows
        self._parents = start_adapter(self._context, POLICY, run.parent_adapter)
        adapter = start_reference(self._context, self._parents)
        self._reference = ReferenceLogprobs(self._context, adapter, "".join(self._parents), self._loss.sums)
        self._context.events.state("reference")
        drawn = run.steps * run.batch_size
        seen = rows_from(self._pairs, 0, drawn, run.seed) if drawn < len(self._pairs) else self._pairs
        self._reference.prepare([*seen, *self._eval_pairs])

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """The policy's adapter."""
        return {POLICY: self._context.adapted.parameters(POLICY)}

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """Implicit reward margin and accuracy on held-out pairs."""
        return self._loss.evaluate(self._eval_pairs, self._reference)

    def step(self, step: int, optimizer: Optimizer) -> dict[str, float]:
        """One update on one batch of pairs."""
        batch = self._batch(step)
        return self._loss.accumulate(batch, self._reference) | {"grad_norm": optimizer.apply(), "tokens": tokens_of(batch)}

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
        spec = self._spec
        loss = {"loss": spec.loss, "beta": spec.beta} | ({"nll_coefficient": spec.nll_coefficient} if spec.nll_coefficient else {})
        facts = {"algorithm": "dpo", **loss, "spec_digest": self._context.spec.digest, **self._labelled_by}
        return {"kind": "policy", "parents": list(self._parents), "data_digest": self._data_digest, "facts": facts}

    def _batch(self, step: int) -> list[EncodedPair]:
        return batch_at(self._pairs, step, self._context.spec.batch_size, self._context.spec.seed)
