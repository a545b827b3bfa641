"""What a study measures itself, through the services: responses of an arm, their reward and KL, and how a judge compares them.

Responses are sampled at the study's temperature with one seed a prompt, the same for all arms. What does not belong here: metrics against
references, which an evaluation run computes (`accord.evaluation`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accord.client.feedback import LabelPairItem
from accord.client.messages import TokenIds
from accord.client.policy import GenerateItem, LogprobsItem, ModelInfo, Sampling
from accord.client.reward import ScoreItem
from accord.data.readers import read_demonstrations
from accord.data.records import Dataset, Demonstration
from accord.errors import InvalidArgumentError, OutOfRangeError
from accord.study.actions import StepContext, raise_item, wanted_judge
from accord.study.graph import BASE, SFT, Step
from accord.study.steps import StepResult
from accord.text.chat import Message
from accord.text.tasks import Task

_CALL_SECONDS = 1800.0
_BATCH = 8
_LONGEST_ID = 256  # characters of a pair's name, as the contract of LabelPairs has it


def held_out(uri: str, format: str, limit: int, seed: int, task: Task, split: str = "test") -> Dataset[Demonstration]:
    """The held-out prompts with their references: each prompt once, with that of its first row, however many pairs it has.

    Raises:
        InvalidArgumentError: there are fewer than two.
    """
    found = read_demonstrations(uri, format=format, split=split, limit=limit, seed=seed, task=task, each_once=True)
    if len(found.rows) < 2:
        raise InvalidArgumentError(
            f"{uri} has {len(found.rows)} held-out prompts with a reference (split {split}: {found.report.account()}); 2 are needed",
            field="tasks.test_uri",
        )
    return found


def generate(step: Step, context: StepContext) -> dict[str, Any]:
    """Samples responses to each held-out prompt; writes responses.jsonl, those of a prompt one after the other.

    Prompts that leave no room for a response in the base model's context are left out and counted: of all arms the same.
    """
    params = step.params
    data = held_out(params["uri"], params["format"], params["limit"], params["seed"], Task(params["task"]), params.get("test_split", "test"))
    rows = data.rows
    adapter = context.inputs[params["adapter_from"]].values["adapter_version"] if params["adapter_from"] else ""
    found: list[dict[str, Any]] = []
    refused = 0
    for part in _parts(rows):
        items = [
            GenerateItem(
                row.messages,
                Sampling(max_tokens=params["max_tokens"], temperature=params["temperature"], seed=_seed(params["seed"], row.prompt_id)),
                n=params["samples"],
                item_id=row.prompt_id,
            )
            for row in part
        ]
        reply = context.services.policy.generate(items, adapter=adapter, timeout_seconds=_CALL_SECONDS)
        for row, result in zip(part, reply.results, strict=True):
            if isinstance(result.error, OutOfRangeError):
                refused += 1
                continue
            raise_item(result.error, f"prompt {row.prompt_id}")
            found += [
                {
                    "prompt_id": row.prompt_id, "sample": sample.index, "messages": [[turn.role, turn.content] for turn in row.messages],
                    "reference": row.response, "response": sample.text.strip(), "token_ids": list(sample.token_ids),
                    "prompt_token_ids": list(result.prompt_token_ids), "logprobs": list(sample.logprobs), "finish_reason": sample.finish_reason,
                }
                for sample in sorted(result.samples, key=lambda sample: sample.index)
            ]  # fmt: skip
        done = len(found) // params["samples"] + refused
        context.progress(done / len(rows), f"{done} of {len(rows)} prompts")
    _check_enough(len(found) // params["samples"], len(rows), "the base model's context holds")
    path = context.folder / "responses.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    ended = sum(row["finish_reason"] == "eos" for row in found) / len(found)
    counts = {name: count for name, count in (("repeated", data.report.repeated), ("refused", refused)) if count}
    return {"responses": str(path), "count": len(found), "adapter_version": adapter, "eos_rate": ended, **counts}


def left_out(result: StepResult, longest: int | None) -> list[str]:
    """What is not measured of the held-out part of a generate step and why, as sentences. `longest` is `StudyRecipe.longest_measured_prompt`.

    Raises:
        InvalidArgumentError: fewer than two prompts are left.
    """
    prompts = {row["prompt_id"] for row in responses(result)}
    read = {row["prompt_id"] for row in responses(result, longest)}
    _check_enough(len(read), len(prompts), f"reward models of the recipe's sizes can read: prompts of at most {longest} tokens")
    notes = {
        "held-out rows repeat a prompt that was there before; each prompt is measured once": result.values.get("repeated", 0),
        "held-out prompts are left out: the base model's context has no room for a response to them": result.values.get("refused", 0),
        f"held-out prompts are left out: they have over {longest} tokens (max_prompt_tokens + max_response_tokens - max_sampled_tokens), so that "
        "reward models may not read a response to them": len(prompts) - len(read),
    }  # fmt: skip
    return [f"{count} {note}" for note, count in notes.items() if count]


def _check_enough(left: int, given: int, which: str) -> None:
    if left < 2:
        raise InvalidArgumentError(f"{left} of {given} held-out prompts are such that {which}; 2 are needed", field="tasks.test_uri")


def measure(step: Step, context: StepContext) -> dict[str, Any]:
    """Reward of each response under each reward model, and its log-ratio to SFT, whose mean is the KL to SFT at the sampling temperature.

    Responses to prompts over the context's longest are left out. Reward models read all responses with the end of the turn, as they do in training
    (`accord.training.scorers`).
    """
    params = step.params
    rows = responses(context.inputs[params["responses_from"]], context.longest_prompt)
    values: list[dict[str, float | None]] = [{"response_tokens": float(len(row["token_ids"]))} for row in rows]
    reference = context.inputs[params["reference_from"]].values["adapter_version"]
    model = context.services.policy.model_info(timeout_seconds=_CALL_SECONDS)
    parts, done, total = _parts(rows), 0, len(rows) * (1 + len(params["reward_models_from"]))
    for place, part in enumerate(parts):
        known = values[place * _BATCH :]
        items = [LogprobsItem(TokenIds(tuple(row["prompt_token_ids"])), (TokenIds(tuple(row["token_ids"])),)) for row in part]
        reply = context.services.policy.compute_logprobs(items, adapter=reference, temperature=params["temperature"], timeout_seconds=_CALL_SECONDS)
        for row, result, value in zip(part, reply.results, known, strict=False):
            raise_item(result.error, f"prompt {row['prompt_id']}")
            value["kl"] = math.fsum(row["logprobs"]) - result.responses[0].sequence_logprob
        ended = [_with_end(row, model) for row in part]
        for feedback, source in params["reward_models_from"].items():
            scorer = context.inputs[source].values["adapter_version"]
            scored = context.services.reward.score(
                [ScoreItem(TokenIds(tuple(row["prompt_token_ids"])), TokenIds(ids)) for row, ids in zip(part, ended, strict=True)], scorer,
                timeout_seconds=_CALL_SECONDS,
            )  # fmt: skip
            for row, score, value in zip(part, scored.results, known, strict=False):
                raise_item(score.error, f"prompt {row['prompt_id']}")
                value[f"score_{feedback}"] = score.score
        done += len(part) * (1 + len(params["reward_models_from"]))
        context.progress(done / total, f"{done} of {total} passes")
    return {"values": _by_prompt(rows, values)}


def judge(step: Step, context: StepContext) -> dict[str, Any]:
    """The judge's preference for each arm over SFT's response of the same number and over the reference; an abstention is null.

    `judged_by` has who answered, by digest: the judge of a name may be another one than when it labelled.
    """
    params = step.params
    arms = {name: responses(context.inputs[source]) for name, source in _arm_sources(step).items()}
    wanted = wanted_judge(params["judge"])
    places = len(arms[SFT])
    found: dict[str, list[dict[str, float | None]]] = {arm: [{} for _ in range(places)] for arm in arms}
    abstained = 0
    judged_by: dict[str, str] = {}
    for place in range(places):
        pairs = list(_comparisons(arms, place, Task(params["task"])))
        results = context.services.feedback.label_pairs([pair for _, _, pair in pairs], wanted, timeout_seconds=_CALL_SECONDS)
        for (arm, against, pair), result in zip(pairs, results, strict=True):
            raise_item(result.error, f"pair {pair.pair_id}")
            preference = result.label.preference if result.label is not None else None
            judged_by |= {result.label.judge_digest: result.label.judge} if result.label is not None else {}
            abstained += preference is None
            row = found[arm][place]
            row[f"win_vs_{against}"] = None if preference is None else _win(preference, params["judge"]["tie_margin"])
            row[f"log_length_ratio_{against}"] = _length_ratio(pair.response_a, pair.response_b)
        context.progress((place + 1) / places, f"{place + 1} of {places} responses")
    return {"values": {arm: _by_prompt(arms[arm], values) for arm, values in found.items()}, "abstained": abstained, "judged_by": judged_by}


def evaluation_rows(tasks: Mapping[str, Mapping[str, str]], inputs: Mapping[str, StepResult], longest: int | None = None) -> str:
    """The rows that an evaluation run reads, as JSON Lines: each arm's response to each prompt with all that was measured.

    Args:
        tasks: for each task the arms in the table's order, with the names of their generate steps.
        inputs: results of all steps.
        longest: as `responses`.
    """
    lines = []
    for task, arms in tasks.items():
        judged = inputs[f"{task}/judge"].values["values"]
        sft = inputs[f"{task}/measure-{SFT}"].values["values"]
        for arm, source in arms.items():
            measured = inputs[f"{task}/measure-{arm}"].values["values"]
            for row in responses(inputs[source], longest):
                name, number = row["prompt_id"], row["sample"]
                values = measured[name][number] | judged[arm][name][number]
                if arm != SFT:
                    values |= _score_wins(measured[name][number], sft[name])
                line = {
                    "arm": arm,
                    "task": task,
                    "prompt_id": name,
                    "sample": number,
                    "response": row["response"],
                    "reference": row["reference"],
                    "values": values,
                }
                lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    return "".join(lines)


def _score_wins(scores: Mapping[str, float], sft: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The share of SFT's responses to a prompt that each reward model scores below the arm's; a same score counts half.

    Scores once known cost nothing to compare, so every pair counts: the same mean with less noise than the responses of the same number give.
    """
    return {
        f"win_by_{name}": math.fsum((value > other[name]) + 0.5 * (value == other[name]) for other in sft) / len(sft)
        for name, value in scores.items()
        if name.startswith("score_")
    }


