"""How fast and small training is, beside TRL doing the same work on the same rows with the embedded model in float32.

    python benchmarks/training.py [--rounds 5] [--only ppo,dpo,reward,sft,resume,ppo-resume] [--json FILE]

ppo     a step of 8 rollouts, prompts of 64 tokens, 48 sampled, one epoch, sampled by the policy service, whose logprobs are taken and checked on
        one rollout a step (ppo.reuse_sampler_logprobs), and scored by the run itself; with LoRA on all layers, and on the upper half of them
        (lora.last_layers: what lies below is computed once for policy, reference, critic and reward model); against
        trl.experimental.ppo of the last TRL that has it (installed into an environment of its own on first use): four whole models as in its
        examples, and with LoRA on its policy
dpo     4 pairs a step, prompts of 128 tokens, responses of 32 to 128, LoRA: an epoch with the reference pass, and the next epoch; against TRL's
        DPOTrainer as it comes, and with the reference computed beforehand
reward  the same pairs through a reward model, four a pass in both, against TRL's RewardTrainer
sft     tokens per second against 4 FLOPs a parameter and token (weights frozen, LoRA) at the largest matrix product's rate, measured beside
resume  from the start of a killed run's new process to its first new step, model load left out: SFT
ppo-resume  the same for PPO as in ppo, on all layers: services, adapters of policy and critic, reward model
Every round starts each system in new processes, in turn. Peak memory is the sum of the peaks of all processes that take part.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accord.data.readers import read_pairs
from accord.models.base import load_base_model
from accord.rundir import Endpoints, RunDirectory, RunEvent, RunFile
from accord.runspec import parse_spec
from figures import Figures, options_of, ratios, seconds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import trl_peer
from tests.contract.harness import ServerProcess

ROOT = Path(__file__).resolve().parents[1]
THREADS = 2
LOCAL = "local"  # the run scores on the base model that it has; TRL's reward model is in its process too
PARTS = ("ppo", "dpo", "reward", "sft", "resume", "ppo-resume")
PAIRS_A_STEP, STEPS_AN_EPOCH = 4, 3
ROLLOUTS, PPO_STEPS, SAMPLED = 8, 3, 48


class Setting(NamedTuple):
    """How PPO is run: layers with LoRA (0: all), and micro-batches as large as stays under the memory that is asked for."""

    title: str
    last_layers: int
    micro: int

    @property
    def words(self) -> str:
        """For a figure's name."""
        return f"{self.title}, micro-batches of {self.micro}, reward model in the run, sampler's logprobs reused"


SETTINGS = {"all": Setting("LoRA on all layers", 0, 2), "upper": Setting("LoRA on the upper 15 of 30 layers", 15, 4)}
LONG = "Tell a long and detailed story, with many turns, that takes its beginning from this: "


def write_pairs(path: Path, count: int, *, prompt_tokens: int, shortest: int, longest: int, lead: str = "") -> Path:
    """Pairs of real text in TRL's conversational format, cut to lengths in tokens (the chat template comes on top)."""
    encoder = load_base_model("embedded").encoder
    words = encoder.encode_text(" ".join(f"{row.messages[-1].content} {row.chosen}" for row in read_pairs("sample:summarization").rows))
    draw = random.Random(0)

    def text(length: int) -> str:
        start = draw.randrange(len(words) - length)
        return encoder.decode(words[start : start + length]).strip()

    rows = [
        {
            "prompt": [{"role": "user", "content": lead + text(prompt_tokens)}],
            "chosen": [{"role": "assistant", "content": text(draw.randint(shortest, longest))}],
            "rejected": [{"role": "assistant", "content": text(draw.randint(shortest, longest))}],
        }
        for _ in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def trl(kind: str, rows: Path, python: str = sys.executable, **more: Any) -> dict[str, Any]:
    """What TRL's worker prints."""
    model = str(load_base_model("embedded").folder)
    job = {"kind": kind, "model": model, "rows": str(rows), "threads": THREADS, **more}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, str(ROOT / "benchmarks/trl_worker.py"), json.dumps(job)], env=environment, capture_output=True, text=True, timeout=1800, check=False
    )
    if done.returncode:
        raise SystemExit(f"TRL failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Ours:
    """A run of Accord in a process of its own."""

    def __init__(self, root: Path, name: str, spec: dict[str, Any], endpoints: Endpoints | None = None) -> None:
        self.directory = RunDirectory(root / "runs" / name)
        run = RunFile(
            name=f"runs/{name}", artefacts=str(root / "artefacts"), base_model="embedded", threads=THREADS, endpoints=endpoints or Endpoints(),
            spec=parse_spec({"adapter": name, "lora": {"rank": 16}, **spec}),
        )  # fmt: skip
        self.directory.write_run_file(run)
        self.peak_bytes = 0

    def start(self) -> subprocess.Popen[bytes]:
        """Its process."""
        log = (self.directory.path / "log.txt").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "accord.training", "--config", str(self.directory.path / "run.yaml")], stdout=log, stderr=log
            )

    def finish(self) -> None:
        """Runs to the end, and follows its memory."""
        process = self.start()
        while process.poll() is None:
            with contextlib.suppress(OSError):
                self.peak_bytes = max(self.peak_bytes, peak_of(process.pid))
            time.sleep(0.05)
        result = self.directory.result()
        if result is None or result.exit_code:
            raise SystemExit(f"the run failed: {result}\n{self.directory.log.read_text()[-2000:]}")

    def events(self, kind: str) -> list[RunEvent]:
        """Its events of one kind."""
        return [event for event in self.directory.events() if event.kind == kind]

    def steps(self) -> list[float]:
        """Seconds of each step."""
        return [event.values["seconds"] for event in self.events("metrics") if "seconds" in event.values]

    def phase_seconds(self, phase: str) -> float:
        """Seconds from a phase's beginning to the next phase."""
        states = self.events("state")
        return sum(after.time - before.time for before, after in itertools.pairwise(states) if before.phase == phase)


