"""The steps of a study, each named by what goes into it: a second call finds what is done and continues where the first stopped.

A step's key is the sha256 of its kind, its parameters, the digests of model and data, and the keys of the steps before it. What does not belong
here: doing the steps (`accord.study.actions`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from accord.study import costs
from accord.study.costs import Lengths, lengths_of
from accord.study.recipe import Feedback, JudgeKindName, StudyRecipe, TaskPart, TrainPart

StepKind = Literal["train", "label", "generate", "measure", "judge", "evaluate"]
BASE, SFT, PREFERRED_FT, HELD_OUT = "base", "sft", "preferred-ft", "held_out"
_CHECK = "judge-check-"
_CHECK_IN_USE = "check-judge-in-use"  # does not begin as the others do: behind that, a judge may have any name
# Part of every key: a change in how steps are done must not reuse an older result.
_FORMAT = "1"


@dataclass(frozen=True, slots=True)
class Step:
    """One step; `inputs` are names of earlier steps, `tokens` about what it computes (see `accord.study.costs`).

    `asked_pairs` are those about which it asks a judge with a name, which computes elsewhere, or with another model: tokens say little of how long.
    `is_trained_on` says of a label step that runs learn from what it gives; none of the three is in the step's key.
    """

    name: str
    kind: StepKind
    title: str
    params: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    tokens: int = 0
    asked_pairs: int = 0
    is_trained_on: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """Steps in an order in which each comes after its inputs, with the key of each."""

    steps: tuple[Step, ...]
    keys: Mapping[str, str]


@dataclass
class _Builder:
    recipe: StudyRecipe
    lengths: Mapping[str, Lengths]
    steps: list[Step] = field(default_factory=list)

    def add(self, step: Step) -> str:
        self.steps.append(step)
        return step.name


def build_graph(recipe: StudyRecipe, digests: Mapping[str, str], lengths: Mapping[str, Lengths] | None = None) -> Graph:
    """The steps of a recipe.

    Args:
        recipe: what is compared.
        digests: of everything outside of the recipe that results depend on (base model, tokenizer, template, data of each task).
        lengths: of each task's texts, for the cost of steps; the recipe's limits where they are not known. No part of any key.
    """
    builder = _Builder(recipe, {part.task.value: (lengths or {}).get(part.task.value, lengths_of(recipe, None, None)) for part in recipe.tasks})
    measured: list[str] = []
    for part in recipe.tasks:
        measured += _task_steps(builder, part)
    evaluation = recipe.evaluation
    builder.add(
        Step(
            "evaluate", "evaluate", "metrics with intervals",
            {"bootstrap_samples": evaluation.bootstrap_samples, "seed": recipe.seed, "wins": ["judge", "all scores"]},
            tuple(measured), tokens=300 * len(recipe.tasks) * recipe.evaluation.responses,
        )
    )  # fmt: skip
    steps = tuple(builder.steps)
    return Graph(steps, _keys(steps, digests))


def arm_name(feedback: Feedback, algorithm: str) -> str:
    """For example `dpo-ai`."""
    return f"{algorithm}-{feedback}"


def arms_of(recipe: StudyRecipe) -> tuple[str, ...]:
    """All rows of a task's table: base, sft, the control without preferences where there is one, and the trained arms."""
    control = () if recipe.preferred_ft is None else (PREFERRED_FT,)
    return (BASE, SFT, *control, *(arm_name(feedback, algorithm) for feedback, algorithm in recipe.arms))