def responses(result: StepResult, longest: int | None = None) -> list[dict[str, Any]]:
    """The rows that a generate step wrote, without those whose prompt has more tokens than `longest`."""
    # Not splitlines: texts may hold what Unicode calls a line separator, and JSON keeps it as it is.
    lines = Path(result.values["responses"]).read_text(encoding="utf-8").split("\n")
    rows = (json.loads(line) for line in lines if line)
    return [row for row in rows if longest is None or len(row["prompt_token_ids"]) <= longest]


def _with_end(row: Mapping[str, Any], model: ModelInfo) -> tuple[int, ...]:
    """A response as reward models read it: with the end of the turn, also where the model took another of its end tokens, or where it was cut and the
    context has room for one."""
    ids, end = tuple(row["token_ids"]), model.eos_token_ids[0]
    if row["finish_reason"] == "eos":
        return (*ids[:-1], end)
    return ids if len(row["prompt_token_ids"]) + len(ids) >= model.context_tokens else (*ids, end)


def _by_prompt(rows: Sequence[Mapping[str, Any]], values: Sequence[dict[str, float | None]]) -> dict[str, list[dict[str, float | None]]]:
    """What was measured of each response, by prompt and in the order of its samples."""
    found: dict[str, list[dict[str, float | None]]] = {}
    for row, value in zip(rows, values, strict=True):
        found.setdefault(row["prompt_id"], []).append(value)
    return found