def peak_of(pid: int) -> int:
    """Peak resident bytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return 1024 * int(next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0"))


def dpo(figures: Figures, root: Path, rounds: int) -> None:
    """An epoch with the reference pass, and the next."""
    pairs = PAIRS_A_STEP * STEPS_AN_EPOCH
    rows = write_pairs(root / "dpo.jsonl", pairs, prompt_tokens=96, shortest=32, longest=128)
    first: dict[str, list[float]] = {"ours": [], "trl": [], "prepared": []}
    second: dict[str, list[float]] = {"ours": [], "trl": [], "prepared": []}
    for number in range(rounds):
        run = Ours(root / f"dpo-{number}", "dpo", {
            "steps": 2 * STEPS_AN_EPOCH, "batch_size": PAIRS_A_STEP, "micro_batch_size": 2, "optimizer": {"learning_rate": 1e-4},
            "max_prompt_tokens": 512, "max_response_tokens": 160, "dpo": {"data": {"uri": str(rows)}},
        })  # fmt: skip
        run.finish()
        steps = run.steps()
        first["ours"].append(run.phase_seconds("reference") + sum(steps[:STEPS_AN_EPOCH]))
        second["ours"].append(sum(steps[STEPS_AN_EPOCH:]))
        for name, precompute in (("trl", False), ("prepared", True)):
            found = trl("dpo", rows, batch_size=PAIRS_A_STEP, steps=2 * STEPS_AN_EPOCH, precompute=precompute)
            second[name].append(sum(found["steps"][STEPS_AN_EPOCH:]))
            first[name].append(found["seconds"] - second[name][-1])
        print(
            f"    round {number + 1} of {rounds}: " + ", ".join(f"{name} {first[name][-1]:.1f} + {second[name][-1]:.1f} s" for name in first),
            flush=True,
        )
    for name, values in first.items():
        figures.add(f"DPO, first epoch: {name}", "s/step", [value / STEPS_AN_EPOCH for value in values])
    figures.add("DPO, first epoch with the reference pass, over TRL", "times", ratios(first["trl"], first["ours"]), ">= 2.0")
    figures.add("DPO, first epoch, over TRL with the reference beforehand", "times", ratios(first["prepared"], first["ours"]))
    figures.add("DPO, second epoch, over TRL", "times", ratios(second["trl"], second["ours"]), ">= 3")
    figures.add("DPO, second epoch, over TRL with the reference beforehand", "times", ratios(second["prepared"], second["ours"]))


def reward(figures: Figures, root: Path, rounds: int) -> None:
    """A reward model on the pairs of `dpo`."""
    rows = write_pairs(root / "reward.jsonl", PAIRS_A_STEP * STEPS_AN_EPOCH, prompt_tokens=96, shortest=32, longest=128)
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        run = Ours(root / f"reward-{number}", "rm", {
            "steps": STEPS_AN_EPOCH, "batch_size": PAIRS_A_STEP, "micro_batch_size": PAIRS_A_STEP, "optimizer": {"learning_rate": 1e-4},
            "max_prompt_tokens": 512, "max_response_tokens": 160, "reward_model": {"data": {"uri": str(rows)}},
        })  # fmt: skip
        run.finish()
        ours.append(sum(run.steps()))
        theirs.append(trl("reward_model", rows, batch_size=PAIRS_A_STEP, steps=STEPS_AN_EPOCH)["seconds"])
        print(f"    round {number + 1} of {rounds}: ours {ours[-1]:.1f} s, TRL {theirs[-1]:.1f} s", flush=True)
    figures.add("reward model: ours", "s/step", [value / STEPS_AN_EPOCH for value in ours])
    figures.add("reward model, over TRL's RewardTrainer", "times", ratios(theirs, ours), ">= 1.5")


def ppo(figures: Figures, root: Path, rounds: int) -> None:
    """A step through the services, and TRL's."""
    python = str(trl_peer.install())
    rows = write_pairs(root / "ppo.jsonl", ROLLOUTS * PPO_STEPS, prompt_tokens=12, shortest=32, longest=64, lead=LONG)
    systems = ("all", "upper", "trl", "lora")
    time_taken: dict[str, list[float]] = {name: [] for name in systems}
    memory: dict[str, list[float]] = {name: [] for name in systems}
    lengths: list[float] = []
    for number in range(rounds):
        for name, setting in SETTINGS.items():
            with _ppo_run(root / f"ppo-{name}-{number}", rows, setting, steps=PPO_STEPS) as (run, policy):
                run.finish()
                memory[name].append((run.peak_bytes + peak_of(policy.pid)) / 2**30)
            time_taken[name].append(_mean(run.steps()[1:]))
            lengths.append(run.events("metrics")[-1].values["response_tokens"])
        for name, lora in (("trl", False), ("lora", True)):
            found = trl("ppo", rows, python, batch_size=ROLLOUTS, steps=PPO_STEPS, response_tokens=SAMPLED, lora=lora)
            time_taken[name].append(_mean(found["steps"][1:]))
            memory[name].append(found["peak_bytes"] / 2**30)
        print(
            f"    round {number + 1} of {rounds}: "
            + ", ".join(f"{name} {time_taken[name][-1]:.1f} s a step, {memory[name][-1]:.2f} GiB" for name in systems), flush=True,
        )  # fmt: skip
    titles = {name: setting.words for name, setting in SETTINGS.items()} | {"trl": "TRL, four whole models", "lora": "TRL, LoRA on its policy"}
    for name, title in titles.items():
        figures.add(f"PPO step: {title}", "s", time_taken[name])
        figures.add(f"PPO, peak memory of all processes: {title}", "GiB", memory[name])
    for name in ("all", "upper"):
        for peer, times, bytes_ in (("trl", "<= 0.5", "<= 0.4"), ("lora", "", "")):
            figures.add(f"PPO step, {titles[name]}: share of the time of {titles[peer]}", "times", ratios(time_taken[name], time_taken[peer]), times)
            figures.add(f"PPO, {titles[name]}: share of the memory of {titles[peer]}", "times", ratios(memory[name], memory[peer]), bytes_)
    figures.add("PPO, sampled tokens a response (TRL's are always 48)", "tokens", lengths)


