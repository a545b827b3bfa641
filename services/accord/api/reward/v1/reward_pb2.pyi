from accord.api.common.v1 import common_pb2 as _common_pb2
from accord.api import validate_pb2 as _validate_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RewardModelSelector(_message.Message):
    __slots__ = ("members", "std_coefficient")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    STD_COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedScalarFieldContainer[str]
    std_coefficient: float
    def __init__(self, members: _Optional[_Iterable[str]] = ..., std_coefficient: _Optional[float] = ...) -> None: ...

class ScoreItem(_message.Message):
    __slots__ = ("item_id", "prompt", "response")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    prompt: _common_pb2.Prompt
    response: _common_pb2.Response
    def __init__(self, item_id: _Optional[str] = ..., prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., response: _Optional[_Union[_common_pb2.Response, _Mapping]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("items", "reward_model", "expected_digests")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ScoreItem]
    reward_model: RewardModelSelector
    expected_digests: _common_pb2.ModelDigests
    def __init__(self, items: _Optional[_Iterable[_Union[ScoreItem, _Mapping]]] = ..., reward_model: _Optional[_Union[RewardModelSelector, _Mapping]] = ..., expected_digests: _Optional[_Union[_common_pb2.ModelDigests, _Mapping]] = ...) -> None: ...

class ScoreItemResult(_message.Message):
    __slots__ = ("item_id", "status", "score", "member_scores", "tokens")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    MEMBER_SCORES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    status: _status_pb2.Status
    score: float
    member_scores: _containers.RepeatedScalarFieldContainer[float]
    tokens: int
    def __init__(self, item_id: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., score: _Optional[float] = ..., member_scores: _Optional[_Iterable[float]] = ..., tokens: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("items", "reward_model_versions", "digests", "usage")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ScoreItemResult]
    reward_model_versions: _containers.RepeatedScalarFieldContainer[str]
    digests: _common_pb2.ModelDigests
    usage: _common_pb2.Usage
    def __init__(self, items: _Optional[_Iterable[_Union[ScoreItemResult, _Mapping]]] = ..., reward_model_versions: _Optional[_Iterable[str]] = ..., digests: _Optional[_Union[_common_pb2.ModelDigests, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ...) -> None: ...

class ScoreStreamRequest(_message.Message):
    __slots__ = ("item", "reward_model", "expected_digests")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    item: ScoreItem
    reward_model: RewardModelSelector
    expected_digests: _common_pb2.ModelDigests
    def __init__(self, item: _Optional[_Union[ScoreItem, _Mapping]] = ..., reward_model: _Optional[_Union[RewardModelSelector, _Mapping]] = ..., expected_digests: _Optional[_Union[_common_pb2.ModelDigests, _Mapping]] = ...) -> None: ...

class ScoreStreamResponse(_message.Message):
    __slots__ = ("result", "reward_model_versions")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    result: ScoreItemResult
    reward_model_versions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, result: _Optional[_Union[ScoreItemResult, _Mapping]] = ..., reward_model_versions: _Optional[_Iterable[str]] = ...) -> None: ...

class ComparePair(_message.Message):
    __slots__ = ("item_id", "prompt", "response_a", "response_b")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_A_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_B_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    prompt: _common_pb2.Prompt
    response_a: _common_pb2.Response
    response_b: _common_pb2.Response
    def __init__(self, item_id: _Optional[str] = ..., prompt: _Optional[_Union[_common_pb2.Prompt, _Mapping]] = ..., response_a: _Optional[_Union[_common_pb2.Response, _Mapping]] = ..., response_b: _Optional[_Union[_common_pb2.Response, _Mapping]] = ...) -> None: ...

class CompareRequest(_message.Message):
    __slots__ = ("pairs", "reward_model", "expected_digests")
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    pairs: _containers.RepeatedCompositeFieldContainer[ComparePair]
    reward_model: RewardModelSelector
    expected_digests: _common_pb2.ModelDigests
    def __init__(self, pairs: _Optional[_Iterable[_Union[ComparePair, _Mapping]]] = ..., reward_model: _Optional[_Union[RewardModelSelector, _Mapping]] = ..., expected_digests: _Optional[_Union[_common_pb2.ModelDigests, _Mapping]] = ...) -> None: ...

class ComparePairResult(_message.Message):
    __slots__ = ("item_id", "status", "probability_a", "score_a", "score_b")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_A_FIELD_NUMBER: _ClassVar[int]
    SCORE_A_FIELD_NUMBER: _ClassVar[int]
    SCORE_B_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    status: _status_pb2.Status
    probability_a: float
    score_a: float
    score_b: float
    def __init__(self, item_id: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., probability_a: _Optional[float] = ..., score_a: _Optional[float] = ..., score_b: _Optional[float] = ...) -> None: ...

class CompareResponse(_message.Message):
    __slots__ = ("pairs", "reward_model_versions", "digests", "usage")
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    pairs: _containers.RepeatedCompositeFieldContainer[ComparePairResult]
    reward_model_versions: _containers.RepeatedScalarFieldContainer[str]
    digests: _common_pb2.ModelDigests
    usage: _common_pb2.Usage
    def __init__(self, pairs: _Optional[_Iterable[_Union[ComparePairResult, _Mapping]]] = ..., reward_model_versions: _Optional[_Iterable[str]] = ..., digests: _Optional[_Union[_common_pb2.ModelDigests, _Mapping]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ...) -> None: ...

class GetRewardModelInfoRequest(_message.Message):
    __slots__ = ("reward_model",)
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    reward_model: str
    def __init__(self, reward_model: _Optional[str] = ...) -> None: ...

class GetRewardModelInfoResponse(_message.Message):
    __slots__ = ("reward_model", "digest", "digests", "score_mean", "score_std", "max_tokens", "training_data_digest", "held_out_accuracy", "server_version")
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    SCORE_MEAN_FIELD_NUMBER: _ClassVar[int]
    SCORE_STD_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_DATA_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    reward_model: str
    digest: str
    digests: _common_pb2.ModelDigests
    score_mean: float
    score_std: float
    max_tokens: int
    training_data_digest: str
    held_out_accuracy: float
    server_version: str
    def __init__(self, reward_model: _Optional[str] = ..., digest: _Optional[str] = ..., digests: _Optional[_Union[_common_pb2.ModelDigests, _Mapping]] = ..., score_mean: _Optional[float] = ..., score_std: _Optional[float] = ..., max_tokens: _Optional[int] = ..., training_data_digest: _Optional[str] = ..., held_out_accuracy: _Optional[float] = ..., server_version: _Optional[str] = ...) -> None: ...
