"""What a guard sees: closed forms, patience, words, and the state that a checkpoint keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from accord.algos.normalisation import RunningMoments
from accord.runspec import parse_spec
from accord.training.guards import Guards, repeated_share

QUIET = {"kl": 1.0, "response_tokens": 20.0, "repetition": 0.02, "reward_mean": 0.0, "score_mean": 0.0, "score_std": 1.0, "eos_rate": 1.0}

NEW = ("ratings", "beyond", "score_unit", "moves")
"""What the state of an earlier version did not have; it had `quality`."""


def make(*, every: int = 0, evaluates: bool = False, ppo: dict[str, Any] | None = None, **guards: Any) -> Guards:
    part = {**(ppo or {}), "data": {"uri": "x"}, "reward_model": "adapters/rm", **({"eval_data": {"uri": "x"}} if evaluates else {})}
    return Guards(parse_spec({"adapter": "a", "steps": 9, "checkpoint_every_steps": every, "guards": guards, "ppo": part}))


def watch(guards: Guards, rows: list[dict[str, float]], *, first: int = 1) -> list[list[str]]:
    return [guards.observe(done, {**QUIET, **row}) for done, row in enumerate(rows, first)]


def held(score: float, trained: float, std: float = 1.0) -> dict[str, float]:
    return {"held_out_score_mean": score, "held_out_score_std": std, "score_mean": trained}


@pytest.mark.parametrize(
    ("tokens", "share"),
    [("", 0), ("abc", 0), ("abcd", 0), ("abababab", 3 / 5), ("aaaaaaaa", 4 / 5), ("abcdefgh", 0), ("abcdxabcd", 1 / 6)],
)
def test_repeated_share(tokens: str, share: float) -> None:
    assert repeated_share([ord(token) for token in tokens]) == pytest.approx(share)


def test_single_tokens_repeat_too() -> None:
    assert repeated_share([1, 1, 2, 3], 1) == 1 / 4


@pytest.mark.parametrize(
    ("guards", "over", "words"),
    [
        ({"max_kl": 5}, {"kl": 5.1}, "KL to the reference is 5.1 nats a response, over max_kl 5 3 steps in a row"),
        ({"max_repetition": 0.2}, {"repetition": 0.43}, "43% of the 4-grams of a response repeat earlier ones, over max_repetition 20%"),
    ],
)
def test_a_bound_must_be_passed_some_steps_in_a_row(guards: dict[str, float], over: dict[str, float], words: str) -> None:
    found = watch(make(**guards), [over, over, {}, over, over, over, over, {}, over, over, over])
    assert [len(each) for each in found] == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1], "once while it stays passed, again when it comes back"
    assert found[5][0].startswith("alarm: ")
    assert words in found[5][0]


def test_a_value_at_its_bound_is_within() -> None:
    assert not any(watch(make(max_kl=5, patience=1), [{"kl": 5.0}] * 4))


@pytest.mark.parametrize(
    ("length", "words"), [(50.0, "2.5 times longer than the first ones (20)"), (9.0, "2.2 times shorter than the first ones (20)")]
)
def test_length_drifts_in_both_directions(length: float, words: str) -> None:
    guards = make(max_length_ratio=2, action="stop")
    found = watch(guards, [{}] * 3 + [{"response_tokens": length}] * 6)
    (alarm,) = (alarm for step in found for alarm in step)
    assert words in alarm
    assert guards.tripped == alarm.removeprefix("alarm: ")


def test_the_first_lengths_are_several_batches() -> None:
    """One odd batch at the start is no measure."""
    rows = [{"response_tokens": 8.0}, {"response_tokens": 26.0}, {"response_tokens": 26.0}] + [{"response_tokens": 26.0}] * 6
    assert not any(watch(make(max_length_ratio=2), rows))


def test_a_held_out_score_that_falls_while_the_trained_one_rises() -> None:
    guards = make(held_out_reward_model="adapters/h", action="rollback", every=2)
    rising = [held(0.1 * step, 0.2 * step) for step in range(8)]
    falling = [held(0.7 - 0.6 * step, 1.4 + 0.2 * step) for step in range(1, 9)]
    found = watch(guards, rising + falling)
    assert not any(found[:8])
    (alarm,) = (alarm for step in found for alarm in step)
    assert "adapters/h, which the policy is not trained on, fell from 0.6 to" in alarm
    assert "while the trained score rose from 1.2 to" in alarm
    step, measure = guards.ranked()[0]
    assert (step, measure) == (6, pytest.approx(0.5)), "its own rollouts are those of step 7, and the mean is of three steps"


@pytest.mark.parametrize("trained", [0.0, -0.5])
def test_both_falling_is_no_hacking(trained: float) -> None:
    rows = [held(1.0, 1.0)] * 5 + [held(1.0 - 0.5 * step, 1.0 + trained * step) for step in range(8)]
    assert not any(watch(make(held_out_reward_model="adapters/h"), rows))


def test_noise_of_the_batches_is_no_fall() -> None:
    """Each response varies little, batches vary much (one prompt each, say): half a standard deviation of a batch is more than the bound."""
    noisy = [held(1.5 if step % 2 else -1.5, 0.05 * step, std=0.3) for step in range(40)]
    assert not any(watch(make(held_out_reward_model="adapters/h"), noisy))
    plain = [held(0.0, 0.0, std=0.3)] * 4 + [held(-0.7, 1.0, std=0.3)] * 40
    assert any(watch(make(held_out_reward_model="adapters/h"), plain)), "the same fall is seen where batches agree"


def test_warn_never_stops_and_runs_without_rollouts_are_not_watched() -> None:
    guards = make(max_kl=1)
    assert any(watch(guards, [{"kl": 9.0}] * 5))
    assert guards.tripped == ""
    sft = Guards(parse_spec({"adapter": "a", "steps": 1, "sft": {"data": {"uri": "x"}}}))
    assert sft.observe(1, {"loss": 1.0}) == []


def test_checkpoints_are_rated_by_reward_or_evaluation_where_there_is_no_other_scorer() -> None:
    by_reward = make(max_kl=5, action="rollback", every=2)
    watch(by_reward, [{"reward_mean": float(step), "kl": 9.0 if step == 6 else 1.0} for step in range(8)])
    assert by_reward.measure == "reward"
    assert by_reward.ranked() == [(4, 3.0), (2, 1.0)], "means of three steps; the one after 6 sampled beyond a bound"
    by_evaluation = make(max_kl=5, action="rollback", every=2, evaluates=True)
    watch(by_evaluation, [{"eval_score": 7.0 - step} if step % 2 else {} for step in range(8)])
    assert by_evaluation.measure == "evaluation"
    assert by_evaluation.ranked() == [(2, 6.0), (4, 4.0), (6, 2.0)], "what was measured of the checkpoint itself"


def test_checkpoints_without_an_evaluation_are_rated_by_reward() -> None:
    """A run may evaluate after its last step alone, which rates none: where a guard stopped it, there was nothing to roll back to."""
    rewards = [{"reward_mean": float(step)} for step in range(12)]
    never = make(max_kl=5, action="rollback", every=2, evaluates=True)
    watch(never, rewards[:7])
    assert (never.measure, never.ranked()) == ("reward", [(6, 5.0), (4, 3.0), (2, 1.0)])
    late = make(max_kl=5, action="rollback", every=2, evaluates=True)
    watch(late, [row | ({"eval_score": -float(step)} if step in (6, 9) else {}) for step, row in enumerate(rewards, 1)])
    assert late.measure == "evaluation", "three of five have one"
    assert late.ranked() == [(6, -6.0), (8, -6.0), (10, -9.0)], "evaluations alone: rewards are on another scale"
    assert late.kept_steps() == {6, 10, 12}, "the best by each measure, since which one counts may change"
    few = make(max_kl=5, action="rollback", every=2, evaluates=True)
    watch(few, [row | ({"eval_score": 9.0} if step == 6 else {}) for step, row in enumerate(rewards[:7], 1)])
    assert (few.measure, few.ranked()[0]) == ("reward", (6, 5.0)), "one of three has one"


def climb(means: Sequence[float]) -> list[dict[str, float]]:
    """Batches of four scores of spread 2 about these means, with the reward of PPO's normalised scores."""
    moments, rows = RunningMoments(), []
    for mean in means:
        moments.update([mean - 2, mean + 2] * 2)
        rows.append({"score_mean": mean, "score_std": 2.0, "reward_mean": (mean - moments.mean) / moments.std - 0.1})
    return rows


