import datetime

from accord.api import validate_pb2 as _validate_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_QUEUED: _ClassVar[RunState]
    RUN_STATE_STARTING: _ClassVar[RunState]
    RUN_STATE_RUNNING: _ClassVar[RunState]
    RUN_STATE_CHECKPOINTING: _ClassVar[RunState]
    RUN_STATE_SUCCEEDED: _ClassVar[RunState]
    RUN_STATE_FAILED: _ClassVar[RunState]
    RUN_STATE_CANCELLING: _ClassVar[RunState]
    RUN_STATE_CANCELLED: _ClassVar[RunState]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_QUEUED: RunState
RUN_STATE_STARTING: RunState
RUN_STATE_RUNNING: RunState
RUN_STATE_CHECKPOINTING: RunState
RUN_STATE_SUCCEEDED: RunState
RUN_STATE_FAILED: RunState
RUN_STATE_CANCELLING: RunState
RUN_STATE_CANCELLED: RunState

class LoraSpec(_message.Message):
    __slots__ = ("rank", "alpha", "target_modules", "last_layers")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    LAST_LAYERS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    alpha: float
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    last_layers: int
    def __init__(self, rank: _Optional[int] = ..., alpha: _Optional[float] = ..., target_modules: _Optional[_Iterable[str]] = ..., last_layers: _Optional[int] = ...) -> None: ...

class OptimizerSpec(_message.Message):
    __slots__ = ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "schedule")
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    learning_rate: float
    weight_decay: float
    max_grad_norm: float
    warmup_steps: int
    schedule: str
    def __init__(self, learning_rate: _Optional[float] = ..., weight_decay: _Optional[float] = ..., max_grad_norm: _Optional[float] = ..., warmup_steps: _Optional[int] = ..., schedule: _Optional[str] = ...) -> None: ...

class DataSpec(_message.Message):
    __slots__ = ("uri", "format", "split", "limit", "strict")
    URI_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    uri: str
    format: str
    split: str
    limit: int
    strict: bool
    def __init__(self, uri: _Optional[str] = ..., format: _Optional[str] = ..., split: _Optional[str] = ..., limit: _Optional[int] = ..., strict: _Optional[bool] = ...) -> None: ...

class SftSpec(_message.Message):
    __slots__ = ("data", "eval_data")
    DATA_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATA_FIELD_NUMBER: _ClassVar[int]
    data: DataSpec
    eval_data: DataSpec
    def __init__(self, data: _Optional[_Union[DataSpec, _Mapping]] = ..., eval_data: _Optional[_Union[DataSpec, _Mapping]] = ...) -> None: ...

class RewardModelSpec(_message.Message):
    __slots__ = ("data", "eval_data", "soft_labels", "centering_coefficient", "rating_margin", "rating_weights")
    DATA_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATA_FIELD_NUMBER: _ClassVar[int]
    SOFT_LABELS_FIELD_NUMBER: _ClassVar[int]
    CENTERING_COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    RATING_MARGIN_FIELD_NUMBER: _ClassVar[int]
    RATING_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    data: DataSpec
    eval_data: DataSpec
    soft_labels: bool
    centering_coefficient: float
    rating_margin: float
    rating_weights: bool
    def __init__(self, data: _Optional[_Union[DataSpec, _Mapping]] = ..., eval_data: _Optional[_Union[DataSpec, _Mapping]] = ..., soft_labels: _Optional[bool] = ..., centering_coefficient: _Optional[float] = ..., rating_margin: _Optional[float] = ..., rating_weights: _Optional[bool] = ...) -> None: ...

class DpoSpec(_message.Message):
    __slots__ = ("data", "eval_data", "beta", "loss", "label_smoothing", "soft_labels", "rating_margin", "rating_weights", "nll_coefficient")
    DATA_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATA_FIELD_NUMBER: _ClassVar[int]
    BETA_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LABEL_SMOOTHING_FIELD_NUMBER: _ClassVar[int]
    SOFT_LABELS_FIELD_NUMBER: _ClassVar[int]
    RATING_MARGIN_FIELD_NUMBER: _ClassVar[int]
    RATING_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    NLL_COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    data: DataSpec
    eval_data: DataSpec
    beta: float
    loss: str
    label_smoothing: float
    soft_labels: bool
    rating_margin: float
    rating_weights: bool
    nll_coefficient: float
    def __init__(self, data: _Optional[_Union[DataSpec, _Mapping]] = ..., eval_data: _Optional[_Union[DataSpec, _Mapping]] = ..., beta: _Optional[float] = ..., loss: _Optional[str] = ..., label_smoothing: _Optional[float] = ..., soft_labels: _Optional[bool] = ..., rating_margin: _Optional[float] = ..., rating_weights: _Optional[bool] = ..., nll_coefficient: _Optional[float] = ...) -> None: ...

