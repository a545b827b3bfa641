import datetime

from accord.api.common.v1 import common_pb2 as _common_pb2
from accord.api import validate_pb2 as _validate_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    TASK_SUMMARIZATION: _ClassVar[Task]
    TASK_CONVERSATION: _ClassVar[Task]

class JudgeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JUDGE_KIND_UNSPECIFIED: _ClassVar[JudgeKind]
    JUDGE_KIND_VERDICT: _ClassVar[JudgeKind]
    JUDGE_KIND_RATING: _ClassVar[JudgeKind]
    JUDGE_KIND_LIKELIHOOD: _ClassVar[JudgeKind]

class VerdictSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VERDICT_SOURCE_UNSPECIFIED: _ClassVar[VerdictSource]
    VERDICT_SOURCE_LOGPROBS: _ClassVar[VerdictSource]
    VERDICT_SOURCE_TEXT: _ClassVar[VerdictSource]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_A: _ClassVar[Outcome]
    OUTCOME_B: _ClassVar[Outcome]
    OUTCOME_TIE: _ClassVar[Outcome]
    OUTCOME_ABSTAIN: _ClassVar[Outcome]

class LabelJobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LABEL_JOB_STATE_UNSPECIFIED: _ClassVar[LabelJobState]
    LABEL_JOB_STATE_RUNNING: _ClassVar[LabelJobState]
    LABEL_JOB_STATE_SUCCEEDED: _ClassVar[LabelJobState]
    LABEL_JOB_STATE_FAILED: _ClassVar[LabelJobState]
    LABEL_JOB_STATE_CANCELLED: _ClassVar[LabelJobState]
TASK_UNSPECIFIED: Task
TASK_SUMMARIZATION: Task
TASK_CONVERSATION: Task
JUDGE_KIND_UNSPECIFIED: JudgeKind
JUDGE_KIND_VERDICT: JudgeKind
JUDGE_KIND_RATING: JudgeKind
JUDGE_KIND_LIKELIHOOD: JudgeKind
VERDICT_SOURCE_UNSPECIFIED: VerdictSource
VERDICT_SOURCE_LOGPROBS: VerdictSource
VERDICT_SOURCE_TEXT: VerdictSource
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_A: Outcome
OUTCOME_B: Outcome
OUTCOME_TIE: Outcome
OUTCOME_ABSTAIN: Outcome
LABEL_JOB_STATE_UNSPECIFIED: LabelJobState
LABEL_JOB_STATE_RUNNING: LabelJobState
LABEL_JOB_STATE_SUCCEEDED: LabelJobState
LABEL_JOB_STATE_FAILED: LabelJobState
LABEL_JOB_STATE_CANCELLED: LabelJobState

class JudgeOptions(_message.Message):
    __slots__ = ("kind", "rubric", "adapter", "both_orders", "rationale", "max_rationale_tokens", "tie_margin", "judge", "consistency_samples", "consistency_temperature", "verdict_source")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    BOTH_ORDERS_FIELD_NUMBER: _ClassVar[int]
    RATIONALE_FIELD_NUMBER: _ClassVar[int]
    MAX_RATIONALE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIE_MARGIN_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_SOURCE_FIELD_NUMBER: _ClassVar[int]
    kind: JudgeKind
    rubric: str
    adapter: str
    both_orders: bool
    rationale: bool
    max_rationale_tokens: int
    tie_margin: float
    judge: str
    consistency_samples: int
    consistency_temperature: float
    verdict_source: VerdictSource
    def __init__(self, kind: _Optional[_Union[JudgeKind, str]] = ..., rubric: _Optional[str] = ..., adapter: _Optional[str] = ..., both_orders: _Optional[bool] = ..., rationale: _Optional[bool] = ..., max_rationale_tokens: _Optional[int] = ..., tie_margin: _Optional[float] = ..., judge: _Optional[str] = ..., consistency_samples: _Optional[int] = ..., consistency_temperature: _Optional[float] = ..., verdict_source: _Optional[_Union[VerdictSource, str]] = ...) -> None: ...

