"""Python forms of what FeedbackService takes and gives, but for cards (`accord.client.label_cards`); `accord.client.feedback` re-exports them.

What does not belong here: their conversion (`accord.client.feedback_wire`) and calls (`accord.client.feedback`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from accord.errors import AccordError
from accord.text.chat import Message
from accord.text.tasks import Task

JudgeKind = Literal["default", "verdict", "rating", "likelihood"]
Outcome = Literal["unspecified", "a", "b", "tie", "abstain"]
VerdictSource = Literal["", "logprobs", "text"]
JobState = Literal["unspecified", "running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Judge:
    """Which judge, by `name` (of the YAML), and how it is asked; what is empty or None takes the service's default (see feedback.proto)."""

    kind: JudgeKind = "default"
    rubric: str = ""
    adapter: str = ""
    both_orders: bool | None = None
    rationale: bool | None = None
    max_rationale_tokens: int | None = None
    tie_margin: float | None = None
    name: str = ""
    consistency_samples: int | None = None
    consistency_temperature: float | None = None
    verdict_source: VerdictSource = ""


@dataclass(frozen=True, slots=True)
class LabelPairItem:
    """Two responses to one prompt; `human_preference` is recorded for the card and never shown to the judge."""

    task: Task
    messages: tuple[Message, ...]
    response_a: str
    response_b: str
    pair_id: str = ""
    human_preference: float | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """One answer of a judge about one pair in one order; `latency_seconds`, from question to answer, is None where it was not measured."""

    a_first: bool
    probability_a: float | None
    evidence_a: float | None
    evidence_b: float | None
    rationale: str
    parsed: str
    abstention_reason: str
    prompt_tokens: int
    response_tokens: int
    ledger_key: str
    cached: bool
    cost: float = 0.0
    judge: str = ""
    judge_digest: str = ""
    sample: int = 0
    latency_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """A label with its provenance; `preference` is P(A better), None on abstention."""

    pair_id: str
    preference: float | None
    outcome: Outcome
    abstention_reason: str
    judgements: tuple[Judgement, ...]
    kind: JudgeKind
    rubric: str
    rubric_digest: str
    judge: str
    judge_digest: str
    agreement: float | None = None
    escalated: bool = False


@dataclass(frozen=True, slots=True)
class LabelResult:
    """What came of one pair: a label, or an error."""

    pair_id: str
    error: AccordError | None
    label: Label | None


ABSTENTION = "abstention"
"""Key of the metadata of a rating's error: the judge's reason for giving none (`context overflow`, `unreadable text`, `not finite`, or others)."""


@dataclass(frozen=True, slots=True)
class Rating:
    """A rating from 1 to 10 as a distribution, its mean and the mean scaled to [-1, 1]."""

    distribution: tuple[float, ...]
    expected_rating: float
    score: float
    rubric: str
    rubric_digest: str


@dataclass(frozen=True, slots=True)
class Ratings:
    """What came of each response of a batch, and who judged, by name and digest."""

    results: tuple[Rating | AccordError, ...]
    judge: str
    judge_digest: str


@dataclass(frozen=True, slots=True)
class Rubric:
    """A rubric with its digest; `rationale` says that it has the judge give reasons first without being asked to."""

    id: str
    digest: str
    task: Task
    kind: JudgeKind
    template: str
    rationale: bool = False


@dataclass(frozen=True, slots=True)
class LabelLimits:
    """What a label job may spend and how fast; 0 is no limit. A job that ended at a limit goes on when it is asked for again under a higher one.

    `concurrency` is how many pairs are judged at once, None for the server's default.
    """

    max_cost: float = 0.0
    max_tokens: int = 0
    max_judgements_per_second: float = 0.0
    concurrency: int | None = None


@dataclass(frozen=True, slots=True)
class Candidates:
    """Pairs that a job samples itself, one for each prompt: adapters (empty: the bare base model), temperatures, and best of how many by whom."""

    adapter_a: str = ""
    adapter_b: str = ""
    temperature_a: float = 0.7
    temperature_b: float = 0.7
    best_of: int = 1
    reward_model: str = ""
    max_tokens: int = 128


@dataclass(frozen=True, slots=True)
class LabelJobSpec:
    """A data set to label; with `candidates`, the data's prompts alone are read.

    `attacks` and `repeats` are how many of its pairs are judged besides, attacked or a second time, for the card.
    """

    request_id: str
    dataset_uri: str
    task: Task
    output_uri: str
    dataset_format: str = ""
    split: str = "train"
    limit: int = 0
    judge: Judge = Judge()
    seed: int = 0
    limits: LabelLimits = LabelLimits()
    candidates: Candidates | None = None
    attacks: int = 0
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class LabelJob:
    """A label job; times are Unix seconds."""

    name: str
    state: JobState
    total_pairs: int
    done_pairs: int
    abstained_pairs: int
    cached_judgements: int
    tokens: int
    message: str
    dataset_uri: str
    dataset_digest: str
    card_uri: str
    create_time: float
    rejected_rows: Mapping[str, int] = field(default_factory=dict)
    source_uri: str = ""
    rows_digest: str = ""
    cost: float = 0.0
    at_limit: bool = False
    escalated_pairs: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("succeeded", "failed", "cancelled")
