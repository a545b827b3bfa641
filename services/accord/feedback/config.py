"""What a feedback server is configured with: one YAML file."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from accord.feedback.records import Kind
from accord.rpc.channels import ChannelTls, LoadBalancing
from accord.rpc.config import FrozenModel, ServerConfig

_MESSAGE_BYTES = 32 * 2**20
_TEXTS_A_PAIR = 8  # prompt and responses, some of them twice, and what fencing and a rubric add
WATCH_METHOD = "/accord.api.feedback.v1.FeedbackService/WatchLabelJob"


class FeedbackConfig(FrozenModel):
    """Configuration of `python -m accord.feedback`."""

    server: ServerConfig = Field(default=ServerConfig(), validate_default=True)
    policy: str = Field(min_length=1, description="address of the PolicyService that judges")
    policy_tls: ChannelTls | None = Field(default=None, description="use TLS towards the judge; plain text where absent")
    policy_balancing: LoadBalancing = Field(
        default="round_robin", description="how the judge's replicas are chosen; prefix keeps a rubric's template on one of them"
    )
    ledger: str = Field(min_length=1, description="path of the SQLite file that holds every judgement and label")
    jobs: str = Field(min_length=1, description="folder of the label jobs, one file each")
    default_judge: Kind = Field(default="likelihood", description="the kind of judge where a caller names none")
    concurrency: int = Field(default=4, ge=1, le=256, description="calls to the judge in flight")
    batch_pairs: int = Field(default=8, ge=1, le=128, description="most pairs of one call to the judge; a quarter for rating")
    max_queue_pairs: int = Field(default=1024, ge=1, description="pairs waiting or being judged before RESOURCE_EXHAUSTED")
    judge_timeout_seconds: float = Field(default=900.0, gt=0, description="deadline of one call to the judge")
    judge_wait_seconds: float = Field(default=1800.0, ge=0, description="how long a job waits for a judge that is away before it fails")
    max_text_bytes: int = Field(default=65_536, ge=1, description="longest prompt or response, UTF-8")
    max_running_jobs: int = Field(default=4, ge=1, description="label jobs at once; others wait for their turn")

    @field_validator("server")
    @classmethod
    def _watching_has_no_deadline(cls, server: ServerConfig) -> ServerConfig:
        """A job is watched for as long as it takes, whatever the deadline of other calls."""
        if WATCH_METHOD in server.long_lived_methods:
            return server
        return server.model_copy(update={"long_lived_methods": (*server.long_lived_methods, WATCH_METHOD)})

    @model_validator(mode="after")
    def _calls_fit_into_a_message(self) -> FeedbackConfig:
        size = self.batch_pairs * self.max_text_bytes * _TEXTS_A_PAIR
        if size > _MESSAGE_BYTES:
            raise ValueError(
                f"batch_pairs {self.batch_pairs} of max_text_bytes {self.max_text_bytes} can make a call to the judge of {size} bytes; "
                f"at most {_MESSAGE_BYTES} fit into a message: lower one of them"
            )
        return self
