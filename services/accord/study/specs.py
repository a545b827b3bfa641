"""Whether the runs of a recipe can be asked for, known before anything is done.

What does not belong here: asking for them (`accord.study.actions`).
"""

from __future__ import annotations

from accord.errors import InvalidArgumentError
from accord.study.actions import resolved_spec
from accord.study.graph import PREFERRED_FT, Step, build_graph
from accord.study.recipe import StudyRecipe
from accord.study.steps import StepResult

_OF_THE_RECIPE = ("seed", "lora", "max_prompt_tokens", "max_response_tokens")
"""Fields of a specification that a recipe has once for all its runs; the others are those of the algorithm's part."""


def check_specs(recipe: StudyRecipe) -> None:
    """Parses the specification of every run, with placeholders for what earlier steps give.

    Raises:
        InvalidArgumentError: one is refused, which would show once the steps before it are done; the message names the recipe's field.
    """
    for step in build_graph(recipe, {}).steps:
        if step.kind != "train":
            continue
        given = {"adapter_version": "adapters/placeholder/versions/1", "dataset_uri": "placeholder.jsonl"}
        try:
            resolved_spec(step, {name: StepResult(name, "", given, 0.0, 0.0) for name in step.inputs})
        except InvalidArgumentError as error:
            field = _recipe_field(step, error.field or "")
            reason = error.message.removeprefix("spec: ")
            raise InvalidArgumentError(f"the recipe's {field} makes {step.name} a run that is refused: {reason}", field=field) from error


def _recipe_field(step: Step, field: str) -> str:
    if field.partition(".")[0] in _OF_THE_RECIPE:
        return field
    return "preferred_ft" if step.name.endswith(f"/{PREFERRED_FT}") else str(step.params["algorithm"])
