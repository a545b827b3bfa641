"""How fast the services answer with the embedded model: generation, scoring, logprobs with shared prompts, and what the wire costs.

    python benchmarks/services.py [--home build/bench/services] [--rounds 5] [--json FILE]

Each figure is the median of the rounds with its minimum and maximum; compared figures are measured in turn (A B A B ...), so that their ratio
holds when the machine's speed drifts. Absolute figures are of this machine.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accord.client.policy import GenerateItem, LogprobsItem, PolicyClient, Sampling
from accord.data.readers import read_pairs
from accord.workspace import Workspace
from figures import Figures, options_of, ratios, seconds

TOKENS, PROMPTS = 48, 16


def main() -> None:
    """Measures and prints."""
    parser = options_of(__doc__)
    parser.add_argument("--home", type=Path, default=Path("build/bench/services"))
    options = parser.parse_args()
    figures = Figures("services")
    pairs = read_pairs("sample:conversation", split="test").rows[:PROMPTS]
    workspace = Workspace(options.home)
    services = workspace.up(report=print)
    try:
        with PolicyClient(services.policy) as policy:
            measure(figures, policy, pairs, options.rounds)
    finally:
        workspace.down()
    figures.write(options.json)


def measure(figures: Figures, policy: PolicyClient, pairs: tuple, rounds: int) -> None:
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
        ones.append(TOKENS / seconds(generate(1)))
        many.append(TOKENS * PROMPTS / seconds(generate(PROMPTS)))
        singles.append(seconds(lambda: policy.compute_logprobs(apart, timeout_seconds=600)))
        groups.append(seconds(lambda: policy.compute_logprobs(shared, timeout_seconds=600)))
        tiny.append(seconds(policy.model_info) * 1000)
    figures.add("generation, 1 prompt", "tokens/s", ones)
    figures.add(f"generation, {PROMPTS} prompts together", "tokens/s", many)
    figures.add(f"{PROMPTS} prompts together over one", "times", ratios(many, ones))
    figures.add(f"logprobs of {2 * PROMPTS} responses, each with its prompt", "s", singles)
    figures.add("the same, two responses sharing a prompt", "s", groups)
    figures.add("sharing a prompt in a request over the prefix cache alone", "times", ratios(singles, groups))
    figures.add("a call without compute (GetModelInfo)", "ms", tiny)


if __name__ == "__main__":
    main()
