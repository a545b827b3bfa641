"""Supervised fine-tuning: the logprob of reference responses goes up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accord.checkpoint import Checkpoint
from accord.data.files import shown
from accord.data.readers import read_demonstrations
from accord.models.batching import collate
from accord.models.logprobs import batch_logprobs
from accord.runspec_parts import DataSpec, SftSpec
from accord.training.adapter_state import POLICY, load_adapter, save_adapter, start_adapter
from accord.training.context import RunContext
from accord.training.examples import Encoded, EncodedExample, batch_at, encode_demonstrations
from accord.training.loop import ADAPTER_FOLDER
from accord.training.optim import Optimizer


class SupervisedFineTuning:
    """Mean negative logprob of response tokens (the end of turn included), over all tokens of a batch. Implements `loop.Algorithm`."""

    def __init__(self, context: RunContext, spec: SftSpec) -> None:
        self._context = context
        self._spec = spec
        self._parents: tuple[str, ...] = ()
        self._data_digest = ""
        self._rows: Sequence[EncodedExample] = ()
        self._eval_rows: Sequence[EncodedExample] = ()

    def setup(self) -> None:
        """Reads the rows and starts the adapter."""
        rows, self._data_digest = self._read(self._spec.data)
        self._rows = rows.at_least_one("demonstrations", "sft.data").rows
        if self._spec.eval_data is not None:
            self._eval_rows = self._read(self._spec.eval_data)[0].at_least_one("demonstrations", "sft.eval_data").rows
        self._parents = start_adapter(self._context, POLICY, self._context.spec.parent_adapter)

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """The adapter."""
        return {POLICY: self._context.adapted.parameters(POLICY)}

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """Loss on held-out rows, nats a token; heeds a stop."""
        if not self._eval_rows:
            return {}
        sums = self._context.world.sums()
        with torch.no_grad():
            for part in self._context.read_parts(micro_batches_of(self._eval_rows, self._context.micro_batch_size)):
                sums.add(loss=-float(self._logprobs(part).double().sum()), tokens=sum(len(row.response) for row in part))
        total = sums.total()
        return {"eval_loss": total["loss"] / total["tokens"]}

    def step(self, step: int, optimizer: Optimizer) -> dict[str, float]:
        """One update on one batch."""
        batch = batch_at(self._rows, step, self._context.spec.batch_size, self._context.spec.seed)
        tokens = sum(len(row.response) for row in batch)
        world = self._context.world
        sums = world.sums()
        for part in world.share(micro_batches_of(batch, self._context.micro_batch_size)):
            self._context.stop.check()
            part_loss = -self._logprobs(part).sum() / tokens
            world.backward(part_loss)
            sums.add(loss=float(part_loss.detach()))
        read = tokens + sum(len(row.prompt) for row in batch)
        return sums.total() | {"grad_norm": optimizer.apply(), "response_tokens": tokens, "tokens": read}

    def save(self, folder: Path) -> None:
        """The adapter."""
        save_adapter(self._context, POLICY, folder / ADAPTER_FOLDER)

    def load(self, checkpoint: Checkpoint) -> None:
        """The adapter."""
        load_adapter(self._context, POLICY, checkpoint)

    def state(self) -> dict[str, Any]:
        """Nothing: the order of the data has no state."""
        return {}

    def publication(self) -> dict[str, Any]:
        """A policy."""
        facts = {"algorithm": "sft", "spec_digest": self._context.spec.digest}
        return {"kind": "policy", "parents": list(self._parents), "data_digest": self._data_digest, "facts": facts}

    def _logprobs(self, rows: Sequence[EncodedExample]) -> torch.Tensor:
        base = self._context.base
        batch = collate([(row.prompt, row.response) for row in rows], pad_id=base.pad_token_id, device=base.device)
        return batch_logprobs(self._context.adapted, batch, adapter=POLICY)

    def _read(self, data: DataSpec) -> tuple[Encoded[EncodedExample], str]:
        spec = self._context.spec
        found = read_demonstrations(data.uri, format=data.format, split=data.split, limit=data.limit, strict=data.strict, seed=spec.seed)
        encoded = encode_demonstrations(self._context.base.encoder, found.rows, self._context.limits)
        encoded = replace(encoded, source=found.report.account())
        self._context.events.message(f"{shown(data.uri)} ({data.split}): {encoded.account('demonstrations')}")
        return encoded, found.report.digest


def micro_batches_of(rows: Sequence[EncodedExample], size: int) -> list[list[EncodedExample]]:
    """Rows in parts of at most `size`, alike lengths together."""
    ordered = sorted(rows, key=lambda row: len(row.prompt) + len(row.response))
    return [list(ordered[start : start + size]) for start in range(0, len(ordered), size)]
