"""The parts of a run's specification (`accord.runspec`): adapters, data, each algorithm's own settings, guards, tracking.

The fields are those of `accord.api.trainer.v1`, name by name; the defaults are here, and never change. What does not belong here: rules that need
more than one part, and the wire (`accord.runspec`).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PairLoss = Literal["sigmoid", "cdpo", "robust", "ipo", "hinge"]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
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

    @property
    def reward_moves(self) -> bool:
        """Whether the scale of the reward changes while a run goes on, so that rewards of two steps do not say which policy is better."""
        return self.normalize_scores or self.kl_controller == "adaptive"

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


def _check_smoothing(loss: str, label_smoothing: float) -> None:
    if label_smoothing and loss not in ("cdpo", "robust"):
        raise ValueError(f"label_smoothing {label_smoothing} needs loss cdpo or robust, not {loss}")
