"""A question to a judge, its answer, and what the ledger keeps of labels; keys are digests of content.

A question speaks of the responses as they are shown, `first` and `second`, so that labelling (A, B) and (B, A) asks the same two questions.
What does not belong here: asking (`accord.feedback.judges`) and storing (`accord.feedback.ledger`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from accord.client.feedback import LabelPairItem, Outcome
from accord.client.messages import ModelDigests
from accord.prompts import Rubric
from accord.text.chat import Message
from accord.text.judge import RENDERING, visible
from accord.text.tasks import Task

Kind = Literal["verdict", "rating", "likelihood"]
KINDS: tuple[Kind, ...] = ("verdict", "rating", "likelihood")
VerdictSource = Literal["", "logprobs", "text"]
IDENTICAL, EMPTY = "identical responses", "empty response"
"""What `Answer.parsed` says where a rule answered and no judge was asked."""
OVERFLOW = "context overflow"
"""What the reason of an abstention begins with where a text was too long for the judge, as it is served."""
ADDED = "accord-"
"""Ids of pairs that a label job adds to its data, to measure the judge, begin so."""


@dataclass(frozen=True, slots=True)
class JudgeIdentity:
    """Who judges: the base model with its digests, and the adapter version over it (both empty for the bare base model).

    `configured` is the judge's name in the configuration, which says where to ask and is no part of who it is, and neither is `context_tokens`, how
    much it is served to read (0 where that is not known). An endpoint shows no weights: it has `endpoint_digest`, of what is known of it, instead of
    digests.
    """

    base_model: str
    digests: ModelDigests
    adapter_version: str = ""
    adapter_digest: str = ""
    configured: str = "default"
    endpoint_digest: str = ""
    context_tokens: int = 0

    @property
    def name(self) -> str:
        """Model name and adapter version, for people."""
        return f"{self.base_model} with {self.adapter_version}" if self.adapter_version else self.base_model

    @property
    def digest(self) -> str:
        """sha256 over the digests of base model, tokenizer, chat template and adapter version; that of an endpoint is its own."""
        return self.endpoint_digest or digest_of(asdict(self.digests), self.adapter_digest)


@dataclass(frozen=True)
class Question:
    """What is asked of a judge, in full; `second` is None where one response is rated alone, `rubric` for likelihood.

    A `temperature` above 0 samples the rationale, each `sample` (from 0) with a seed of its own; at 0 it is greedy, and there is one.
    `verdict_source` says where the verdict is read: empty for logprobs where the judge gives them. A `repeat` above 0 is the same asked again: a
    question of its own, so that the first answer does not answer it. `context_tokens` is set in the name of an overflow alone (`overflow`).
    """

    kind: Kind
    task: Task
    messages: tuple[Message, ...]
    first: str
    second: str | None
    rubric: Rubric | None
    judge: JudgeIdentity
    rationale: bool = False
    max_rationale_tokens: int = 0
    sample: int = 0
    temperature: float = 0.0
    verdict_source: VerdictSource = ""
    repeat: int = 0
    context_tokens: int | None = None

    @cached_property
    def overflow(self) -> Question:
        """The name under which the ledger keeps that the judge's context was too small: it says nothing of the same judge with a larger one."""
        return replace(self, context_tokens=self.judge.context_tokens)

    def kept_as(self, answer: Answer) -> Question:
        """The name under which the ledger keeps an answer."""
        return self.overflow if answer.abstention_reason.startswith(OVERFLOW) else self

    @cached_property
    def key(self) -> str:
        """sha256 of all that the answer can depend on: equal questions have equal keys, on any machine."""
        rubric = self.rubric.digest if self.rubric else ""
        shown = (self.task.value, _turns(self.messages), self.first, self.second)
        return digest_of("judgement/1", self.kind, *shown, rubric, self.judge.digest, self.options)

    @property
    def options(self) -> dict[str, Any]:
        """The options that the answer depends on, and how responses are shown where that is not as they are; defaults are not in it."""
        hidden = any(visible(text) != text for text in (self.first, self.second or ""))
        found: dict[str, Any] = {"rendering": RENDERING} if self.rubric or hidden else {}
        if self.rationale:
            found |= {"rationale": True, "max_rationale_tokens": self.max_rationale_tokens}
        if self.temperature:
            found |= {"temperature": self.temperature, "sample": self.sample, "seed": self.seed}
        if self.verdict_source:
            found |= {"verdict_source": self.verdict_source}
        if self.repeat:
            found |= {"repeat": self.repeat}
        if self.context_tokens is not None:
            found |= {"context_tokens": self.context_tokens}
        return found

    @property
    def seed(self) -> int:
        """The seed of a sampled rationale; samples number 64 at most, so that no repeat shares one."""
        return self.sample + 64 * self.repeat

    @property
    def prompt_json(self) -> str:
        """The conversation as JSON, for the ledger."""
        return prompt_json(self.messages)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge said, of the responses as shown.

    `probability_first` is None on abstention, `evidence_*` where no judge was needed (an empty response). `distributions` are those of the
    ratings. `parsed` is "first", "second", "tie" or "unusable: reason" where text was asked for. `cost` is money, 0 for a judge without a price;
    `sample` counts the answers of self-consistency from 0; `latency_seconds` is the time from question to answer, waiting included, None where it
    was not measured. `key` is its key in the ledger, empty before it is there, and no part of what was said.
    """

    probability_first: float | None
    evidence_first: float | None = None
    evidence_second: float | None = None
    distributions: tuple[tuple[float, ...], ...] = ()
    rationale: str = ""
    parsed: str = ""
    abstention_reason: str = ""
    prompt_tokens: int = 0
    response_tokens: int = 0
    cost: float = 0.0
    sample: int = 0
    latency_seconds: float | None = None
    key: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Origin:
    """Who paid for a judgement: the call's request id, and the job's name where a job asked."""

    request_id: str = ""
    job: str = ""


@dataclass(frozen=True, slots=True)
class LabelUse:
    """A judgement behind a label: whether the first response shown was A, and whether the ledger had it before."""

    key: str
    a_first: bool
    cached: bool


@dataclass(frozen=True, slots=True)
class LabelEntry:
    """One label as the ledger keeps it, with its pair. `agreement` is the share of an ensemble's judges that take the label's side."""

    pair: LabelPairItem
    kind: Kind
    rubric: str
    rubric_digest: str
    judge: str
    judge_digest: str
    options: str
    preference: float | None
    outcome: Outcome
    abstention_reason: str
    uses: tuple[LabelUse, ...]
    origin: Origin
    agreement: float | None = None
    escalated: bool = False


@dataclass(frozen=True, slots=True)
class JudgementFacts:
    """What a card needs of a judgement. `by_judge` is False where no judge was needed; `paid` says that its tokens and cost count here."""

    key: str
    a_first: bool
    probability_first: float | None
    evidence_first: float | None
    evidence_second: float | None
    by_judge: bool
    tokens: int
    cached: bool
    paid: bool
    cost: float = 0.0
    sample: int = 0
    judge: str = ""
    judge_digest: str = ""
    latency_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """What a card needs of a label. `human_preference` is P(A better) by people: the pair's own, else the mean of the recorded labels.

    `a_is_low` says that A is the response with the smaller text; `prompt_key` is the same for pairs of one prompt, empty where it is not known.
    """

    pair_id: str
    task: Task
    content_key: str
    length_a: int
    length_b: int
    kind: Kind
    rubric: str
    rubric_digest: str
    judge: str
    judge_digest: str
    options: str
    preference: float | None
    outcome: Outcome
    abstention_reason: str
    human_preference: float | None
    judgements: tuple[JudgementFacts, ...]
    agreement: float | None = None
    escalated: bool = False
    a_is_low: bool = True
    prompt_key: str = ""

    @property
    def unit(self) -> str:
        """What the label goes together with, in intervals: all labels of its prompt, or of its pair where that is not known."""
        return self.prompt_key or self.content_key


@dataclass(frozen=True, slots=True)
class PairText:
    """A pair's text as the ledger keeps it: its responses in the order of their text."""

    messages: tuple[Message, ...]
    low: str
    high: str


