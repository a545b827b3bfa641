"""Typed client of FeedbackService (blocking: its callers are commands and scripts)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Literal, Self

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.api.feedback.v1 import feedback_pb2_grpc as rpc
from accord.client.connection import Target, connect
from accord.client.messages import error_or_none, messages_to_proto
from accord.errors import AccordError, InvalidArgumentError
from accord.rpc.stubs import guard_stub
from accord.text.chat import Message
from accord.text.tasks import Task

JudgeKind = Literal["default", "verdict", "rating", "likelihood"]
JUDGE_KINDS: dict[JudgeKind, pb.JudgeKind] = {
    "default": pb.JUDGE_KIND_UNSPECIFIED,
    "verdict": pb.JUDGE_KIND_VERDICT,
    "rating": pb.JUDGE_KIND_RATING,
    "likelihood": pb.JUDGE_KIND_LIKELIHOOD,
}
_KIND_NAMES = {number: name for name, number in JUDGE_KINDS.items()}
Outcome = Literal["unspecified", "a", "b", "tie", "abstain"]
OUTCOMES: dict[Outcome, pb.Outcome] = {
    "unspecified": pb.OUTCOME_UNSPECIFIED,
    "a": pb.OUTCOME_A,
    "b": pb.OUTCOME_B,
    "tie": pb.OUTCOME_TIE,
    "abstain": pb.OUTCOME_ABSTAIN,
}
_OUTCOME_NAMES = {number: name for name, number in OUTCOMES.items()}
TASKS: dict[Task, pb.Task] = {Task.SUMMARIZATION: pb.TASK_SUMMARIZATION, Task.CONVERSATION: pb.TASK_CONVERSATION}
_TASK_NAMES = {number: task for task, number in TASKS.items()}
VERDICT_SOURCES: dict[Literal["", "logprobs", "text"], pb.VerdictSource] = {
    "": pb.VERDICT_SOURCE_UNSPECIFIED,
    "logprobs": pb.VERDICT_SOURCE_LOGPROBS,
    "text": pb.VERDICT_SOURCE_TEXT,
}
JobState = Literal["unspecified", "running", "succeeded", "failed", "cancelled"]
_JOB_STATES: dict[int, JobState] = {
    pb.LABEL_JOB_STATE_UNSPECIFIED: "unspecified",
    pb.LABEL_JOB_STATE_RUNNING: "running",
    pb.LABEL_JOB_STATE_SUCCEEDED: "succeeded",
    pb.LABEL_JOB_STATE_FAILED: "failed",
    pb.LABEL_JOB_STATE_CANCELLED: "cancelled",
}


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
    verdict_source: Literal["", "logprobs", "text"] = ""


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
    """A rubric with its digest."""

    id: str
    digest: str
    task: Task
    kind: JudgeKind
    template: str


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
    """A data set to label; with `candidates`, the data's prompts alone are read."""

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


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class InjectionFamily:
    """Attacks of one kind: how many change the verdict, how many make the attacked response win, and how many verdicts harmless text changes."""

    family: str
    flips: Share | None
    wins: Share | None
    control_flips: Share | None


@dataclass(frozen=True, slots=True)
class LabelCard:
    """How far to trust a judge; a share is None where nothing was measured."""

    judge: str
    kind: JudgeKind
    rubric: str
    task: Task | None
    pairs: int
    human_agreement: Share | None
    length_baseline: Share | None
    first_preferred: Share | None
    same_position_after_swap: Share | None
    longer_preferred: Share | None
    abstentions: Mapping[str, int]
    tokens: int
    cached_judgements: int
    notes: tuple[str, ...]
    injection_flips: Share | None = None
    control_flips: Share | None = None
    injection_families: tuple[InjectionFamily, ...] = ()


def judge_to_proto(judge: Judge) -> pb.JudgeOptions:
    """Returns the wire form.

    Raises:
        InvalidArgumentError: the kind or the verdict's source is not known.
    """
    if judge.kind not in JUDGE_KINDS:
        raise InvalidArgumentError(f"kind {judge.kind!r} is not one of {', '.join(JUDGE_KINDS)}", field="judge.kind")
    if judge.verdict_source not in VERDICT_SOURCES:
        raise InvalidArgumentError(f"verdict source {judge.verdict_source!r} is neither logprobs nor text", field="judge.verdict_source")
    return pb.JudgeOptions(
        kind=JUDGE_KINDS[judge.kind],
        rubric=judge.rubric,
        adapter=judge.adapter,
        both_orders=judge.both_orders,
        rationale=judge.rationale,
        max_rationale_tokens=judge.max_rationale_tokens,
        tie_margin=judge.tie_margin,
        judge=judge.name,
        consistency_samples=judge.consistency_samples,
        consistency_temperature=judge.consistency_temperature,
        verdict_source=VERDICT_SOURCES[judge.verdict_source],
    )


def pair_to_proto(item: LabelPairItem) -> pb.Pair:
    """The wire form of a pair."""
    return pb.Pair(
        pair_id=item.pair_id,
        task=TASKS[item.task],
        prompt=messages_to_proto(item.messages),
        response_a=item.response_a,
        response_b=item.response_b,
        human_preference=item.human_preference,
    )


