"""GRPO and RLOO beside TRL's trainers on the same rollouts: advantages, loss and gradients of a second update, to 1e-5.

TRL is a peer for tests only. It is given our prompts, responses and scores in place of its own sampling, computes advantages, old and reference
logprobs itself, and then its loss under a policy that has moved since.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import GradientKeeper, make_rollout_run, planted_pairs, shake, write_rows
from tests.unit.training.trl_peer import Ours, arguments, merged
from torch import Tensor, nn

from accord.training.context import RunContext
from accord.training.distribution import World
from accord.training.groups import GroupBatch
from accord.training.rollout import Rollout, read_rollouts
from accord.training.rollout_metrics import Averages

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(180)]
SIZE, GROUP, BETA, CLIP, TEMPERATURE, LONGEST = 8, 4, 0.3, 0.1, 0.7, 10


@dataclass
class Step:
    """Rollouts of a shaken policy with their advantages; `move` is what the policy learns afterwards."""

    context: RunContext
    algorithm: Any
    rollouts: list[Rollout]
    batch: GroupBatch

    def second_update(self) -> Ours:
        """Loss and gradients of the whole batch under the policy as it is now."""
        averages, keeper = Averages(World()), GradientKeeper({"policy": self.algorithm.parameters()["policy"]})
        self.algorithm._minibatch(range(SIZE), self.batch, averages)
        keeper.apply()
        averages.add("grad_norm", 0.0)
        metrics = averages.values()
        loss = metrics["policy_loss"] + BETA * metrics.get("kl_loss", 0.0)
        assert 0 < metrics["clip_fraction"] < 1, "clipping is compared too"
        return Ours(self.context, self.algorithm, loss, dict(zip(self.context.adapted.state("policy"), keeper.steps[0], strict=True)))


def first_step(root: Path, model: Path, kind: str, **part: Any) -> Step:
    data = write_rows(root / "rows.jsonl", planted_pairs())
    part = {"data": data, "group_size": GROUP, "kl_coef": BETA, "clip_range": CLIP, "temperature": TEMPERATURE, "missing_eos_penalty": 0.0, **part}
    values = {"batch_size": SIZE, "micro_batch_size": 3, "max_response_tokens": LONGEST, "max_prompt_tokens": 120, kind: part}
    context, algorithm, source = make_rollout_run(root, model, values, score=lambda ids: 0.3 * sum(ids) / len(ids) % 5)
    source.spread = 5
    algorithm.setup()
    shake(context, "policy")
    kept: list[GroupBatch] = []
    minibatch = algorithm._minibatch
    algorithm._minibatch = lambda members, batch, averages: (kept.append(batch), minibatch(members, batch, averages))
    algorithm.step(0, GradientKeeper(algorithm.parameters()))
    algorithm._minibatch = minibatch
    rollouts = read_rollouts(context.directory.rollouts / "00000000.jsonl")
    assert rollouts is not None
    assert len({len(rollout.response_ids) for rollout in rollouts}) > 3, "normalizations differ where lengths do"
    return Step(context, algorithm, rollouts, kept[0])


def peer_of(root: Path, step: Step, trainer_class: type, config_class: type, **options: Any) -> Any:
    """TRL's trainer around our policy as it was when it sampled, that 'samples' our rollouts and 'scores' them as they were scored."""
    from datasets import Dataset

    rows = [{"prompt": rollout.id} for rollout in step.rollouts]
    config = config_class(
        beta=BETA, epsilon=CLIP, temperature=TEMPERATURE, num_generations=GROUP, max_completion_length=LONGEST, num_iterations=2,
        per_device_eval_batch_size=SIZE, **options, **arguments(root, SIZE),
    )  # fmt: skip
    peer = trainer_class(
        merged(step.context, "policy"), reward_funcs=lambda **_: [rollout.score for rollout in step.rollouts], args=config,
        train_dataset=Dataset.from_list(rows), processing_class=copy.deepcopy(step.context.base.tokenizer),
    )  # fmt: skip
    peer.model.eval()
    return peer