def test_a_steep_climb_of_normalised_scores_is_no_better_than_its_height() -> None:
    """The moments run over all scores so far: right after a climb the reward was at its highest, and never again, however good the policy became."""
    rows = climb([0, 0, 0, 8, 9, 10, 10.5, 11, 11.5, 12, 12.5, 13])
    assert max(range(12), key=lambda step: rows[step]["reward_mean"]) < 6, "or it proves nothing"
    ppo = {"normalize_scores": True, "kl_coef": 0.1, "missing_eos_penalty": 0.5}
    guards, after = (make(max_kl=5, action="rollback", every=2, patience=1, ppo=ppo) for _ in range(2))
    watch(guards, rows[:11])
    assert guards.ranked()[0] == (10, pytest.approx(12.5 - 2 * 0.1)), "less 0.1 spreads of the first batch for a nat of KL"
    assert guards.measure == "reward"
    after.load_state(json.loads(json.dumps(guards.state())))
    watch(after, [{}, {**rows[11], "kl": 4.0, "eos_rate": 0.5, "score_std": 0.3}], first=12)
    assert dict(after.ranked())[12] == pytest.approx(13 - 2 * (0.1 * 4 + 0.5 * 0.5)), "the spread stays the first one"


def test_a_coefficient_that_a_controller_moves_does_not_move_the_measure() -> None:
    rows = [{"score_mean": 1.0 + step, "reward_mean": 1.0 + step - 0.1 * 10**step, "kl": 1.0} for step in range(5)]
    guards = make(max_kl=5, action="rollback", every=2, patience=1, ppo={"kl_controller": "adaptive", "kl_coef": 0.1})
    watch(guards, rows)
    assert guards.ranked() == [(4, pytest.approx(4.9)), (2, pytest.approx(2.9))]