def _judgement(wire: pb.Judgement) -> Judgement:
    return Judgement(
        wire.a_first,
        wire.probability_a if wire.HasField("probability_a") else None,
        wire.evidence_a if wire.HasField("evidence_a") else None,
        wire.evidence_b if wire.HasField("evidence_b") else None,
        wire.rationale,
        wire.parsed,
        wire.abstention_reason,
        wire.prompt_tokens,
        wire.response_tokens,
        wire.ledger_key,
        wire.cached,
        wire.cost,
        wire.judge,
        wire.judge_digest,
        wire.sample,
        wire.latency_seconds or None,
    )


def label_from_proto(wire: pb.Label) -> Label:
    """The label of an answer."""
    return Label(
        wire.pair_id,
        wire.preference if wire.HasField("preference") else None,
        _OUTCOME_NAMES[wire.outcome],
        wire.abstention_reason,
        tuple(_judgement(item) for item in wire.judgements),
        _KIND_NAMES[wire.kind],
        wire.rubric,
        wire.rubric_digest,
        wire.judge,
        wire.judge_digest,
        wire.agreement if wire.HasField("agreement") else None,
        wire.escalated,
    )


def _rating(wire: pb.RateResponseResponse) -> Rating:
    return Rating(tuple(wire.distribution), wire.expected_rating, wire.score, wire.rubric, wire.rubric_digest)


def _label_result(wire: pb.LabelPairResult) -> LabelResult:
    error = error_or_none(wire.status)
    return LabelResult(wire.pair_id, error, None if error else label_from_proto(wire.label))


def _job_request(spec: LabelJobSpec) -> pb.CreateLabelJobRequest:
    limits, candidates = spec.limits, spec.candidates
    return pb.CreateLabelJobRequest(
        request_id=spec.request_id,
        dataset_uri=spec.dataset_uri,
        dataset_format=spec.dataset_format,
        split=spec.split,
        limit=spec.limit,
        task=TASKS[spec.task],
        judge=judge_to_proto(spec.judge),
        output_uri=spec.output_uri,
        seed=spec.seed,
        candidates=None if candidates is None else pb.CandidateOptions(**asdict(candidates)),
        max_cost=limits.max_cost,
        max_tokens=limits.max_tokens,
        max_judgements_per_second=limits.max_judgements_per_second,
        concurrency=limits.concurrency,
        attacks=spec.attacks,
    )


def job_from_proto(wire: pb.LabelJob) -> LabelJob:
    """The job of an answer."""
    return LabelJob(
        wire.name,
        _JOB_STATES[wire.state],
        wire.total_pairs,
        wire.done_pairs,
        wire.abstained_pairs,
        wire.cached_judgements,
        wire.tokens,
        wire.message,
        wire.dataset_uri,
        wire.dataset_digest,
        wire.card_uri,
        wire.create_time.seconds + wire.create_time.nanos / 1e9,
        dict(wire.rejected_rows),
        source_uri=wire.source_uri,
        rows_digest=wire.rows_digest,
        cost=wire.cost,
        at_limit=wire.at_limit,
        escalated_pairs=wire.escalated_pairs,
    )


def _share(holder: pb.LabelCard | pb.InjectionFamily, name: str) -> Share | None:
    if not holder.HasField(name):  # type: ignore[arg-type]
        return None
    wire = getattr(holder, name)
    return Share(wire.value, wire.low, wire.high, wire.n)


def _card(wire: pb.LabelCard) -> LabelCard:
    return LabelCard(
        wire.judge,
        _KIND_NAMES[wire.kind],
        wire.rubric,
        _TASK_NAMES.get(wire.task),
        wire.pairs,
        _share(wire, "human_agreement"),
        _share(wire, "length_baseline"),
        _share(wire, "first_preferred"),
        _share(wire, "same_position_after_swap"),
        _share(wire, "longer_preferred"),
        dict(wire.abstentions),
        wire.tokens,
        wire.cached_judgements,
        tuple(wire.notes),
        injection_flips=_share(wire, "injection_flips"),
        control_flips=_share(wire, "control_flips"),
        injection_families=tuple(
            InjectionFamily(item.family, *(_share(item, name) for name in ("flips", "wins", "control_flips"))) for item in wire.injection_families
        ),
    )


