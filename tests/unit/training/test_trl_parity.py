"""Losses and gradients of whole runs equal those of TRL's trainers on the same batch, the same weights and the same tokens, to 1e-5.

TRL is a peer for tests only. Its policy is our adapter merged into the base, W + s B A; its batch is made by its own collator of our token ids. Its
gradient G of W gives ours: s B^T G of A, and s G A^T of B.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import GradientKeeper, make_context, shake, write_rows
from tests.unit.training.trl_peer import Ours, arguments, merged
from torch import Tensor, nn

from accord.training.__main__ import build

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(180)]
BETA, WORDS = 0.3, ("alpha", "gamma", "delta", "omega")


def rows(*, same_length: bool = False) -> list[dict[str, Any]]:
    return [
        {"prompt": f"say {word}", "chosen": word, "rejected": word[::-1]} if same_length
        else {"prompt": f"say {word}" + "!" * n, "chosen": word * (1 + n % 2), "rejected": "?" * (3 + n), "margin": 0.25 * n}
        for n, word in enumerate(WORDS)
    ]  # fmt: skip


def ours(root: Path, model: Path, values: dict[str, Any], *, same_length: bool = False) -> Ours:
    """The first step of a run."""
    (kind, options), *_ = values.items()
    data = write_rows(root / "rows.jsonl", rows(same_length=same_length))
    context = make_context(root, model, {kind: {"data": data, **options}})
    algorithm = build(context)
    algorithm.setup()
    shake(context, context.adapted.names[0])
    name = context.adapted.names[0]
    keeper = GradientKeeper({name: algorithm.parameters()[name]})
    loss = algorithm.step(0, keeper)["loss"]  # type: ignore[arg-type]
    return Ours(context, algorithm, loss, dict(zip(context.adapted.state(name), keeper.steps[0], strict=True)))


def trl_dpo(root: Path, ours: Ours, **options: Any) -> tuple[nn.Module, float]:
    """The model of TRL's DPOTrainer with its gradients, and its loss, on our pairs."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    context = ours.context
    pairs = [
        {"prompt_ids": list(pair.prompt), "chosen_ids": list(pair.chosen), "rejected_ids": list(pair.rejected)} for pair in ours.algorithm._pairs
    ]
    trainer = DPOTrainer(
        merged(context, "policy"), AutoModelForCausalLM.from_pretrained(context.base.folder), args=DPOConfig(beta=BETA, **options, max_length=None, **arguments(root, len(WORDS))),
        train_dataset=Dataset.from_list(rows()), processing_class=copy.deepcopy(context.base.tokenizer),
    )  # fmt: skip
    loss: Tensor = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(pairs))  # our tokens, not those of its own reading
    loss.backward()
    return trainer.model, float(loss.detach())


def test_the_sigmoid_loss(tmp_path: Path, tiny_folder: Path) -> None:
    mine = ours(tmp_path, tiny_folder, {"dpo": {"beta": BETA}})
    mine.assert_equals(*trl_dpo(tmp_path, mine, loss_type="sigmoid"))
    assert abs(mine.loss - 0.693) > 0.05, "far enough from the start to tell losses apart"


def test_the_hinge_loss(tmp_path: Path, tiny_folder: Path) -> None:
    mine = ours(tmp_path, tiny_folder, {"dpo": {"beta": BETA, "loss": "hinge"}})
    mine.assert_equals(*trl_dpo(tmp_path, mine, loss_type="hinge"))


def test_the_robust_loss(tmp_path: Path, tiny_folder: Path) -> None:
    mine = ours(tmp_path, tiny_folder, {"dpo": {"beta": BETA, "loss": "robust", "label_smoothing": 0.1}})
    mine.assert_equals(*trl_dpo(tmp_path, mine, loss_type="robust", label_smoothing=0.1))


def test_the_sigmoid_loss_with_the_chosen_responses_nll(tmp_path: Path, tiny_folder: Path) -> None:
    """TRL's mean is over all tokens of a batch, the paper's and ours over each response's: the same where they are of one length."""
    mine = ours(tmp_path, tiny_folder, {"dpo": {"beta": BETA, "nll_coefficient": 0.2}}, same_length=True)
    mine.assert_equals(*trl_dpo(tmp_path, mine, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2]))


def test_the_ipo_loss_where_all_responses_are_of_one_length(tmp_path: Path, tiny_folder: Path) -> None:
    """Ours is on sums over tokens as the paper's, TRL's on means: with n tokens each, ours at beta / n is n^2 times TRL's at beta."""
    n = len(WORDS[0]) + 1
    mine = ours(tmp_path, tiny_folder, {"dpo": {"beta": BETA / n, "loss": "ipo"}}, same_length=True)
    peer, loss = trl_dpo(tmp_path, mine, loss_type="ipo")
    mine.loss, mine.gradients = mine.loss / n**2, {key: gradient / n**2 for key, gradient in mine.gradients.items()}
    mine.assert_equals(peer, loss)


@pytest.mark.parametrize(("centering", "margin"), [(0.0, 0.0), (0.05, 0.0), (0.0, 1.0), (0.0, 2.0)])
def test_the_reward_loss(tmp_path: Path, tiny_folder: Path, centering: float, margin: float) -> None:
    """Plain, with TRL's auxiliary loss that centres scores, and with the margins of its data, which ours reads as rating gaps."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    mine = ours(tmp_path, tiny_folder, {"reward_model": {"centering_coefficient": centering, "rating_margin": margin}})
    context, algorithm = mine.context, mine.algorithm
    peer = AutoModelForSequenceClassification.from_pretrained(context.base.folder, num_labels=1)
    peer.model.load_state_dict(merged(context, "reward").model.state_dict())  # type: ignore[union-attr]
    with torch.no_grad():
        peer.score.weight.copy_(algorithm._head.weight[None])
    gaps = [pair.rating_gap for pair in algorithm._pairs]
    assert gaps == [0.25 * n for n in range(len(WORDS))]
    pairs = [
        {"chosen_ids": [*pair.prompt, *pair.chosen], "rejected_ids": [*pair.prompt, *pair.rejected], "margin": margin * gap}
        for pair, gap in zip(algorithm._pairs, gaps, strict=True)
    ]
    trainer = RewardTrainer(
        peer, args=RewardConfig(center_rewards_coefficient=centering or None, max_length=None, **arguments(tmp_path, len(WORDS))), train_dataset=Dataset.from_list(pairs),
        processing_class=copy.deepcopy(context.base.tokenizer),
    )  # fmt: skip
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(pairs))])
    loss: Tensor = trainer.compute_loss(trainer.model.eval(), dict(batch))
    loss.backward()
    mine.assert_equals(trainer.model, float(loss.detach()))
    torch.testing.assert_close(algorithm._head.weight.grad[None], trainer.model.score.weight.grad, rtol=1e-4, atol=1e-5)