class JudgeRewardSpec(_message.Message):
    __slots__ = ("task", "rubric", "adapter", "judge", "abstentions")
    TASK_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    ABSTENTIONS_FIELD_NUMBER: _ClassVar[int]
    task: str
    rubric: str
    adapter: str
    judge: str
    abstentions: str
    def __init__(self, task: _Optional[str] = ..., rubric: _Optional[str] = ..., adapter: _Optional[str] = ..., judge: _Optional[str] = ..., abstentions: _Optional[str] = ...) -> None: ...

class PpoSpec(_message.Message):
    __slots__ = ("data", "eval_data", "reward_model", "value_from_reward_model", "kl_coef", "kl_controller", "kl_target", "kl_horizon", "epochs", "minibatch_size", "clip_range", "value_clip_range", "value_coefficient", "discount", "gae_lambda", "temperature", "missing_eos_penalty", "ptx_coefficient", "ptx_data", "ptx_rows_per_rollout", "normalize_scores", "target_kl", "more_reward_models", "ensemble_std_coefficient", "max_staleness", "reuse_sampler_logprobs", "sampler_gap_bound", "judge_reward")
    DATA_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATA_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FROM_REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    KL_COEF_FIELD_NUMBER: _ClassVar[int]
    KL_CONTROLLER_FIELD_NUMBER: _ClassVar[int]
    KL_TARGET_FIELD_NUMBER: _ClassVar[int]
    KL_HORIZON_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MINIBATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    CLIP_RANGE_FIELD_NUMBER: _ClassVar[int]
    VALUE_CLIP_RANGE_FIELD_NUMBER: _ClassVar[int]
    VALUE_COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    DISCOUNT_FIELD_NUMBER: _ClassVar[int]
    GAE_LAMBDA_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MISSING_EOS_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PTX_COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    PTX_DATA_FIELD_NUMBER: _ClassVar[int]
    PTX_ROWS_PER_ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_SCORES_FIELD_NUMBER: _ClassVar[int]
    TARGET_KL_FIELD_NUMBER: _ClassVar[int]
    MORE_REWARD_MODELS_FIELD_NUMBER: _ClassVar[int]
    ENSEMBLE_STD_COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    REUSE_SAMPLER_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SAMPLER_GAP_BOUND_FIELD_NUMBER: _ClassVar[int]
    JUDGE_REWARD_FIELD_NUMBER: _ClassVar[int]
    data: DataSpec
    eval_data: DataSpec
    reward_model: str
    value_from_reward_model: bool
    kl_coef: float
    kl_controller: str
    kl_target: float
    kl_horizon: float
    epochs: int
    minibatch_size: int
    clip_range: float
    value_clip_range: float
    value_coefficient: float
    discount: float
    gae_lambda: float
    temperature: float
    missing_eos_penalty: float
    ptx_coefficient: float
    ptx_data: DataSpec
    ptx_rows_per_rollout: int
    normalize_scores: bool
    target_kl: float
    more_reward_models: _containers.RepeatedScalarFieldContainer[str]
    ensemble_std_coefficient: float
    max_staleness: int
    reuse_sampler_logprobs: bool
    sampler_gap_bound: float
    judge_reward: JudgeRewardSpec
    def __init__(self, data: _Optional[_Union[DataSpec, _Mapping]] = ..., eval_data: _Optional[_Union[DataSpec, _Mapping]] = ..., reward_model: _Optional[str] = ..., value_from_reward_model: _Optional[bool] = ..., kl_coef: _Optional[float] = ..., kl_controller: _Optional[str] = ..., kl_target: _Optional[float] = ..., kl_horizon: _Optional[float] = ..., epochs: _Optional[int] = ..., minibatch_size: _Optional[int] = ..., clip_range: _Optional[float] = ..., value_clip_range: _Optional[float] = ..., value_coefficient: _Optional[float] = ..., discount: _Optional[float] = ..., gae_lambda: _Optional[float] = ..., temperature: _Optional[float] = ..., missing_eos_penalty: _Optional[float] = ..., ptx_coefficient: _Optional[float] = ..., ptx_data: _Optional[_Union[DataSpec, _Mapping]] = ..., ptx_rows_per_rollout: _Optional[int] = ..., normalize_scores: _Optional[bool] = ..., target_kl: _Optional[float] = ..., more_reward_models: _Optional[_Iterable[str]] = ..., ensemble_std_coefficient: _Optional[float] = ..., max_staleness: _Optional[int] = ..., reuse_sampler_logprobs: _Optional[bool] = ..., sampler_gap_bound: _Optional[float] = ..., judge_reward: _Optional[_Union[JudgeRewardSpec, _Mapping]] = ...) -> None: ...