@contextlib.contextmanager
def _ppo_run(home: Path, rows: Path, setting: Setting, **more: Any) -> Iterator[tuple[Ours, ServerProcess]]:
    """A run of PPO, not yet started, with a reward model to score by, and the policy service beside it."""
    lora = {"rank": 16, "last_layers": setting.last_layers}
    scorer = Ours(home, "scorer", {"steps": 1, "batch_size": 2, "lora": lora, "reward_model": {"data": {"uri": str(rows), "limit": 2}}})
    scorer.finish()
    with ServerProcess("accord.policy", {"artefacts": str(home / "artefacts"), "threads": THREADS}, home) as policy:
        yield Ours(home, "ppo", {
            "batch_size": ROLLOUTS, "micro_batch_size": setting.micro, "max_response_tokens": SAMPLED, "lora": lora, **more,
            "ppo": {
                "data": {"uri": str(rows)}, "reward_model": "adapters/scorer/versions/1", "epochs": 1, "kl_coef": 0.05,
                "reuse_sampler_logprobs": True,
            },
        }, Endpoints(policy=policy.address, reward=LOCAL)), policy  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def sft(figures: Figures, root: Path, rounds: int) -> None:
    """Tokens per second against the arithmetic."""
    import torch

    torch.set_num_threads(THREADS)
    rows = write_pairs(root / "sft.jsonl", 24, prompt_tokens=96, shortest=96, longest=160)
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    parameters = load_base_model("embedded").parameters
    over: list[float] = []
    rates: list[float] = []
    for number in range(rounds):
        seconds(lambda: left @ right)
        gflops = max(2 * 1024**3 / seconds(lambda: left @ right) / 1e9 for _ in range(10))
        run = Ours(root / f"sft-{number}", "sft", {
            "steps": 4, "batch_size": 6, "micro_batch_size": 3, "max_response_tokens": 200, "sft": {"data": {"uri": str(rows)}},
        })  # fmt: skip
        run.finish()
        steps = [event.values for event in run.events("metrics") if "seconds" in event.values][1:]
        rates.append(sum(values["tokens"] for values in steps) / sum(values["seconds"] for values in steps))
        over.append(gflops * 1e9 / (4 * parameters) / rates[-1])
        print(f"    round {number + 1} of {rounds}: {rates[-1]:.0f} tokens/s, {gflops:.0f} GFLOP/s, {over[-1]:.2f} times the floor", flush=True)
    figures.add("SFT", "tokens/s", rates)
    figures.add("SFT, time over the floor of 4 FLOPs a parameter and token", "times", over, "<= 2")