def test_a_run_of_an_earlier_version_goes_on_with_the_rewards_that_rated_its_checkpoints() -> None:
    spec: dict[str, Any] = {"max_kl": 5, "action": "rollback", "every": 2, "patience": 1, "ppo": {"normalize_scores": True}}
    before, after, later = make(**spec), make(**spec), make(**spec)
    watch(before, [{}] * 3)
    state = {name: value for name, value in before.state().items() if name not in NEW}
    after.load_state(json.loads(json.dumps({**state, "quality": {"2": 0.5}})))
    watch(after, [{"score_mean": 90.0, "reward_mean": 0.25}] * 2, first=4)
    assert after.ranked() == [(2, 0.5), (4, 0.25)]
    later.load_state(json.loads(json.dumps(after.state())))
    watch(later, [{"score_mean": 90.0, "reward_mean": 0.75}] * 2, first=6)
    assert later.ranked()[0] == (6, 0.75)


def test_it_says_why_there_is_no_best_checkpoint() -> None:
    early = make(max_kl=5, action="rollback", every=2)
    watch(early, [{}, {}])
    assert early.without_best == "no checkpoint had been rated by then, which takes rollouts of its own"
    beyond = make(max_kl=5, action="rollback", every=2)
    watch(beyond, [{}, {"kl": 9.0}, {"kl": 9.0}])
    assert beyond.without_best == "no checkpoint was within all bounds"
    after = make(max_kl=5, action="rollback", every=2)
    after.load_state(json.loads(json.dumps(beyond.state())))
    assert after.without_best == beyond.without_best
    watch(after, [{}, {}], first=4)
    assert after.ranked() == [(4, 0.0)]
    assert after.without_best == "no checkpoint that was within all bounds is whole"


