"""Averages over micro-batches, and alarms that say what to look at."""

from __future__ import annotations

import pytest
import torch

from accord.algos.ppo import PolicyLoss, ValueLoss
from accord.training.ppo_metrics import Averages, alarms


def losses(value: float) -> tuple[PolicyLoss, ValueLoss]:
    number = torch.tensor(value)
    return PolicyLoss(number, number, number, number), ValueLoss(number, number, number)


def test_means_weigh_micro_batches_by_their_share_and_minibatches_alike() -> None:
    averages = Averages()
    averages.add_losses(*losses(1.0), 0.25)
    averages.add_losses(*losses(5.0), 0.75)
    averages.add("grad_norm", 2.0)
    averages.add_losses(*losses(10.0), 1.0)
    averages.add_part("ptx_loss", 3.0)
    averages.add("grad_norm", 4.0)
    averages.end_epoch()
    values = averages.values()
    assert values["policy_loss"] == values["value_loss"] == pytest.approx((0.25 * 1 + 0.75 * 5 + 10) / 2)
    assert values["grad_norm"] == 3
    assert values["ptx_loss"] == 1.5
    assert values["first_ratio_mean"] == values["first_policy_loss"] == pytest.approx(4.0), "before the first update, not the mean over all"
    assert values["epochs"] == 1


HEALTHY = {"kl": 0.4, "first_ratio_mean": 1.0, "response_tokens": 20.0}


def test_nothing_odd_no_alarm() -> None:
    assert alarms(HEALTHY, 20.0) == []
    assert alarms({**HEALTHY, "kl": -0.1, "response_tokens": 39.0}, 20.0) == []


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"kl": -0.8}, "mean k1 is -0.800"),
        ({"first_ratio_mean": 1.01}, "the ratio is 1.0100 before the first update"),
        ({"first_ratio_mean": 0.99}, "the ratio is 0.9900 before the first update"),
        ({"response_tokens": 41.0}, "responses grew from 20 to 41 tokens"),
    ],
)
def test_each_oddity_has_its_sentence(odd: dict[str, float], words: str) -> None:
    (alarm,) = alarms({**HEALTHY, **odd}, 20.0)
    assert alarm.startswith("alarm: ")
    assert words in alarm