@dataclass(frozen=True, slots=True)
class HumanLabel:
    """A person's label of a pair."""

    request_id: str
    pair_id: str
    task: Task
    messages: tuple[Message, ...]
    response_a: str
    response_b: str
    outcome: Outcome
    annotator_id: str
    reason: str = ""
    duration_seconds: float | None = None
    confidence: str = ""

    @property
    def key(self) -> str:
        """sha256 of the label: its key in the ledger, and what a second use of the request id is compared with.

        A confidence that nobody gave is no part of it, so that labels keep the keys that they had before there was one.
        """
        said = {name: value for name, value in asdict(self).items() if name != "confidence" or value}
        return digest_of("human/1", json.loads(json.dumps(said)))

    @property
    def preference(self) -> float:
        """P(A better) as the person sees it."""
        return {"a": 1.0, "b": 0.0}.get(self.outcome, 0.5)


def is_added(pair_id: str) -> bool:
    """Whether a label job added this pair to its data: the same pair once more, or a changed twin of it."""
    return pair_id.startswith(ADDED)


def content_key(task: Task, messages: Sequence[Message], response_a: str, response_b: str) -> str:
    """sha256 of a pair's content, the same whichever response comes first."""
    return digest_of("pair/1", task.value, _turns(messages), sorted((response_a, response_b)))


def prompt_json(messages: Sequence[Message]) -> str:
    """A conversation as the ledger keeps it."""
    return json.dumps(_turns(messages), ensure_ascii=False)


def digest_of(*parts: object) -> str:
    """sha256 of values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8")).hexdigest()


def _turns(messages: Sequence[Message]) -> list[list[str]]:
    return [[message.role, message.content] for message in messages]
