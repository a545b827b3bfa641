"""What a policy server is configured with: one YAML file."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from accord.policy.remote_config import RemoteConfig
from accord.rpc.config import FrozenModel, ServerConfig


class PolicyConfig(FrozenModel):
    """Configuration of `python -m accord.policy`. Sizes in tokens unless the name says otherwise."""

    server: ServerConfig = ServerConfig()
    backend: Literal["transformers", "vllm", "tgi"] = Field(default="transformers", description="computes here, or forwards to another server")
    remote: RemoteConfig | None = Field(default=None, description="the other server of backend vllm or tgi")
    base_model: str = Field(default="embedded", min_length=1, description="embedded, a folder or a hub id")
    artefacts: str = Field(min_length=1, description="URI of the artefact store that holds the adapters")
    device: str = Field(default="cpu", description="a torch device")
    threads: int = Field(default=2, ge=1, le=1024, description="torch threads")
    max_batch_rows: int = Field(default=32, ge=1, description="most sequences computed together")
    max_batch_tokens: int = Field(default=16384, ge=64, description="tokens (prompt and response) whose keys and values fit in memory")
    step_tokens: int = Field(default=256, ge=32, description="most tokens of one pass; a longer prompt is read in chunks of that many")
    prefix_cache_bytes: int = Field(default=256 * 2**20, ge=0, description="memory for prompts' beginnings that recur; 0 keeps none")
    interactive_rows: int = Field(default=2, ge=0, description="sequences that rollouts and labelling leave free for interactive calls")
    max_queue_items: int = Field(default=1024, ge=1, description="items waiting before RESOURCE_EXHAUSTED")
    refuse_when_busy: bool = Field(default=False, description="RESOURCE_EXHAUSTED for what finds no free row, instead of a queue: bounded latency")
    max_queue_tokens: int = Field(default=2_000_000, ge=16, description="tokens waiting before RESOURCE_EXHAUSTED")
    caller_share: float = Field(default=0.75, gt=0, le=1, description="part of max_queue_tokens that one caller may have waiting")
    max_wait_seconds: float = Field(default=600.0, gt=0, description="an item that waits longer is refused with RESOURCE_EXHAUSTED")
    aging_seconds: float = Field(default=60.0, gt=0, description="an item rises one priority class for each of these that it waits")
    max_item_tokens: int = Field(default=65536, ge=1, description="largest n x max_tokens of one item")
    max_prompt_bytes: int = Field(default=262_144, ge=1, description="longest text of one prompt or response")
    max_adapter_bytes: int = Field(default=512 * 2**20, ge=1, description="memory for adapter versions; the least recently used goes first")
    stall_seconds: float = Field(default=8.0, gt=0, description="a pass longer than this turns health to NOT_SERVING")

    @model_validator(mode="after")
    def _check_backend(self) -> Self:
        if (self.backend == "transformers") != (self.remote is None):
            raise ValueError(f"backend {self.backend} {'takes no remote' if self.remote else 'needs remote with the url of its server'}")
        if self.refuse_when_busy and self.backend != "transformers":
            raise ValueError(f"refuse_when_busy is of backend transformers; the rows of {self.backend} are its own")
        return self