class GrpoSpec(_message.Message):
    __slots__ = ("data", "eval_data", "reward_model", "more_reward_models", "ensemble_std_coefficient", "group_size", "kl_coef", "epochs", "minibatch_size", "clip_range", "temperature", "missing_eos_penalty", "scale_advantages", "loss_normalization", "judge_reward")
    DATA_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATA_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    MORE_REWARD_MODELS_FIELD_NUMBER: _ClassVar[int]
    ENSEMBLE_STD_COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    KL_COEF_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MINIBATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    CLIP_RANGE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MISSING_EOS_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SCALE_ADVANTAGES_FIELD_NUMBER: _ClassVar[int]
    LOSS_NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    JUDGE_REWARD_FIELD_NUMBER: _ClassVar[int]
    data: DataSpec
    eval_data: DataSpec
    reward_model: str
    more_reward_models: _containers.RepeatedScalarFieldContainer[str]
    ensemble_std_coefficient: float
    group_size: int
    kl_coef: float
    epochs: int
    minibatch_size: int
    clip_range: float
    temperature: float
    missing_eos_penalty: float
    scale_advantages: bool
    loss_normalization: str
    judge_reward: JudgeRewardSpec
    def __init__(self, data: _Optional[_Union[DataSpec, _Mapping]] = ..., eval_data: _Optional[_Union[DataSpec, _Mapping]] = ..., reward_model: _Optional[str] = ..., more_reward_models: _Optional[_Iterable[str]] = ..., ensemble_std_coefficient: _Optional[float] = ..., group_size: _Optional[int] = ..., kl_coef: _Optional[float] = ..., epochs: _Optional[int] = ..., minibatch_size: _Optional[int] = ..., clip_range: _Optional[float] = ..., temperature: _Optional[float] = ..., missing_eos_penalty: _Optional[float] = ..., scale_advantages: _Optional[bool] = ..., loss_normalization: _Optional[str] = ..., judge_reward: _Optional[_Union[JudgeRewardSpec, _Mapping]] = ...) -> None: ...

class RlooSpec(_message.Message):
    __slots__ = ("data", "eval_data", "reward_model", "more_reward_models", "ensemble_std_coefficient", "group_size", "kl_coef", "epochs", "minibatch_size", "clip_range", "temperature", "missing_eos_penalty", "judge_reward")
    DATA_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATA_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    MORE_REWARD_MODELS_FIELD_NUMBER: _ClassVar[int]
    ENSEMBLE_STD_COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    GROUP_SIZE_FIELD_NUMBER: _ClassVar[int]
    KL_COEF_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MINIBATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    CLIP_RANGE_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MISSING_EOS_PENALTY_FIELD_NUMBER: _ClassVar[int]
    JUDGE_REWARD_FIELD_NUMBER: _ClassVar[int]
    data: DataSpec
    eval_data: DataSpec
    reward_model: str
    more_reward_models: _containers.RepeatedScalarFieldContainer[str]
    ensemble_std_coefficient: float
    group_size: int
    kl_coef: float
    epochs: int
    minibatch_size: int
    clip_range: float
    temperature: float
    missing_eos_penalty: float
    judge_reward: JudgeRewardSpec
    def __init__(self, data: _Optional[_Union[DataSpec, _Mapping]] = ..., eval_data: _Optional[_Union[DataSpec, _Mapping]] = ..., reward_model: _Optional[str] = ..., more_reward_models: _Optional[_Iterable[str]] = ..., ensemble_std_coefficient: _Optional[float] = ..., group_size: _Optional[int] = ..., kl_coef: _Optional[float] = ..., epochs: _Optional[int] = ..., minibatch_size: _Optional[int] = ..., clip_range: _Optional[float] = ..., temperature: _Optional[float] = ..., missing_eos_penalty: _Optional[float] = ..., judge_reward: _Optional[_Union[JudgeRewardSpec, _Mapping]] = ...) -> None: ...

