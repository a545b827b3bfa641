"""The page of a study: it says what was measured of what, and nothing of arms and judges that are not there."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from accord.study import plots
from accord.study.graph import build_graph
from accord.study.plots import reward_against_kl, win_rates
from accord.study.published import METRICS
from accord.study.recipe import StudyRecipe, load_recipe
from accord.study.report import render
from accord.study.results import assemble
from accord.study.steps import StepResult
from accord.training.examples import Encoded, EncodedPrompt

Json = dict[str, Any]
PROMPTS = ("p", "q")
ACCOUNT = "sample:conversation (train): read 140 of 200 rows (60 of other splits); kept 139 of 140 pairs: 1 with a response over 9"


def recipe_of(**changes: Any) -> StudyRecipe:
    """Conversation alone, on two prompts with a response each."""
    values = load_recipe("dialogue").model_dump() | {"description": "made up", "preferred_ft": None, "human_pairs": 1000} | changes
    evaluation = values["evaluation"] | {"prompts": 4321, "samples": 1, "held_out_reward_model": False} | changes.get("evaluation", {})
    return StudyRecipe.model_validate(values | {"evaluation": evaluation})


def interval(value: float, n: int = len(PROMPTS)) -> Json:
    return {"value": value, "low": value, "high": value, "n": n}


def card(**changes: Any) -> Json:
    share = {"value": 0.75, "low": 0.5, "high": 0.9, "n": 8}
    return {
        "judge": "embedded", "kind": "likelihood", "rubric": "", "pairs": 8, "human_agreement": share, "length_baseline": share, "tokens": 9,
        "first_preferred": None, "same_position_after_swap": None, "longer_preferred": share, "abstentions": {}, "notes": [], **changes,
    }  # fmt: skip


def study(
    recipe: StudyRecipe, folder: Any, *, abstains: Sequence[str] = (), account: str = ACCOUNT, too_long: Sequence[str] = (),
    silent: Sequence[str] = ("p",),
) -> Json:  # fmt: skip
    """Results of a study whose steps gave made-up numbers; the judge abstains on the responses of some arms to `silent` prompts.

    The model ended its responses to p alone. Prompts of `too_long` come first and are longer than reward models read; the judge decides those too.
    """
    longest = recipe.longest_measured_prompt
    prompts = (*too_long, *PROMPTS)
    graph = build_graph(recipe, {})
    arms = [step.params["arm"] for step in graph.steps if step.kind == "generate"]
    generated = [
        {
            "prompt_id": prompt, "prompt_token_ids": [1] * ((longest or 0) + 1 if prompt in too_long else 1), "sample": 0, "response": "so",
            "reference": "it is", "messages": [["user", prompt]], "finish_reason": "eos" if prompt == "p" else "length",
        }
        for prompt in prompts
    ]  # fmt: skip
    (folder / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in generated))
    metrics = {"kl": interval(0.2), "response_tokens": interval(9.0), **{name: interval(0.3) for name in METRICS}}
    metrics |= {f"score_{feedback}": interval(0.1) for feedback in recipe.feedback if "ppo" in recipe.algorithms}
    rows = [
        {"task": "conversation", "arm": arm, "n": 2, "metrics": metrics | ({} if arm == "sft" else {"win_vs_sft": interval(1.0)})} for arm in arms
    ]
    values: dict[str, Mapping[str, Any]] = {
        "train": {
            "run": "runs/r", "steps": 3, "seconds": 9.0, "tokens": 100.0, "algorithm": "dpo", "curve": [{"step": 1, "values": {"loss": 1.0}}],
            "messages": [
                account,
                "sample:conversation (test): read 24 of 200 rows; kept 23 of 24 pairs: 1 with a response over 9",
            ],
        },
        "label": {"cards": [card()], "pairs": 60, "abstained": 7},
        "generate": {"responses": str(folder / "responses.jsonl"), "count": len(prompts), "adapter_version": "", "eos_rate": 1 / len(prompts)},
        "judge": {
            "values": {
                arm: {
                    prompt: [
                        {f"win_vs_{against}": None if arm in abstains and prompt in silent else 1.0 for against in ("sft", "reference") if against != arm}
                    ]
                    for prompt in prompts
                }
                for arm in arms
            },
        },
        "evaluate": {"evaluation": {"arms": rows, "contrasts": [], "notes": [], "libraries": {}}},
    }  # fmt: skip
    found = {step.name: StepResult(step.name, "k", values.get(step.kind, {}), 3.0, 0.0) for step in graph.steps}
    return assemble(recipe, graph, found, {})


def words(results: Json) -> str:
    """The page's text on one line, without pictures and styles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_svg", undrawn)  # writing pictures out is what takes long
        page = re.sub(r"<(svg|style).*?</\1>", " ", render(results), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def undrawn(figure: Figure) -> str:
    pyplot.close(figure)
    return "<svg></svg>"


@pytest.fixture
def folder(tmp_path: Any) -> Any:
    return tmp_path


def test_abstentions_are_counted_by_arm_and_opponent_and_noted_under_the_table(folder: Any) -> None:
    results = study(recipe_of(), folder, abstains=["dpo-human"])
    counted = {arm["arm"]: arm["comparisons"] for arm in results["tasks"][0]["arms"]}
    assert counted["dpo-human"] == {"sft": {"asked": 2, "abstained": 1}, "reference": {"asked": 2, "abstained": 1}}
    assert counted["sft"] == {"reference": {"asked": 2, "abstained": 0}}
    assert "abstained on some comparisons: dpo-human 1 of 2 with SFT, dpo-human 1 of 2 with the references. Its wins are over those" in words(results)
    assert "dpo-human not decided so" in words(results)  # beside its response
    assert "abstained on some comparisons" not in words(study(recipe_of(), folder))


def test_prompts_that_are_left_out_count_nowhere_though_the_judge_was_asked_about_them(folder: Any) -> None:
    results = study(recipe_of(), folder, abstains=["dpo-human"], too_long=["r", "s"])
    assert results["tasks"][0]["data"]["responses"] == len(PROMPTS)
    arms = {arm["arm"]: arm for arm in results["tasks"][0]["arms"]}
    assert arms["dpo-human"]["comparisons"]["sft"] == {"asked": 2, "abstained": 1}
    assert arms["dpo-human"]["eos_rate"] == 0.5
    assert [example["prompt_id"] for example in results["examples"]] == list(PROMPTS)
    assert [note.split(":")[1] for note in results["notes"]] == [" 2 held-out prompts are left out"]
    of_all = study(recipe_of(), folder, abstains=["dpo-human"])
    assert [results["tasks"][0], results["examples"]] == [of_all["tasks"][0], of_all["examples"]]


def test_a_judge_that_decided_on_prompts_that_are_left_out_alone_has_no_wins_to_count(folder: Any) -> None:
    results = study(recipe_of(), folder, abstains=["dpo-human"], too_long=["r"], silent=PROMPTS)
    assert "the judge abstained on every comparison with SFT of dpo-human (2 each)" in words(results)


def test_the_page_says_how_many_pairs_and_prompts_were_used_and_not_how_many_the_recipe_asked_for(folder: Any) -> None:
    """And nothing of arms that are not there."""
    human = words(study(recipe_of(algorithms=["dpo"]), folder))
    assert "139 pairs a task, labelled by people 2 held-out prompts a task" in human
    assert "trained for 24 DPO steps on 139 pairs labelled by people and read on 2 prompts a task" in human
    assert not re.search(r"\b(1000|4321)\b", human)
    results = study(recipe_of(feedback=["human", "ai"]), folder)
    assert results["tasks"][0]["data"] == {
        "pairs": {"human": {"read": 140, "kept": 139}, "ai": {"read": 140, "kept": 139, "asked": 60, "abstained": 7}}, "prompts": 2, "responses": 2,
    }  # fmt: skip
    both = words(results)
    assert "139 / 139 pairs a task, labelled by people / AI" in both
    assert "trained for 26 PPO and 24 DPO steps on 139 pairs labelled by people or 139 pairs labelled by the judge and read on" in both


def test_the_account_of_a_run_is_read_as_runs_write_it(folder: Any) -> None:
    encoded = Encoded(
        (EncodedPrompt("a", ()), EncodedPrompt("b", ())),
        Counter({"with a response over max_response_tokens 9": 3}),
        source="read 5 of 9 rows (4 of other splits)",
    )
    results = study(recipe_of(), folder, account=f"hub:some/data (train): {encoded.account('pairs')}")
    assert results["tasks"][0]["data"]["pairs"] == {"human": {"read": 5, "kept": 2}}


def test_nothing_is_said_of_reward_models_of_labels_and_of_figures_that_are_not_there(folder: Any) -> None:
    dpo = recipe_of(algorithms=["dpo"], judge={"name": "larger", "kind": "verdict"})
    results = study(dpo, folder)
    page = words(results)
    assert page.count("Human feedback, DPO") == 1
    for text in (
        "Reward against KL",
        "Each arm is scored",
        "PPO",
        "AI feedback",
        "whose labels the AI arms learnt from",
        "same model that is aligned",
    ):
        assert text not in page, text
    assert "The judge that counts wins is larger (verdict judge), so wins" in page
    assert reward_against_kl(results) == ""
    one = study(recipe_of(), folder)
    assert "The score is that of the reward model that PPO was trained on" in words(one)
    assert "hollow: AI reward model" not in reward_against_kl(one)
    both = study(recipe_of(feedback=["human", "ai"]), folder)
    assert "Each arm is scored by both reward models" in words(both)
    assert "hollow: AI reward model" in reward_against_kl(both)
    assert "whose labels the AI arms learnt from" in words(both)
    only_ai = reward_against_kl(study(recipe_of(feedback=["ai"]), folder))
    assert ">ppo-ai</text>" in only_ai[only_ai.index("reward model's score") :]  # arms have their names beside hollow points too


def test_a_judge_without_a_name_is_called_the_aligned_model_where_its_card_says_so(folder: Any) -> None:
    results = study(recipe_of(feedback=["human", "ai"]), folder)
    assert "counts wins is the same model that is aligned (likelihood judge), whose" in words(results)
    for judge in results["judges"]:
        judge["card"]["judge"] = "another"
    assert "counts wins is the feedback service&#39;s default judge, another (likelihood judge), whose" in words(results)
    told = study(
        recipe_of(judge={"kind": "verdict", "adapter": "adapters/z/versions/1", "rationale": True}, evaluation={"judge_check_pairs": 0}), folder
    )
    assert (
        "counts wins is the feedback service&#39;s default judge (verdict judge, adapter adapters/z/versions/1, with rationales), so wins"
        in words(told)
    )


def test_the_page_does_not_say_that_arms_learnt_from_the_judge_of_their_wins_where_that_is_another_by_now(folder: Any) -> None:
    """Of the same name, as the default judge of a service whose YAML was changed between two calls."""
    results = study(recipe_of(feedback=["human", "ai"]), folder)
    learnt, wins = "whose labels the AI arms learnt from", {"f" * 64: "newer"}
    (task,) = results["tasks"]
    for row in results["judges"]:
        row["card"] |= {"judge_digest": "e" * 64, "judge": "older"}
    assert learnt in words(results)  # as of before who counts wins was kept
    task["judged_by"] = {"e" * 64: "older"}
    assert learnt in words(results)
    assert "its agreement with people is measured below" in words(results)
    task["judged_by"] = wins
    page = words(results)
    assert learnt not in page
    assert "counts wins is the feedback service&#39;s default judge, newer (likelihood judge), so wins" in page
    assert (
        f"learnt from labels of another judge, who answered to the same name then: conversation has labels of older (digest {'e' * 12}) and wins by "
        f"newer (digest {'f' * 12})." in page
    )
    assert "its agreement with people on held-out pairs was not measured" in page


def test_without_a_win_there_is_no_picture_of_wins(folder: Any, recwarn: pytest.WarningsRecorder) -> None:
    results = study(recipe_of(), folder)
    assert "none to count" not in win_rates(results)
    for arm in results["tasks"][0]["arms"]:
        arm["metrics"].pop("win_vs_sft", None)
    assert win_rates(results) == ""
    assert " Wins " not in words(results)
    other = {
        "task": "summarization",
        "arms": [arm | {"metrics": arm["metrics"] | {"win_vs_sft": interval(0.5)}} for arm in results["tasks"][0]["arms"]],
    }
    assert "none to count" in win_rates(results | {"tasks": [*results["tasks"], other]})
    assert not [str(warning.message) for warning in recwarn if "ylims" in str(warning.message)]


def test_a_divergence_of_rounding_alone_has_no_sign(folder: Any) -> None:
    results = study(recipe_of(), folder)
    for arm in results["tasks"][0]["arms"]:
        arm["metrics"]["kl"] = interval(-1e-6)
    assert "-0.0" not in words(results)
    assert "0.000 0.00 to 0.00" in words(results)


def test_wins_are_of_responses_where_a_prompt_has_several(folder: Any) -> None:
    page = words(study(recipe_of(), folder))
    assert "share of an arm’s responses to the held-out prompts" in page
    assert "% of responses to 2 held-out prompts" in page


@pytest.mark.parametrize(
    ("judge", "pairs", "measured"),
    [
        ({"kind": "verdict"}, 8, True), ({"kind": "rating"}, 8, True), ({"kind": "verdict", "rationale": True}, 8, True), ({"kind": "verdict"}, 0, False),
    ],
)  # fmt: skip
def test_the_page_says_whether_the_judge_in_use_was_measured(folder: Any, judge: Json, pairs: int, *, measured: bool) -> None:
    results = study(recipe_of(judge=judge, evaluation={"judge_check_pairs": pairs}), folder)
    page = words(results)
    assert ("its agreement with people is measured below" in page) == measured
    assert ("its agreement with people on held-out pairs was not measured" in page) != measured
    assert ("No judge was measured against people" in page) == (pairs == 0)
    if judge.get("rationale"):
        assert "likelihood with rationales conversation held-out check" in page  # the made-up card's kind
    for row in results["judges"]:
        row["card"]["human_agreement"] = None
    assert "on held-out pairs was not measured" in words(results)
