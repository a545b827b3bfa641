"""What a training or evaluation run is asked to do: one frozen model for recipes, the wire, the registry and the run's own file.

The fields are those of `accord.api.trainer.v1.RunSpec`, name by name (a test compares them); the defaults are here and in
`accord.runspec_parts`. A recipe file is this model in YAML. What does not belong here: how a run is
launched (`accord.launch`), how it trains (`accord.training`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from google.protobuf import json_format
from pydantic import Field, model_validator

from accord.api.trainer.v1 import trainer_pb2
from accord.errors import InvalidArgumentError
from accord.rpc.config import parse_config
from accord.runspec_parts import (
    DistributionSpec,
    DpoSpec,
    EvaluateSpec,
    GrpoSpec,
    GuardsSpec,
    LoraSpec,
    OnlineDpoSpec,
    OptimizerSpec,
    PpoSpec,
    RewardModelSpec,
    RlooSpec,
    RolloutSpec,
    SftSpec,
    Spec,
    TrackingSpec,
)

Algorithm = Literal["sft", "reward_model", "dpo", "ppo", "grpo", "rloo", "online_dpo", "evaluate"]
ALGORITHMS: tuple[Algorithm, ...] = ("sft", "reward_model", "dpo", "ppo", "grpo", "rloo", "online_dpo", "evaluate")
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
