"""How fast the services answer with the embedded model: generation, scoring, logprobs with shared prompts, and what the wire costs.

    python benchmarks/services.py [--home build/bench/services] [--rounds 5]

Each figure is the median of the rounds with its minimum and maximum; compared figures are measured in turn (A B A B ...), so that their ratio
holds when the machine's speed drifts. Absolute figures are of this machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from accord.client.policy import GenerateItem, LogprobsItem, PolicyClient, Sampling
from accord.data.readers import read_pairs
from accord.workspace import Workspace

TOKENS, PROMPTS = 48, 16


def timed(work: Callable[[], object]) -> float:
    """Seconds that the work takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def show(name: str, values: list[float], unit: str) -> None:
    """One line: median, minimum, maximum."""
    print(f"  {name:58} {statistics.median(values):9.3f} {unit}  ({min(values):.3f} to {max(values):.3f})", flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("build/bench/services"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pairs = read_pairs("sample:conversation", split="test").rows[:PROMPTS]
    workspace = Workspace(options.home)
    services = workspace.up(report=print)
    try:
        with PolicyClient(services.policy) as policy:
            measure(policy, pairs, options.rounds)
    finally:
        workspace.down()


def measure(policy: PolicyClient, pairs: tuple, rounds: int) -> None:
    """The figures of a policy service."""

    def generate(count: int) -> Callable[[], object]:
        items = [
            GenerateItem(pair.messages, Sampling(max_tokens=TOKENS, temperature=0.7, seed=place, ignore_eos=True))
            for place, pair in enumerate(pairs[:count])
        ]
        return lambda: policy.generate(items, timeout_seconds=600)

    apart = [LogprobsItem(pair.messages, (response,)) for pair in pairs for response in (pair.chosen, pair.rejected)]
    shared = [LogprobsItem(pair.messages, (pair.chosen, pair.rejected)) for pair in pairs]
    generate(1)()
    ones, many, singles, groups, tiny = [], [], [], [], []
    for _ in range(rounds):
        ones.append(TOKENS / timed(generate(1)))
        many.append(TOKENS * PROMPTS / timed(generate(PROMPTS)))
        singles.append(timed(lambda: policy.compute_logprobs(apart, timeout_seconds=600)))
        groups.append(timed(lambda: policy.compute_logprobs(shared, timeout_seconds=600)))
        tiny.append(timed(policy.model_info) * 1000)
    print(f"{rounds} rounds, median (minimum to maximum)")
    show("generation, 1 prompt", ones, "tokens/s")
    show(f"generation, {PROMPTS} prompts together", many, "tokens/s")
    show("batching gains", [b / a for a, b in zip(ones, many, strict=True)], "times")
    show(f"logprobs of {2 * PROMPTS} responses, each with its prompt", singles, "s")
    show("the same, two responses sharing a prompt", groups, "s")
    show("sharing gains", [a / b for a, b in zip(singles, groups, strict=True)], "times")
    show("a call without compute (GetModelInfo)", tiny, "ms")


if __name__ == "__main__":
    main()