def test_one_step_ahead_a_checkpoint_is_rated_by_its_own_evaluation() -> None:
    """When it is rated, the next one has been evaluated already: the checkpoint before the best one would be published."""
    scores = [1.0, 2.0, 3.0, 4.0, 9.0, 4.0, 3.0, 2.0]
    spec: dict[str, Any] = {"max_kl": 5, "action": "rollback", "every": 1, "evaluates": True, "ppo": {"max_staleness": 1}}
    rows = [{"eval_score": score} for score in scores]
    guards = make(**spec)
    watch(guards, rows)
    assert guards.ranked() == [(5, 9.0), (4, 4.0), (6, 4.0), (3, 3.0), (2, 2.0), (1, 1.0)]
    assert set(guards.state()["evaluations"]) == {"7", "8"}, "what rates the checkpoints to come"
    for cut in range(1, len(rows)):
        before, after = make(**spec), make(**spec)
        watch(before, rows[:cut])
        after.load_state(json.loads(json.dumps(before.state())))
        watch(after, rows[cut:], first=cut + 1)
        assert after.ranked() == guards.ranked()
    seldom = make(**spec)
    watch(seldom, [{"eval_score": 2.0}, {}, {}, {"eval_score": 5.0}, {}, {}, {}])
    assert dict(seldom.ranked()) == {1: 2.0, 2: 2.0, 3: 2.0, 4: 5.0, 5: 5.0}


@pytest.mark.parametrize("evaluation", [None, 3.0])
def test_the_state_of_an_earlier_version_is_taken_up(evaluation: float | None) -> None:
    """It had the newest evaluation alone, and no rewards beside evaluations."""
    before, after = (make(max_kl=5, action="rollback", every=2, evaluates=True) for _ in range(2))
    watch(before, [{}, {}])
    state = {name: value for name, value in before.state().items() if name not in ("evaluations", *NEW)}
    after.load_state(json.loads(json.dumps({**state, "quality": {}, "evaluation": evaluation})))
    watch(after, [{}, {"eval_score": 1.0}, {}], first=3)
    assert dict(after.ranked()) == ({4: 1.0} if evaluation is None else {2: 3.0, 4: 1.0})


@pytest.mark.parametrize(
    ("spec", "measure"),
    [({}, "reward"), ({"evaluates": True}, "evaluation"), ({"held_out_reward_model": "adapters/h"}, "held-out score")],
)
def test_what_an_earlier_version_rated_stays_rated(spec: dict[str, Any], measure: str) -> None:
    before, after = (make(max_kl=5, action="rollback", every=2, **spec) for _ in range(2))
    watch(before, [held(0.0, 0.0)] * 5)
    state = {name: value for name, value in before.state().items() if name not in NEW}
    after.load_state(json.loads(json.dumps({**state, "quality": {"2": 7.0, "4": 8.0}})))
    assert (after.measure, after.ranked()) == (measure, [(4, 8.0), (2, 7.0)])
    assert after.kept_steps() == {4}


def test_the_best_and_the_newest_scheduled_checkpoint_are_kept() -> None:
    guards = make(max_kl=5, action="rollback", every=2)
    watch(guards, [{"reward_mean": 9.0 - step} for step in range(6)])
    assert guards.kept_steps() == {2, 6}
    one_ahead = make(max_kl=5, action="rollback", every=1, ppo={"max_staleness": 1})
    watch(one_ahead, [{"reward_mean": 9.0 - step} for step in range(6)])
    assert one_ahead.kept_steps() == {1, 5, 6}, "what step 6 learnt from is of the checkpoint after 4"
    assert one_ahead.ranked()[-1] == (4, 5.0)
    assert make(max_kl=5, action="stop", every=2).kept_steps() == set()


def test_it_goes_on_from_its_state() -> None:
    rows = [held(0.1 * step, 0.2 * step) | {"reward_mean": 0.3 * step, "eval_score": 1.0} for step in range(8)]
    rows += [held(0.7 - 0.5 * step, 1.4 + 0.2 * step) | {"kl": 3.0 + step} for step in range(1, 9)]
    spec: dict[str, Any] = {"held_out_reward_model": "adapters/h", "action": "rollback", "every": 2, "max_kl": 6, "max_length_ratio": 2}
    straight = make(**spec)
    expected = watch(straight, rows)
    for cut in range(1, len(rows)):
        before, after = make(**spec), make(**spec)
        watch(before, rows[:cut])
        after.load_state(json.loads(json.dumps(before.state())))
        assert watch(after, rows[cut:], first=cut + 1) == expected[cut:]
        assert after.state() == straight.state()
