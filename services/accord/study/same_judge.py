"""Whether one judge answers throughout a study: keys know the names of judges that a recipe does not describe, and a service may change who that is.

What does not belong here: how a judge is named for people (`accord.study.findings`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from accord.errors import AlreadyExistsError, NotFoundError
from accord.study.actions import label_spec
from accord.study.graph import Graph, Step, set_facts
from accord.study.steps import StepResult

if TYPE_CHECKING:
    from accord.client.feedback import FeedbackClient


def changes(graph: Graph, known: Mapping[str, StepResult], feedback: FeedbackClient, folder_of: Callable[[str], str]) -> list[str]:
    """A sentence for each judge that has labelled in earlier calls and would be another now, where steps are left that ask it; nothing is judged.

    Args:
        graph: all steps.
        known: results of earlier calls.
        feedback: of the service that is asked.
        folder_of: where the label job of a step's key writes, as in `StepContext`.
    """
    left = [set_facts(step.params["judge"]) for step in graph.steps if step.kind in ("label", "judge") and step.name not in known]
    found, compared = [], []
    for step in graph.steps:
        facts = set_facts(step.params["judge"]) if step.kind == "label" else None
        if facts in left and facts not in compared and step.name in known:
            compared.append(facts)
            message = _change(step, known[step.name], feedback, folder_of)
            if message:
                found.append(
                    f"{step.name}: {message}; labels of earlier calls stay and the steps that are left ask who answers now; with another --home all "
                    "steps do"
                )
    return found


def _change(step: Step, result: StepResult, feedback: FeedbackClient, folder_of: Callable[[str], str]) -> str:
    """Who would label now, where that is another or not known: what the service says to whoever asks for a job that has succeeded."""
    job = str(result.values["job"])
    attempt = int(job.partition(f"study-{result.key}-")[2] or 1)
    try:
        feedback.get_label_job(job)  # one that is not known would be begun
        again = feedback.create_label_job(label_spec(step, result.key, folder_of(result.key), attempt))
    except (NotFoundError, AlreadyExistsError) as error:
        return f"whether the judge is the one that labelled is not known: {error.message}"
    return again.message if again.state == "succeeded" else ""
