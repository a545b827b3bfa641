"""What a feedback server is configured with: one YAML file."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from accord.feedback.judge_config import JudgeName, NamedJudge, PolicyJudge, Price, check_parts, price_entry
from accord.feedback.records import Kind
from accord.rpc.channels import ChannelTls, LoadBalancing
from accord.rpc.config import FrozenModel, ServerConfig

_MESSAGE_BYTES = 32 * 2**20
_TEXTS_A_PAIR = 8  # prompt and responses, some of them twice, and what fencing and a rubric add
DEFAULT_JUDGE = "default"
WATCH_METHOD = "/accord.api.feedback.v1.FeedbackService/WatchLabelJob"


class FeedbackConfig(FrozenModel):
    """Configuration of `python -m accord.feedback`."""

    server: ServerConfig = Field(default=ServerConfig(), validate_default=True)
    policy: str | None = Field(default=None, min_length=1, description="address of the PolicyService that is the judge named default")
    policy_tls: ChannelTls | None = Field(default=None, description="use TLS towards the judge; plain text where absent")
    policy_balancing: LoadBalancing = Field(
        default="round_robin", description="how the judge's replicas are chosen; prefix keeps a rubric's template on one of them"
    )
    policy_price: str | None = Field(default=None, description="the judge's entry of prices; absent: its tokens are counted and cost nothing")
    judges: dict[JudgeName, NamedJudge] = Field(default={}, description="more judges by name: policy, openai, ensemble or escalation")
    default_judge_name: JudgeName = Field(default=DEFAULT_JUDGE, description="the judge where a caller names none")
    prices: dict[str, Price] = Field(default={}, description="price table by name; every openai judge needs an entry; currency is yours")
    reward: str | None = Field(default=None, min_length=1, description="address of the RewardService that chooses among candidates that jobs sample")
    reward_tls: ChannelTls | None = Field(default=None, description="use TLS towards the reward service; plain text where absent")
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

    @property
    def named_judges(self) -> dict[str, NamedJudge]:
        """All judges by name; `policy` is the one named default."""
        if self.policy is None:
            return dict(self.judges)
        own = PolicyJudge(kind="policy", address=self.policy, price=self.policy_price, tls=self.policy_tls, balancing=self.policy_balancing)
        return {DEFAULT_JUDGE: own, **self.judges}

    @model_validator(mode="after")
    def _judges_are_whole(self) -> FeedbackConfig:
        if self.policy is not None and DEFAULT_JUDGE in self.judges:
            raise ValueError(f"policy and judges.{DEFAULT_JUDGE} are both given; policy is the judge of that name")
        names = self.named_judges
        if not names:
            raise ValueError("policy: is required and was not given; or name judges")
        if self.default_judge_name not in names:
            raise ValueError(f"default_judge_name: {self.default_judge_name!r} is no judge; there are {', '.join(sorted(names))}")
        check_parts(names)
        for name, judge in names.items():
            entry = price_entry(judge)
            if entry is not None and entry not in self.prices:
                field = "policy_price" if self.policy is not None and name == DEFAULT_JUDGE else f"judges.{name}"
                raise ValueError(f"{field}: prices has no entry {entry!r}; give its price, 0 where it costs nothing")
        return self

    @model_validator(mode="after")
    def _calls_fit_into_a_message(self) -> FeedbackConfig:
        size = self.batch_pairs * self.max_text_bytes * _TEXTS_A_PAIR
        if size > _MESSAGE_BYTES:
            raise ValueError(
                f"batch_pairs {self.batch_pairs} of max_text_bytes {self.max_text_bytes} can make a call to the judge of {size} bytes; "
                f"at most {_MESSAGE_BYTES} fit into a message: lower one of them"
            )
        return self
