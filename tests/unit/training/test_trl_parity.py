"""Losses of whole runs equal those of TRL's trainers on the same batch, the same weights and the same tokens, to 1e-5.

TRL is a peer for tests only. Its policy is our adapter merged into the base; its batch is made by its own collator of our token ids.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import GradientKeeper, make_context, shake, write_rows
from torch import Tensor, nn

from accord.algos.preference import bradley_terry_loss
from accord.training.__main__ import build
from accord.training.context import RunContext

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(180)]
BETA, WORDS = 0.3, ("alpha", "gamma", "delta", "omega")


def rows(*, same_length: bool = False) -> list[dict[str, Any]]:
    return [
        {"prompt": f"say {word}", "chosen": word, "rejected": word[::-1]} if same_length
        else {"prompt": f"say {word}" + "!" * n, "chosen": word * (1 + n % 2), "rejected": "?" * (3 + n)}
        for n, word in enumerate(WORDS)
    ]  # fmt: skip


def merged(context: RunContext, adapter: str) -> nn.Module:
    """A plain copy of the base model with the adapter's update added to its weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(context.base.folder)
    state = context.adapted.state(adapter)
    scale = context.spec.lora.scale_alpha / context.spec.lora.rank
    with torch.no_grad():
        for key in (key for key in state if key.endswith("lora_A.weight")):
            module = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            module.weight += scale * state[key.replace("lora_A", "lora_B")] @ state[key]
    return model


def ours(root: Path, model: Path, values: dict[str, Any], *, same_length: bool = False) -> tuple[RunContext, Any, float]:
    """A run whose adapter is shaken, and the loss of its first step."""
    (kind, options), *_ = values.items()
    data = write_rows(root / "rows.jsonl", rows(same_length=same_length))
    context = make_context(root, model, {kind: {"data": data, **options}})
    algorithm = build(context)
    algorithm.setup()
    shake(context, context.adapted.names[0])
    loss = algorithm.step(0, GradientKeeper(algorithm.parameters()))["loss"]  # type: ignore[arg-type]
    return context, algorithm, loss


def arguments(root: Path) -> dict[str, Any]:
    return {
        "output_dir": str(root / "trl"), "report_to": [], "use_cpu": True, "bf16": False, "fp16": False, "gradient_checkpointing": False,
        "max_length": None, "disable_dropout": True, "per_device_train_batch_size": len(WORDS),
    }  # fmt: skip


def trl_dpo(root: Path, context: RunContext, algorithm: Any, **options: Any) -> float:
    """The loss of TRL's DPOTrainer on our pairs."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    pairs = [{"prompt_ids": list(pair.prompt), "chosen_ids": list(pair.chosen), "rejected_ids": list(pair.rejected)} for pair in algorithm._pairs]
    trainer = DPOTrainer(
        merged(context, "policy"), AutoModelForCausalLM.from_pretrained(context.base.folder), args=DPOConfig(beta=BETA, **options, **arguments(root)),
        train_dataset=Dataset.from_list(rows()), processing_class=copy.deepcopy(context.base.tokenizer),
    )  # fmt: skip
    loss: Tensor = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(pairs))  # our tokens, not those of its own reading
    return float(loss.detach())


def test_the_sigmoid_loss(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, loss = ours(tmp_path, tiny_folder, {"dpo": {"beta": BETA}})
    assert trl_dpo(tmp_path, context, algorithm, loss_type="sigmoid") == pytest.approx(loss, abs=1e-5)
    assert abs(loss - 0.693) > 0.05, "far enough from the start to tell losses apart"


def test_the_hinge_loss(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, loss = ours(tmp_path, tiny_folder, {"dpo": {"beta": BETA, "loss": "hinge"}})
    assert trl_dpo(tmp_path, context, algorithm, loss_type="hinge") == pytest.approx(loss, abs=1e-5)


def test_the_robust_loss(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, loss = ours(tmp_path, tiny_folder, {"dpo": {"beta": BETA, "loss": "robust", "label_smoothing": 0.1}})
    assert trl_dpo(tmp_path, context, algorithm, loss_type="robust", label_smoothing=0.1) == pytest.approx(loss, abs=1e-5)


def test_the_ipo_loss_where_all_responses_are_of_one_length(tmp_path: Path, tiny_folder: Path) -> None:
    """Ours is on sums over tokens as the paper's, TRL's on means: with n tokens each, ours at beta / n is n^2 times TRL's at beta."""
    n = len(WORDS[0]) + 1
    context, algorithm, loss = ours(tmp_path, tiny_folder, {"dpo": {"beta": BETA / n, "loss": "ipo"}}, same_length=True)
    assert trl_dpo(tmp_path, context, algorithm, loss_type="ipo") == pytest.approx(loss / n**2, abs=1e-5)


@pytest.mark.parametrize("centering", [0.0, 0.05])
def test_the_reward_loss(tmp_path: Path, tiny_folder: Path, centering: float) -> None:
    """Plain, and with TRL's auxiliary loss that centres scores; with margins through `accord.algos`."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    context, algorithm, loss = ours(tmp_path, tiny_folder, {"reward_model": {"centering_coefficient": centering}})
    peer = AutoModelForSequenceClassification.from_pretrained(context.base.folder, num_labels=1)
    peer.model.load_state_dict(merged(context, "reward").model.state_dict())  # type: ignore[union-attr]
    with torch.no_grad():
        peer.score.weight.copy_(algorithm._head.weight[None])
    pairs = [
        {"chosen_ids": [*pair.prompt, *pair.chosen], "rejected_ids": [*pair.prompt, *pair.rejected], "margin": 0.25 * n}
        for n, pair in enumerate(algorithm._pairs)
    ]
    trainer = RewardTrainer(
        peer, args=RewardConfig(center_rewards_coefficient=centering or None, **arguments(tmp_path)), train_dataset=Dataset.from_list(pairs),
        processing_class=copy.deepcopy(context.base.tokenizer),
    )  # fmt: skip
    batch = trainer.data_collator([trainer.train_dataset[n] for n in range(len(pairs))])
    margins = batch.pop("margin")
    assert float(trainer.compute_loss(trainer.model.eval(), dict(batch))) == pytest.approx(loss, abs=1e-5)
    if not centering:
        with torch.no_grad():
            chosen, rejected = algorithm._scores(algorithm._pairs)
        expected = bradley_terry_loss(chosen, rejected, margin=margins).losses.mean()
        assert float(trainer.compute_loss(trainer.model, {**batch, "margin": margins})) == pytest.approx(float(expected), abs=1e-5)
