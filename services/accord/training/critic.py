"""PPO's critic: an adapter over the shared base model and a scalar head, warm-started from the reward model or fresh.

What does not belong here: the value loss (`accord.algos.ppo`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from accord.checkpoint import Checkpoint
from accord.models.batching import collate
from accord.models.heads import HEAD_FILE, HeadFacts, ScalarHead
from accord.models.logprobs import pad_rows
from accord.training.adapter_state import POLICY, load_adapter, save_adapter
from accord.training.context import RunContext
from accord.training.distribution import Rows
from accord.training.rollout import Rollout
from accord.training.rollout_tensors import micro_batches

VALUE = "value"


class Critic:
    """Values of the states before each response token. Its adapter is called `value`."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self.head = ScalarHead(context.base.hidden_size).to(context.base.device)

    def start_fresh(self) -> None:
        """Starts with values of 0, in the form of the policy's adapter."""
        self._context.adapted.add_like(VALUE, POLICY, seed=(self._context.spec.seed + 1) % 2**64)  # torch takes no larger one

    def start_from_reward_model(self, version: str) -> None:
        """Starts as a reward model, on the scale of its scores."""
        folder = self._context.read_store(lambda store: store.fetch(version))
        facts = HeadFacts.from_facts(self._context.manifest(version).facts)
        self._context.adapted.load(VALUE, folder, trainable=True)
        stored = ScalarHead.load(folder, hidden_size=self._context.base.hidden_size)
        with torch.no_grad():
            self.head.weight.copy_(stored.weight / facts.std)
            self.head.bias.copy_((stored.bias - facts.mean) / facts.std)

    def values(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Value of the state before each response token, (rollouts, T). The caller's grad mode holds."""
        base, adapted = self._context.base, self._context.adapted
        batch = collate([(each.prompt_ids, each.response_ids) for each in rollouts], pad_id=base.pad_token_id, device=base.device)
        hidden = adapted.hidden(batch.input_ids, batch.attention_mask, adapter=VALUE, position_ids=batch.position_ids, asked=batch.predicting_mask)
        flat = self.head(hidden[batch.predicting_mask])
        return pad_rows(flat.split([len(each.response_ids) for each in rollouts]))[0]

    def fill(self, table: Rows, rollouts: Sequence[Rollout], members: Sequence[int]) -> None:
        """Puts the members' `values`, without gradient, into their rows of a table.

        Raises:
            RunStopped: the run was asked to stop between two passes.
        """
        with torch.no_grad():
            for part in self._context.world.share(micro_batches(rollouts, members, self._context.micro_batch_size)):
                self._context.stop.check()
                table.put(part, self.values([rollouts[index] for index in part]))

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Adapter and head."""
        return {VALUE: self._context.adapted.parameters(VALUE), "head": [self.head.weight, self.head.bias]}

    def save(self, folder: Path) -> None:
        """Writes both into a folder of a checkpoint."""
        save_adapter(self._context, VALUE, folder / VALUE)
        self.head.save(folder / VALUE)

    def load(self, checkpoint: Checkpoint) -> None:
        """Takes up both."""
        load_adapter(self._context, VALUE, checkpoint, VALUE)
        stored = load_file(checkpoint.path / VALUE / HEAD_FILE)
        with torch.no_grad():
            self.head.weight.copy_(stored["weight"])
            self.head.bias.copy_(stored["bias"].reshape(()))
