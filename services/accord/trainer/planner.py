"""What a run would need: memory by role with the arithmetic, rows, and whether it fits. No torch: sizes come from the model's files.

What does not belong here: launching. The estimate of activations is an upper bound: every row at its longest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from accord.data.readers import read_demonstrations, read_pairs, read_prompts
from accord.data.records import Dataset
from accord.runspec import DataSpec, RunSpec
from accord.serving.fields import naming
from accord.trainer.config import TrainerConfig

_PROCESS_BYTES = 450 * 2**20
_ROWS_READ = 100_000


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """Memory of one role in bytes with its arithmetic."""

    role: str
    bytes: int
    arithmetic: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would need; `fits` is None where the model's files are not at hand."""

    memory: tuple[MemoryItem, ...]
    available_bytes: int
    rows: int
    notes: tuple[str, ...]

    @property
    def peak_bytes(self) -> int:
        """Sum over the roles."""
        return sum(item.bytes for item in self.memory)

    @property
    def fits(self) -> bool:
        """Whether the peak is below what is free now."""
        return self.peak_bytes <= self.available_bytes

    def refusal(self) -> str:
        """Why it cannot run, with the arithmetic."""
        parts = "; ".join(f"{item.role} {_mib(item.bytes)} ({item.arithmetic})" for item in self.memory)
        return f"the run needs about {_mib(self.peak_bytes)}, {_mib(self.available_bytes)} are free: {parts}; lower micro_batch_size"


def find_model_folder(config: TrainerConfig, spec: RunSpec) -> Path | None:
    """The folder with the base model's files; None where they are not at hand."""
    for name in (spec.base_model, config.model_folder, config.base_model):
        if name and (Path(name) / "config.json").is_file():
            return Path(name)
    return None


def available_bytes(config: TrainerConfig, spec: RunSpec) -> int:
    """Memory that a run can have: what is free on this machine, or what a pod of its kind gets."""
    return int(psutil.virtual_memory().available) if config.kubernetes is None else config.kubernetes.available_bytes(spec.algorithm)


def make_plan(spec: RunSpec, model_folder: Path | None, *, count_rows: bool = True, available: int | None = None) -> Plan:
    """The plan of a run, on this machine unless the bytes that are available elsewhere are given.

    Raises:
        NotFoundError, InvalidArgumentError, FailedPreconditionError: data that cannot be read (see `accord.data.readers`).
    """
    notes: list[str] = []
    memory = [MemoryItem("process", _PROCESS_BYTES, "Python, torch and transformers, measured")]
    if spec.algorithm == "evaluate":
        notes.append("an evaluation loads a sentence encoder, not the base model")
    elif model_folder is None:
        notes.append("the base model's files are not at hand, so that its memory is not in the plan")
    else:
        memory += _training_memory(spec, model_folder)
    rows = count(spec) if count_rows else 0
    return Plan(tuple(memory), int(psutil.virtual_memory().available) if available is None else available, rows, tuple(notes))


def count(spec: RunSpec) -> int:
    """Rows that the run's data has, before limits of length."""
    if spec.algorithm == "evaluate":
        return 0
    readers: Mapping[str, Callable[..., Dataset[Any]]] = {
        "sft": read_demonstrations, "ppo": read_prompts, "grpo": read_prompts, "rloo": read_prompts,
    }  # fmt: skip
    field = f"{spec.algorithm}.data"
    data = data_specs(spec)[field]
    with naming(f"spec.{field}.uri"):
        read = readers.get(spec.algorithm, read_pairs)
        return read(data.uri, format=data.format, split=data.split, limit=data.limit or _ROWS_READ, strict=data.strict).report.rows


def data_specs(spec: RunSpec) -> dict[str, DataSpec]:
    """What the run reads, by field of the specification."""
    part = spec.sft or spec.reward_model or spec.dpo or spec.rollout_part
    if part is None:
        return {}
    found = {"data": part.data, "eval_data": part.eval_data, "ptx_data": spec.ppo.ptx_data if spec.ppo is not None else None}
    return {f"{spec.algorithm}.{name}": data for name, data in found.items() if data is not None}


def _training_memory(spec: RunSpec, folder: Path) -> list[MemoryItem]:
    config: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    adapter = _adapter_parameters(spec, config) * 4
    held, trained = {"ppo": (3, 2), "dpo": (2, 1), "grpo": (2, 1), "rloo": (2, 1)}.get(spec.algorithm, (1, 1))
    micro = spec.micro_batch_size or spec.batch_size
    rows = micro * (2 if spec.algorithm in ("dpo", "reward_model") else 1)
    width = spec.max_prompt_tokens + spec.max_response_tokens
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    per_token = layers * (8 * hidden + 4 * inner) * 4
    logits = 0 if spec.algorithm == "reward_model" else rows * spec.max_response_tokens * config["vocab_size"] * 4 * 3
    return [
        MemoryItem("base weights", weights, "size of the safetensors files"),
        MemoryItem("adapters", held * adapter, f"{held} adapters x {_mib(adapter)} (rank {spec.lora.rank})"),
        MemoryItem("gradients and Adam moments", 3 * trained * adapter, f"3 x {trained} trained adapters x {_mib(adapter)}"),
        MemoryItem("activations", rows * width * per_token, f"{rows} rows x {width} tokens x {layers} layers x (8 x {hidden} + 4 x {inner}) x 4 B"),
        MemoryItem("logits", logits, f"{rows} rows x {spec.max_response_tokens} tokens x {config['vocab_size']} x 4 B x 3"),
    ]


def _adapter_parameters(spec: RunSpec, config: Mapping[str, Any]) -> int:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    key = hidden // heads * config.get("num_key_value_heads", heads)
    sizes = {
        "q_proj": (hidden, hidden), "k_proj": (hidden, key), "v_proj": (hidden, key), "o_proj": (hidden, hidden),
        "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden),
    }  # fmt: skip
    each = sum(sum(sizes.get(module, (hidden, hidden))) for module in spec.lora.target_modules)
    return int(config["num_hidden_layers"] * spec.lora.rank * each)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