class Pair(_message.Message):
    __slots__ = ("pair_id", "task", "prompt", "response_a", "response_b", "human_preference")
    PAIR_ID_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_A_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_B_FIELD_NUMBER: _ClassVar[int]
    HUMAN_PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    pair_id: str
    task: Task
    prompt: _common_pb2.ChatMessages
    response_a: str
    response_b: str
    human_preference: float
    def __init__(self, pair_id: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ..., prompt: _Optional[_Union[_common_pb2.ChatMessages, _Mapping]] = ..., response_a: _Optional[str] = ..., response_b: _Optional[str] = ..., human_preference: _Optional[float] = ...) -> None: ...

class Judgement(_message.Message):
    __slots__ = ("a_first", "probability_a", "evidence_a", "evidence_b", "rationale", "parsed", "abstention_reason", "prompt_tokens", "response_tokens", "ledger_key", "cached", "cost", "sample", "judge", "judge_digest", "latency_seconds")
    A_FIRST_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_A_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_A_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_B_FIELD_NUMBER: _ClassVar[int]
    RATIONALE_FIELD_NUMBER: _ClassVar[int]
    PARSED_FIELD_NUMBER: _ClassVar[int]
    ABSTENTION_REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEDGER_KEY_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    JUDGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LATENCY_SECONDS_FIELD_NUMBER: _ClassVar[int]
    a_first: bool
    probability_a: float
    evidence_a: float
    evidence_b: float
    rationale: str
    parsed: str
    abstention_reason: str
    prompt_tokens: int
    response_tokens: int
    ledger_key: str
    cached: bool
    cost: float
    sample: int
    judge: str
    judge_digest: str
    latency_seconds: float
    def __init__(self, a_first: _Optional[bool] = ..., probability_a: _Optional[float] = ..., evidence_a: _Optional[float] = ..., evidence_b: _Optional[float] = ..., rationale: _Optional[str] = ..., parsed: _Optional[str] = ..., abstention_reason: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., response_tokens: _Optional[int] = ..., ledger_key: _Optional[str] = ..., cached: _Optional[bool] = ..., cost: _Optional[float] = ..., sample: _Optional[int] = ..., judge: _Optional[str] = ..., judge_digest: _Optional[str] = ..., latency_seconds: _Optional[float] = ...) -> None: ...

class Label(_message.Message):
    __slots__ = ("pair_id", "preference", "outcome", "abstention_reason", "judgements", "kind", "rubric", "rubric_digest", "judge", "judge_digest", "agreement", "escalated")
    PAIR_ID_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ABSTENTION_REASON_FIELD_NUMBER: _ClassVar[int]
    JUDGEMENTS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    JUDGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    ESCALATED_FIELD_NUMBER: _ClassVar[int]
    pair_id: str
    preference: float
    outcome: Outcome
    abstention_reason: str
    judgements: _containers.RepeatedCompositeFieldContainer[Judgement]
    kind: JudgeKind
    rubric: str
    rubric_digest: str
    judge: str
    judge_digest: str
    agreement: float
    escalated: bool
    def __init__(self, pair_id: _Optional[str] = ..., preference: _Optional[float] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., abstention_reason: _Optional[str] = ..., judgements: _Optional[_Iterable[_Union[Judgement, _Mapping]]] = ..., kind: _Optional[_Union[JudgeKind, str]] = ..., rubric: _Optional[str] = ..., rubric_digest: _Optional[str] = ..., judge: _Optional[str] = ..., judge_digest: _Optional[str] = ..., agreement: _Optional[float] = ..., escalated: _Optional[bool] = ...) -> None: ...

