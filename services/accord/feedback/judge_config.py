"""The judges of a feedback server as its YAML names them: PolicyServices, chat endpoints, ensembles and escalations.

What does not belong here: asking them (`accord.feedback.judge_model`, `accord.feedback.endpoint`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from accord.rpc.channels import ChannelTls, LoadBalancing
from accord.rpc.config import EnvironmentVariable, FrozenModel, checked_url

JudgeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")]
Combine = Literal["mean", "majority"]


class Price(FrozenModel):
    """What a model's tokens cost, in the one currency of the price table."""

    prompt_per_million: float = Field(ge=0, allow_inf_nan=False, description="a million prompt tokens")
    completion_per_million: float = Field(ge=0, allow_inf_nan=False, description="a million completion tokens, hidden reasoning included")
    cached_prompt_per_million: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="a million prompt tokens that the endpoint says it had cached; default: as the others"
    )

    def cost(self, prompt_tokens: int, completion_tokens: int, cached_prompt_tokens: int = 0) -> float:
        """Money for a request; cached tokens are among the prompt's."""
        cached = self.prompt_per_million if self.cached_prompt_per_million is None else self.cached_prompt_per_million
        fresh = (prompt_tokens - cached_prompt_tokens) * self.prompt_per_million
        return (fresh + cached_prompt_tokens * cached + completion_tokens * self.completion_per_million) / 1e6


class PolicyJudge(FrozenModel):
    """A PolicyService: it scores given texts, so that it can do every kind."""

    kind: Literal["policy"]
    address: str = Field(min_length=1, description="address of the PolicyService")
    adapter: str = Field(default="", max_length=256, description="adapter that judges where a caller names none; empty for the bare base model")
    price: str | None = Field(default=None, description="its entry of prices; absent: its tokens are counted and cost nothing")
    tls: ChannelTls | None = Field(default=None, description="use TLS towards the judge; plain text where absent")
    balancing: LoadBalancing = Field(default="round_robin", description="how its replicas are chosen; prefix keeps a rubric on one of them")


