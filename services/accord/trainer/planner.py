"""What a run would need: memory by role with the arithmetic, rows, time, and whether it fits. No torch: sizes come from the model's files.

What does not belong here: launching, and the arithmetic itself (`accord.trainer.workload`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.data.readers import read_demonstrations, read_pairs, read_prompts, read_texts
from accord.data.records import Dataset
from accord.launch.memory import free_memory_bytes
from accord.rundir import RunFile
from accord.runspec import RunSpec
from accord.runspec_parts import DataSpec
from accord.serving.fields import naming
from accord.trainer.calibration import Speed
from accord.trainer.config import TrainerConfig
from accord.trainer.judging import judging_of
from accord.trainer.lengths import Lengths, Limits, TokenCounter, measure
from accord.trainer.model_folder import find_model_folder
from accord.trainer.shape import ModelShape
from accord.trainer.workload import PROCESS_BYTES, MemoryItem, Workload

_ROWS_MEASURED = 100_000
"""Of data without a limit; all its rows are counted."""
_READERS: Mapping[str, Callable[..., Dataset[Any]]] = {
    "sft": read_demonstrations, "reward_model": read_pairs, "dpo": read_pairs, "ppo": read_prompts, "grpo": read_prompts, "rloo": read_prompts,
    "online_dpo": read_prompts,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would need; `seconds` are of the whole run and of one step, None where the machine or the model is not known. `advice` is what would
    make it need less memory."""

    memory: tuple[MemoryItem, ...]
    available_bytes: int
    rows: int = 0
    notes: tuple[str, ...] = ()
    seconds: float | None = None
    step_seconds: float | None = None
    advice: str = ""

    @property
    def peak_bytes(self) -> int:
        """Sum over the roles."""
        return sum(item.bytes for item in self.memory)

    @property
    def fits(self) -> bool:
        """Whether the peak is below what is free now."""
        return self.peak_bytes <= self.available_bytes

    def refusal(self, taken: str = "", *, room: str = "") -> str:
        """Why it cannot run, with the arithmetic; `taken` says what is not counted as free, `room` what it can have if not what is free."""
        parts = "; ".join(f"{item.role} {_mib(item.bytes)} ({item.arithmetic})" for item in self.memory)
        said = f"the run needs about {_mib(self.peak_bytes)}, {room or f'{_mib(self.available_bytes)} are free{taken}'}: {parts}"
        return f"{said}; {self.advice}" if self.advice else said


def available_bytes(config: TrainerConfig, spec: RunSpec) -> int:
    """Memory that a run can have: what is free on this machine within the limits of a container, or what a pod of its kind gets."""
    return free_memory_bytes()[0] if config.kubernetes is None else config.kubernetes.available_bytes(spec.algorithm)


def is_on_gpu(config: TrainerConfig, spec: RunSpec) -> bool:
    """Whether a run's weights go on to a device of its pod."""
    return config.kubernetes is not None and config.kubernetes.for_kind(spec.algorithm).gpus > 0


def room_for(config: TrainerConfig) -> Callable[[RunFile, int], tuple[int, str]]:
    """What `LocalLauncher` asks before it starts a run: its peak in bytes, and why it has no room now, empty where it has."""

    def room(run: RunFile, promised: int) -> tuple[int, str]:
        free = max(0, available_bytes(config, run.spec) - promised)
        plan = plan_memory(run.spec, find_model_folder(config, run.spec), free, local_scores=run.endpoints.local_scores)
        taken = f", less {_mib(promised)} that runs in progress may still take" if promised else ""
        return plan.peak_bytes, "" if plan.fits else plan.refusal(taken)

    return room


def plan_memory(spec: RunSpec, model_folder: Path | None, available: int, *, local_scores: bool = False, on_gpu: bool = False) -> Plan:
    """Memory alone. Where all rows at the limits would not fit into what is available, the data is read to see how long its rows are.

    Raises:
        NotFoundError, InvalidArgumentError, FailedPreconditionError: data that cannot be read (see `accord.data.readers`).
    """
    plan = _memory_plan(spec, model_folder, available, local_scores=local_scores, on_gpu=on_gpu)
    if plan.fits or model_folder is None or spec.algorithm == "evaluate":
        return plan
    lengths, texts, _ = _lengths(spec, model_folder, _read(spec, spec.algorithm, "data"))
    return _memory_plan(spec, model_folder, available, lengths, texts, local_scores=local_scores, on_gpu=on_gpu)