class OnlineDpoSpec(_message.Message):
    __slots__ = ("data", "eval_data", "beta", "loss", "label_smoothing", "soft_labels", "temperature", "judge", "rubric", "judge_adapter")
    DATA_FIELD_NUMBER: _ClassVar[int]
    EVAL_DATA_FIELD_NUMBER: _ClassVar[int]
    BETA_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LABEL_SMOOTHING_FIELD_NUMBER: _ClassVar[int]
    SOFT_LABELS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    JUDGE_FIELD_NUMBER: _ClassVar[int]
    RUBRIC_FIELD_NUMBER: _ClassVar[int]
    JUDGE_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    data: DataSpec
    eval_data: DataSpec
    beta: float
    loss: str
    label_smoothing: float
    soft_labels: bool
    temperature: float
    judge: str
    rubric: str
    judge_adapter: str
    def __init__(self, data: _Optional[_Union[DataSpec, _Mapping]] = ..., eval_data: _Optional[_Union[DataSpec, _Mapping]] = ..., beta: _Optional[float] = ..., loss: _Optional[str] = ..., label_smoothing: _Optional[float] = ..., soft_labels: _Optional[bool] = ..., temperature: _Optional[float] = ..., judge: _Optional[str] = ..., rubric: _Optional[str] = ..., judge_adapter: _Optional[str] = ...) -> None: ...

class GuardsSpec(_message.Message):
    __slots__ = ("action", "held_out_reward_model", "max_held_out_drop", "max_kl", "max_length_ratio", "max_repetition", "patience")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_HELD_OUT_DROP_FIELD_NUMBER: _ClassVar[int]
    MAX_KL_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_RATIO_FIELD_NUMBER: _ClassVar[int]
    MAX_REPETITION_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    action: str
    held_out_reward_model: str
    max_held_out_drop: float
    max_kl: float
    max_length_ratio: float
    max_repetition: float
    patience: int
    def __init__(self, action: _Optional[str] = ..., held_out_reward_model: _Optional[str] = ..., max_held_out_drop: _Optional[float] = ..., max_kl: _Optional[float] = ..., max_length_ratio: _Optional[float] = ..., max_repetition: _Optional[float] = ..., patience: _Optional[int] = ...) -> None: ...

class TrackingSpec(_message.Message):
    __slots__ = ("tensorboard", "mlflow_uri")
    TENSORBOARD_FIELD_NUMBER: _ClassVar[int]
    MLFLOW_URI_FIELD_NUMBER: _ClassVar[int]
    tensorboard: bool
    mlflow_uri: str
    def __init__(self, tensorboard: _Optional[bool] = ..., mlflow_uri: _Optional[str] = ...) -> None: ...

class DistributionSpec(_message.Message):
    __slots__ = ("processes", "strategy")
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    processes: int
    strategy: str
    def __init__(self, processes: _Optional[int] = ..., strategy: _Optional[str] = ...) -> None: ...

class EvaluateSpec(_message.Message):
    __slots__ = ("uri", "bootstrap_samples")
    URI_FIELD_NUMBER: _ClassVar[int]
    BOOTSTRAP_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    uri: str
    bootstrap_samples: int
    def __init__(self, uri: _Optional[str] = ..., bootstrap_samples: _Optional[int] = ...) -> None: ...