def update_of(peer: Any, step: Step, inputs: dict[str, Tensor]) -> tuple[nn.Module, float]:
    """The peer's loss under our policy as it is now, with gradients."""
    with torch.no_grad():
        for mine, other in zip(peer.model.parameters(), merged(step.context, "policy").parameters(), strict=True):
            mine.copy_(other)
    loss: Tensor = peer._compute_loss(peer.model, inputs)
    loss.backward()
    return peer.model, float(loss.detach())


@pytest.mark.parametrize(
    ("normalization", "loss_type", "scaled"),
    [("response", "grpo", True), ("tokens", "bnpo", True), ("tokens", "dapo", False), ("constant", "dr_grpo", False)],
)
def test_grpo(tmp_path: Path, tiny_folder: Path, normalization: str, loss_type: str, scaled: bool) -> None:
    """The KL term is the paper's; TRL 1.16 multiplies it by the ratio unless it is told not to, which is another gradient."""
    from trl import GRPOConfig, GRPOTrainer

    step = first_step(tmp_path, tiny_folder, "grpo", loss_normalization=normalization, scale_advantages=scaled)
    peer = peer_of(
        tmp_path, step, GRPOTrainer, GRPOConfig, loss_type=loss_type, scale_rewards="group" if scaled else "none", use_bias_correction_kl=False
    )
    prompts, responses = ([list(ids) for ids in column] for column in _columns(step.rollouts))
    peer._generate = lambda _: (prompts, responses, None, [""] * SIZE, None, {}, None, None)
    inputs = peer._generate_and_score_completions([{"prompt": rollout.id} for rollout in step.rollouts])
    torch.testing.assert_close(step.batch.advantages, inputs["advantages"], rtol=1e-5, atol=1e-5)
    _same_logprobs(step, inputs["old_per_token_logps"], inputs["ref_per_token_logps"])
    _move_a_little(step.context, 0.03)
    step.second_update().assert_equals(*update_of(peer, step, inputs))


def test_rloo(tmp_path: Path, tiny_folder: Path) -> None:
    from trl import RLOOConfig, RLOOTrainer

    step = first_step(tmp_path, tiny_folder, "rloo")
    peer = peer_of(tmp_path, step, RLOOTrainer, RLOOConfig)
    prompts, responses = ([list(ids) for ids in column] for column in _columns(step.rollouts))
    peer._generate = lambda _: (prompts, responses, [""] * SIZE)
    inputs = peer._generate_and_score_completions([{"prompt": rollout.id} for rollout in step.rollouts])
    torch.testing.assert_close(step.batch.advantages, inputs["advantages"], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close((step.batch.tensors.old_logprobs * step.batch.tensors.mask).sum(dim=1), inputs["old_logps"], rtol=1e-5, atol=1e-4)
    _move_a_little(step.context, 0.004)
    step.second_update().assert_equals(*update_of(peer, step, inputs))


def _columns(rollouts: list[Rollout]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    return [rollout.prompt_ids for rollout in rollouts], [rollout.response_ids for rollout in rollouts]


def _same_logprobs(step: Step, old: Tensor, reference: Tensor) -> None:
    mask = step.batch.tensors.mask
    for mine, other in ((step.batch.tensors.old_logprobs, old), (step.batch.tensors.reference_logprobs, reference)):
        torch.testing.assert_close(mine[mask], other[mask], rtol=1e-5, atol=1e-5)


def _move_a_little(context: RunContext, size: float) -> None:
    """So far that some tokens (or whole responses) are clipped and some are not."""
    generator = torch.Generator().manual_seed(5)
    state = {key: tensor + size * torch.randn(tensor.shape, generator=generator) for key, tensor in context.adapted.state("policy").items()}
    context.adapted.load_state("policy", state)
