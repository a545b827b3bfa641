"""All that a study's steps read of a task's data, held against what they need before anything is started.

What does not belong here: reading (`accord.data.readers`), and what the held-out prompts are (`accord.study.measuring`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from accord.data.files import shown
from accord.data.readers import read_demonstrations, read_pairs, read_prompts
from accord.data.records import Dataset, Demonstration, PreferencePair, Prompt
from accord.errors import InvalidArgumentError
from accord.evaluation.rows import problem_of
from accord.study.measuring import held_out
from accord.study.recipe import TaskPart
from accord.text.chat import Message


@dataclass(frozen=True, slots=True)
class TaskData:
    """The rows of one split: reward models, DPO and judges read pairs, PPO prompts, SFT, ptx and the evaluation demonstrations."""

    pairs: Dataset[PreferencePair]
    prompts: Dataset[Prompt]
    demonstrations: Dataset[Demonstration]

    @property
    def messages(self) -> set[tuple[Message, ...]]:
        """Every prompt that a row has, be it one of a pair or not."""
        return {row.messages for rows in (self.pairs.rows, self.prompts.rows, self.demonstrations.rows) for row in rows}

    @property
    def digest_beyond_pairs(self) -> str:
        """A digest of what rows say that are no pairs; empty where all are pairs, whose digest says it: such data keeps the keys that it had."""
        pairs = self.pairs.rows
        learned = Counter((pair.messages, pair.reference or pair.chosen) for pair in pairs)
        rated = {(pair.messages, text) for pair in pairs if pair.rating_gap is not None for text in (pair.chosen, pair.rejected)}
        responses = Counter((row.messages, row.response) for row in self.demonstrations.rows) - learned
        prompts = {row.messages for row in self.prompts.rows} - {pair.messages for pair in pairs}
        return f"{self.prompts.report.digest} {self.demonstrations.report.digest}" if prompts or responses.keys() - rated else ""


def read_task_data(part: TaskPart, seed: int, index: int, *, held_out: bool) -> TaskData:
    """The rows of the training or of the held-out part of the task `tasks[index]`.

    Raises:
        InvalidArgumentError: there are fewer than two pairs, or rows of another task.
        AccordError: as `read_pairs`.
    """
    uri, split = (part.held_out_uri, part.test_split) if held_out else (part.uri, part.split)
    found = TaskData(
        read_pairs(uri, format=part.format, split=split, seed=seed, task=part.task),
        read_prompts(uri, format=part.format, split=split, seed=seed, task=part.task),
        read_demonstrations(uri, format=part.format, split=split, seed=seed, task=part.task),
    )
    field = _field(part, index, held_out=held_out)
    _check_task(found, part, split, uri, field)
    if len(found.pairs.rows) < 2:
        report, option = found.pairs.report, "test_split" if held_out else "split"
        there = ", ".join(f"{count} of {name}" for name, count in sorted(report.splits.items(), key=lambda item: -item[1]))
        raise InvalidArgumentError(
            f"{field} is {shown(uri)}: 2 usable pairs of split {split} are needed: {report.account()}"
            + (f"; there are {there}: {option} takes another split" if there else ""),
            field=field,
        )
    return found


def _field(part: TaskPart, index: int, *, held_out: bool) -> str:
    """The recipe's field that gave the data."""
    return f"tasks[{index}].{'test_uri' if held_out and part.test_uri else 'uri'}"


def _check_task(data: TaskData, part: TaskPart, split: str, uri: str, field: str) -> None:
    """Runs and the evaluation take every row of a split, whatever its task."""
    for rows in (data.pairs.rows, data.demonstrations.rows, data.prompts.rows):
        others = Counter(row.task.value for row in rows if row.task != part.task)
        if others:
            (task, count), *_ = others.most_common(1)
            raise InvalidArgumentError(
                f"{field} is {shown(uri)}: {count} of {len(rows)} usable rows of split {split} are of task {task}, and the part is of task "
                f"{part.task.value}; give each task a file of its own rows alone",
                field=field,
            )


def check_split(train: TaskData, test: TaskData, index: int) -> None:
    """Raises InvalidArgumentError where a prompt is in both parts of the task `tasks[index]`, in a pair or not."""
    shared = train.messages & test.messages
    if shared:
        raise InvalidArgumentError(
            f"{len(shared)} prompts of tasks[{index}] are both in the training and in the held-out part; give a test_uri, another test_split, or "
            "rows with a split",
            field=f"tasks[{index}].test_uri",
        )


def rejections(data: TaskData, part: TaskPart, index: int, *, held_out: bool) -> list[str]:
    """A sentence for each reading that could not use rows, with why; readings that rejected the same have one."""
    readings: dict[tuple[tuple[str, int], ...], tuple[list[str], str]] = {}
    for name, report in (("pairs", data.pairs.report), ("prompts", data.prompts.report), ("demonstrations", data.demonstrations.report)):
        if report.rejected:
            readings.setdefault(tuple(sorted(report.rejected.items())), ([], report.account()))[0].append(name)
    where = f"{_field(part, index, held_out=held_out)}, split {part.test_split if held_out else part.split}"
    return [f"{where}, as {', '.join(names)}: {account}" for names, account in readings.values()]


def repeated_prompts(part: TaskPart, limit: int, seed: int, index: int) -> int:
    """How many held-out rows repeat a prompt; the prompts that the study would measure are held against what its evaluation takes.

    Raises:
        InvalidArgumentError: there are fewer than two, or the evaluation, the last step, would refuse one.
    """
    found, field = held_out(part.held_out_uri, part.format, limit, seed, part.task, part.test_split), _field(part, index, held_out=True)
    for row in found.rows:
        problem = problem_of(row.prompt_id, row.response)
        if problem:
            what = f"the prompt {row.messages[-1].content[:60]!r} cannot be evaluated: {problem}"
            raise InvalidArgumentError(f"{field} is {shown(part.held_out_uri)}: {what}; leave it out or shorten it", field=field)
    return found.report.repeated
