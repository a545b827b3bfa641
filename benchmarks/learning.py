"""Does it learn on real text? A reward model, DPO and PPO with the embedded model on the embedded sample, through the running services.

    python benchmarks/learning.py [--home build/bench/learning] [--seeds 3] [--json FILE]

Prints, for each seed: held-out accuracy of the reward model with its interval beside the length baseline; the held-out implicit-reward margin of
DPO before and after; PPO's mean score of the last rollouts against the first and the KL that it cost; and the largest gap and KL between the
logprobs that came back over gRPC and those that the trainer recomputed. Writes the same as JSON. A second call continues.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from accord.client.trainer import TrainerClient
from accord.runspec import parse_spec
from accord.workspace import Workspace
from figures import Figures, options_of

DATA = {"uri": "sample:conversation"}
HELD_OUT = {"uri": "sample:conversation", "split": "test"}
SIZE = {"batch_size": 8, "micro_batch_size": 2, "max_prompt_tokens": 256, "max_response_tokens": 128, "lora": {"rank": 8}}

_UNITS = {
    "eval_accuracy": ("of pairs", "> 0.6"),
    "dpo_margin_after": ("nats", "above before"),
    "ppo_score_last": ("", "above first"),
    "ppo_kl_last": ("nats", "bounded"),
    "sampler_approx_kl_max": ("nats", "< 1e-6"),
    "first_ratio_error": ("", "0"),
}


def run(trainer: TrainerClient, name: str, spec: dict[str, Any]) -> tuple[str, list[dict[str, float]]]:
    """The adapter version and the curve of a run, done once for a specification."""
    parsed = parse_spec({**SIZE, "adapter": name, **spec})
    started = trainer.create_run(parsed, f"learning-{parsed.digest[:24]}")
    if started.state in ("failed", "cancelled"):
        trainer.resume_run(started.name)
    curve: dict[int, dict[str, float]] = {}
    for event in trainer.watch_run(started.name, timeout_seconds=7200):
        if event.metrics is not None:
            curve.setdefault(event.step, {}).update(event.metrics)
            print(f"  {name} step {event.step}", flush=True)
    ended = trainer.get_run(started.name)
    if ended.state != "succeeded":
        raise SystemExit(f"{ended.name}: {ended.message}")
    return ended.adapter_version, [curve[step] for step in sorted(curve)]


def one_seed(trainer: TrainerClient, seed: int) -> dict[str, float]:
    """All four kinds of run under one seed."""
    common = {"seed": seed}
    sft, _ = run(trainer, f"learn-sft-{seed}", {**common, "steps": 6, "optimizer": {"learning_rate": 5e-4}, "sft": {"data": DATA}})
    reward, curve = run(
        trainer, f"learn-rm-{seed}",
        {**common, "steps": 17, "optimizer": {"learning_rate": 5e-4}, "parent_adapter": sft, "reward_model": {"data": DATA, "eval_data": HELD_OUT}},
    )  # fmt: skip
    found = {name: curve[-1][name] for name in ("eval_accuracy", "eval_accuracy_low", "eval_accuracy_high", "eval_length_baseline")}
    _, curve = run(
        trainer, f"learn-dpo-{seed}",
        {**common, "steps": 8, "optimizer": {"learning_rate": 3e-4}, "parent_adapter": sft, "dpo": {"data": DATA, "eval_data": HELD_OUT}},
    )  # fmt: skip
    found |= {"dpo_margin_before": curve[0]["eval_margin"], "dpo_margin_after": curve[-1]["eval_margin"]}
    ppo = {"data": DATA, "reward_model": reward, "epochs": 2, "kl_coef": 0.05, "minibatch_size": 8}
    _, curve = run(
        trainer, f"learn-ppo-{seed}",
        {**common, "steps": 12, "batch_size": 16, "max_response_tokens": 40, "optimizer": {"learning_rate": 3e-4}, "parent_adapter": sft, "ppo": ppo},
    )  # fmt: skip
    first, last = curve[:3], curve[-3:]
    found |= {
        "ppo_score_first": statistics.mean(row["score_mean"] for row in first), "ppo_score_last": statistics.mean(row["score_mean"] for row in last),
        "ppo_kl_last": statistics.mean(row["kl"] for row in last), "sampler_gap_max": max(row["sampler_gap_max"] for row in curve),
        "sampler_approx_kl_max": max(row["sampler_approx_kl"] for row in curve),
        "first_ratio_error": max(abs(row["first_ratio_mean"] - 1) for row in curve),
    }  # fmt: skip
    return found


def main() -> None:
    """Runs the seeds and prints medians with their spread."""
    parser = options_of(__doc__)
    parser.add_argument("--home", type=Path, default=Path("build/bench/learning"))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    figures = Figures("learning")
    workspace = Workspace(options.home)
    services = workspace.up(report=print)
    try:
        with TrainerClient(services.trainer) as trainer:
            rows = [one_seed(trainer, seed) for seed in range(options.seeds)]
    finally:
        workspace.down()
    for name in rows[0]:
        unit, reach = _UNITS.get(name, ("", ""))
        figures.add(name.replace("_", " "), unit, [row[name] for row in rows], reach)
    figures.write(options.json)


if __name__ == "__main__":
    main()
