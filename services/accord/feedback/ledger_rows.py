"""Between rows of the ledger and records, column by column: pure.

What does not belong here: when rows are written and which are read (`accord.feedback.ledger`).
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from typing import cast

from accord.data.likeness import digest64
from accord.feedback.records import (
    EMPTY,
    IDENTICAL,
    Answer,
    HumanLabel,
    JudgementFacts,
    Kind,
    LabelEntry,
    LabelFacts,
    Origin,
    PairText,
    Question,
    content_key,
    prompt_json,
)
from accord.text.chat import Message
from accord.text.tasks import Task

Columns = Mapping[str, object]


def judgement_columns(question: Question, answer: Answer, origin: Origin) -> Columns:
    """A row of `judgements`, made now."""
    rubric, judge = question.rubric, question.judge
    return {
        "key": question.key, "kind": question.kind, "task": question.task.value, "prompt": question.prompt_json,
        "first": question.first, "second": question.second, "rubric": rubric.id if rubric else "", "rubric_digest": rubric.digest if rubric else "",
        "judge": judge.name, "judge_digest": judge.digest, "base_model_digest": judge.digests.base_model,
        "tokenizer_digest": judge.digests.tokenizer, "template_digest": judge.digests.chat_template,
        "adapter_version": judge.adapter_version, "adapter_digest": judge.adapter_digest, "options": json.dumps(question.options, sort_keys=True),
        "probability_first": answer.probability_first, "evidence_first": answer.evidence_first, "evidence_second": answer.evidence_second,
        "distributions": json.dumps(answer.distributions), "rationale": answer.rationale, "parsed": answer.parsed,
        "abstention_reason": answer.abstention_reason, "prompt_tokens": answer.prompt_tokens, "response_tokens": answer.response_tokens,
        "cost": answer.cost, "sample": answer.sample, "latency_seconds": answer.latency_seconds,
        "request_id": origin.request_id, "job": origin.job, "time": time.time(),
    }  # fmt: skip


def pair_columns(entry: LabelEntry) -> Columns:
    """A row of `pairs`: the two responses in the order of their text, so that a pair is the same whichever is A."""
    pair = entry.pair
    low, high = sorted((pair.response_a, pair.response_b))
    key = content_key(pair.task, pair.messages, low, high)
    return {"content_key": key, "task": pair.task.value, "prompt": prompt_json(pair.messages), "low": low, "high": high}


def label_columns(entry: LabelEntry) -> Columns:
    """A row of `labels`, made now, without its id."""
    pair = entry.pair
    return {
        "job": entry.origin.job, "pair_id": pair.pair_id, "task": pair.task.value,
        "content_key": content_key(pair.task, pair.messages, pair.response_a, pair.response_b), "a_is_low": pair.response_a <= pair.response_b,
        "length_a": len(pair.response_a), "length_b": len(pair.response_b), "kind": entry.kind, "rubric": entry.rubric,
        "rubric_digest": entry.rubric_digest, "judge": entry.judge, "judge_digest": entry.judge_digest, "options": entry.options,
        "preference": entry.preference, "outcome": entry.outcome, "abstention_reason": entry.abstention_reason,
        "human_preference": pair.human_preference, "agreement": entry.agreement, "escalated": entry.escalated,
        "request_id": entry.origin.request_id, "time": time.time(),
    }  # fmt: skip


def human_label_columns(label: HumanLabel) -> Columns:
    """A row of `human_labels`, made now."""
    low = label.response_a <= label.response_b
    return {
        "request_id": label.request_id, "key": label.key, "pair_id": label.pair_id, "task": label.task.value, "prompt": prompt_json(label.messages),
        "response_a": label.response_a, "response_b": label.response_b,
        "content_key": content_key(label.task, label.messages, label.response_a, label.response_b),
        "preference_low": label.preference if low else 1.0 - label.preference, "outcome": label.outcome, "annotator_id": label.annotator_id,
        "reason": label.reason, "duration_seconds": label.duration_seconds, "confidence": label.confidence, "time": time.time(),
    }  # fmt: skip


def answer_of(row: sqlite3.Row) -> Answer:
    """The answer of a row of `judgements`."""
    return Answer(
        row["probability_first"], row["evidence_first"], row["evidence_second"],
        tuple(tuple(distribution) for distribution in json.loads(row["distributions"])), row["rationale"], row["parsed"],
        row["abstention_reason"], row["prompt_tokens"], row["response_tokens"], row["cost"], row["sample"], row["latency_seconds"], row["key"],
    )  # fmt: skip


def pair_text(row: sqlite3.Row) -> PairText:
    """The text of a row of `pairs`."""
    return PairText(tuple(Message(*turn) for turn in json.loads(row["prompt"])), row["low"], row["high"])


PROMPT_KEY = "prompt_key"
"""The SQL function that LABELS calls, so that a prompt's text does not leave the database for it: `prompt_key`."""
LABELS = f"""
    SELECT labels.*, people.preference_low, {PROMPT_KEY}(pairs.prompt) AS prompt_key FROM labels
    LEFT JOIN pairs ON pairs.content_key = labels.content_key
    LEFT JOIN (SELECT content_key, avg(preference_low) AS preference_low FROM human_labels GROUP BY content_key) AS people
    ON people.content_key = labels.content_key WHERE {{where}} ORDER BY labels.id"""