def set_facts(judge: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a judge that are not the default: equal for two that are asked in the same way, however much of it was written down."""
    return {name: value for name, value in judge.items() if value}


def _task_steps(builder: _Builder, part: TaskPart) -> list[str]:
    recipe, task = builder.recipe, part.task.value
    lengths = builder.lengths[task]
    labels = _label_steps(builder, part)  # first: a judge that cannot be asked shows before anything is trained
    # Before training, too: it shows how long the held-out prompts are.
    generated = {BASE: _generate(builder, part, BASE, None)}
    sft = builder.add(_train(recipe, part, "sft", SFT, {"data": _data(part)}, recipe.sft, lengths))
    adapters: dict[str, str] = {SFT: sft}
    if recipe.preferred_ft is not None:
        chosen = {"data": _data(part, limit=recipe.human_pairs)}
        adapters[PREFERRED_FT] = builder.add(_train(recipe, part, "sft", PREFERRED_FT, chosen, recipe.preferred_ft, lengths, before={"parent": sft}))
    reward_models: dict[Feedback, str] = {}
    for feedback in recipe.feedback:
        data = {"data": _data(part, limit=recipe.human_pairs), "eval_data": _held_out(recipe, part)}
        before = {"parent": sft} | ({"labels": labels} if feedback == "ai" else {})
        if "ppo" in recipe.algorithms:
            reward_models[feedback] = builder.add(
                _train(recipe, part, "reward_model", f"rm-{feedback}", data, recipe.reward_model, lengths, before=before)
            )
        if "dpo" in recipe.algorithms:
            dpo = data | {"beta": recipe.dpo.beta} | ({"nll_coefficient": recipe.dpo.nll_coefficient} if recipe.dpo.nll_coefficient else {})
            name = arm_name(feedback, "dpo")
            adapters[name] = builder.add(_train(recipe, part, "dpo", name, dpo, recipe.dpo, lengths, before=before))
        if "ppo" in recipe.algorithms:
            name = arm_name(feedback, "ppo")
            before = {"parent": sft, "reward_model": reward_models[feedback]}
            adapters[name] = builder.add(_train(recipe, part, "ppo", name, _ppo(recipe, part), recipe.ppo, lengths, before=before))
    scorers: dict[str, str] = dict(reward_models.items())
    if recipe.evaluation.held_out_reward_model:
        scorers[HELD_OUT] = builder.add(
            _train(recipe, part, "reward_model", "rm-held-out", _swapped(recipe, part), recipe.reward_model, lengths, before={"parent": sft})
        )
    generated |= {arm: _generate(builder, part, arm, adapters[arm]) for arm in arms_of(recipe) if arm != BASE}
    measured = [_measure(builder, part, arm, generated[arm], sft, scorers) for arm in generated]
    judged = builder.add(
        Step(
            f"{task}/judge", "judge", f"{task}: judge the arms against SFT and the references",
            {"task": task, "judge": recipe.judge_facts(task), "arms": list(generated)}, tuple(generated.values()),
            tokens=costs.judge_cost(recipe, len(generated), lengths),
            asked_pairs=(2 * len(generated) - 1) * recipe.evaluation.responses if recipe.judge.name else 0,
        )
    )  # fmt: skip
    checks = [name for name in (step.name for step in builder.steps) if name.startswith((f"{task}/{_CHECK}", f"{task}/{_CHECK_IN_USE}"))]
    return [
        *adapters.values(),
        *scorers.values(),
        *([labels] if "ai" in recipe.feedback else []),
        *checks,
        *generated.values(),
        *measured,
        judged,
    ]


def _label_steps(builder: _Builder, part: TaskPart) -> str:
    """Labels for training, and the judges measured on held-out pairs that people labelled; returns the name of the former."""
    recipe, task = builder.recipe, part.task.value
    judge, evaluation = recipe.judge_facts(task), recipe.evaluation
    lengths = builder.lengths[task]
    name = f"{task}/labels-ai"
    if "ai" in recipe.feedback:
        params = {"task": task, "uri": part.uri, "format": part.format, "split": part.split, "limit": recipe.ai_pairs, "judge": judge}
        builder.add(
            Step(
                name,
                "label",
                f"{task}: {_who(recipe)} labels",
                params | {"seed": recipe.seed},
                tokens=costs.label_cost(recipe.judge.kind, recipe.ai_pairs, lengths),
                asked_pairs=recipe.ai_pairs if recipe.judge.name else 0,
                is_trained_on=True,
            )
        )
    checked: dict[str, tuple[str, dict[str, Any]]] = {
        f"{task}/{_CHECK}{kind}": (f"{task}: {kind} judge against people", {"kind": kind}) for kind in evaluation.judge_check_kinds
    }
    if all(set_facts(judge) != asked for _, asked in checked.values()):  # the one that labels and counts wins is none of them
        if recipe.judge.name and recipe.judge.name not in get_args(JudgeKindName):  # a judge's name may be a kind's
            checked[f"{task}/{_CHECK}{recipe.judge.name}"] = f"{task}: {_who(recipe)} against people", judge
        else:
            checked[f"{task}/{_CHECK_IN_USE}"] = f"{task}: {_who(recipe)} against people, asked as for labels and wins", judge
    for step, (title, asked) in checked.items() if evaluation.judge_check_pairs else ():
        params = {
            "task": task, "uri": part.held_out_uri, "format": part.format, "split": part.test_split, "limit": evaluation.judge_check_pairs,
            "judge": asked, "seed": recipe.seed,
        }  # fmt: skip
        tokens = costs.label_cost(asked["kind"], evaluation.judge_check_pairs, lengths)
        builder.add(Step(step, "label", title, params, tokens=tokens, asked_pairs=evaluation.judge_check_pairs if asked.get("name") else 0))
    return name


def _who(recipe: StudyRecipe) -> str:
    """The judge that labels, for people."""
    return f"{recipe.judge.kind} judge" + (f" {recipe.judge.name}" if recipe.judge.name else "")


def _train(
    recipe: StudyRecipe, part: TaskPart, algorithm: str, arm: str, values: Mapping[str, Any], size: TrainPart, lengths: Lengths, *,
    before: Mapping[str, str] | None = None,
) -> Step:  # fmt: skip
    """A run. `before` names the steps that give the parent adapter, the reward model and the labels."""
    longest = recipe.max_sampled_tokens if algorithm == "ppo" else recipe.max_response_tokens
    spec = {
        "adapter": f"{recipe.name}-{part.task.value}-{arm}", "seed": recipe.seed, "steps": size.steps, "batch_size": size.batch_size,
        "micro_batch_size": min(size.micro_batch_size, size.batch_size), "max_prompt_tokens": recipe.max_prompt_tokens,
        "max_response_tokens": longest, "lora": recipe.lora.model_dump(mode="json", exclude_none=True),
        "optimizer": {"learning_rate": size.learning_rate, "schedule": size.schedule, "warmup_steps": size.warmup_steps},
        "checkpoint_every_steps": size.checkpoint_every_steps, "eval_every_steps": size.eval_every_steps, algorithm: dict(values),
    }  # fmt: skip
    sources = dict(before or {})
    return Step(
        f"{part.task.value}/{arm}", "train", f"{part.task.value}: train {arm}", {"algorithm": algorithm, "spec": spec, "sources": sources},
        tuple(dict.fromkeys(sources.values())), tokens=costs.run_cost(recipe, algorithm, size, lengths),
    )  # fmt: skip


def _ppo(recipe: StudyRecipe, part: TaskPart) -> dict[str, Any]:
    size = recipe.ppo
    values = {
        "data": _data(part), "kl_coef": size.kl_coef, "kl_controller": size.kl_controller, "kl_target": size.kl_target, "epochs": size.epochs,
        "missing_eos_penalty": size.missing_eos_penalty, "temperature": recipe.evaluation.temperature,
    }  # fmt: skip
    if size.minibatch_size is not None:
        values["minibatch_size"] = size.minibatch_size
    # Steps of before these could be chosen keep their keys.
    values |= size.model_dump(include={"gae_lambda", "value_from_reward_model"}, exclude_defaults=True)
    if size.ptx_coefficient > 0:
        values |= {"ptx_coefficient": size.ptx_coefficient, "ptx_data": _data(part)}
    return values


def _generate(builder: _Builder, part: TaskPart, arm: str, adapter: str | None) -> str:
    recipe, evaluation = builder.recipe, builder.recipe.evaluation
    params = {
        "task": part.task.value, "arm": arm, "uri": part.held_out_uri, "format": part.format, "limit": evaluation.prompts,
        "temperature": evaluation.temperature, "max_tokens": recipe.max_sampled_tokens, "seed": recipe.seed, "adapter_from": adapter,
        "samples": evaluation.samples,
    }  # fmt: skip
    # Steps of before it could be chosen keep their keys.
    params |= part.model_dump(include={"test_split"}, exclude_defaults=True)
    tokens = costs.generate_cost(recipe, builder.lengths[part.task.value])
    title = f"{part.task.value}: {arm} answers held-out prompts"
    return builder.add(Step(f"{part.task.value}/generate-{arm}", "generate", title, params, (adapter,) if adapter else (), tokens))


def _measure(builder: _Builder, part: TaskPart, arm: str, generated: str, sft: str, reward_models: Mapping[str, str]) -> str:
    recipe = builder.recipe
    params = {
        "task": part.task.value, "arm": arm, "responses_from": generated, "reference_from": sft, "reward_models_from": dict(reward_models),
        "temperature": recipe.evaluation.temperature, "cut_responses": "scored with an end",
    }  # fmt: skip
    tokens = costs.measure_cost(recipe, len(reward_models), builder.lengths[part.task.value])
    title = f"{part.task.value}: {arm} reward and KL"
    return builder.add(Step(f"{part.task.value}/measure-{arm}", "measure", title, params, (generated, sft, *reward_models.values()), tokens))


def _data(part: TaskPart, *, limit: int = 0) -> dict[str, Any]:
    return {"uri": part.uri, "format": part.format, "split": part.split, "limit": limit}


def _held_out(recipe: StudyRecipe, part: TaskPart) -> dict[str, Any]:
    return {"uri": part.held_out_uri, "format": part.format, "split": part.test_split, "limit": recipe.evaluation.pairs}


def _swapped(recipe: StudyRecipe, part: TaskPart) -> dict[str, Any]:
    """What the held-out reward model learns from, and what it is measured on: the held-out pairs, and those that arms learn from."""
    held_out = {"uri": part.held_out_uri, "format": part.format, "split": part.test_split, "limit": 0}
    return {"data": held_out, "eval_data": _data(part, limit=recipe.human_pairs)}


def _keys(steps: Sequence[Step], digests: Mapping[str, str]) -> dict[str, str]:
    keys: dict[str, str] = {}
    for step in steps:
        content = [_FORMAT, step.kind, step.params, [keys[name] for name in step.inputs], dict(digests)]
        keys[step.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    return keys
