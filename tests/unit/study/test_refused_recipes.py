"""Recipes that a service would refuse once other steps are done are refused before anything is done; rubrics by task."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import cast

import pytest
import yaml

from accord.client.feedback import Judge
from accord.errors import InvalidArgumentError
from accord.study.actions import wanted_judge
from accord.study.graph import build_graph
from accord.study.recipe import StudyRecipe, load_recipe, shipped_recipes
from accord.study.runner import Reporter, plan_study, run_study

DIGESTS = {"base_model": "m", "data_summarization": "s"}
COT = {"summarization": "summarization/cot/1", "conversation": "conversation/helpful-cot/1"}


@pytest.fixture
def recipe() -> StudyRecipe:
    return load_recipe("quick")


def changed(recipe: StudyRecipe, **values: object) -> StudyRecipe:
    return StudyRecipe.model_validate(recipe.model_dump() | values)


def test_each_task_has_the_rubric_that_the_recipe_says_for_it_and_one_task_is_as_before_there_were_several(recipe: StudyRecipe) -> None:
    both = {step.name: step for step in build_graph(changed(recipe, judge={"kind": "verdict", "rubric": COT}), DIGESTS).steps}
    for task, rubric in COT.items():
        for step in ("labels-ai", "check-judge-in-use", "judge"):
            assert wanted_judge(both[f"{task}/{step}"].params["judge"]) == Judge("verdict", rubric=rubric)
    one = [task.model_dump() for task in recipe.tasks[:1]]
    plain, mapped = (
        build_graph(changed(recipe, tasks=one, judge={"kind": "verdict", "rubric": rubric}), DIGESTS).keys
        for rubric in (COT["summarization"], {"summarization": COT["summarization"]})
    )
    assert plain == mapped
    assert plain["summarization/labels-ai"] == "f3ff52c478ee08639cc68352"  # as before a recipe could name one for each task


@pytest.mark.parametrize(
    ("judge", "reason"),
    [
        ({"kind": "verdict", "rubric": COT["summarization"]},
         "judge.rubric: rubric summarization/cot/1 judges summarization, not conversation; with several tasks give one for each: "
         "rubric: {summarization: ID, conversation: ID}"),
        ({"kind": "verdict", "rubric": {"conversation": "conversation/cot/1"}}, "judge.rubric: there is no rubric 'conversation/cot/1'; there are "),
        ({"kind": "rating", "rubric": COT}, "judge.rubric: rubric summarization/cot/1 is for verdict, not rating"),
        ({"kind": "verdict", "rubric": COT | {"dialogue": "x"}},
         "judge.rubric: 'dialogue' is not one of the recipe's tasks, which are summarization, conversation"),
        ({"kind": "likelihood", "rubric": COT}, "judge.rubric: likelihood uses no rubric"),
        ({"kind": "likelihood", "rationale": True}, "judge.rationale: likelihood writes no rationale; only verdict does"),
        ({"kind": "verdict", "rubric": {"summarization": 1}}, "judge.rubric: .*a mapping from task to one"),
    ],
)  # fmt: skip
def test_a_judge_that_cannot_be_asked_about_a_task_is_refused_with_the_recipe(tmp_path: Path, judge: dict, reason: str) -> None:
    """And not by the feedback service, which is asked about the second task once the first one is trained."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(shipped_recipes()["quick"].read_text()) | {"judge": judge}))
    with pytest.raises(InvalidArgumentError, match=reason):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        (
            {"ppo": {"kl_controller": "adaptive", "kl_coef": 0}},
            "ppo",
            "makes summarization/ppo-human a run that is refused: ppo: kl_controller adaptive",
        ),
        ({"seed": 2**64}, "seed", "makes summarization/sft a run that is refused: seed: "),
    ],
)
def test_a_run_that_would_be_refused_is_refused_before_anything_is_done(
    recipe: StudyRecipe, tmp_path: Path, change: dict, field: str, reason: str
) -> None:
    mine = changed(recipe, **{name: getattr(recipe, name).model_dump() | value if name == "ppo" else value for name, value in change.items()})
    for call in (plan_study, partial(run_study, reporter=cast(Reporter, None))):
        with pytest.raises(InvalidArgumentError, match=reason) as error:
            call(mine, tmp_path)
        assert error.value.field == field
    assert not list(tmp_path.rglob("steps"))
