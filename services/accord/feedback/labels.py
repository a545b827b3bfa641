"""A pair to questions, and their answers to a label: pure.

What does not belong here: asking (`accord.feedback.desk`) and keeping (`accord.feedback.ledger`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from accord.client.feedback import Judgement, Label, LabelPairItem
from accord.errors import InvalidArgumentError
from accord.feedback.panels import Finding, Seat, described
from accord.feedback.records import Answer, JudgeIdentity, LabelEntry, LabelUse, Origin, Question
from accord.feedback.settings import Settings
from accord.text.chat import Message
from accord.text.judge import outcome, swap_average


@dataclass(frozen=True, slots=True)
class Shown:
    """A question about a pair, and whether the first response shown is A."""

    question: Question
    a_first: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of a question about a pair; `cached` says that no judge was asked for it."""

    shown: Shown
    answer: Answer
    cached: bool


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: whether A was shown first, the probability that the first one is better (None: unusable), and why it is unusable."""

    a_first: bool
    probability_first: float | None
    reason: str


def questions_of(pair: LabelPairItem, settings: Settings, judge: JudgeIdentity) -> list[Shown]:
    """The questions that a label of the pair rests on: one for each order where order can matter, and for each sample of self-consistency.

    Rating and likelihood see one response at a time: they get one question, the same for (A, B) and (B, A).

    Raises:
        InvalidArgumentError: the rubric is for another task.
    """
    rubric = settings.rubric_for(pair.task)
    if settings.kind == "verdict":
        orders = (True, False) if settings.both_orders else (True,)
    else:
        orders = (pair.response_a <= pair.response_b,)
    found = []
    for a_first in orders:
        first, second = (pair.response_a, pair.response_b) if a_first else (pair.response_b, pair.response_a)
        question = Question(
            settings.kind, pair.task, pair.messages, first, second, rubric, judge, settings.rationale, settings.max_rationale_tokens,
            temperature=settings.temperature, verdict_source=settings.verdict_source, repeat=settings.repeat,
        )  # fmt: skip
        found += [Shown(replace(question, sample=sample), a_first) for sample in range(settings.samples)]
    return found


def finding_of(answered: Sequence[Answered]) -> Finding[Answered]:
    """What one judge's answers come to: P(A better) averaged over the orders."""
    said = [Said(item.shown.a_first, item.answer.probability_first, item.answer.abstention_reason) for item in answered]
    return Finding(*preference_of(said), tuple(answered))


def preference_of(answers: Sequence[Said]) -> tuple[float | None, str]:
    """P(A better) out of a judge's answers, at least one, averaged over the orders; or None and why there is none.

    One order without a usable answer makes the whole an abstention; of several samples in an order, those without one are left out of the mean.
    Swapping A and B turns a preference p into exactly 1 - p.
    """
    firsts: dict[bool, float] = {}
    for a_first in dict.fromkeys(answer.a_first for answer in answers):
        own = [answer for answer in answers if answer.a_first == a_first]
        usable = [answer.probability_first for answer in own if answer.probability_first is not None]
        if not usable:
            return None, own[0].reason
        firsts[a_first] = math.fsum(usable) / len(usable)
    return _preference(firsts), ""


def label_of(pair: LabelPairItem, settings: Settings, judge: Seat, finding: Finding[Answered]) -> Label:
    """The label that a finding is."""
    preference = finding.preference
    rubric = settings.rubric_for(pair.task)
    return Label(
        pair_id=pair.pair_id,
        preference=preference,
        outcome="abstain" if preference is None else outcome(preference, settings.tie_margin),
        abstention_reason=finding.reason,
        judgements=tuple(_judgement(item) for item in finding.answered),
        kind=settings.kind,
        rubric=rubric.id if rubric else "",
        rubric_digest=rubric.digest if rubric else "",
        judge=judge.name,
        judge_digest=judge.digest,
        agreement=finding.agreement,
        escalated=finding.escalated,
    )


def entry_of(pair: LabelPairItem, settings: Settings, judge: Seat, label: Label, origin: Origin) -> LabelEntry:
    """The label as the ledger keeps it; where several judges took part, its options say by which rule."""
    options = settings.values if isinstance(judge, JudgeIdentity) else {**settings.values, "panel": described(judge)}
    return LabelEntry(
        pair=pair,
        kind=settings.kind,
        rubric=label.rubric,
        rubric_digest=label.rubric_digest,
        judge=label.judge,
        judge_digest=label.judge_digest,
        options=json.dumps(options, sort_keys=True),
        preference=label.preference,
        outcome=label.outcome,
        abstention_reason=label.abstention_reason,
        uses=tuple(LabelUse(item.ledger_key, item.a_first, item.cached) for item in label.judgements),
        origin=origin,
        agreement=label.agreement,
        escalated=label.escalated,
    )


def judgement_of(answer: Answer, use: LabelUse, judge: str, judge_digest: str) -> Judgement:
    """An answer, which speaks of the responses as shown, as what it says of A and B."""
    a_first, probability = use.a_first, answer.probability_first
    evidence = (answer.evidence_first, answer.evidence_second)
    names = {"first": "a" if a_first else "b", "second": "b" if a_first else "a"}
    return Judgement(
        a_first=a_first,
        probability_a=probability if a_first or probability is None else 1.0 - probability,
        evidence_a=evidence[0] if a_first else evidence[1],
        evidence_b=evidence[1] if a_first else evidence[0],
        rationale=answer.rationale,
        parsed=names.get(answer.parsed, answer.parsed),
        abstention_reason=answer.abstention_reason,
        prompt_tokens=answer.prompt_tokens,
        response_tokens=answer.response_tokens,
        ledger_key=use.key,
        cached=use.cached,
        cost=answer.cost,
        judge=judge,
        judge_digest=judge_digest,
        sample=answer.sample,
        latency_seconds=answer.latency_seconds,
    )


def check_prompt(messages: Sequence[Message], field: str, max_bytes: int) -> None:
    """Raises InvalidArgumentError naming the field where a conversation does not end with the user, is too long or holds NUL."""
    if not messages or messages[-1].role != "user":
        raise InvalidArgumentError("the conversation must end with the user's turn", field=f"{field}.messages")
    for index, message in enumerate(messages):
        check_text(message.content, f"{field}.messages[{index}].content", max_bytes)
    check_text("".join(message.content for message in messages), f"{field}.messages", max_bytes)


def check_text(text: str, field: str, max_bytes: int) -> None:
    """Raises InvalidArgumentError naming the field where a text is too long, or holds NUL or a lone surrogate."""
    position = text.find("\x00")
    if position >= 0:
        raise InvalidArgumentError(f"the text holds a NUL character at position {position}", field=field)
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"the text holds a lone surrogate at position {error.start}", field=field) from error
    if size > max_bytes:
        raise InvalidArgumentError(f"the text has {size} bytes; at most {max_bytes} are allowed", field=field)


def _preference(firsts: Mapping[bool, float]) -> float | None:
    """P(A better) out of the probability of the response shown first, by whether that is A."""
    when_ab, when_ba = firsts.get(True), firsts.get(False)
    if when_ab is not None and when_ba is not None:
        return swap_average(when_ab, when_ba)
    if when_ab is not None:
        return when_ab
    return None if when_ba is None else 1.0 - when_ba


def _judgement(item: Answered) -> Judgement:
    question = item.shown.question
    use = LabelUse(item.answer.key, item.shown.a_first, item.cached)
    return judgement_of(replace(item.answer, sample=question.sample), use, question.judge.name, question.judge.digest)