class RunSpec(_message.Message):
    __slots__ = ("adapter", "parent_adapter", "base_model", "seed", "threads", "steps", "batch_size", "micro_batch_size", "max_prompt_tokens", "max_response_tokens", "lora", "optimizer", "checkpoint_every_steps", "checkpoints_kept", "eval_every_steps", "activation_checkpointing", "dtype", "guards", "tracking", "sft", "reward_model", "dpo", "ppo", "evaluate", "grpo", "rloo", "online_dpo", "distribution")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    PARENT_ADAPTER_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_KEPT_FIELD_NUMBER: _ClassVar[int]
    EVAL_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_CHECKPOINTING_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    GUARDS_FIELD_NUMBER: _ClassVar[int]
    TRACKING_FIELD_NUMBER: _ClassVar[int]
    SFT_FIELD_NUMBER: _ClassVar[int]
    REWARD_MODEL_FIELD_NUMBER: _ClassVar[int]
    DPO_FIELD_NUMBER: _ClassVar[int]
    PPO_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    GRPO_FIELD_NUMBER: _ClassVar[int]
    RLOO_FIELD_NUMBER: _ClassVar[int]
    ONLINE_DPO_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    parent_adapter: str
    base_model: str
    seed: int
    threads: int
    steps: int
    batch_size: int
    micro_batch_size: int
    max_prompt_tokens: int
    max_response_tokens: int
    lora: LoraSpec
    optimizer: OptimizerSpec
    checkpoint_every_steps: int
    checkpoints_kept: int
    eval_every_steps: int
    activation_checkpointing: bool
    dtype: str
    guards: GuardsSpec
    tracking: TrackingSpec
    sft: SftSpec
    reward_model: RewardModelSpec
    dpo: DpoSpec
    ppo: PpoSpec
    evaluate: EvaluateSpec
    grpo: GrpoSpec
    rloo: RlooSpec
    online_dpo: OnlineDpoSpec
    distribution: DistributionSpec
    def __init__(self, adapter: _Optional[str] = ..., parent_adapter: _Optional[str] = ..., base_model: _Optional[str] = ..., seed: _Optional[int] = ..., threads: _Optional[int] = ..., steps: _Optional[int] = ..., batch_size: _Optional[int] = ..., micro_batch_size: _Optional[int] = ..., max_prompt_tokens: _Optional[int] = ..., max_response_tokens: _Optional[int] = ..., lora: _Optional[_Union[LoraSpec, _Mapping]] = ..., optimizer: _Optional[_Union[OptimizerSpec, _Mapping]] = ..., checkpoint_every_steps: _Optional[int] = ..., checkpoints_kept: _Optional[int] = ..., eval_every_steps: _Optional[int] = ..., activation_checkpointing: _Optional[bool] = ..., dtype: _Optional[str] = ..., guards: _Optional[_Union[GuardsSpec, _Mapping]] = ..., tracking: _Optional[_Union[TrackingSpec, _Mapping]] = ..., sft: _Optional[_Union[SftSpec, _Mapping]] = ..., reward_model: _Optional[_Union[RewardModelSpec, _Mapping]] = ..., dpo: _Optional[_Union[DpoSpec, _Mapping]] = ..., ppo: _Optional[_Union[PpoSpec, _Mapping]] = ..., evaluate: _Optional[_Union[EvaluateSpec, _Mapping]] = ..., grpo: _Optional[_Union[GrpoSpec, _Mapping]] = ..., rloo: _Optional[_Union[RlooSpec, _Mapping]] = ..., online_dpo: _Optional[_Union[OnlineDpoSpec, _Mapping]] = ..., distribution: _Optional[_Union[DistributionSpec, _Mapping]] = ...) -> None: ...

class MemoryItem(_message.Message):
    __slots__ = ("role", "bytes", "arithmetic")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    ARITHMETIC_FIELD_NUMBER: _ClassVar[int]
    role: str
    bytes: int
    arithmetic: str
    def __init__(self, role: _Optional[str] = ..., bytes: _Optional[int] = ..., arithmetic: _Optional[str] = ...) -> None: ...

