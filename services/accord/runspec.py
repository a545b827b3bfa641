"""What a training or evaluation run is asked to do: one frozen model for recipes, the wire, the registry and the run's own file.

The fields are those of `accord.api.trainer.v1.RunSpec`, name by name (a test compares them); the defaults are here. A recipe file is this
model in YAML. What does not belong here: how a run is launched (`accord.launch`), how it trains (`accord.training`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from google.protobuf import json_format
from pydantic import BaseModel, ConfigDict, Field, model_validator

from accord.api.trainer.v1 import trainer_pb2
from accord.errors import InvalidArgumentError
from accord.rpc.config import parse_config

Algorithm = Literal["sft", "reward_model", "dpo", "ppo", "grpo", "rloo", "online_dpo", "evaluate"]
ALGORITHMS: tuple[Algorithm, ...] = ("sft", "reward_model", "dpo", "ppo", "grpo", "rloo", "online_dpo", "evaluate")
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PairLoss = Literal["sigmoid", "cdpo", "robust", "ipo", "hinge"]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
LEARNING_RATES: dict[str, float] = {
    "sft": 2e-4,
    "reward_model": 2e-4,
    "dpo": 1e-4,
    "ppo": 5e-5,
    "grpo": 5e-5,
    "rloo": 5e-5,
    "online_dpo": 5e-5,
    "evaluate": 1e-4,
}
ROWS_FOR_EACH_CHECKED = 8  # of a batch whose logprobs are the sampler's, one row in so many is computed by the trainer too


class Spec(BaseModel):
    """Base of all parts: frozen, and a field that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class LoraSpec(Spec):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685). With a parent adapter the form is the parent's, and what is given must be that."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: Positive | None = Field(None, description="updates count alpha / rank; default 2 * rank")
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    last_layers: int = Field(
        0, ge=0, description="on the last so many decoder layers, 0 for all; what lies below is then frozen and computed once for all adapters"
    )

    @property
    def scale_alpha(self) -> float:
        """The alpha in force."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


class OptimizerSpec(Spec):
    """AdamW (Loshchilov & Hutter 2019) and its schedule."""

    learning_rate: Positive | None = Field(None, le=1, description="peak; default by algorithm")
    weight_decay: NonNegative = Field(0.0, le=1)
    max_grad_norm: NonNegative = Field(1.0, description="most L2 norm of the gradient; 0 is no limit")
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"


class DataSpec(Spec):
    """Which rows a run reads."""

    uri: str = Field(min_length=1, max_length=2048)
    format: str = ""
    split: str = "train"
    limit: int = Field(0, ge=0)
    strict: bool = False


class SftSpec(Spec):
    """Supervised fine-tuning on prompts with reference responses."""

    data: DataSpec
    eval_data: DataSpec | None = None


class RewardModelSpec(Spec):
    """A reward model on preference pairs."""

    data: DataSpec
    eval_data: DataSpec | None = None
    soft_labels: bool = True
    centering_coefficient: NonNegative = 0.0
    rating_margin: NonNegative = 0.0
    rating_weights: bool = False


class DpoSpec(Spec):
    """Direct Preference Optimization and its family."""

    data: DataSpec
    eval_data: DataSpec | None = None
    beta: Positive = 0.1
    loss: PairLoss = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    soft_labels: bool = True
    rating_margin: NonNegative = 0.0
    rating_weights: bool = False
    nll_coefficient: NonNegative = 0.0

    @model_validator(mode="after")
    def _smoothing_has_a_loss(self) -> Self:
        _check_smoothing(self.loss, self.label_smoothing)
        return self

    @model_validator(mode="after")
    def _margins_have_a_loss(self) -> Self:
        if self.rating_margin and self.loss != "sigmoid":
            raise ValueError(f"rating_margin {self.rating_margin} needs loss sigmoid, not {self.loss}")
        return self


class OnlineDpoSpec(Spec):
    """Online DPO (Guo et al. 2024, arXiv:2402.04792): two samples, a label of the feedback service, a step."""

    data: DataSpec
    eval_data: DataSpec | None = None
    beta: Positive = 0.1
    loss: PairLoss = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    soft_labels: bool = True
    temperature: float = Field(0.9, gt=0, le=10)
    judge: Literal["", "likelihood", "verdict", "rating"] = ""
    rubric: str = Field("", max_length=256)
    judge_adapter: str = Field("", max_length=256)

    @model_validator(mode="after")
    def _smoothing_has_a_loss(self) -> Self:
        _check_smoothing(self.loss, self.label_smoothing)
        return self


class JudgeRewardSpec(Spec):
    """Expected ratings of the feedback service as the reward (d-RLAIF; Lee et al. 2023, arXiv:2309.00267, section 3.2)."""

    task: Literal["summarization", "conversation"]
    rubric: str = Field("", max_length=128)
    adapter: str = Field("", max_length=256)
    judge: str = Field("", max_length=128)
    abstentions: Literal["stop", "lowest"] = "stop"


class RolloutSpec(Spec):
    """What the algorithms share that sample through the policy service, and score by reward models or by a judge's ratings."""

    data: DataSpec
    eval_data: DataSpec | None = None
    reward_model: str = Field("", max_length=256)
    judge_reward: JudgeRewardSpec | None = None
    more_reward_models: tuple[str, ...] = Field((), max_length=15)
    ensemble_std_coefficient: NonNegative = 1.0
    minibatch_size: int | None = Field(None, ge=1, le=65536)
    clip_range: float = Field(0.2, gt=0, lt=1)
    temperature: float = Field(0.7, gt=0, le=10)
    missing_eos_penalty: NonNegative = 1.0

    @property
    def reward_models(self) -> dict[str, str]:
        """The names of all reward models that score, by field; none where a judge does."""
        if self.judge_reward is not None:
            return {}
        return {"reward_model": self.reward_model} | {f"more_reward_models[{index}]": name for index, name in enumerate(self.more_reward_models)}

    @model_validator(mode="after")
    def _one_reward(self) -> Self:
        if bool(self.reward_model) == (self.judge_reward is not None):
            raise ValueError(f"exactly one of reward_model and judge_reward must be given, not {'both' if self.reward_model else 'none'}")
        if self.judge_reward is not None and self.more_reward_models:
            raise ValueError("more_reward_models are beside a reward_model; a judge's ratings are a reward alone")
        return self


