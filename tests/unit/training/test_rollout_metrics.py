"""Metrics of rollouts, averages over micro-batches, and alarms that say what to look at."""

from __future__ import annotations

import pytest
import torch

from accord.training.distribution import World
from accord.training.rollout import Rollout
from accord.training.rollout_metrics import Averages, alarms, critic_alarms, observed
from accord.training.rollout_tensors import RolloutTensors


def test_means_weigh_micro_batches_by_their_share_and_minibatches_alike() -> None:
    averages = Averages(World())
    for value, share in ((1.0, 0.25), (5.0, 0.75)):
        averages.add_policy({"ratio_mean": value * share})
        averages.add_part("value_loss", value * share)
    averages.add("grad_norm", 2.0)
    averages.add_policy({"ratio_mean": 10.0})
    averages.add_part("value_loss", 10.0)
    averages.add_part("ptx_loss", 3.0)
    averages.add("grad_norm", 4.0)
    averages.end_epoch()
    values = averages.values()
    assert values["ratio_mean"] == values["value_loss"] == pytest.approx((0.25 * 1 + 0.75 * 5 + 10) / 2)
    assert values["grad_norm"] == 3
    assert values["ptx_loss"] == 1.5
    assert "first_value_loss" not in values
    assert values["first_ratio_mean"] == pytest.approx(4.0), "before the first update, not the mean over all"
    assert values["epochs"] == 1


def test_whole_minibatches_count_as_the_sum_of_their_parts_and_a_cut_epoch_as_far_as_it_went() -> None:
    averages = Averages(World())
    for value in (4.0, 10.0):
        averages.add_minibatch({"ratio_mean": value})
        averages.add("grad_norm", 2.0)
    averages.end_epoch()
    averages.end_epoch(0.25)
    values = averages.values()
    assert (values["ratio_mean"], values["first_ratio_mean"], values["epochs"]) == (7, 4, 1.25)


def test_the_spread_of_an_ensemble_is_the_mean_over_rollouts_and_absent_without_one() -> None:
    mask = torch.ones(2, 1, dtype=torch.bool)
    tensors = RolloutTensors(mask, torch.zeros(2, 1), torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0.0, 2.0]), torch.zeros(2, 1), (0, 1))

    def of(*members: tuple[float, ...]) -> dict[str, float]:
        return observed([Rollout("r", (1,), (2,), (0.0,), 0.0, True, 0, "v", scores) for scores in members], tensors)

    assert of((1.0, 3.0), (4.0, 4.0))["score_std_between_models"] == pytest.approx(0.5)
    assert "score_std_between_models" not in of((1.0,), (3.0,))
    assert of((1.0,), (3.0,))["score_std"] == 1


def test_kl_is_that_of_the_policy_that_sampled() -> None:
    """In expectation over all tokens, taken exactly: with weights of the policy that sampled, its log-ratio has the mean KL(sampled, reference)."""
    behaviour, old, reference = (torch.tensor(weights, dtype=torch.float64) / 8 for weights in ([4.0, 3.0, 1.0], [1.0, 1.0, 6.0], [2.0, 4.0, 2.0]))
    tokens = [0, 0, 0, 0, 1, 1, 1, 2]  # each as often as the policy that sampled draws it in eight rollouts
    columns = [each[tokens].log().unsqueeze(1) for each in (old, reference, behaviour)]
    mask, zeros = torch.ones(8, 1, dtype=torch.bool), torch.zeros(8, 1)
    tensors = RolloutTensors(mask, columns[0], columns[1], zeros, zeros[:, 0], columns[2], tuple(range(8)))
    rollouts = [Rollout("r", (1,), (token,), (float(column),), 0.0, True, 0, "v") for token, column in zip(tokens, columns[2], strict=True)]
    found = observed(rollouts, tensors)
    expected = float((behaviour * (behaviour / reference).log()).sum())
    assert expected > 0.1
    assert found["kl"] == pytest.approx(expected, rel=1e-6)
    assert found["kl_k3"] == pytest.approx(expected, rel=1e-6), "k3 has the same mean"


def test_a_critic_that_is_worse_than_none_at_its_start_is_an_alarm() -> None:
    for harmless in (1.0, 0.0, -0.2):
        assert critic_alarms(harmless, from_reward_model=True) == []
    (warm,), (fresh,) = (critic_alarms(-0.9, from_reward_model=start) for start in (True, False))
    assert warm.startswith("alarm: the critic explains -0.90 of the variance of its first returns")
    assert "ppo.value_from_reward_model: false starts it from 0" in warm
    assert "value_from_reward_model" not in fresh


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