class RunPlan(_message.Message):
    __slots__ = ("memory", "peak_memory_bytes", "available_memory_bytes", "fits", "rows", "notes", "manifest", "estimated_duration", "step_duration")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_DURATION_FIELD_NUMBER: _ClassVar[int]
    STEP_DURATION_FIELD_NUMBER: _ClassVar[int]
    memory: _containers.RepeatedCompositeFieldContainer[MemoryItem]
    peak_memory_bytes: int
    available_memory_bytes: int
    fits: bool
    rows: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    manifest: str
    estimated_duration: _duration_pb2.Duration
    step_duration: _duration_pb2.Duration
    def __init__(self, memory: _Optional[_Iterable[_Union[MemoryItem, _Mapping]]] = ..., peak_memory_bytes: _Optional[int] = ..., available_memory_bytes: _Optional[int] = ..., fits: _Optional[bool] = ..., rows: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ..., manifest: _Optional[str] = ..., estimated_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., step_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PlanRunRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: RunSpec
    def __init__(self, spec: _Optional[_Union[RunSpec, _Mapping]] = ...) -> None: ...

class PlanRunResponse(_message.Message):
    __slots__ = ("plan",)
    PLAN_FIELD_NUMBER: _ClassVar[int]
    plan: RunPlan
    def __init__(self, plan: _Optional[_Union[RunPlan, _Mapping]] = ...) -> None: ...

class CreateRunRequest(_message.Message):
    __slots__ = ("request_id", "spec", "validate_only")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    spec: RunSpec
    validate_only: bool
    def __init__(self, request_id: _Optional[str] = ..., spec: _Optional[_Union[RunSpec, _Mapping]] = ..., validate_only: _Optional[bool] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("name", "spec", "state", "phase", "waiting_on", "message", "step", "total_steps", "metrics", "create_time", "start_time", "end_time", "adapter_version", "attempts", "directory", "heartbeat_time", "exit_code")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    WAITING_ON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_TIME_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    name: str
    spec: RunSpec
    state: RunState
    phase: str
    waiting_on: str
    message: str
    step: int
    total_steps: int
    metrics: _containers.ScalarMap[str, float]
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    adapter_version: str
    attempts: int
    directory: str
    heartbeat_time: _timestamp_pb2.Timestamp
    exit_code: int
    def __init__(self, name: _Optional[str] = ..., spec: _Optional[_Union[RunSpec, _Mapping]] = ..., state: _Optional[_Union[RunState, str]] = ..., phase: _Optional[str] = ..., waiting_on: _Optional[str] = ..., message: _Optional[str] = ..., step: _Optional[int] = ..., total_steps: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., adapter_version: _Optional[str] = ..., attempts: _Optional[int] = ..., directory: _Optional[str] = ..., heartbeat_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., exit_code: _Optional[int] = ...) -> None: ...

class CreateRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "states")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[RunState]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[RunState, str]]] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "next_page_token")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    next_page_token: str
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchRunRequest(_message.Message):
    __slots__ = ("name", "resume_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    resume_token: str
    def __init__(self, name: _Optional[str] = ..., resume_token: _Optional[str] = ...) -> None: ...

class StepMetrics(_message.Message):
    __slots__ = ("step", "values")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    step: int
    values: _containers.ScalarMap[str, float]
    def __init__(self, step: _Optional[int] = ..., values: _Optional[_Mapping[str, float]] = ...) -> None: ...

class WatchRunResponse(_message.Message):
    __slots__ = ("resume_token", "time", "run", "metrics", "message", "heartbeat")
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    resume_token: str
    time: _timestamp_pb2.Timestamp
    run: Run
    metrics: StepMetrics
    message: str
    heartbeat: Heartbeat
    def __init__(self, resume_token: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., run: _Optional[_Union[Run, _Mapping]] = ..., metrics: _Optional[_Union[StepMetrics, _Mapping]] = ..., message: _Optional[str] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("idle_seconds",)
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    idle_seconds: float
    def __init__(self, idle_seconds: _Optional[float] = ...) -> None: ...

class CancelRunRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class CancelRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ResumeRunRequest(_message.Message):
    __slots__ = ("name", "processes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    name: str
    processes: int
    def __init__(self, name: _Optional[str] = ..., processes: _Optional[int] = ...) -> None: ...

class ResumeRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("name", "step", "digest", "size_bytes", "whole")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    step: int
    digest: str
    size_bytes: int
    whole: bool
    def __init__(self, name: _Optional[str] = ..., step: _Optional[int] = ..., digest: _Optional[str] = ..., size_bytes: _Optional[int] = ..., whole: _Optional[bool] = ...) -> None: ...

class ListCheckpointsResponse(_message.Message):
    __slots__ = ("checkpoints",)
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[Checkpoint]
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[Checkpoint, _Mapping]]] = ...) -> None: ...

class PromoteCheckpointRequest(_message.Message):
    __slots__ = ("checkpoint", "adapter")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    adapter: str
    def __init__(self, checkpoint: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class PromoteCheckpointResponse(_message.Message):
    __slots__ = ("adapter_version",)
    ADAPTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    adapter_version: str
    def __init__(self, adapter_version: _Optional[str] = ...) -> None: ...

class UploadRowsRequest(_message.Message):
    __slots__ = ("rows", "after")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    rows: bytes
    after: str
    def __init__(self, rows: _Optional[bytes] = ..., after: _Optional[str] = ...) -> None: ...

class UploadRowsResponse(_message.Message):
    __slots__ = ("uri", "size_bytes")
    URI_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    uri: str
    size_bytes: int
    def __init__(self, uri: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ReadRunFileRequest(_message.Message):
    __slots__ = ("run", "file", "offset")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    run: str
    file: str
    offset: int
    def __init__(self, run: _Optional[str] = ..., file: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class ReadRunFileResponse(_message.Message):
    __slots__ = ("content", "size_bytes")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    size_bytes: int
    def __init__(self, content: _Optional[bytes] = ..., size_bytes: _Optional[int] = ...) -> None: ...
