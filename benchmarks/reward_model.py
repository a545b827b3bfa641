"""Is the shipped reward model right about pairs that it has not seen? `accord train reward-model` over both tasks of the embedded sample.

    python benchmarks/reward_model.py [--home build/bench/reward-model] [--tasks summarization,conversation] [--seeds 1] [--json FILE]

Prints, for each task, the accuracy on the 40 held-out pairs with its 95 % interval (Wilson) beside that of always taking the longer response, and
the expected calibration error; over several seeds the median with the lowest and highest. Ctrl-C stops a run after a checkpoint; a second call
goes on there, and what is done is not done again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accord.artefacts.store import ArtefactStore
from accord.cli.recipes import load_train_recipe
from accord.client.trainer import TrainerClient
from accord.workspace import Workspace
from figures import Figures, options_of

TASKS = ("summarization", "conversation")


def one_run(trainer: TrainerClient, task: str, seed: int) -> str:
    """The adapter version of the recipe's run over a task under a seed, done once."""
    changes = [f"reward_model.{part}.uri=sample:{task}" for part in ("data", "eval_data")]
    spec = load_train_recipe("reward-model", [*changes, f"seed={seed}", f"adapter=reward-{task}-{seed}"])
    run = trainer.create_run(spec, f"reward-model-{spec.digest[:24]}")
    if run.state in ("failed", "cancelled"):
        trainer.resume_run(run.name)
    for event in trainer.watch_run(run.name, timeout_seconds=7200):
        if event.metrics is not None:
            accuracy = event.metrics.get("eval_accuracy")
            print(f"  {task}, seed {seed}, step {event.step}" + ("" if accuracy is None else f": held-out accuracy {accuracy:.3f}"), flush=True)
    ended = trainer.get_run(run.name)
    if ended.state != "succeeded":
        raise SystemExit(f"{ended.name} {ended.state}: {ended.message}")
    return ended.adapter_version


def report(figures: Figures, task: str, facts: list[dict[str, Any]]) -> None:
    """The figures of a task, one value a seed."""
    longer = facts[0]["eval_length_baseline"]
    names = {
        "eval_accuracy": f"> {longer:.3f}", "eval_accuracy_low": "", "eval_accuracy_high": "", "eval_length_baseline": "",
        "eval_length_baseline_low": "", "eval_length_baseline_high": "", "eval_calibration_error": "", "eval_pairs": "",
    }  # fmt: skip
    for name, reach in names.items():
        figures.add(f"{task}: {name.removeprefix('eval_').replace('_', ' ')}", "", [found[name] for found in facts], reach)


def main() -> None:
    """Runs the recipe for each task and seed."""
    parser = options_of(__doc__)
    parser.add_argument("--home", type=Path, default=Path("build/bench/reward-model"))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    tasks = options.tasks.split(",")
    if unknown := set(tasks) - set(TASKS):
        parser.error(f"unknown tasks: {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    figures, workspace = Figures("reward model"), Workspace(options.home)
    services = workspace.up(report=print)
    store = ArtefactStore(workspace.artefacts)
    try:
        with TrainerClient(services.trainer) as trainer:
            for task in tasks:
                versions = [one_run(trainer, task, 2 + seed) for seed in range(options.seeds)]
                report(figures, task, [dict(store.manifest(version).facts) for version in versions])
    finally:
        workspace.down(stop_runs=True)
    figures.write(options.json)


if __name__ == "__main__":
    main()