class FeedbackClient:
    """A blocking client of one feedback service; use it as a context manager."""

    def __init__(self, target: Target) -> None:
        self._channel, default_timeout = connect(target)
        self._stub = guard_stub(rpc.FeedbackServiceStub(self._channel), default_timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def label_pair(self, pair: LabelPairItem, judge: Judge = Judge(), *, timeout_seconds: float | None = None) -> Label:
        """Returns the label of one pair; see FeedbackService.LabelPair for the errors."""
        request = pb.LabelPairRequest(pair=pair_to_proto(pair), judge=judge_to_proto(judge))
        return label_from_proto(self._stub.LabelPair(request, timeout=timeout_seconds).label)

    def label_pairs(
        self,
        pairs: Sequence[LabelPairItem],
        judge: Judge = Judge(),
        *,
        timeout_seconds: float | None = None,
    ) -> tuple[LabelResult, ...]:
        """Returns a label or an error for each pair, in their order."""
        request = pb.LabelPairsRequest(pairs=[pair_to_proto(pair) for pair in pairs], judge=judge_to_proto(judge))
        reply = self._stub.LabelPairs(request, timeout=timeout_seconds)
        return tuple(_label_result(item) for item in reply.results)

    def label_stream(
        self,
        pairs: Iterable[LabelPairItem],
        judge: Judge = Judge(),
        *,
        timeout_seconds: float | None = None,
    ) -> Iterator[LabelResult]:
        """Yields labels as they come, out of order."""
        options = judge_to_proto(judge)
        requests = (pb.LabelStreamRequest(pair=pair_to_proto(pair), judge=options) for pair in pairs)
        for wire in self._stub.LabelStream(requests, timeout=timeout_seconds):
            yield _label_result(wire.result)

    def rate_response(
        self,
        task: Task,
        messages: Sequence[Message],
        response: str,
        *,
        rubric: str = "",
        adapter: str = "",
        judge: str = "",
        timeout_seconds: float | None = None,
    ) -> Rating:
        """Returns the rating of one response."""
        request = pb.RateResponseRequest(
            task=TASKS[task], prompt=messages_to_proto(messages), response=response, rubric=rubric, adapter=adapter, judge=judge
        )
        return _rating(self._stub.RateResponse(request, timeout=timeout_seconds))

    def rate_responses(
        self, task: Task, items: Sequence[tuple[Sequence[Message], str]], judge: Judge = Judge("rating"), *, timeout_seconds: float | None = None
    ) -> Ratings:
        """Returns a rating or an error for each prompt and response, in their order; of the judge count rubric, adapter and name."""
        request = pb.RateResponsesRequest(
            task=TASKS[task], rubric=judge.rubric, adapter=judge.adapter, judge=judge.name,
            items=[pb.RateItem(prompt=messages_to_proto(messages), response=response) for messages, response in items],
        )  # fmt: skip
        wire = self._stub.RateResponses(request, timeout=timeout_seconds)
        results = tuple(error_or_none(item.status) or _rating(item.rating) for item in wire.results)
        return Ratings(results, wire.judge, wire.judge_digest)

    def list_rubrics(self, *, timeout_seconds: float | None = None) -> tuple[Rubric, ...]:
        """Returns the rubrics by id."""
        wire = self._stub.ListRubrics(pb.ListRubricsRequest(), timeout=timeout_seconds)
        return tuple(Rubric(item.id, item.digest, _TASK_NAMES[item.task], _KIND_NAMES[item.kind], item.template) for item in wire.rubrics)

    def create_label_job(self, spec: LabelJobSpec, *, timeout_seconds: float | None = None) -> LabelJob:
        """Starts labelling a data set in the background."""
        return job_from_proto(self._stub.CreateLabelJob(_job_request(spec), timeout=timeout_seconds).job)

    def get_label_job(self, name: str, *, timeout_seconds: float | None = None) -> LabelJob:
        """Returns a job."""
        return job_from_proto(self._stub.GetLabelJob(pb.GetLabelJobRequest(name=name), timeout=timeout_seconds).job)

    def watch_label_job(self, name: str, *, timeout_seconds: float | None = None) -> Iterator[LabelJob]:
        """Yields the job each time that it changed, until it ends."""
        request = pb.WatchLabelJobRequest(name=name)
        for wire in self._stub.WatchLabelJob(request, timeout=timeout_seconds):
            yield job_from_proto(wire.job)

    def cancel_label_job(self, name: str, *, timeout_seconds: float | None = None) -> LabelJob:
        """Cancels a job."""
        return job_from_proto(self._stub.CancelLabelJob(pb.CancelLabelJobRequest(name=name), timeout=timeout_seconds).job)

    def record_human_label(
        self,
        request_id: str,
        pair: LabelPairItem,
        outcome: Outcome,
        annotator_id: str,
        *,
        reason: str = "",
        duration_seconds: float | None = None,
        timeout_seconds: float | None = None,
    ) -> str:
        """Records a person's label; returns its key in the ledger."""
        request = pb.RecordHumanLabelRequest(
            request_id=request_id,
            pair=pair_to_proto(pair),
            outcome=OUTCOMES[outcome],
            annotator_id=annotator_id,
            reason=reason,
            duration_seconds=duration_seconds,
        )
        return str(self._stub.RecordHumanLabel(request, timeout=timeout_seconds).ledger_key)

    def label_cards(
        self, *, job: str = "", kind: JudgeKind = "default", task: Task | None = None, timeout_seconds: float | None = None
    ) -> tuple[LabelCard, ...]:
        """Returns one card for each judge, kind, rubric and task among the chosen labels."""
        request = pb.GetLabelCardRequest(job=job, kind=JUDGE_KINDS[kind], task=TASKS[task] if task else pb.TASK_UNSPECIFIED)
        return tuple(_card(card) for card in self._stub.GetLabelCard(request, timeout=timeout_seconds).cards)