class LabelPairRequest(_message.Message):
    __slots__ = ("pair", "judge")
    PAIR_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    pair: Pair
    judge: JudgeOptions
    def __init__(self, pair: _Optional[_Union[Pair, _Mapping]] = ..., judge: _Optional[_Union[JudgeOptions, _Mapping]] = ...) -> None: ...

class LabelPairResponse(_message.Message):
    __slots__ = ("label",)
    LABEL_FIELD_NUMBER: _ClassVar[int]
    label: Label
    def __init__(self, label: _Optional[_Union[Label, _Mapping]] = ...) -> None: ...

class LabelPairsRequest(_message.Message):
    __slots__ = ("pairs", "judge")
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    pairs: _containers.RepeatedCompositeFieldContainer[Pair]
    judge: JudgeOptions
    def __init__(self, pairs: _Optional[_Iterable[_Union[Pair, _Mapping]]] = ..., judge: _Optional[_Union[JudgeOptions, _Mapping]] = ...) -> None: ...

class LabelPairResult(_message.Message):
    __slots__ = ("pair_id", "status", "label")
    PAIR_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    pair_id: str
    status: _status_pb2.Status
    label: Label
    def __init__(self, pair_id: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., label: _Optional[_Union[Label, _Mapping]] = ...) -> None: ...

class LabelPairsResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[LabelPairResult]
    def __init__(self, results: _Optional[_Iterable[_Union[LabelPairResult, _Mapping]]] = ...) -> None: ...

class LabelStreamRequest(_message.Message):
    __slots__ = ("pair", "judge")
    PAIR_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    pair: Pair
    judge: JudgeOptions
    def __init__(self, pair: _Optional[_Union[Pair, _Mapping]] = ..., judge: _Optional[_Union[JudgeOptions, _Mapping]] = ...) -> None: ...

class LabelStreamResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: LabelPairResult
    def __init__(self, result: _Optional[_Union[LabelPairResult, _Mapping]] = ...) -> None: ...

class RateResponseRequest(_message.Message):
    __slots__ = ("task", "prompt", "response", "rubric", "adapter", "judge")
    TASK_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    task: Task
    prompt: _common_pb2.ChatMessages
    response: str
    rubric: str
    adapter: str
    judge: str
    def __init__(self, task: _Optional[_Union[Task, str]] = ..., prompt: _Optional[_Union[_common_pb2.ChatMessages, _Mapping]] = ..., response: _Optional[str] = ..., rubric: _Optional[str] = ..., adapter: _Optional[str] = ..., judge: _Optional[str] = ...) -> None: ...

class RateResponseResponse(_message.Message):
    __slots__ = ("distribution", "expected_rating", "score", "rubric", "rubric_digest")
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_RATING_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    distribution: _containers.RepeatedScalarFieldContainer[float]
    expected_rating: float
    score: float
    rubric: str
    rubric_digest: str
    def __init__(self, distribution: _Optional[_Iterable[float]] = ..., expected_rating: _Optional[float] = ..., score: _Optional[float] = ..., rubric: _Optional[str] = ..., rubric_digest: _Optional[str] = ...) -> None: ...

class RateItem(_message.Message):
    __slots__ = ("prompt", "response")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    prompt: _common_pb2.ChatMessages
    response: str
    def __init__(self, prompt: _Optional[_Union[_common_pb2.ChatMessages, _Mapping]] = ..., response: _Optional[str] = ...) -> None: ...

class RateResponsesRequest(_message.Message):
    __slots__ = ("task", "items", "rubric", "adapter", "judge")
    TASK_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    task: Task
    items: _containers.RepeatedCompositeFieldContainer[RateItem]
    rubric: str
    adapter: str
    judge: str
    def __init__(self, task: _Optional[_Union[Task, str]] = ..., items: _Optional[_Iterable[_Union[RateItem, _Mapping]]] = ..., rubric: _Optional[str] = ..., adapter: _Optional[str] = ..., judge: _Optional[str] = ...) -> None: ...

