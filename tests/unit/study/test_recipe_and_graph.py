"""Recipes and the steps that follow from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from accord.client.feedback import Judge
from accord.errors import InvalidArgumentError, NotFoundError
from accord.feedback.config import FeedbackConfig
from accord.rpc.config import parse_config
from accord.runspec import parse_spec
from accord.study.actions import resolved_spec, wanted_judge
from accord.study.graph import Graph, arms_of, build_graph
from accord.study.recipe import StudyRecipe, load_recipe, shipped_recipes
from accord.study.steps import StepResult
from accord.workspace import JudgeTable

DIGESTS = {"base_model": "m", "data_summarization": "s"}


@pytest.fixture
def recipe() -> StudyRecipe:
    return load_recipe("quick")


def changed(recipe: StudyRecipe, **values: object) -> StudyRecipe:
    return StudyRecipe.model_validate(recipe.model_dump() | values)


def result(name: str, **values: object) -> StepResult:
    return StepResult(name, "k", values, 1.0, 0.0)


def test_the_shipped_recipes_are_valid_and_have_all_arms_of_their_tasks() -> None:
    assert set(shipped_recipes()) == {"quick", "dialogue", "full", "larger-judge"}
    for name in shipped_recipes():
        recipe = load_recipe(name)
        assert len(recipe.arms) == (2 if name == "dialogue" else 4)
        assert len(recipe.tasks) == (1 if name in ("dialogue", "larger-judge") else 2)
        assert recipe.human_pairs == 2 * recipe.ai_pairs


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"human_pairs": 0}, "human_pairs"), ({"stepz": 1}, "stepz"), ({"feedback": ["human", "human"]}, "feedback"),
        ({"evaluation": {"prompts": 1}}, "evaluation.prompts"), ({"name": "Two Words"}, "name"), ({"seed": -1}, "seed"),
    ],
)  # fmt: skip
def test_a_bad_recipe_names_the_field(tmp_path: Path, change: dict, field: str) -> None:
    values = yaml.safe_load(shipped_recipes()["quick"].read_text()) | change
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InvalidArgumentError, match=field.split(".", maxsplit=1)[0]):
        load_recipe(str(path))


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(NotFoundError, match="full, larger-judge, quick"):
        load_recipe("quik")


def test_a_file_that_is_no_yaml_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: [1")
    with pytest.raises(InvalidArgumentError, match="not YAML"):
        load_recipe(str(path))


def test_every_step_comes_after_its_inputs_and_every_arm_is_generated_measured_and_judged(recipe: StudyRecipe) -> None:
    graph = build_graph(recipe, DIGESTS)
    seen: set[str] = set()
    for step in graph.steps:
        assert set(step.inputs) <= seen, step.name
        seen.add(step.name)
    assert len(seen) == len(graph.steps) == len(set(graph.keys.values()))
    for part in recipe.tasks:
        for arm in arms_of(recipe):
            assert {f"{part.task.value}/generate-{arm}", f"{part.task.value}/measure-{arm}"} <= seen
    assert {step.name for step in graph.steps if step.kind == "train"} >= {"summarization/ppo-ai", "conversation/dpo-human", "summarization/rm-ai"}


def test_a_named_judge_labels_is_measured_and_counts_wins(recipe: StudyRecipe) -> None:
    """And a judge without a name is asked as before there were names: results that are there stay found."""
    larger = load_recipe("larger-judge")
    steps = {step.name: step for step in build_graph(larger, DIGESTS).steps}
    for name in ("labels-ai", "judge-check-larger", "judge"):
        asked = steps[f"summarization/{name}"].params["judge"]
        assert wanted_judge(asked) == Judge("verdict", name="larger")
        assert asked["who"]["base_url"] == larger.judges["larger"].base_url  # type: ignore[union-attr]
    assert wanted_judge(steps["summarization/judge-check-verdict"].params["judge"]) == Judge("verdict")
    assert next(iter(steps)) == "summarization/labels-ai"  # before anything is trained
    elsewhere = larger.judges["larger"].model_copy(update={"base_url": "http://127.0.0.1:1/v1"})
    moved = build_graph(changed(larger, judges={"larger": elsewhere.model_dump()}), DIGESTS)
    differ = keys_that_differ(build_graph(larger, DIGESTS), moved)
    assert {"summarization/labels-ai", "summarization/dpo-ai", "summarization/judge"} <= differ
    assert not {"summarization/sft", "summarization/dpo-human", "summarization/judge-check-verdict"} & differ
    plain = next(step for step in build_graph(recipe, DIGESTS).steps if step.name == "summarization/labels-ai")
    assert plain.params["judge"] == {"kind": "likelihood", "rubric": "", "rationale": False, "adapter": "", "tie_margin": 0.0}


def test_the_judges_of_a_recipe_are_those_of_a_feedback_service() -> None:
    table = load_recipe("larger-judge").judge_table
    values = JudgeTable(**table).merged(
        {"policy": "127.0.0.1:1", "ledger": "l", "jobs": "j", "judges": {"mine": {"kind": "policy", "address": "a:1"}}}
    )
    config = parse_config(values, FeedbackConfig, source="file")
    assert set(config.judges) == {"larger", "mine"}
    assert JudgeTable().merged({"policy": "x"}) == {"policy": "x"}


def keys_that_differ(one: Graph, other: Graph) -> set[str]:
    return {name for name in one.keys if one.keys[name] != other.keys.get(name)}


def test_a_change_makes_anew_what_depends_on_it_and_nothing_else(recipe: StudyRecipe) -> None:
    before = build_graph(recipe, DIGESTS)
    assert not keys_that_differ(before, build_graph(recipe, DIGESTS))
    other = [build_graph(changed(recipe, dpo=recipe.dpo.model_dump() | change), DIGESTS) for change in ({"beta": 0.2}, {"nll_coefficient": 0.2})]
    differ = keys_that_differ(before, other[0])
    assert differ == keys_that_differ(before, other[1])
    assert {"summarization/dpo-human", "summarization/generate-dpo-ai", "conversation/measure-dpo-ai", "evaluate"} <= differ
    assert not {"summarization/sft", "summarization/rm-human", "summarization/ppo-ai", "summarization/generate-ppo-ai"} & differ
    assert keys_that_differ(before, build_graph(changed(recipe, seed=8), DIGESTS)) >= {"summarization/sft", "summarization/labels-ai", "evaluate"}
    assert keys_that_differ(before, build_graph(recipe, DIGESTS | {"base_model": "other"})) == set(before.keys)


def test_one_feedback_and_one_algorithm_need_no_more_than_their_steps(recipe: StudyRecipe) -> None:
    names = {step.name for step in build_graph(changed(recipe, feedback=["human"], algorithms=["dpo"]), DIGESTS).steps}
    assert "summarization/dpo-human" in names
    assert not [name for name in names if "rm-" in name or "ppo" in name or name.endswith("labels-ai") or "-ai" in name]


def test_specs_are_valid_once_earlier_results_are_put_in(recipe: StudyRecipe) -> None:
    graph = build_graph(recipe, DIGESTS)
    inputs = {
        step.name: result(step.name, adapter_version=f"adapters/{step.name.replace('/', '-')}/versions/1", dataset_uri="/labels.jsonl")
        for step in graph.steps
    }
    specs = {step.name: resolved_spec(step, inputs) for step in graph.steps if step.kind == "train"}
    assert specs["summarization/sft"].parent_adapter == ""
    assert specs["summarization/ppo-ai"].ppo is not None
    assert specs["summarization/ppo-ai"].ppo.reward_model == "adapters/summarization-rm-ai/versions/1"
    assert specs["summarization/ppo-human"].ppo.reward_model == "adapters/summarization-rm-human/versions/1"  # type: ignore[union-attr]
    dpo_ai, dpo_human = specs["conversation/dpo-ai"].dpo, specs["conversation/dpo-human"].dpo
    assert dpo_ai is not None
    assert dpo_human is not None
    assert (dpo_ai.data.uri, dpo_human.data.uri) == ("/labels.jsonl", "sample:conversation")
    assert dpo_human.data.limit == recipe.human_pairs
    for spec in specs.values():
        assert parse_spec(spec.model_dump()) == spec
        assert spec.algorithm == "sft" or spec.parent_adapter.endswith("-sft/versions/1")


def test_the_held_out_reward_model_learns_from_no_pair_that_an_arm_sees_and_is_measured_on_theirs() -> None:
    recipe = load_recipe("dialogue")
    steps = {step.name: step for step in build_graph(recipe, {}).steps}
    spec = steps["conversation/rm-held-out"].params["spec"]["reward_model"]
    assert (spec["data"]["split"], spec["eval_data"]["split"]) == ("test", "train")
    assert all("conversation/rm-held-out" not in step.inputs for step in steps.values() if step.kind == "train")
    measured = [step for step in steps.values() if step.kind == "measure"]
    assert measured
    assert all(step.params["reward_models_from"]["held_out"] == "conversation/rm-held-out" for step in measured)


def test_the_control_goes_on_with_sft_on_the_pairs_of_dpo_and_no_other_training_knows_of_it() -> None:
    recipe = load_recipe("dialogue")
    steps = {step.name: step for step in build_graph(recipe, {}).steps}
    control, dpo = steps["conversation/preferred-ft"].params, steps["conversation/dpo-human"].params
    assert control["sources"] == {"parent": "conversation/sft"}
    assert control["spec"]["sft"]["data"] == dpo["spec"]["dpo"]["data"]
    assert [control["spec"][name] for name in ("steps", "batch_size")] == [dpo["spec"][name] for name in ("steps", "batch_size")]
    assert arms_of(recipe) == ("base", "sft", "preferred-ft", "ppo-human", "dpo-human")
    without = build_graph(changed(recipe, preferred_ft=None), {})
    assert not [name for name in without.keys if "preferred-ft" in name]
    assert {name for name in without.keys if without.keys[name] != build_graph(recipe, {}).keys[name]} == {"conversation/judge", "evaluate"}


CHECKS = {"summarization/judge-check-likelihood": {"kind": "likelihood"}, "summarization/judge-check-verdict": {"kind": "verdict"}}


def checks_of(recipe: StudyRecipe) -> dict[str, dict]:
    steps = build_graph(recipe, DIGESTS).steps
    checks = {step.name: step.params["judge"] for step in steps if step.kind == "label" and step.params["split"] == "test"}
    assert set(checks) <= set(steps[-1].inputs)  # the table waits for them
    return {name: judge for name, judge in checks.items() if name.startswith("summarization")}


@pytest.mark.parametrize(
    "judge", [{"kind": "rating"}, {"kind": "verdict", "rubric": "a/b/1"}, {"adapter": "adapters/z/versions/1"}, {"tie_margin": 0.1}]
)
def test_a_judge_that_no_plain_kind_is_is_measured_as_it_is_asked(recipe: StudyRecipe, judge: dict) -> None:
    mine = changed(recipe, judge=judge)
    assert checks_of(mine) == CHECKS | {"summarization/check-judge-in-use": mine.judge_facts}
    assert checks_of(recipe) == CHECKS
    assert not checks_of(changed(mine, evaluation=recipe.evaluation.model_dump() | {"judge_check_pairs": 0}))


@pytest.mark.parametrize("name", ["likelihood", "verdict", "rating", "in-use", "judge-in-use", "check-judge-in-use"])
def test_the_check_of_a_judge_with_a_name_takes_no_other_ones_place(recipe: StudyRecipe, name: str) -> None:
    mine = changed(recipe, judge={"name": name, "kind": "rating"})
    checks = checks_of(mine)
    assert checks.items() >= CHECKS.items()
    assert [judge for step, judge in checks.items() if step not in CHECKS] == [mine.judge_facts]
