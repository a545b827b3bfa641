"""What a person's answers in Argilla say of the responses: a score of each, by a ranking, a rating of each, or a choice.

What does not belong here: the shape of exports (`accord.data.formats.argilla`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from accord.data.formats.row import BadRow, fact
from accord.data.records import CONFIDENCE, REASON

_TIES = {"tie", "tied", "both", "equal", "same", "neither", "draw", "none"}
_CHOOSES = ("prefer", "better", "best", "choice", "choose", "chosen", "winner")
_REASONS = ("reason", "comment", "why", "explanation", "rationale", "feedback", "note")


@dataclass(frozen=True, slots=True)
class Opinion:
    """Scores by response field, higher is better; `rated` says that their differences mean something. `facts` are reason and confidence.

    `only` is the response that a choice named: nothing is said of the others beside each other.
    """

    scores: Mapping[str, float]
    rated: bool
    facts: Mapping[str, str] = field(default_factory=dict)
    only: str = ""


def opinion_of(answers: Mapping[str, Any], names: Sequence[str]) -> Opinion | None:
    """What one person's answers say; a ranking goes before ratings, and those before a choice. None where they compare nothing."""
    facts = _facts(answers)
    for value in answers.values():
        ranks = _ranking(value, names)
        if len(ranks) >= 2:
            return Opinion({name: -rank for name, rank in ranks.items()}, rated=False, facts=facts)
    ratings = _ratings(answers, names)
    if len(ratings) >= 2:
        return Opinion(ratings, rated=True, facts=facts)
    for question, value in answers.items():
        chosen = _choice(question, value, names)
        if chosen is not None:
            return Opinion({name: float(name in chosen) for name in names}, rated=False, facts=facts, only="".join(chosen))
    return None


def _ranking(value: object, names: Sequence[str]) -> dict[str, float]:
    """Rank by response: [{rank, value}], {rank: [...], value: [...]}, or names from the best to the worst."""
    if isinstance(value, Mapping) and isinstance(value.get("value"), list):
        ranks = value.get("rank") or []
        value = [{"value": name, "rank": rank} for name, rank in zip(value["value"], ranks, strict=False)]
    if not isinstance(value, list):
        return {}
    found: dict[str, float] = {}
    for place, item in enumerate(value, start=1):
        name, rank = (item.get("value"), item.get("rank")) if isinstance(item, Mapping) else (item, place)
        known = _named(_plain(str(name)), names)
        if known is not None and isinstance(rank, int | float):
            found[known] = float(rank)
    return found


def _ratings(answers: Mapping[str, Any], names: Sequence[str]) -> dict[str, float]:
    """Rating by response, of questions with the response's name in theirs: the longest name, so that response_1 does not take response_10's.

    What else a question's name says is what it rates: where that is several things, the one with "overall" in its name counts, else the mean of
    those that rate the most responses.
    """
    found: dict[str, dict[str, float]] = {}
    for question, value in answers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        within = [name for name in names if _plain(name) in _plain(question)]
        if within:
            name = max(within, key=len)
            found.setdefault(_plain(question).replace(_plain(name), "", 1), {})[name] = float(value)
    if all(len(rated) < 2 for rated in found.values()):  # questions with nothing in common: each rates its response
        return {name: value for rated in found.values() for name, value in rated.items()}
    overall = next((rated for what, rated in found.items() if "overall" in what and len(rated) >= 2), None)
    widest = max((rated.keys() for rated in found.values()), key=len)
    counted = [overall] if overall else [rated for rated in found.values() if rated.keys() == widest]
    return {name: fmean(rated[name] for rated in counted) for name in counted[0]}


def _choice(question: str, value: object, names: Sequence[str]) -> set[str] | None:
    """The response that a choice names, none of them for a tie; None where it is no choice.

    A response's own name counts under any question, its number, its letter and words for a tie only under one that asks what is better.
    """
    asks = any(word in question.lower() for word in _CHOOSES)
    if isinstance(value, str) and not _explains(question):
        plain = _plain(value)
        if asks and plain in _TIES:
            return set()
        name = _named(plain, names, also_by_place=asks)
        return None if name is None else {name}
    if not asks or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return {names[int(value) - 1]} if value in range(1, len(names) + 1) else None


def _named(value: str, names: Sequence[str], *, also_by_place: bool = False) -> str | None:
    """The response with that name, or with that number or letter."""
    for place, name in enumerate(names):
        if value == _plain(name) or (also_by_place and value in (str(place + 1), chr(ord("a") + place))):
            return name
    return None


def _explains(question: str) -> bool:
    return any(word in question.lower() for word in _REASONS)


def _facts(answers: Mapping[str, Any]) -> dict[str, str]:
    """Reason and confidence; a comment on the confidence is neither, since it says nothing of the responses."""
    found: dict[str, str] = {}
    for question, value in answers.items():
        if isinstance(value, str) and value.strip() and _explains(question) and not _asks_how_sure(question):
            found[REASON] = value
    confidence = _confidence({question: value for question, value in answers.items() if _asks_how_sure(question)})
    return found if confidence is None else {**found, CONFIDENCE: confidence}


def _confidence(answers: Mapping[str, Any]) -> str | None:
    """How sure: a number before words that do not explain, and of several questions the one with the shortest name, in whatever order they stand."""
    asked = [question for question, value in answers.items() if not (isinstance(value, str) and _explains(question))]
    for question in sorted(asked, key=lambda name: (isinstance(answers[name], str), len(name), name)):
        with contextlib.suppress(BadRow):
            return fact(answers[question], question)
    return None


def _asks_how_sure(question: str) -> bool:
    return "confidence" in question.lower()


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
