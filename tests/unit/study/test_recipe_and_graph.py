"""Recipes and the steps that follow from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from accord.study.runner import data_facts
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


def test_a_change_of_a_judge_that_a_panel_asks_makes_its_labels_anew() -> None:
    """At any depth: an escalation to an ensemble whose member moves; a judge that nobody asks changes nothing."""
    own = load_recipe("larger-judge")
    at = own.judges["larger"].model_dump(exclude_defaults=True)
    both = {"kind": "ensemble", "members": ["default", "large"]}
    judges = {
        "panel": {"kind": "escalation", "first": "small", "then": "both", "threshold": 0.2},
        "both": both,
        "small": at,
        "large": at,
        "other": at,
    }

    def graph(**moved: object) -> Graph:
        return build_graph(changed(own, judges=judges | moved, judge={"name": "panel", "kind": "verdict"}), DIGESTS)

    assert not keys_that_differ(graph(), graph(other=at | {"model": "m2"}))
    moves = ({"large": at | {"model": "m2"}}, {"small": at | {"base_url": "http://127.0.0.1:1/v1"}}, {"both": both | {"combine": "majority"}})
    for moved in moves:
        differ = keys_that_differ(graph(), graph(**moved))
        assert {"summarization/labels-ai", "summarization/judge-check-panel", "summarization/dpo-ai", "summarization/judge"} <= differ
        assert not {"summarization/sft", "summarization/dpo-human", "summarization/judge-check-verdict"} & differ
    alone = {step.name: step for step in build_graph(own, DIGESTS).steps}
    assert set(alone["summarization/labels-ai"].params["judge"]) == {"name", "kind", "rubric", "rationale", "adapter", "tie_margin", "who"}


def test_how_a_judge_is_reached_and_paid_makes_no_step_anew() -> None:
    """Its timeout above all, which is raised where a judge was too slow: the AI arms were trained again. Also of one that a panel asks."""
    own = load_recipe("larger-judge")
    at = own.judges["larger"].model_dump(exclude_defaults=True)
    prices = {"mine": {"prompt_per_million": 1, "completion_per_million": 2}}
    reached: dict[str, dict] = {
        "openai": {
            "timeout_seconds": 900, "attempts": 2, "max_concurrency": 1, "max_tokens_field": "max_completion_tokens", "api_key_env": "KEY",
            "proxy": "http://127.0.0.1:1", "ca_file": "ca.pem", "price": "mine",
        },
        "policy": {"tls": {"ca": "ca.pem"}, "balancing": "prefix", "price": "mine"},
    }  # fmt: skip
    asked: dict[str, list[dict]] = {
        "openai": [{"context_tokens": 1000}, {"top_logprobs": 5}, {"max_verdict_tokens": 99}, {"body": {"top_p": 0.5}}, {"model": "other"}],
        "policy": [{"address": "b:1"}, {"adapter": "adapters/x/versions/1"}],
    }
    for kind, judge in (("openai", at), ("policy", {"kind": "policy", "address": "a:1"})):

        def graph(judge: dict = judge, **values: object) -> Graph:
            judges = {"panel": {"kind": "escalation", "first": "small", "then": "larger", "threshold": 0.2}, "small": at, "larger": judge | values}
            both = (
                build_graph(changed(own, judges=judges, prices=prices, judge={"name": name, "kind": "verdict"}), DIGESTS)
                for name in ("larger", "panel")
            )
            return Graph((), {f"{place} {name}": key for place, one in enumerate(both) for name, key in one.keys.items()})

        for name, value in reached[kind].items():
            assert not keys_that_differ(graph(), graph(**{name: value})), name
        for change in asked[kind]:
            assert {"0 summarization/labels-ai", "1 summarization/labels-ai"} <= keys_that_differ(graph(), graph(**change)), change


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


def test_the_bare_base_answers_before_training_and_reward_models_say_which_prompts_are_too_long(recipe: StudyRecipe) -> None:
    steps = [step for step in build_graph(recipe, DIGESTS).steps if step.name.startswith("summarization/")]
    names = [step.name for step in steps]
    assert names.index("summarization/generate-base") < min(place for place, step in enumerate(steps) if step.kind == "train")
    judged = next(step for step in steps if step.kind == "judge")
    assert [name.split("generate-")[1] for name in judged.inputs] == list(judged.params["arms"]) == list(arms_of(recipe))
    assert recipe.longest_measured_prompt == recipe.max_prompt_tokens + recipe.max_response_tokens - recipe.max_sampled_tokens == 344
    assert changed(recipe, algorithms=["dpo"]).longest_measured_prompt is None
    with_one = recipe.evaluation.model_dump() | {"held_out_reward_model": True}
    assert changed(recipe, algorithms=["dpo"], evaluation=with_one).longest_measured_prompt == 344


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


PAIRS = [
    {"prompt": f"{split} {n}", "chosen": f"good {n}", "rejected": f"bad {n}", "split": split, "task": "conversation"}
    for split in ("train", "test")
    for n in range(3)
]


def digest_of(recipe: StudyRecipe, folder: Path, rows: Sequence[dict]) -> str:
    """Of the data of a study with these rows."""
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return data_facts(changed(recipe, tasks=[{"task": "conversation", "uri": str(path)}]))[0]["data_conversation"]


def test_data_of_pairs_alone_keeps_the_digest_that_it_had(recipe: StudyRecipe, tmp_path: Path) -> None:
    """And so the shipped samples: a study with them finds the steps of earlier versions."""
    assert digest_of(recipe, tmp_path, PAIRS) == "0033515a16ac0b5398f17068fd68e6945a2a764e0d3dbdd4927e05468bf11b08"
    assert data_facts(recipe)[0] == {
        "data_summarization": "aa4a18a979fbdd246c3b87241a7a6d9943837dd3bb909f561f7a99d5fc657db0",
        "data_conversation": "9a6b562a1765b237b96e393383d2f08a00599ef3fee1de06f26e10b43837cba5",
    }
    rated = [row | {"chosen_rating": 4, "rejected_rating": 2} for row in PAIRS]
    assert digest_of(recipe, tmp_path, rated) == "919681ba66d003dfd5a053458b103a9c94c0a162c941cf7bfc7f7dff73e55f04"


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_that_are_no_pairs_are_in_the_digest_since_sft_and_ppo_read_them(recipe: StudyRecipe, tmp_path: Path, split: str) -> None:
    row = {"prompt": f"{split} more", "split": split}  # of which PPO reads the prompt and SFT nothing
    more = ([], [row], [row | {"response": "said"}], [row | {"response": "otherwise"}])
    found = {digest_of(recipe, tmp_path, [*PAIRS, *rows]) for rows in more}
    assert len(found) == 4
    again = {"prompt": f"{split} 0", "response": "good 0", "split": split}  # as a pair says it, once more: SFT learns it twice
    assert digest_of(recipe, tmp_path, [*PAIRS, again]) not in found


def test_rows_that_repeat_a_held_out_prompt_make_steps_anew(recipe: StudyRecipe, tmp_path: Path) -> None:
    pair = PAIRS[-1] | {"chosen": "better"}
    other = digest_of(recipe, tmp_path, [*PAIRS, pair])
    assert other != digest_of(recipe, tmp_path, PAIRS)
    assert other == digest_of(recipe, tmp_path, [*PAIRS, pair])


@pytest.mark.parametrize("more", [{"response": "good 0"}, {"reference": "good 0"}, {}])
def test_a_held_out_prompt_among_the_training_rows_is_refused_with_and_without_a_pair(recipe: StudyRecipe, tmp_path: Path, more: dict) -> None:
    with pytest.raises(InvalidArgumentError, match=r"1 prompts of tasks\[0\] are both in the training and in the held-out part"):
        digest_of(recipe, tmp_path, [*PAIRS, {"prompt": "test 0", "split": "train", **more}])


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["pair", "demonstration"])
def test_rows_of_another_task_are_refused_since_runs_would_take_them(recipe: StudyRecipe, tmp_path: Path, split: str, kind: str) -> None:
    said = {"chosen": "a", "rejected": "b"} if kind == "pair" else {"response": "a"}
    others = [{"prompt": f"{split} summary {n}", "split": split, "task": "summarization", **said} for n in range(2)]
    with pytest.raises(InvalidArgumentError, match=r"2 of 5 usable rows of split .* are of task summarization, .* a file of its own") as error:
        digest_of(recipe, tmp_path, [*PAIRS, *others])
    assert error.value.field == "tasks[0].uri"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": [{"role": "assistant", "content": "x" * 32_769}]}, "reference has 32769 characters; allowed: 32768"),
        ({"reference": "x" * 32_769}, "reference has 32769 characters; allowed: 32768"),
        ({"group": "p" * 257}, "prompt_id is 'p{40}'; allowed: 1 to 256 characters"),
    ],
)
def test_what_the_evaluation_would_refuse_is_refused_before_training(recipe: StudyRecipe, tmp_path: Path, change: dict, reason: str) -> None:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    rows = [
        {"pair_id": str(place), "preference": 1.0, **{name: [{"role": role, "content": pair[name]}] for name, role in roles.items()}}
        | {"split": pair["split"], "task": pair["task"]}
        for place, pair in enumerate(PAIRS)
    ]
    digest_of(recipe, tmp_path, [rows[0] | change, *rows[1:]])  # of what is trained on, the evaluation reads nothing
    with pytest.raises(InvalidArgumentError, match=reason) as error:
        digest_of(recipe, tmp_path, [*rows[:-1], rows[-1] | change])
    assert error.value.field == "tasks[0].uri"


CHECKS = {"summarization/judge-check-likelihood": {"kind": "likelihood"}, "summarization/judge-check-verdict": {"kind": "verdict"}}


def checks_of(recipe: StudyRecipe) -> dict[str, dict]:
    steps = build_graph(recipe, DIGESTS).steps
    checks = {step.name: step.params["judge"] for step in steps if step.kind == "label" and step.params["split"] == "test"}
    assert set(checks) <= set(steps[-1].inputs)  # the table waits for them
    return {name: judge for name, judge in checks.items() if name.startswith("summarization")}


@pytest.mark.parametrize(
    "judge",
    [
        {"kind": "rating"}, {"kind": "verdict", "rubric": {"summarization": "summarization/base/1"}}, {"adapter": "adapters/z/versions/1"},
        {"tie_margin": 0.1},
    ],
)  # fmt: skip
def test_a_judge_that_no_plain_kind_is_is_measured_as_it_is_asked(recipe: StudyRecipe, judge: dict) -> None:
    mine = changed(recipe, judge=judge)
    assert checks_of(mine) == CHECKS | {"summarization/check-judge-in-use": mine.judge_facts("summarization")}
    assert checks_of(recipe) == CHECKS
    assert not checks_of(changed(mine, evaluation=recipe.evaluation.model_dump() | {"judge_check_pairs": 0}))


@pytest.mark.parametrize("name", ["likelihood", "verdict", "rating", "in-use", "judge-in-use", "check-judge-in-use"])
def test_the_check_of_a_judge_with_a_name_takes_no_other_ones_place(recipe: StudyRecipe, name: str) -> None:
    mine = changed(recipe, judge={"name": name, "kind": "rating"})
    checks = checks_of(mine)
    assert checks.items() >= CHECKS.items()
    assert [judge for step, judge in checks.items() if step not in CHECKS] == [mine.judge_facts("summarization")]
