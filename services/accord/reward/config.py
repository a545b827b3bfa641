"""What a reward server is configured with: one YAML file."""

from __future__ import annotations

from pydantic import Field

from accord.rpc.config import FrozenModel, ServerConfig


class RewardConfig(FrozenModel):
    """Configuration of `python -m accord.reward`. Sizes in tokens unless the name says otherwise."""

    server: ServerConfig = ServerConfig()
    base_model: str = Field(default="embedded", min_length=1, description="embedded, a folder or a hub id")
    artefacts: str = Field(min_length=1, description="URI of the artefact store that holds the reward models")
    device: str = Field(default="cpu", description="a torch device")
    threads: int = Field(default=2, ge=1, le=1024, description="torch threads")
    max_batch_items: int = Field(default=64, ge=1, description="most sequences taken from the queue at once")
    max_batch_tokens: int = Field(default=4096, ge=16, description="most tokens of one batch")
    micro_batch_tokens: int | None = Field(
        default=None,
        ge=16,
        description="most padded tokens of one forward pass; where absent, on a CPU one sequence, so that no bit of a score depends on what "
        "else is asked, and 16384 elsewhere",
    )
    max_queue_items: int = Field(default=2048, ge=1, description="items waiting before RESOURCE_EXHAUSTED")
    max_queue_tokens: int = Field(default=2_000_000, ge=16, description="tokens waiting before RESOURCE_EXHAUSTED")
    max_text_bytes: int = Field(default=262_144, ge=1, description="longest text of one prompt or response")
    max_loaded_models: int = Field(default=8, ge=1, description="reward models kept in memory")
    max_stream_items: int = Field(default=64, ge=1, description="items of one ScoreStream in flight before it stops reading")
    linger_seconds: float = Field(default=0.005, ge=0, le=1, description="wait for more requests before a batch starts")
    stall_seconds: float = Field(default=120.0, gt=0, description="a batch longer than this turns health to NOT_SERVING")