class OpenAIJudge(FrozenModel):
    """A chat endpoint that speaks OpenAI's API: it writes verdicts and ratings, soft ones where it gives logprobs.

    Prompts and responses leave this machine for it. Proxies named in the environment are not used.
    """

    kind: Literal["openai"]
    base_url: str = Field(min_length=1, description="what stands before /chat/completions, such as https://api.openai.com/v1")
    model: str = Field(min_length=1, max_length=256, description="the model's name there")
    api_key_env: EnvironmentVariable | None = Field(default=None, description="environment variable that holds the API key")
    api_key_file: Path | None = Field(default=None, description="file that holds the API key, such as a mounted secret")
    context_tokens: int = Field(ge=1, description="the model's context; a prompt that does not fit with its answer is an abstention")
    price: str | None = Field(default=None, description="its entry of prices; default: the one named as the model")
    timeout_seconds: float = Field(default=120.0, gt=0, le=3600, description="longest time for one answer, all tries and waits together")
    attempts: int = Field(default=6, ge=1, le=20, description="most tries of one answer, on 429, 5xx and broken connections")
    max_concurrency: int = Field(default=8, ge=1, le=1024, description="requests in flight")
    top_logprobs: int = Field(
        default=20, ge=0, le=100, description="alternatives asked for at each token; 0 asks for no logprobs: text alone decides"
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="how the endpoint calls the limit of an answer"
    )
    max_verdict_tokens: int = Field(default=24, ge=1, le=32_768, description="room for a verdict or rating; more for a model that thinks first")
    body: dict[str, Any] = Field(default={}, description="more fields of a request, over ours; null leaves ours out")
    fingerprint_in_digest: bool = Field(
        default=True, description="system_fingerprint is part of who the judge is; false where an endpoint changes it from call to call"
    )
    proxy: str | None = Field(default=None, description="http(s)://host:port of a proxy")
    ca_file: Path | None = Field(default=None, description="PEM roots that the endpoint must chain to; the system's where absent")

    @field_validator("base_url", "proxy")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        return None if value is None else checked_url(value)

    @field_validator("body")
    @classmethod
    def _check_body(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = sorted({"model", "messages", "stream", "n"} & value.keys())
        if ours:
            raise ValueError(f"{', '.join(ours)} cannot be set here")
        return value

    @model_validator(mode="after")
    def _check_key(self) -> OpenAIJudge:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file are both given; at most one is allowed")
        return self


class EnsembleJudge(FrozenModel):
    """Several judges that are all asked; more than half of them must have an answer."""

    kind: Literal["ensemble"]
    members: tuple[JudgeName, ...] = Field(min_length=2, description="names of judges")
    combine: Combine = Field(default="mean", description="mean of their preferences, or majority: the share of their votes")

    @field_validator("members")
    @classmethod
    def _once_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a judge is named twice")
        return value


class EscalationJudge(FrozenModel):
    """A small judge first, and a larger one where that is unsure or abstains."""

    kind: Literal["escalation"]
    first: JudgeName = Field(description="the judge that is always asked")
    then: JudgeName = Field(description="the judge that decides where the first is unsure")
    threshold: float = Field(ge=0, le=0.5, description="unsure is a preference p with |p - 0.5| below this; 0: only an abstention is")


NamedJudge = Annotated[PolicyJudge | OpenAIJudge | EnsembleJudge | EscalationJudge, Field(discriminator="kind")]
_REACHED_AND_PAID = {
    "timeout_seconds", "attempts", "max_concurrency", "max_tokens_field", "api_key_env", "api_key_file", "proxy", "ca_file", "tls", "balancing",
    "price",
}  # fmt: skip


def facts_of(judge: NamedJudge) -> dict[str, Any]:
    """Who a judge is and how it is asked, as YAML has it without the defaults; how it is reached and paid is left out: no answer depends on it."""
    return judge.model_dump(mode="json", exclude_defaults=True, exclude=_REACHED_AND_PAID)


def price_entry(judge: NamedJudge) -> str | None:
    """The entry of the price table that a judge is billed by; None for a policy without one, and for judges that ask others."""
    if isinstance(judge, OpenAIJudge):
        return judge.price or judge.model
    return judge.price if isinstance(judge, PolicyJudge) else None


def parts_of(judge: NamedJudge) -> tuple[str, ...]:
    """Names of the judges that a judge asks; none for one that answers itself."""
    if isinstance(judge, EnsembleJudge):
        return judge.members
    return (judge.first, judge.then) if isinstance(judge, EscalationJudge) else ()


def asked_through(name: str, judges: Mapping[str, NamedJudge]) -> tuple[str, ...]:
    """Names of all judges that a judge asks, itself or through others, each once; one that the table does not have is where it ends."""
    found: dict[str, None] = {}
    open_names = [name]
    while open_names:
        judge = judges.get(open_names.pop())
        new = [part for part in (parts_of(judge) if judge is not None else ()) if part not in found]
        found.update(dict.fromkeys(new))
        open_names += new
    return tuple(found)


def check_parts(judges: Mapping[str, NamedJudge]) -> None:
    """Raises ValueError where a judge asks one that does not exist, or itself through others."""
    for name, judge in judges.items():
        for part in parts_of(judge):
            if part not in judges:
                raise ValueError(f"judges.{name} asks {part!r}; there are {', '.join(sorted(judges))}")
    for name in judges:
        if name in _below(name, judges, ()):
            raise ValueError(f"judges.{name} asks itself")


def _below(name: str, judges: Mapping[str, NamedJudge], path: tuple[str, ...]) -> Iterator[str]:
    for part in parts_of(judges[name]):
        yield part
        if part not in path:
            yield from _below(part, judges, (*path, part))
