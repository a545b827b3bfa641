"""Plans beside what runs then take: the shipped recipes, shortened, with the embedded model.

    python benchmarks/plan.py [--rounds 1] [--only sft,reward-model,dpo,...] [--steps 2] [--full] [--json FILE]

memory  peak_memory_bytes of the plan over the most resident memory (VmHWM) of the run's process
time    the plan's time of a step over the processor time that a step took in the run's process and in the services, on one thread each; the
        machine's speed is measured before and after each run, and the plan is made with the mean
Processor time, not the clock's, so that others at work on the machine do not count. Shortening: few steps and little evaluation; without --full
what samples takes small batches and PPO one epoch. A plan takes every response that is still to be sampled at its most; how long they were is
printed. A judge's work is done by the same policy service, and is in both.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from accord.cli.recipes import load_train_recipe, shipped_recipes
from accord.client.trainer import TrainerClient
from accord.rundir import RunDirectory
from accord.runspec import RunSpec
from accord.trainer.calibration import Speed, measure_speed
from accord.trainer.planner import Plan, make_plan
from accord.trainer.workload import PASSES
from accord.workspace import Workspace
from figures import Figures, options_of

FIRST = ("sft", "reward-model")  # the others start from what these publish
RECIPES = (*FIRST, *(name for name in shipped_recipes() if name not in FIRST))
SHORTER = {
    "ppo": ("batch_size=4", "ppo.minibatch_size=4", "ppo.epochs=1"),
    "grpo": ("batch_size=8",),
    "rloo": ("batch_size=8",),
    "online_dpo": ("batch_size=4",),
}
_POLL_SECONDS = 0.05


@dataclass
class Watched:
    """What a run's process and the services took."""

    peak_bytes: int = 0
    step_seconds: float = 0.0
    response_tokens: float = 0.0


def shortened(name: str, steps: int, *, full: bool) -> RunSpec:
    """A shipped recipe with few steps."""
    algorithm = load_train_recipe(name).algorithm
    settings = [f"steps={steps}", "checkpoint_every_steps=0", "eval_every_steps=0", "threads=1"]
    settings += [f"{algorithm}.eval_data.limit=1"] if algorithm != "online_dpo" else []  # it may leave that one pair out as too long
    return load_train_recipe(name, [*settings, *(() if full else SHORTER.get(algorithm, ()))])


def watch(directory: RunDirectory, services: list[psutil.Process], steps: int) -> Watched:
    """Follows a run to its end; processor time is counted from the first training state to the last step."""
    found, marks = Watched(), []
    process: psutil.Process | None = None
    while directory.result() is None:
        with contextlib.suppress(psutil.Error, FileNotFoundError, ValueError):
            if process is None:
                process = psutil.Process(int(json.loads((directory.path / "process.json").read_text())["pid"]))
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0")
            found.peak_bytes = max(found.peak_bytes, 1024 * int(peak))
            marks.append((time.time(), sum(sum(each.cpu_times()[:2]) for each in (process, *services))))
        time.sleep(_POLL_SECONDS)
    if (result := directory.result()) is not None and result.exit_code:
        raise SystemExit(f"{directory.path.name}: {result}")
    events = list(directory.events())
    started = next(event.time for event in events if event.kind == "state" and event.phase in ("train", "rollouts") and event.step == 0)
    last = next(event for event in events if event.kind == "metrics" and event.step == steps)
    ended = next((event.time for event in events if event.kind == "state" and event.phase == "evaluate" and event.time > started), last.time)
    inside = [seconds for moment, seconds in marks if started <= moment <= ended]
    found.step_seconds = (inside[-1] - inside[0]) / steps
    found.response_tokens = last.values.get("response_tokens", 0.0)
    return found


@contextlib.contextmanager
def workspace(home: Path) -> Iterator[tuple[Workspace, TrainerClient]]:
    """All services on one thread each."""
    space = Workspace(home)
    services = space.up(threads=1, report=print)
    try:
        with TrainerClient(services.trainer) as trainer:
            yield space, trainer
    finally:
        space.down()


def service_processes(space: Workspace) -> list[psutil.Process]:
    """The policy and the reward service."""
    records = json.loads((space.home / "services.json").read_text(encoding="utf-8"))["services"]
    return [psutil.Process(int(records[name]["process"]["pid"])) for name in ("policy", "reward")]


def one(space: Workspace, trainer: TrainerClient, spec: RunSpec, model: Path) -> tuple[Plan, Watched]:
    """A run, and the plan for it."""
    before = measure_speed()
    run = trainer.create_run(spec, f"plan-{spec.digest[:24]}-{time.time_ns()}")
    watched = watch(RunDirectory(run.directory), service_processes(space) if PASSES[spec.algorithm].samples else [], spec.steps)
    after = measure_speed()
    speed = Speed((before.operations_per_second + after.operations_per_second) / 2, (before.bytes_per_second + after.bytes_per_second) / 2)
    return make_plan(spec, model, psutil.virtual_memory().available, speed=speed, threads=1), watched


def main() -> None:
    """Runs the recipes in their order, each on what the earlier ones published."""
    parser = options_of(__doc__)
    parser.set_defaults(rounds=1)
    parser.add_argument("--only", default=",".join(RECIPES))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="batches and epochs as in the recipe")
    parser.add_argument("--home", type=Path, default=None)
    options = parser.parse_args()
    wanted = options.only.split(",")
    figures = Figures("plans")
    memory: dict[str, list[float]] = {name: [] for name in wanted}
    seconds: dict[str, list[float]] = {name: [] for name in wanted}
    with tempfile.TemporaryDirectory() as folder, workspace(options.home or Path(folder)) as (space, trainer):
        model = Path(yaml.safe_load((space.home / "config" / "trainer.yaml").read_text(encoding="utf-8"))["model_folder"])
        for _ in range(options.rounds):
            for name in [each for each in RECIPES if each in wanted]:
                spec = shortened(name, options.steps, full=options.full)
                plan, watched = one(space, trainer, spec, model)
                memory[name].append(plan.peak_bytes / watched.peak_bytes)
                seconds[name].append((plan.step_seconds or 0.0) / watched.step_seconds)
                print(f"  {name}: peak planned {plan.peak_bytes / 2**20:.0f} MiB, measured {watched.peak_bytes / 2**20:.0f} MiB", flush=True)
                took = f"measured {watched.step_seconds:.1f} s of processor time, {watched.response_tokens:.0f} response tokens"
                print(f"  {name}: step planned {plan.step_seconds:.1f} s, {took}", flush=True)
    for name, values in memory.items():
        figures.add(f"{name}: planned over measured peak memory", "times", values, "0.75 to 1.25")
        figures.add(f"{name}: planned over measured time of a step", "times", seconds[name], "0.75 to 1.25")
    figures.write(options.json)


if __name__ == "__main__":
    main()