LABEL_JUDGEMENTS = """
    SELECT label_judgements.*, judgements.probability_first, judgements.evidence_first, judgements.evidence_second,
        judgements.prompt_tokens + judgements.response_tokens AS tokens, judgements.job AS paid_by, judgements.cost, judgements.sample,
        judgements.judge, judgements.judge_digest, judgements.latency_seconds, judgements.parsed
    FROM label_judgements JOIN labels ON labels.id = label_id JOIN judgements ON judgements.key = label_judgements.key
    WHERE {where} ORDER BY label_id, place"""


def prompt_key(prompt: str | None) -> str:
    """The same for pairs of one prompt, as `pairs` has it; empty where it has none."""
    return "" if prompt is None else f"{digest64(prompt):016x}"


def judgement_facts(row: sqlite3.Row, job: str) -> JudgementFacts:
    """What a card needs of a row of LABEL_JUDGEMENTS; `job` is whose labels are looked at, empty for all."""
    return JudgementFacts(
        row["key"], bool(row["a_first"]), row["probability_first"], row["evidence_first"], row["evidence_second"],
        by_judge=row["parsed"] not in (IDENTICAL, EMPTY), tokens=row["tokens"], cached=bool(row["cached"]), paid=not job or row["paid_by"] == job,
        cost=row["cost"], sample=row["sample"], judge=row["judge"], judge_digest=row["judge_digest"], latency_seconds=row["latency_seconds"],
    )  # fmt: skip


def label_facts(row: sqlite3.Row, judgements: tuple[JudgementFacts, ...]) -> LabelFacts:
    """What a card needs of a row of LABELS."""
    return LabelFacts(
        row["pair_id"], Task(row["task"]), row["content_key"], row["length_a"], row["length_b"], cast(Kind, row["kind"]), row["rubric"],
        row["rubric_digest"], row["judge"], row["judge_digest"], row["options"], row["preference"], row["outcome"], row["abstention_reason"],
        human_preference(row), judgements, row["agreement"], bool(row["escalated"]), bool(row["a_is_low"]), row["prompt_key"],
    )  # fmt: skip


def human_preference(row: sqlite3.Row) -> float | None:
    """P(A better) by people of a row of LABELS: the pair's own, else the mean of the recorded labels."""
    own: float | None = row["human_preference"]
    if own is not None or row["preference_low"] is None:
        return own
    low: float = row["preference_low"]
    return low if row["a_is_low"] else 1.0 - low