def _arm_sources(step: Step) -> dict[str, str]:
    return dict(zip(step.params["arms"], step.inputs, strict=True))


def _comparisons(arms: Mapping[str, Sequence[Mapping[str, Any]]], place: int, task: Task) -> Iterator[tuple[str, str, LabelPairItem]]:
    """Each arm against SFT and the reference, the arm as A; SFT is not compared with itself."""
    for arm, rows in arms.items():
        row = rows[place]
        messages = tuple(Message(role, content) for role, content in row["messages"])
        for against, other in ((SFT, arms[SFT][place]["response"]), ("reference", row["reference"])):
            if arm != against:
                yield arm, against, LabelPairItem(task, messages, row["response"], other, _pair_id(row, f"{arm}:{against}"))


def _pair_id(row: Mapping[str, Any], which: str) -> str:
    """The name of a comparison on the wire; of a prompt whose id leaves no room for the rest, its sha256 stands for it."""
    prompt, rest = str(row["prompt_id"]), f":{row['sample']}:{which}"
    return (prompt if len(prompt) + len(rest) <= _LONGEST_ID else hashlib.sha256(prompt.encode()).hexdigest()) + rest


def _win(preference: float, tie_margin: float) -> float:
    return 0.5 if abs(preference - 0.5) <= tie_margin else float(preference > 0.5)


def _length_ratio(a: str, b: str) -> float:
    return math.log((len(a.split()) + 1) / (len(b.split()) + 1))


def _seed(seed: int, prompt_id: str) -> int:
    return int.from_bytes(hashlib.sha256(f"study {seed} {prompt_id}".encode()).digest()[:4], "big")


def _parts(rows: Sequence[Any]) -> list[Sequence[Any]]:
    return [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]


__all__ = ["BASE", "evaluation_rows", "generate", "held_out", "judge", "left_out", "measure", "responses"]
