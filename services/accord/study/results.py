"""The results of a study as one JSON document, assembled from the results of its steps.

What does not belong here: pictures and pages (`accord.study.report`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import accord
from accord.study.graph import BASE, SFT, Graph, arm_name, arms_of, set_facts
from accord.study.measuring import left_out, responses
from accord.study.recipe import StudyRecipe
from accord.study.steps import StepResult

_EXAMPLES = 3
_ALARM = "alarm:"
_WIN = "win_vs_"
_KEPT = r" \({}\): .*; kept (?P<kept>\d+) of (?P<read>\d+) pairs\b"


def assemble(recipe: StudyRecipe, graph: Graph, found: Mapping[str, StepResult], digests: Mapping[str, str]) -> dict[str, Any]:
    """The document; every number in it comes out of a step's result."""
    evaluation = found["evaluate"].values["evaluation"]
    tasks = [part.task.value for part in recipe.tasks]
    return {
        "format": 1, "accord": accord.__version__, "created": time.time(), "recipe": recipe.model_dump(mode="json"), "digests": dict(digests),
        "tasks": [
            {
                "task": task, "data": _data(recipe, task, found, evaluation), "arms": _arms(recipe, task, found, evaluation),
                "judged_by": found[f"{task}/judge"].values.get("judged_by", {}),
            }
            for task in tasks
        ],
        "contrasts": evaluation["contrasts"], "curves": _curves(found), "judges": _judges(recipe, graph, found),
        "examples": [example for task in tasks for example in _examples(recipe, task, found)],
        "alarms": [f"{name}: {text}" for name, result in found.items() for text in result.values.get("messages", ()) if text.startswith(_ALARM)],
        "notes": [*_left_out(recipe, tasks, found), *evaluation["notes"]], "libraries": evaluation["libraries"],
        "steps": [
            {"name": step.name, "title": step.title, "key": graph.keys[step.name], "seconds": found[step.name].seconds} for step in graph.steps
        ],
    }  # fmt: skip


def _left_out(recipe: StudyRecipe, tasks: Sequence[str], found: Mapping[str, StepResult]) -> list[str]:
    """What was not measured of the held-out parts; the base's responses tell it for all arms."""
    return [f"{task}: {note}" for task in tasks for note in left_out(found[f"{task}/generate-{BASE}"], recipe.longest_measured_prompt)]


