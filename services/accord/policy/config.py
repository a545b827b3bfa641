"""What a policy server is configured with: one YAML file."""

from __future__ import annotations

from pydantic import Field

from accord.rpc.config import FrozenModel, ServerConfig


class PolicyConfig(FrozenModel):
    """Configuration of `python -m accord.policy`. Sizes in tokens unless the name says otherwise."""

    server: ServerConfig = ServerConfig()
    base_model: str = Field(default="embedded", min_length=1, description="embedded, a folder or a hub id")
    artefacts: str = Field(min_length=1, description="URI of the artefact store that holds the adapters")
    device: str = Field(default="cpu", description="a torch device")
    threads: int = Field(default=2, ge=1, le=1024, description="torch threads")
    max_batch_rows: int = Field(default=32, ge=1, description="most sequences decoded together")
    max_batch_tokens: int = Field(default=16384, ge=16, description="most tokens (prompt and response) of one batch")
    max_queue_items: int = Field(default=1024, ge=1, description="items waiting before RESOURCE_EXHAUSTED")
    max_queue_tokens: int = Field(default=2_000_000, ge=16, description="tokens waiting before RESOURCE_EXHAUSTED")
    max_item_tokens: int = Field(default=65536, ge=1, description="largest n x max_tokens of one item")
    max_prompt_bytes: int = Field(default=262_144, ge=1, description="longest text of one prompt or response")
    max_loaded_adapters: int = Field(default=8, ge=1, description="adapter versions kept in memory")
    linger_seconds: float = Field(default=0.005, ge=0, le=1, description="wait for more requests before a batch starts")
    stall_seconds: float = Field(default=120.0, gt=0, description="a step longer than this turns health to NOT_SERVING")