class GrpoSpec(RolloutSpec):
    """Group Relative Policy Optimization (Shao et al. 2024, arXiv:2402.03300)."""

    group_size: int = Field(8, ge=2, le=128)
    kl_coef: NonNegative = 0.04
    epochs: int = Field(1, ge=1, le=64)
    scale_advantages: bool = True
    loss_normalization: Literal["response", "tokens", "constant"] = "response"


class RlooSpec(RolloutSpec):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv:2402.14740)."""

    group_size: int = Field(4, ge=2, le=128)
    kl_coef: NonNegative = 0.05
    epochs: int = Field(1, ge=1, le=64)


class PpoSpec(RolloutSpec):
    """PPO with InstructGPT's pretraining term; defaults of Huang et al. 2024 (arXiv:2403.17031).

    With `reuse_sampler_logprobs` a killed run goes on bit for bit from rollouts that were on disk; a batch that was lost before has the same tokens
    again, and logprobs that may differ in their last bits. Without it resumption is always bit-identical.
    """

    value_from_reward_model: bool | None = None
    kl_coef: NonNegative = 0.05
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    kl_target: Positive = 6.0
    kl_horizon: Positive = 10000.0
    epochs: int = Field(4, ge=1, le=64)
    value_clip_range: Positive = 0.2
    value_coefficient: NonNegative = 0.1
    discount: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    ptx_coefficient: NonNegative = 0.0
    ptx_data: DataSpec | None = None
    ptx_rows_per_rollout: int = Field(1, ge=1, le=64)
    normalize_scores: bool = False
    target_kl: NonNegative = 0.0
    max_staleness: int = Field(0, ge=0, le=1)
    reuse_sampler_logprobs: bool = False
    sampler_gap_bound: Positive = 0.05

    @property
    def starts_value_from_reward_model(self) -> bool:
        """Whether the critic starts as the reward model: by default where there is one."""
        return self.judge_reward is None if self.value_from_reward_model is None else self.value_from_reward_model

    @model_validator(mode="after")
    def _value_has_a_start(self) -> PpoSpec:
        if self.value_from_reward_model and self.judge_reward is not None:
            raise ValueError("value_from_reward_model needs a reward_model; with judge_reward the critic starts from 0")
        return self

    @model_validator(mode="after")
    def _pretraining_has_text(self) -> PpoSpec:
        if self.ptx_coefficient > 0 and self.ptx_data is None:
            raise ValueError(f"ptx_coefficient {self.ptx_coefficient} needs ptx_data")
        if self.ptx_data is not None and "ptx_coefficient" not in self.model_fields_set:
            raise ValueError("ptx_data needs ptx_coefficient, whose default of 0 leaves the text out (27.8 is InstructGPT's; 0, given, turns it off)")
        return self

    @model_validator(mode="after")
    def _controller_has_a_start(self) -> PpoSpec:
        if self.kl_controller == "adaptive" and self.kl_coef == 0:
            raise ValueError("kl_controller adaptive multiplies kl_coef, and 0 stays 0: give a positive kl_coef, or kl_controller fixed")
        return self


class GuardsSpec(Spec):
    """What is watched beside the reward, and what happens when a bound is passed; bounds of 0 are off."""

    action: Literal["warn", "stop", "rollback"] = "warn"
    held_out_reward_model: str = Field("", max_length=256)
    max_held_out_drop: NonNegative = 1.0
    max_kl: NonNegative = 0.0
    max_length_ratio: NonNegative = 0.0
    max_repetition: float = Field(0.0, ge=0, le=1)
    patience: int = Field(3, ge=1, le=1000)

    @model_validator(mode="after")
    def _bounds_make_sense(self) -> Self:
        if 0 < self.max_length_ratio < 1:
            raise ValueError(f"max_length_ratio {self.max_length_ratio:g} must be 0 (off) or at least 1: it bounds growth and, inverted, shrinking")
        watched = self.max_kl or self.max_length_ratio or self.max_repetition or (self.held_out_reward_model and self.max_held_out_drop)
        if self.action != "warn" and not watched:
            raise ValueError(f"action {self.action} has nothing to watch: give held_out_reward_model, max_kl, max_length_ratio or max_repetition")
        return self


class TrackingSpec(Spec):
    """Where metrics go besides the run's own files."""

    tensorboard: bool = False
    mlflow_uri: str = Field("", max_length=1024)


