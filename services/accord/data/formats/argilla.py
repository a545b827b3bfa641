"""Argilla's exports: records whose fields are a prompt and two or more responses, and whose questions several people answered.

Three shapes are read: version 2 nested (`fields`, `responses: {question: [{value, user_id}]}`) and flat (`QUESTION.responses`,
`QUESTION.responses.users`), and version 1 (`QUESTION: [{user_id, value, status}]`). Each person's answers give a row for each two responses, from a
ranking, from a rating of each response, or from a choice that names one, which says nothing of the others; drafts and discarded answers do not count.
What does not belong here: what an answer says of the responses (`accord.data.formats.argilla_answers`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from accord.data.formats.argilla_answers import Opinion, opinion_of
from accord.data.formats.row import BadRow, Format, Row, checked, fact, messages, split_of
from accord.data.records import ANNOTATOR
from accord.text.chat import Message

_PROMPTS = ("prompt", "instruction", "question", "query", "input", "context", "post", "text", "chat", "messages")
_RESPONSES = ("response", "completion", "generation", "output", "answer", "candidate", "reply", "summary", "chosen", "rejected")
_NAMELESS = "anonymous"
_NO_LABEL = ("draft", "discarded", "pending")
_ENDINGS = (".responses", ".suggestion", "-suggestion", "-suggestion-metadata")

Answers = dict[str, dict[str, Any]]
"""By user, then by question."""


def _parse(row: Mapping[str, Any]) -> tuple[Row, ...]:
    fields = _fields(row)
    prompt = _prompt(fields)
    names = _response_names(fields)
    if len(names) < 2:
        raise BadRow("fewer than two fields are responses")
    responses = {name: _response(fields[name], name) for name in names}
    record = next((fact(row[key], key) for key in ("id", "external_id") if row.get(key) not in (None, "")), "")
    found: list[Row] = []
    split = _split(row)
    for user, answers in sorted(_answers(row).items()):
        opinion = opinion_of(answers, names)
        if opinion is not None:
            found += _rows(prompt, responses, opinion, user, record, split)
    if not found:
        raise BadRow("no submitted answer compares two responses")
    return tuple(found)


def _rows(prompt: tuple[Message, ...], responses: Mapping[str, str], opinion: Opinion, user: str, record: str, split: str | None) -> Iterator[Row]:
    scored = [name for name in responses if name in opinion.scores]
    for first, second in combinations(scored, 2):
        if opinion.only and opinion.only not in (first, second):
            continue
        gap = opinion.scores[first] - opinion.scores[second]
        better, worse = (first, second) if gap >= 0 else (second, first)
        preference = 0.5 if gap == 0 else 1.0
        facts = {ANNOTATOR: user, **opinion.facts, "field_chosen": better, "field_rejected": worse}
        yield Row(
            prompt, f"{record}/{user}/{first}/{second}" if record else "", chosen=responses[better], rejected=responses[worse],
            preference=preference, human_preference=preference, response=responses[better], metadata=facts,
            rating_gap=abs(gap) if opinion.rated else None, split=split,
        )  # fmt: skip


def _split(row: Mapping[str, Any]) -> str | None:
    """The split that the record or its metadata names."""
    metadata = row.get("metadata")
    return split_of(row) or (split_of(metadata) if isinstance(metadata, Mapping) else None)


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """The record's fields; in flat exports they stand among the rest."""
    fields = row.get("fields")
    if isinstance(fields, Mapping):
        return {str(name): value for name, value in fields.items() if value is not None}
    return {
        name: value
        for name, value in row.items()
        if value is not None and not _is_answers(value) and not any(ending in name for ending in _ENDINGS)
    }  # fmt: skip


def _prompt(fields: Mapping[str, Any]) -> tuple[Message, ...]:
    name = next((name for wanted in _PROMPTS for name in fields if name.lower() == wanted), None)
    if name is None:
        raise BadRow("no field is the prompt")
    value = fields[name]
    return (Message("user", checked(value, name)),) if isinstance(value, str) else messages(value, name)


def _response_names(fields: Mapping[str, Any]) -> list[str]:
    """Fields that are responses; response_1_model is what a flat export says of response_1, and a number is what it says of any."""
    names = [name for name, value in fields.items() if isinstance(value, str | list) and any(word in name.lower() for word in _RESPONSES)]
    return [name for name in names if not any(name != other and re.match(rf"{re.escape(other)}[^A-Za-z0-9]", name) for other in names)]


def _response(value: object, name: str) -> str:
    if isinstance(value, str):
        return checked(value, name)
    turns = messages(value, name)
    if turns[-1].role != "assistant":
        raise BadRow(f"{name} does not end with the assistant")
    return turns[-1].content


def _answers(row: Mapping[str, Any]) -> Answers:
    """What each user answered to each question, of what was submitted."""
    found: Answers = {}
    for question, user, value, status in _each_answer(row):
        if value is not None and status not in _NO_LABEL:
            found.setdefault(user, {})[question] = value
    return found


def _each_answer(row: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, str]]:
    """(question, user, value, status) of any of the three shapes. Nobody knows who `anonymous` is; of several in a record the second is
    `anonymous-1`, the same in each of its questions: answers stand in one order in all of them."""
    nested = row.get("responses")
    questions: dict[str, Any] = dict(nested) if isinstance(nested, Mapping) else {}
    for name, value in row.items():
        if name.endswith(".responses") and isinstance(value, list):
            users, statuses = row.get(f"{name}.users") or [], row.get(f"{name}.status") or []
            questions[name.removesuffix(".responses")] = {"value": value, "user_id": users, "status": statuses}
        elif _is_answers(value) and not isinstance(nested, Mapping):
            questions[name] = value
    for question, answers in questions.items():
        nameless = 0
        for answer in _listed(answers):
            user = str(answer.get("user_id") or "")
            if not user:
                user, nameless = f"{_NAMELESS}-{nameless}" if nameless else _NAMELESS, nameless + 1
            yield question, user, answer.get("value"), str(answer.get("status") or "")


def _is_answers(value: object) -> bool:
    """Whether a column holds people's answers, as a list of mappings or, as `datasets` writes it, a mapping of lists."""
    if isinstance(value, Mapping):
        return {"value", "status"} <= value.keys() and isinstance(value["value"], list)
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) and {"value", "status"} <= item.keys() for item in value)


def _listed(answers: object) -> list[Mapping[str, Any]]:
    if isinstance(answers, Mapping):
        values, users, statuses = (answers.get(name) or [] for name in ("value", "user_id", "status"))
        return [
            {"value": value, "user_id": users[place] if place < len(users) else None, "status": statuses[place] if place < len(statuses) else None}
            for place, value in enumerate(values)
        ]
    return [item for item in answers if isinstance(item, Mapping)] if isinstance(answers, list) else []


def _recognises(row: Mapping[str, Any]) -> bool:
    if isinstance(row.get("fields"), Mapping) and "responses" in row:
        return True
    return any(str(name).endswith(".responses") or _is_answers(value) for name, value in row.items())


FORMAT = Format("argilla", _recognises, _parse)
