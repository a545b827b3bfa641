"""Sentences of a study's report that must say what the numbers say."""

from __future__ import annotations

from typing import Any

import pytest

from accord.study.findings import findings, judge_in_use


def arm(name: str, **metrics: tuple[float, float, float]) -> dict[str, Any]:
    algorithm, _, feedback = name.partition("-")
    found = {metric: {"value": value, "low": low, "high": high, "n": 40} for metric, (value, low, high) in metrics.items()}
    trained = bool(feedback)
    return {
        "arm": name, "algorithm": algorithm if trained else None, "feedback": feedback or None, "metrics": found,
        "training": {"seconds": 10.0} if trained else None,
    }  # fmt: skip


def test_held_out_wins_are_those_of_the_reward_model_of_the_other_labels() -> None:
    human = arm("dpo-human", win_by_score_human=(0.9, 0.8, 1.0), win_by_score_ai=(0.7, 0.55, 0.83))
    ai = arm("dpo-ai", win_by_score_human=(0.4, 0.25, 0.55), win_by_score_ai=(0.95, 0.85, 1.0))
    results = {"tasks": [{"task": "conversation", "arms": [arm("sft"), human, ai]}], "contrasts": [], "judges": [], "recipe": {}}
    (sentence,) = findings(results)
    assert sentence.endswith("dpo-human 70% (55% to 83%), dpo-ai 40% (25% to 55%). The interval stays above one half for dpo-human.")


def test_a_held_out_reward_model_counts_the_wins_of_all_arms_where_there_is_one() -> None:
    human = arm("ppo-human", win_by_score_ai=(0.9, 0.8, 1.0), win_by_score_held_out=(0.7, 0.55, 0.83))
    ai = arm("ppo-ai", win_by_score_human=(0.9, 0.8, 1.0), win_by_score_held_out=(0.4, 0.25, 0.55))
    results = {"tasks": [{"task": "conversation", "arms": [arm("sft"), human, ai]}], "contrasts": [], "judges": [], "recipe": {}}
    (sentence,) = findings(results)
    assert "a reward model of the held-out pairs" in sentence
    assert sentence.endswith("ppo-human 70% (55% to 83%), ppo-ai 40% (25% to 55%). The interval stays above one half for ppo-human.")


def test_nothing_is_said_of_wins_that_were_not_measured() -> None:
    results = {"tasks": [{"task": "conversation", "arms": [arm("sft"), arm("dpo-human")]}], "contrasts": [], "judges": [], "recipe": {}}
    assert findings(results) == []


def test_wins_beyond_more_sft_are_those_of_the_same_prompts() -> None:
    """Whichever way round the evaluation has a contrast."""
    control = {**arm("preferred-ft", win_by_score_held_out=(0.55, 0.45, 0.65)), "algorithm": None, "feedback": None, "training": {"steps": 24}}
    human = {**arm("ppo-human", win_by_score_held_out=(0.65, 0.58, 0.72)), "feedback": "human", "algorithm": "ppo"}
    other = {**arm("dpo-human", win_by_score_held_out=(0.5, 0.4, 0.6)), "feedback": "human", "algorithm": "dpo"}
    contrast = {"task": "conversation", "metric": "win_by_score_held_out", "difference": -0.1, "low": -0.2, "high": 0.02, "n": 40}
    contrasts = [contrast | {"a": "preferred-ft", "b": "ppo-human"}, contrast | {"a": "dpo-human", "b": "preferred-ft", "difference": -0.05}]
    results = {"tasks": [{"task": "conversation", "arms": [arm("sft"), control, human, other]}], "contrasts": contrasts, "judges": [], "recipe": {}}
    (sentence,) = [each for each in findings(results) if "control" in each]
    assert "the control preferred-ft (24 more steps of SFT on chosen responses) wins 55% (45% to 65%)" in sentence
    assert "ppo-human +10% (-2% to +20%), dpo-human -5% (-20% to +2%)" in sentence


def test_a_judge_that_abstained_on_everything_is_said_to_have() -> None:
    silent = arm("dpo-human") | {"comparisons": {"sft": {"asked": 40, "abstained": 40}, "reference": {"asked": 40, "abstained": 39}}}
    results = {"tasks": [{"task": "conversation", "arms": [arm("sft"), silent]}], "contrasts": [], "judges": [], "recipe": {}}
    (sentence,) = findings(results)
    assert sentence == (
        "Conversation: the judge abstained on every comparison with SFT of dpo-human (40 each), so there are no wins of these to count."
    )


@pytest.mark.parametrize(("prompts", "tells"), [(2, False), (5, False), (6, True)])
def test_prompts_that_all_agree_are_no_finding_below_six(prompts: int, *, tells: bool) -> None:
    won = arm("dpo-human", win_vs_sft=(1.0, 1.0, 1.0), win_by_score_held_out=(1.0, 1.0, 1.0))
    for wins in won["metrics"].values():
        wins["n"] = prompts
    sentences = findings({"tasks": [{"task": "conversation", "arms": [arm("sft"), won]}], "contrasts": [], "judges": [], "recipe": {}})
    assert len(sentences) == 2
    for sentence in sentences:
        assert ("stays above one half" in sentence) == ("100% to 100%" in sentence) == tells
        assert ("too few prompts to tell" in sentence.lower()) != tells
    if not tells:
        assert sentences[0] == (
            f"Conversation: the judge prefers dpo-human to SFT on 100% of responses to {prompts} held-out prompts, a tie counting half. "
            "Too few prompts to tell."
        )


def test_an_arm_with_too_few_prompts_is_named_beside_those_that_tell() -> None:
    few, many = arm("dpo-human", win_vs_sft=(0.9, 0.8, 1.0)), arm("ppo-human", win_vs_sft=(0.8, 0.6, 0.9))
    few["metrics"]["win_vs_sft"]["n"] = 3  # the judge abstained on the rest
    sentence, _ = findings({"tasks": [{"task": "conversation", "arms": [arm("sft"), few, many]}], "contrasts": [], "judges": [], "recipe": {}})
    assert sentence.endswith("most of the 2 arms. Too few prompts to tell of dpo-human. The interval stays above one half for ppo-human.")


def test_the_rubrics_of_a_judge_in_use_are_named_one_and_several() -> None:
    def named(rubric: Any) -> str:
        judge = {"name": "large", "kind": "verdict", "rubric": rubric}
        return judge_in_use({"recipe": {"judge": judge}, "judges": []})

    assert named("") == named({}) == "large (verdict judge)"
    assert named("summarization/cot/1") == named({"summarization": "summarization/cot/1"}) == "large (verdict judge, rubric summarization/cot/1)"
    both = {"summarization": "summarization/cot/1", "conversation": "conversation/helpful-cot/1"}
    assert named(both) == "large (verdict judge, rubric summarization/cot/1, rubric conversation/helpful-cot/1)"