def _data(recipe: StudyRecipe, task: str, found: Mapping[str, StepResult], evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What was used, which may be less than a recipe asks for: training pairs by feedback, held-out prompts, responses of each arm to them that are
    measured.

    Of pairs: `read` by the runs that learn from them and `kept` within their limits, None where a run gave no account; of AI feedback also how many
    the judge was asked about (`asked`) and `abstained` on.
    """
    pairs = {}
    for feedback in recipe.feedback:
        run = f"{task}/dpo-{feedback}" if "dpo" in recipe.algorithms else f"{task}/rm-{feedback}"
        pairs[feedback] = _account(found[run].values["messages"], next(part.split for part in recipe.tasks if part.task == task))
        if feedback == "ai":
            labels = found[f"{task}/labels-ai"].values
            pairs[feedback] |= {"asked": labels["pairs"], "abstained": labels["abstained"]}
    prompts = next(row["n"] for row in evaluation["arms"] if (row["task"], row["arm"]) == (task, SFT))
    return {"pairs": pairs, "prompts": prompts, "responses": len(_measured(recipe, task, SFT, found))}


def _measured(recipe: StudyRecipe, task: str, arm: str, found: Mapping[str, StepResult]) -> list[dict[str, Any]]:
    """An arm's responses to the prompts that are measured; the judge is asked about the others too, and nothing of that counts."""
    return responses(found[f"{task}/generate-{arm}"], recipe.longest_measured_prompt)


def _account(messages: Sequence[str], split: str) -> dict[str, int | None]:
    """How many training pairs a run read and kept, by its own account (`accord.training.pairs`), which begins with them."""
    pattern = re.compile(_KEPT.format(re.escape(split)))
    kept = next((match for text in messages if (match := pattern.search(text))), None)
    return {"read": int(kept["read"]) if kept else None, "kept": int(kept["kept"]) if kept else None}


def _arms(recipe: StudyRecipe, task: str, found: Mapping[str, StepResult], evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    metrics = {(row["task"], row["arm"]): row["metrics"] for row in evaluation["arms"]}
    facts = {arm_name(feedback, algorithm): (feedback, algorithm) for feedback, algorithm in recipe.arms}
    judged = found[f"{task}/judge"].values["values"]
    rows = []
    for arm in arms_of(recipe):
        feedback, algorithm = facts.get(arm, (None, None))
        measured = _measured(recipe, task, arm, found)
        rows.append(
            {
                "arm": arm, "feedback": feedback, "algorithm": algorithm,
                "adapter_version": found[f"{task}/generate-{arm}"].values["adapter_version"], "metrics": metrics[(task, arm)],
                "eos_rate": sum(row["finish_reason"] == "eos" for row in measured) / len(measured),
                "training": _cost(task, arm, feedback, algorithm, found),
                "comparisons": _comparisons([judged[arm][row["prompt_id"]][row["sample"]] for row in measured]),
            }
        )  # fmt: skip
    return rows


def _comparisons(judged: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, int]]:
    """By opponent (sft, reference): about how many responses of an arm the judge was asked, and on how many it abstained. Wins are of the rest."""
    counts: dict[str, dict[str, int]] = {}
    for name, win in ((name, win) for row in judged for name, win in row.items() if name.startswith(_WIN)):
        count = counts.setdefault(name.removeprefix(_WIN), {"asked": 0, "abstained": 0})
        count["asked"] += 1
        count["abstained"] += win is None
    return counts


def _cost(task: str, arm: str, feedback: str | None, algorithm: str | None, found: Mapping[str, StepResult]) -> dict[str, Any] | None:
    """What training the arm cost, from the SFT model on (for SFT itself, from the base): seconds, tokens; its reward model's apart."""
    if arm == BASE:
        return None
    run = found[f"{task}/{arm}"].values
    cost = {"run": run["run"], "steps": run["steps"], "seconds": run["seconds"], "tokens": run["tokens"]}
    if algorithm == "ppo":
        cost["reward_model_seconds"] = found[f"{task}/rm-{feedback}"].values["seconds"]
    return cost


def _curves(found: Mapping[str, StepResult]) -> list[dict[str, Any]]:
    rows = []
    for name, result in found.items():
        if "curve" in result.values:
            task, arm = name.split("/")
            rows.append(
                {"task": task, "arm": arm, "algorithm": result.values["algorithm"], "run": result.values["run"], "curve": result.values["curve"]}
            )
    return rows


def _judges(recipe: StudyRecipe, graph: Graph, found: Mapping[str, StepResult]) -> list[dict[str, Any]]:
    """Cards of the labels that were trained on, and of each judge on held-out pairs that people labelled; `name` is empty for the default judge.

    `in_use`: it is asked as the one is that labels and counts wins. `asked` is what it is asked with beyond its kind and the defaults.
    """
    rows, tasks = [], [part.task.value for part in recipe.tasks]
    asked = {step.name: set_facts(step.params["judge"]) for step in graph.steps if step.kind == "label"}
    for name, result in found.items():
        task, _, step = name.partition("/")
        if task in tasks and "cards" in result.values:
            purpose = "training labels" if step == "labels-ai" else "held-out check"
            facts = asked[name]
            row = {
                "task": task, "purpose": purpose, "name": facts.get("name", ""), "in_use": facts == set_facts(recipe.judge_facts(task)),
                "asked": {fact: value for fact, value in facts.items() if fact not in ("name", "kind", "who")},
            }  # fmt: skip
            rows += [row | {"card": card} for card in result.values["cards"]]
    return rows


def _examples(recipe: StudyRecipe, task: str, found: Mapping[str, StepResult]) -> list[dict[str, Any]]:
    """The first measured prompts with every arm's first response: chosen by place, not by outcome."""
    rows = {arm: [row for row in _measured(recipe, task, arm, found) if not row["sample"]] for arm in arms_of(recipe)}
    judged = found[f"{task}/judge"].values["values"]
    examples = []
    for place, first in enumerate(rows[SFT][:_EXAMPLES]):
        name = first["prompt_id"]
        answers = [{"arm": arm, "response": rows[arm][place]["response"], "win_vs_sft": judged[arm][name][0].get("win_vs_sft")} for arm in rows]
        examples.append({"task": task, "prompt_id": name, "messages": first["messages"], "reference": first["reference"], "responses": answers})
    return examples