def make_plan(
    spec: RunSpec,
    model_folder: Path | None,
    available: int,
    *,
    speed: Speed | None = None,
    threads: int = 1,
    local_scores: bool = False,
    on_gpu: bool = False,
) -> Plan:
    """The whole plan of a run.

    Args:
        available: bytes that it can have.
        speed: of one thread; None leaves the time out.
        threads: of the run and of each service.
        local_scores: whether reward models are in the run's own process.
        on_gpu: whether the weights go on to a device.

    Raises:
        NotFoundError, InvalidArgumentError, FailedPreconditionError: data that cannot be read (see `accord.data.readers`).
    """
    if spec.algorithm == "evaluate":
        return _memory_plan(spec, model_folder, available)
    data = _read(spec, spec.algorithm, "data")
    rows = _rows(spec, "data", data)
    if model_folder is None:
        plan = _memory_plan(spec, None, available)
        return Plan(plan.memory, plan.available_bytes, rows, plan.notes)
    lengths, texts, notes = _lengths(spec, model_folder, data)
    plan = _memory_plan(spec, model_folder, available, lengths, texts, local_scores=local_scores, on_gpu=on_gpu)
    if lengths is not None and rows > data.report.rows:
        notes = [*notes, f"lengths are those of {data.report.rows:,} of the {rows:,} rows"]
    rows = rows if lengths is None else round(rows * lengths.kept)
    if lengths is not None and not lengths.rows:
        notes = [*notes, "no row of the data is within max_prompt_tokens and max_response_tokens"]
    if speed is None:
        return Plan(plan.memory, plan.available_bytes, rows, (*notes, "no time: the machine is not measured, or not yet"))
    judging = None if lengths is None else judging_of(spec, TokenCounter(model_folder))
    workload = Workload(spec, ModelShape.read(model_folder), lengths, texts, judging=judging)
    step = workload.step_seconds(speed, spec.threads or threads)
    whole = spec.steps * step + workload.once_seconds(speed, spec.threads or threads, max(rows, 1)) + _evaluations(spec, workload, speed, threads)
    beside = ", and as many for the services that sample beside it" if spec.ppo is not None and spec.ppo.max_staleness else ""
    notes = [*notes, f"the time is with {spec.threads or threads} threads that nobody else needs{beside}; starting takes some ten seconds more"]
    if workload.passes.samples:
        if judging is not None:
            notes.append(
                "the judge's time is that of the base model in the policy service; one that the feedback service is given instead takes its own"
            )
        elif is_judged(spec):
            notes.append("the time leaves the judge out: it is another service's, whose rubric and model are not in the plan")
        notes.append(f"the time is of responses of {spec.max_response_tokens} tokens; shorter ones take less")
    return Plan(plan.memory, plan.available_bytes, rows, tuple(notes), whole, step)


def is_judged(spec: RunSpec) -> bool:
    """Whether each step asks a judge."""
    return spec.online_dpo is not None or (spec.rollout_part is not None and spec.rollout_part.judge_reward is not None)


def data_specs(spec: RunSpec) -> dict[str, DataSpec]:
    """What the run reads, by field of the specification."""
    part = getattr(spec, spec.algorithm)
    found = {name: getattr(part, name, None) for name in ("data", "eval_data", "ptx_data")}
    return {f"{spec.algorithm}.{name}": data for name, data in found.items() if data is not None}


def _memory_plan(
    spec: RunSpec,
    folder: Path | None,
    available: int,
    lengths: Lengths | None = None,
    texts: Lengths | None = None,
    *,
    local_scores: bool = False,
    on_gpu: bool = False,
) -> Plan:
    process = MemoryItem("process", PROCESS_BYTES, "Python, torch and transformers, measured")
    if spec.algorithm == "evaluate":
        return Plan((process,), available, notes=("an evaluation loads a sentence encoder, not the base model",))
    if folder is None:
        return Plan((process,), available, notes=("the base model's files are not at hand, so that its memory is not in the plan",))
    workload = Workload(spec, ModelShape.read(folder), lengths, texts, local_scores, on_gpu=on_gpu)
    return Plan(tuple(workload.memory()), available, advice=_advice(workload))


def _advice(workload: Workload) -> str:
    """What would make a run need less memory: a pass of one row cannot be cut any smaller."""
    if workload.micro > 1:
        return "lower micro_batch_size"
    shorter = "lower max_prompt_tokens or max_response_tokens: a pass has one row already"
    return shorter if workload.spec.activation_checkpointing else f"set activation_checkpointing, or {shorter}"


def _lengths(spec: RunSpec, folder: Path, data: Dataset[Any]) -> tuple[Lengths | None, Lengths | None, list[str]]:
    """Lengths of the data and of pretraining text, and what to know of them; None where they cannot be told."""
    try:
        counter = TokenCounter(folder)
        limits = Limits(spec.max_prompt_tokens, spec.max_response_tokens, ModelShape.read(folder).context)
        lengths = measure(data.rows, counter, limits)
        texts = None
        if spec.ppo is not None and spec.ppo.ptx_coefficient and spec.ppo.ptx_data is not None:
            texts = measure(_read(spec, "ppo", "ptx_data").rows, counter, limits)
    except (ImportError, FileNotFoundError) as error:
        return None, None, [f"rows count at the limits of length, since they cannot be told here: {error}"]
    more = [] if lengths.kept == 1 else [f"{1 - lengths.kept:.0%} of the rows are over max_prompt_tokens or max_response_tokens"]
    return lengths, texts, more


def _read(spec: RunSpec, algorithm: str, name: str) -> Dataset[Any]:
    data: DataSpec = getattr(getattr(spec, algorithm), name)
    with naming(f"spec.{algorithm}.{name}.uri"):
        read = read_texts if name == "ptx_data" else _READERS[algorithm]
        return read(data.uri, format=data.format, split=data.split, limit=data.limit or _ROWS_MEASURED, strict=data.strict, seed=spec.seed)


def _rows(spec: RunSpec, name: str, data: Dataset[Any]) -> int:
    """Rows that the run will have of its `name`, whose limit is not the plan's."""
    limited = getattr(getattr(spec, spec.algorithm), name).limit
    return data.report.rows + (0 if limited else data.report.over_limit)


def _evaluations(spec: RunSpec, workload: Workload, speed: Speed, threads: int) -> float:
    """Time of all evaluations: before the first step, after the last, and between."""
    data: DataSpec | None = getattr(getattr(spec, spec.algorithm), "eval_data", None)
    if data is None:
        return 0.0
    rows = _rows(spec, "eval_data", _read(spec, spec.algorithm, "eval_data"))
    between = (spec.steps - 1) // spec.eval_every_steps if spec.eval_every_steps else 0
    return (2 + between) * workload.evaluation_seconds(speed, spec.threads or threads, rows)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