def resume(figures: Figures, root: Path, rounds: int) -> None:
    """Kills a run of SFT after a checkpoint and starts it again."""
    rows = write_pairs(root / "resume.jsonl", 8, prompt_tokens=64, shortest=32, longest=64)
    found: list[float] = []
    for number in range(rounds):
        run = Ours(
            root / f"resume-{number}", "resumed", {"steps": 400, "batch_size": 2, "checkpoint_every_steps": 2, "sft": {"data": {"uri": str(rows)}}}
        )
        found.append(_resumed(run, 3, f"round {number + 1} of {rounds}"))
    figures.add("resume, SFT: restart to the first new step, model load left out", "s", found, "<= 15")


def ppo_resume(figures: Figures, root: Path, rounds: int) -> None:
    """Kills a run of PPO after a checkpoint and starts it again."""
    rows = write_pairs(root / "ppo-resume.jsonl", ROLLOUTS * PPO_STEPS, prompt_tokens=12, shortest=32, longest=64, lead=LONG)
    found: list[float] = []
    for number in range(rounds):
        with _ppo_run(root / f"ppo-resume-{number}", rows, SETTINGS["all"], steps=400, checkpoint_every_steps=1) as (run, _):
            found.append(_resumed(run, 2, f"round {number + 1} of {rounds}"))
    figures.add(f"resume, PPO ({SETTINGS['all'].words}): restart to the first new step, model load left out", "s", found, "<= 15")


def _resumed(run: Ours, step: int, label: str) -> float:
    """Seconds from the restart of a run that was killed behind a step to its first new one, without that step and the model's load."""
    process = run.start()
    _wait_for(run, process, step - 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    known = len(run.events("metrics"))
    load = seconds(lambda: load_base_model("embedded", threads=THREADS))
    began = time.time()
    process = run.start()
    first = _wait_for(run, process, known)
    process.kill()
    process.wait()
    took = first.time - first.values["seconds"] - began - load
    print(f"    {label}: {took:.1f} s, model load of {load:.1f} s left out", flush=True)
    return took


def _wait_for(run: Ours, process: subprocess.Popen[bytes], known: int) -> RunEvent:
    give_up = time.monotonic() + 300
    while time.monotonic() < give_up and process.poll() is None:
        events: Sequence[RunEvent] = run.events("metrics")
        if len(events) > known:
            return events[known]
        time.sleep(0.02)
    raise SystemExit(f"no step came: {run.directory.log.read_text()[-2000:]}")


def main() -> None:
    """Measures what is asked for."""
    parser = options_of(__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, of {', '.join(PARTS)}")
    options = parser.parse_args()
    parts = options.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    figures = Figures("training")
    measure = {"ppo": ppo, "dpo": dpo, "reward": reward, "sft": sft, "resume": resume, "ppo-resume": ppo_resume}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            measure[part](figures, Path(folder), options.rounds)
    figures.write(options.json)


if __name__ == "__main__":
    main()