class DistributionSpec(Spec):
    """How a run is spread over processes; `processes` are those of a node, of which a launcher may give a run several."""

    processes: int = Field(1, ge=1, le=1024)
    strategy: Literal["ddp", "fsdp"] = "ddp"


class EvaluateSpec(Spec):
    """Metrics of generated responses against references, with intervals."""

    uri: str = Field(min_length=1, max_length=2048)
    bootstrap_samples: int = Field(1000, ge=100, le=100000)


class RunSpec(Spec):
    """One run. Exactly one of the algorithms is set."""

    adapter: str = Field("", max_length=100, pattern=r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?)?$")
    parent_adapter: str = ""
    base_model: str = ""
    seed: int = Field(0, ge=0, le=2**64 - 1)
    threads: int = Field(0, ge=0, le=1024)
    steps: int = Field(0, ge=0)
    batch_size: int = Field(8, ge=1, le=65536)
    micro_batch_size: int = Field(0, ge=0, le=65536)
    max_prompt_tokens: int = Field(512, ge=1)
    max_response_tokens: int = Field(128, ge=1)
    lora: LoraSpec = LoraSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    checkpoint_every_steps: int = Field(0, ge=0)
    checkpoints_kept: int = Field(2, ge=1, le=1000)
    eval_every_steps: int = Field(0, ge=0)
    activation_checkpointing: bool = False
    dtype: Literal["", "float32", "bfloat16"] = ""
    guards: GuardsSpec = GuardsSpec()
    tracking: TrackingSpec = TrackingSpec()
    distribution: DistributionSpec = DistributionSpec()
    sft: SftSpec | None = None
    reward_model: RewardModelSpec | None = None
    dpo: DpoSpec | None = None
    ppo: PpoSpec | None = None
    grpo: GrpoSpec | None = None
    rloo: RlooSpec | None = None
    online_dpo: OnlineDpoSpec | None = None
    evaluate: EvaluateSpec | None = None

    @model_validator(mode="after")
    def _one_algorithm(self) -> RunSpec:
        given = [name for name in ALGORITHMS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(ALGORITHMS)} must be given, not {', '.join(given) or 'none'}")
        if given[0] != "evaluate":
            if not self.adapter:
                raise ValueError("adapter: a name for the adapter to publish is required")
            if self.steps < 1:
                raise ValueError("steps: at least 1 is required")
        return self

    @model_validator(mode="after")
    def _groups_fill_the_batch(self) -> Self:
        part = self.grpo or self.rloo
        if part is not None and self.batch_size % part.group_size:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of group_size {part.group_size}")
        return self

    @model_validator(mode="after")
    def _controller_stays_positive(self) -> Self:
        if self.ppo is not None and self.ppo.kl_controller == "adaptive" and self.ppo.kl_horizon * 5 <= self.batch_size:
            raise ValueError(
                f"kl_horizon {self.ppo.kl_horizon:g} must be over a fifth of batch_size {self.batch_size}: the adaptive controller takes up to "
                ".2 batch_size / kl_horizon of the coefficient away in a step, and it must stay positive"
            )
        return self

    @model_validator(mode="after")
    def _guards_have_rollouts(self) -> Self:
        if self.guards == GuardsSpec():
            return self
        part = self.rollout_part
        if part is None:
            raise ValueError(f"guards are for algorithms that sample and score (ppo, grpo, rloo), not {self.algorithm}")
        if self.guards.held_out_reward_model in part.reward_models.values():
            raise ValueError(f"guards.held_out_reward_model {self.guards.held_out_reward_model} is what the policy is trained on; name another")
        if self.guards.action == "rollback" and not self.checkpoint_every_steps:
            raise ValueError("guards.action rollback needs checkpoint_every_steps: without earlier checkpoints there is nothing to roll back to")
        return self

    @model_validator(mode="after")
    def _tracking_has_steps(self) -> Self:
        if self.tracking != TrackingSpec() and self.algorithm == "evaluate":
            raise ValueError("tracking is for training runs, not evaluate, which has no steps")
        return self

    @model_validator(mode="after")
    def _processes_have_work(self) -> Self:
        processes = self.distribution.processes
        if self.evaluate is not None and processes > 1:
            raise ValueError(f"distribution.processes {processes}: an evaluation runs in one process")
        if self.batch_size < processes:
            raise ValueError(f"batch_size {self.batch_size} must be at least distribution.processes {processes}, or some would have nothing to do")
        return self

    @property
    def algorithm(self) -> Algorithm:
        """Which algorithm is set."""
        return next(name for name in ALGORITHMS if getattr(self, name) is not None)

    @property
    def rollout_part(self) -> RolloutSpec | None:
        """The algorithm's part, where it is one with rollouts and reward models."""
        return self.ppo or self.grpo or self.rloo

    @property
    def learning_rate(self) -> float:
        """The peak learning rate in force."""
        return self.optimizer.learning_rate or LEARNING_RATES[self.algorithm]

    @property
    def as_given(self) -> dict[str, Any]:
        """As JSON to be read again: all fields, but of `lora` those that were given, since the others are a parent adapter's."""
        return self.model_dump(mode="json", exclude_none=True) | {"lora": self.lora.model_dump(mode="json", exclude_none=True, exclude_unset=True)}

    @property
    def digest(self) -> str:
        """sha256 of what is asked for beside the defaults, as canonical JSON: equal for equal specifications, also once the model has more fields.

        A default must therefore never change: the same digest would ask for something else (a golden test holds them in place).
        """
        values = self.model_dump(mode="json", exclude_defaults=True)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def learning_values(self) -> dict[str, Any]:
        """What `digest` is of, without how the run is spread over processes: a checkpoint may be resumed by another number of them."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"distribution"})


def _check_smoothing(loss: str, label_smoothing: float) -> None:
    if label_smoothing and loss not in ("cdpo", "robust"):
        raise ValueError(f"label_smoothing {label_smoothing} needs loss cdpo or robust, not {loss}")


def parse_spec(values: object, *, source: str = "spec") -> RunSpec:
    """Returns the specification in a mapping (from YAML or JSON).

    Raises:
        InvalidArgumentError: a field is unknown, missing or out of range; the message names it, what is allowed, and the field that a misspelt one is
            near to.
    """
    if not isinstance(values, Mapping):
        raise InvalidArgumentError(f"{source}: a mapping of fields is needed, got {type(values).__name__}", field=source)
    try:
        return parse_config(values, RunSpec, source=source)
    except InvalidArgumentError as error:
        raise error if error.field else InvalidArgumentError(error.message, field=source) from error


def spec_to_proto(spec: RunSpec) -> trainer_pb2.RunSpec:
    """Returns the wire form, of `as_given`.

    Raises:
        InvalidArgumentError: a number is too large for its field.
    """
    try:
        return json_format.ParseDict(spec.as_given, trainer_pb2.RunSpec())
    except json_format.ParseError as error:
        raise InvalidArgumentError(f"the specification does not fit into a request: {error}", field="spec") from error


def spec_from_proto(message: trainer_pb2.RunSpec) -> RunSpec:
    """Returns the specification of a wire message; fields that are unset or zero where zero is not allowed take their defaults.

    Raises:
        InvalidArgumentError: as `parse_spec`.
    """
    values: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return parse_spec(values)