class RateResult(_message.Message):
    __slots__ = ("status", "rating")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RATING_FIELD_NUMBER: _ClassVar[int]
    status: _status_pb2.Status
    rating: RateResponseResponse
    def __init__(self, status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., rating: _Optional[_Union[RateResponseResponse, _Mapping]] = ...) -> None: ...

class RateResponsesResponse(_message.Message):
    __slots__ = ("results", "judge", "judge_digest")
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    JUDGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RateResult]
    judge: str
    judge_digest: str
    def __init__(self, results: _Optional[_Iterable[_Union[RateResult, _Mapping]]] = ..., judge: _Optional[str] = ..., judge_digest: _Optional[str] = ...) -> None: ...

class ListRubricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Rubric(_message.Message):
    __slots__ = ("id", "digest", "task", "kind", "template", "rationale")
    ID_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    RATIONALE_FIELD_NUMBER: _ClassVar[int]
    id: str
    digest: str
    task: Task
    kind: JudgeKind
    template: str
    rationale: bool
    def __init__(self, id: _Optional[str] = ..., digest: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ..., kind: _Optional[_Union[JudgeKind, str]] = ..., template: _Optional[str] = ..., rationale: _Optional[bool] = ...) -> None: ...

class ListRubricsResponse(_message.Message):
    __slots__ = ("rubrics",)
    RUBRICS_FIELD_NUMBER: _ClassVar[int]
    rubrics: _containers.RepeatedCompositeFieldContainer[Rubric]
    def __init__(self, rubrics: _Optional[_Iterable[_Union[Rubric, _Mapping]]] = ...) -> None: ...

class CandidateOptions(_message.Message):
    __slots__ = ("adapter_a", "adapter_b", "temperature_a", "temperature_b", "best_of", "reward_model", "max_tokens")
    ADAPTER_A_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_B_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_A_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_B_FIELD_NUMBER: _ClassVar[int]
    BEST_OF_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    adapter_a: str
    adapter_b: str
    temperature_a: float
    temperature_b: float
    best_of: int
    reward_model: str
    max_tokens: int
    def __init__(self, adapter_a: _Optional[str] = ..., adapter_b: _Optional[str] = ..., temperature_a: _Optional[float] = ..., temperature_b: _Optional[float] = ..., best_of: _Optional[int] = ..., reward_model: _Optional[str] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class CreateLabelJobRequest(_message.Message):
    __slots__ = ("request_id", "dataset_uri", "dataset_format", "split", "limit", "task", "judge", "output_uri", "seed", "candidates", "max_cost", "max_tokens", "max_judgements_per_second", "concurrency", "attacks", "repeats")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    DATASET_URI_FIELD_NUMBER: _ClassVar[int]
    DATASET_FORMAT_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_URI_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_JUDGEMENTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    ATTACKS_FIELD_NUMBER: _ClassVar[int]
    REPEATS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    dataset_uri: str
    dataset_format: str
    split: str
    limit: int
    task: Task
    judge: JudgeOptions
    output_uri: str
    seed: int
    candidates: CandidateOptions
    max_cost: float
    max_tokens: int
    max_judgements_per_second: float
    concurrency: int
    attacks: int
    repeats: int
    def __init__(self, request_id: _Optional[str] = ..., dataset_uri: _Optional[str] = ..., dataset_format: _Optional[str] = ..., split: _Optional[str] = ..., limit: _Optional[int] = ..., task: _Optional[_Union[Task, str]] = ..., judge: _Optional[_Union[JudgeOptions, _Mapping]] = ..., output_uri: _Optional[str] = ..., seed: _Optional[int] = ..., candidates: _Optional[_Union[CandidateOptions, _Mapping]] = ..., max_cost: _Optional[float] = ..., max_tokens: _Optional[int] = ..., max_judgements_per_second: _Optional[float] = ..., concurrency: _Optional[int] = ..., attacks: _Optional[int] = ..., repeats: _Optional[int] = ...) -> None: ...

class LabelJob(_message.Message):
    __slots__ = ("name", "state", "total_pairs", "done_pairs", "abstained_pairs", "cached_judgements", "tokens", "message", "dataset_uri", "dataset_digest", "card_uri", "create_time", "rejected_rows", "cost", "source_uri", "escalated_pairs", "rows_digest", "at_limit")
    class RejectedRowsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_PAIRS_FIELD_NUMBER: _ClassVar[int]
    DONE_PAIRS_FIELD_NUMBER: _ClassVar[int]
    ABSTAINED_PAIRS_FIELD_NUMBER: _ClassVar[int]
    CACHED_JUDGEMENTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DATASET_URI_FIELD_NUMBER: _ClassVar[int]
    DATASET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CARD_URI_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    REJECTED_ROWS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_URI_FIELD_NUMBER: _ClassVar[int]
    ESCALATED_PAIRS_FIELD_NUMBER: _ClassVar[int]
    ROWS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    AT_LIMIT_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: LabelJobState
    total_pairs: int
    done_pairs: int
    abstained_pairs: int
    cached_judgements: int
    tokens: int
    message: str
    dataset_uri: str
    dataset_digest: str
    card_uri: str
    create_time: _timestamp_pb2.Timestamp
    rejected_rows: _containers.ScalarMap[str, int]
    cost: float
    source_uri: str
    escalated_pairs: int
    rows_digest: str
    at_limit: bool
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[LabelJobState, str]] = ..., total_pairs: _Optional[int] = ..., done_pairs: _Optional[int] = ..., abstained_pairs: _Optional[int] = ..., cached_judgements: _Optional[int] = ..., tokens: _Optional[int] = ..., message: _Optional[str] = ..., dataset_uri: _Optional[str] = ..., dataset_digest: _Optional[str] = ..., card_uri: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., rejected_rows: _Optional[_Mapping[str, int]] = ..., cost: _Optional[float] = ..., source_uri: _Optional[str] = ..., escalated_pairs: _Optional[int] = ..., rows_digest: _Optional[str] = ..., at_limit: _Optional[bool] = ...) -> None: ...

class CreateLabelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: LabelJob
    def __init__(self, job: _Optional[_Union[LabelJob, _Mapping]] = ...) -> None: ...

class GetLabelJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetLabelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: LabelJob
    def __init__(self, job: _Optional[_Union[LabelJob, _Mapping]] = ...) -> None: ...

class ListLabelJobsRequest(_message.Message):
    __slots__ = ("dataset_digest", "page_size", "page_token")
    DATASET_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    dataset_digest: str
    page_size: int
    page_token: str
    def __init__(self, dataset_digest: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListLabelJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[LabelJob]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[LabelJob, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchLabelJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WatchLabelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: LabelJob
    def __init__(self, job: _Optional[_Union[LabelJob, _Mapping]] = ...) -> None: ...

class CancelLabelJobRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelLabelJobResponse(_message.Message):
    __slots__ = ("job",)
    JOB_FIELD_NUMBER: _ClassVar[int]
    job: LabelJob
    def __init__(self, job: _Optional[_Union[LabelJob, _Mapping]] = ...) -> None: ...

class RecordHumanLabelRequest(_message.Message):
    __slots__ = ("request_id", "pair", "outcome", "annotator_id", "reason", "duration_seconds", "confidence")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ANNOTATOR_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    pair: Pair
    outcome: Outcome
    annotator_id: str
    reason: str
    duration_seconds: float
    confidence: str
    def __init__(self, request_id: _Optional[str] = ..., pair: _Optional[_Union[Pair, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., annotator_id: _Optional[str] = ..., reason: _Optional[str] = ..., duration_seconds: _Optional[float] = ..., confidence: _Optional[str] = ...) -> None: ...

class RecordHumanLabelResponse(_message.Message):
    __slots__ = ("ledger_key",)
    LEDGER_KEY_FIELD_NUMBER: _ClassVar[int]
    ledger_key: str
    def __init__(self, ledger_key: _Optional[str] = ...) -> None: ...

class GetLabelCardRequest(_message.Message):
    __slots__ = ("job", "kind", "task")
    JOB_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    job: str
    kind: JudgeKind
    task: Task
    def __init__(self, job: _Optional[str] = ..., kind: _Optional[_Union[JudgeKind, str]] = ..., task: _Optional[_Union[Task, str]] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("value", "low", "high", "n")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    value: float
    low: float
    high: float
    n: int
    def __init__(self, value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., n: _Optional[int] = ...) -> None: ...

class LabelCard(_message.Message):
    __slots__ = ("judge", "kind", "rubric", "task", "pairs", "human_agreement", "length_baseline", "first_preferred", "same_position_after_swap", "longer_preferred", "abstentions", "tokens", "cached_judgements", "notes", "random_baseline", "agreement_by_length", "calibration_error", "reliability", "repeat_consistency", "injection_flips", "cost_per_thousand_pairs", "disagreements", "ensemble_agreement", "escalated", "judge_digest", "cost", "kappa", "control_flips", "injection_families")
    class AbstentionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    HUMAN_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BASELINE_FIELD_NUMBER: _ClassVar[int]
    FIRST_PREFERRED_FIELD_NUMBER: _ClassVar[int]
    SAME_POSITION_AFTER_SWAP_FIELD_NUMBER: _ClassVar[int]
    LONGER_PREFERRED_FIELD_NUMBER: _ClassVar[int]
    ABSTENTIONS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_JUDGEMENTS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    RANDOM_BASELINE_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_BY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_ERROR_FIELD_NUMBER: _ClassVar[int]
    RELIABILITY_FIELD_NUMBER: _ClassVar[int]
    REPEAT_CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    INJECTION_FLIPS_FIELD_NUMBER: _ClassVar[int]
    COST_PER_THOUSAND_PAIRS_FIELD_NUMBER: _ClassVar[int]
    DISAGREEMENTS_FIELD_NUMBER: _ClassVar[int]
    ENSEMBLE_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    ESCALATED_FIELD_NUMBER: _ClassVar[int]
    JUDGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    KAPPA_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FLIPS_FIELD_NUMBER: _ClassVar[int]
    INJECTION_FAMILIES_FIELD_NUMBER: _ClassVar[int]
    judge: str
    kind: JudgeKind
    rubric: str
    task: Task
    pairs: int
    human_agreement: Share
    length_baseline: Share
    first_preferred: Share
    same_position_after_swap: Share
    longer_preferred: Share
    abstentions: _containers.ScalarMap[str, int]
    tokens: int
    cached_judgements: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    random_baseline: Share
    agreement_by_length: _containers.RepeatedCompositeFieldContainer[LengthBin]
    calibration_error: float
    reliability: _containers.RepeatedCompositeFieldContainer[ReliabilityBin]
    repeat_consistency: Share
    injection_flips: Share
    cost_per_thousand_pairs: float
    disagreements: _containers.RepeatedCompositeFieldContainer[Disagreement]
    ensemble_agreement: float
    escalated: Share
    judge_digest: str
    cost: float
    kappa: Kappa
    control_flips: Share
    injection_families: _containers.RepeatedCompositeFieldContainer[InjectionFamily]
    def __init__(self, judge: _Optional[str] = ..., kind: _Optional[_Union[JudgeKind, str]] = ..., rubric: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ..., pairs: _Optional[int] = ..., human_agreement: _Optional[_Union[Share, _Mapping]] = ..., length_baseline: _Optional[_Union[Share, _Mapping]] = ..., first_preferred: _Optional[_Union[Share, _Mapping]] = ..., same_position_after_swap: _Optional[_Union[Share, _Mapping]] = ..., longer_preferred: _Optional[_Union[Share, _Mapping]] = ..., abstentions: _Optional[_Mapping[str, int]] = ..., tokens: _Optional[int] = ..., cached_judgements: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ..., random_baseline: _Optional[_Union[Share, _Mapping]] = ..., agreement_by_length: _Optional[_Iterable[_Union[LengthBin, _Mapping]]] = ..., calibration_error: _Optional[float] = ..., reliability: _Optional[_Iterable[_Union[ReliabilityBin, _Mapping]]] = ..., repeat_consistency: _Optional[_Union[Share, _Mapping]] = ..., injection_flips: _Optional[_Union[Share, _Mapping]] = ..., cost_per_thousand_pairs: _Optional[float] = ..., disagreements: _Optional[_Iterable[_Union[Disagreement, _Mapping]]] = ..., ensemble_agreement: _Optional[float] = ..., escalated: _Optional[_Union[Share, _Mapping]] = ..., judge_digest: _Optional[str] = ..., cost: _Optional[float] = ..., kappa: _Optional[_Union[Kappa, _Mapping]] = ..., control_flips: _Optional[_Union[Share, _Mapping]] = ..., injection_families: _Optional[_Iterable[_Union[InjectionFamily, _Mapping]]] = ...) -> None: ...

class InjectionFamily(_message.Message):
    __slots__ = ("family", "flips", "wins", "control_flips")
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    FLIPS_FIELD_NUMBER: _ClassVar[int]
    WINS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FLIPS_FIELD_NUMBER: _ClassVar[int]
    family: str
    flips: Share
    wins: Share
    control_flips: Share
    def __init__(self, family: _Optional[str] = ..., flips: _Optional[_Union[Share, _Mapping]] = ..., wins: _Optional[_Union[Share, _Mapping]] = ..., control_flips: _Optional[_Union[Share, _Mapping]] = ...) -> None: ...

class Kappa(_message.Message):
    __slots__ = ("value", "low", "high", "n")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    value: float
    low: float
    high: float
    n: int
    def __init__(self, value: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., n: _Optional[int] = ...) -> None: ...

class LengthBin(_message.Message):
    __slots__ = ("ratio_low", "ratio_high", "agreement", "length_baseline")
    RATIO_LOW_FIELD_NUMBER: _ClassVar[int]
    RATIO_HIGH_FIELD_NUMBER: _ClassVar[int]
    AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    LENGTH_BASELINE_FIELD_NUMBER: _ClassVar[int]
    ratio_low: float
    ratio_high: float
    agreement: Share
    length_baseline: Share
    def __init__(self, ratio_low: _Optional[float] = ..., ratio_high: _Optional[float] = ..., agreement: _Optional[_Union[Share, _Mapping]] = ..., length_baseline: _Optional[_Union[Share, _Mapping]] = ...) -> None: ...

class ReliabilityBin(_message.Message):
    __slots__ = ("low", "high", "confidence", "accuracy")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    confidence: float
    accuracy: Share
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ..., confidence: _Optional[float] = ..., accuracy: _Optional[_Union[Share, _Mapping]] = ...) -> None: ...

class Disagreement(_message.Message):
    __slots__ = ("pair_id", "prompt", "judge_takes", "people_take", "confidence")
    PAIR_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    JUDGE_TAKES_FIELD_NUMBER: _ClassVar[int]
    PEOPLE_TAKE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    pair_id: str
    prompt: str
    judge_takes: str
    people_take: str
    confidence: float
    def __init__(self, pair_id: _Optional[str] = ..., prompt: _Optional[str] = ..., judge_takes: _Optional[str] = ..., people_take: _Optional[str] = ..., confidence: _Optional[float] = ...) -> None: ...

class GetLabelCardResponse(_message.Message):
    __slots__ = ("cards",)
    CARDS_FIELD_NUMBER: _ClassVar[int]
    cards: _containers.RepeatedCompositeFieldContainer[LabelCard]
    def __init__(self, cards: _Optional[_Iterable[_Union[LabelCard, _Mapping]]] = ...) -> None: ...

class ListLabelsRequest(_message.Message):
    __slots__ = ("job", "kind", "task", "judge_digest", "rubric", "outcome", "content_key", "pair_id", "made_after", "made_before", "page_size", "page_token", "pair_id_prefix")
    JOB_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    JUDGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_KEY_FIELD_NUMBER: _ClassVar[int]
    PAIR_ID_FIELD_NUMBER: _ClassVar[int]
    MADE_AFTER_FIELD_NUMBER: _ClassVar[int]
    MADE_BEFORE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PAIR_ID_PREFIX_FIELD_NUMBER: _ClassVar[int]
    job: str
    kind: JudgeKind
    task: Task
    judge_digest: str
    rubric: str
    outcome: Outcome
    content_key: str
    pair_id: str
    made_after: _timestamp_pb2.Timestamp
    made_before: _timestamp_pb2.Timestamp
    page_size: int
    page_token: str
    pair_id_prefix: str
    def __init__(self, job: _Optional[str] = ..., kind: _Optional[_Union[JudgeKind, str]] = ..., task: _Optional[_Union[Task, str]] = ..., judge_digest: _Optional[str] = ..., rubric: _Optional[str] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., content_key: _Optional[str] = ..., pair_id: _Optional[str] = ..., made_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., made_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., pair_id_prefix: _Optional[str] = ...) -> None: ...

class LabelRecord(_message.Message):
    __slots__ = ("label", "pair", "content_key", "job", "request_id", "create_time", "options")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    CONTENT_KEY_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    label: Label
    pair: Pair
    content_key: str
    job: str
    request_id: str
    create_time: _timestamp_pb2.Timestamp
    options: str
    def __init__(self, label: _Optional[_Union[Label, _Mapping]] = ..., pair: _Optional[_Union[Pair, _Mapping]] = ..., content_key: _Optional[str] = ..., job: _Optional[str] = ..., request_id: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., options: _Optional[str] = ...) -> None: ...

class ListLabelsResponse(_message.Message):
    __slots__ = ("labels", "next_page_token")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[LabelRecord]
    next_page_token: str
    def __init__(self, labels: _Optional[_Iterable[_Union[LabelRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListHumanLabelsRequest(_message.Message):
    __slots__ = ("content_key", "annotator_id", "page_size", "page_token")
    CONTENT_KEY_FIELD_NUMBER: _ClassVar[int]
    ANNOTATOR_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    content_key: str
    annotator_id: str
    page_size: int
    page_token: str
    def __init__(self, content_key: _Optional[str] = ..., annotator_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class HumanLabelRecord(_message.Message):
    __slots__ = ("ledger_key", "pair", "outcome", "annotator_id", "reason", "duration_seconds", "content_key", "create_time", "confidence")
    LEDGER_KEY_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    ANNOTATOR_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_KEY_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ledger_key: str
    pair: Pair
    outcome: Outcome
    annotator_id: str
    reason: str
    duration_seconds: float
    content_key: str
    create_time: _timestamp_pb2.Timestamp
    confidence: str
    def __init__(self, ledger_key: _Optional[str] = ..., pair: _Optional[_Union[Pair, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., annotator_id: _Optional[str] = ..., reason: _Optional[str] = ..., duration_seconds: _Optional[float] = ..., content_key: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., confidence: _Optional[str] = ...) -> None: ...

class ListHumanLabelsResponse(_message.Message):
    __slots__ = ("labels", "next_page_token")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[HumanLabelRecord]
    next_page_token: str
    def __init__(self, labels: _Optional[_Iterable[_Union[HumanLabelRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
