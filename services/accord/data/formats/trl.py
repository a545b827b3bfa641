"""TRL's conversational formats, and plain rows of text: prompt with chosen and rejected, or with a response.

`prompt` may be text or messages; without one, the turns that chosen and rejected share are the prompt. Ratings are read where they are: `margin` of
TRL's reward data, or a rating of each response; `split`, and `task` where it is one of Accord's, too. The chosen response is the better one, for sure
and by a person: a row with a label of another kind is not of this format, and is refused. Unpaired rows (KTO's) say with a truth value under `label`
whether their one response is a good one: of a bad one the prompt alone is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.data.columns import glance
from accord.data.formats.row import BadRow, Format, Row, checked, label_facts, messages, rating_gap, refuse_labels, split_of, text
from accord.text.chat import Message
from accord.text.tasks import Task

_RESPONSES = ("response", "completion", "label", "summary", "answer")
_BAD = "label is false: the response is not one to learn"


def _turns(row: Mapping[str, Any]) -> tuple[Message, ...] | None:
    prompt = row.get("prompt")
    if prompt is None:
        return None
    if isinstance(prompt, str):
        return (Message("user", checked(prompt, "prompt")),)
    return messages(prompt, "prompt")


def _split(value: object, name: str) -> tuple[tuple[Message, ...], str]:
    """Leading turns and the last assistant turn of text or messages."""
    if isinstance(value, str):
        return (), checked(value, name)
    turns = messages(value, name)
    if turns[-1].role != "assistant":
        raise BadRow(f"{name} does not end with the assistant")
    return turns[:-1], turns[-1].content


def _parse(row: Mapping[str, Any]) -> Row:
    prompt = _turns(row)
    metadata = label_facts(row) | ({"source": str(row["source"])} if isinstance(row.get("source"), str) else {})
    where: dict[str, Any] = {"split": split_of(row), "task": _task(row)}
    if "chosen" in row:
        (lead, chosen), (other, rejected) = _split(row.get("chosen"), "chosen"), _split(row.get("rejected"), "rejected")
        if lead != other:
            raise BadRow("chosen and rejected differ before the last turn")
        turns = _joined(prompt or (), lead)
        if not turns:
            raise BadRow("prompt is missing")
        refuse_labels(row)
        gap = rating_gap(row)
        return Row(
            turns, chosen=chosen, rejected=rejected, response=chosen, human_preference=1.0, metadata=metadata, rating_gap=gap, **where
        )  # fmt: skip
    if "messages" in row and prompt is None:
        lead, response = _split(row["messages"], "messages")
        if not lead:
            raise BadRow("there is no prompt before the response")
        return _single(row, lead, response, metadata=metadata, **where)
    if prompt is None:
        raise BadRow("prompt is missing")
    key = next((name for name in _RESPONSES if name in row and not isinstance(glance(row, name), bool)), None)
    if key is None:
        return Row(prompt, metadata=metadata, **where)
    lead, response = _split(row[key], key)
    return _single(row, _joined(prompt, lead), response, metadata=metadata, **where)


def _single(row: Mapping[str, Any], prompt: tuple[Message, ...], response: str, **more: Any) -> Row:
    """A row with one response, which is left out where it is labelled as a bad one. A label that is no truth value says nothing, and stays unread."""
    if isinstance(glance(row, "label"), bool) and not row["label"]:
        return Row(prompt, no_response=_BAD, **more)
    return Row(prompt, response=response, reference=response, **more)


def _task(row: Mapping[str, Any]) -> Task | None:
    """The row's task where it is one of Accord's; other data sets have tasks of their own under the name."""
    task = row.get("task")
    return Task(task) if isinstance(task, str) and task in tuple(Task) else None


def _joined(prompt: tuple[Message, ...], lead: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt with the turns that stand before a response; these alone where they hold it already, as in ultrafeedback_binarized."""
    wanted, turns = _stripped(prompt), _stripped(lead)
    held = any(turns[start : start + len(wanted)] == wanted for start in range(len(turns) - len(wanted) + 1))
    return lead if held else prompt + lead


def _stripped(messages: tuple[Message, ...]) -> list[tuple[str, str]]:
    return [(message.role, message.content.strip()) for message in messages]


def _parse_text(row: Mapping[str, Any]) -> Row:
    return Row((), response=text(row, "text"), split=split_of(row))


FORMAT = Format("trl", lambda row: bool({"chosen", "messages"} & row.keys()) or "prompt" in row, _parse)
PLAIN = Format("text", lambda row: "text" in row, _parse_text)
