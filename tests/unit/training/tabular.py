"""A policy that is a table, trained by REINFORCE in the real loop: milliseconds a step, for what needs many runs.

Responses are walks over a few tokens; the next one depends on the last. It hands the loop what every algorithm with rollouts does: metrics by the
same names, weights in a checkpoint, an adapter to publish.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accord.checkpoint import Checkpoint
from accord.training.context import RunContext
from accord.training.guards import repeated_share
from accord.training.loop import ADAPTER_FOLDER
from accord.training.optim import Optimizer

TOKENS, LONGEST, END = 12, 24, 0
GOOD = frozenset(range(1, 7))
Scorer = Callable[[Sequence[int]], float]


def honest(response: Sequence[int]) -> float:
    """What people would want: good tokens, neither too few nor too many, no loops. A share alone would reward brevity: short ones vary most."""
    good = sum(token in GOOD for token in response) / max(1, len(response))
    return 4 * good - 0.6 * max(0, 7 - len(response)) - 0.4 * max(0, len(response) - 12) - 4 * repeated_share(response, 2)


class TabularPolicy:
    """Implements `loop.Algorithm`; scores are those of two functions, each with noise of its own for every response."""

    def __init__(self, context: RunContext, trained: Scorer, held_out: Scorer, *, noise: float = 0.7) -> None:
        self._context, self._trained, self._held_out, self._noise = context, trained, held_out, noise
        start = torch.zeros(TOKENS, TOKENS)
        start[:, END] = 0.4  # eight tokens or so
        start[END, END] = -20.0  # no response is empty
        self._start = torch.log_softmax(start, -1)
        self._logits = nn.Parameter(start.clone())

    def setup(self) -> None: ...

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        return {"policy": [self._logits]}

    def evaluate(self, *, final: bool) -> dict[str, float]:
        return {}

    def step(self, step: int, optimizer: Optimizer) -> dict[str, float]:
        generator = torch.Generator().manual_seed(self._context.spec.seed * 100_003 + step)
        responses, walks = self.sample(self._context.spec.batch_size, generator)
        noise = self._noise * torch.randn(2, len(responses), generator=generator)
        scores = torch.tensor([self._trained(each) for each in responses]) + noise[0]
        held_out = torch.tensor([self._held_out(each) for each in responses]) + noise[1]
        logprobs = torch.log_softmax(self._logits, -1)
        taken = torch.stack([logprobs[walk[:-1], walk[1:]].sum() for walk in walks])
        reference = torch.stack([self._start[walk[:-1], walk[1:]].sum() for walk in walks])
        advantages = (scores - scores.mean()) / (scores.std() + 1e-6)
        (-(advantages * taken).mean()).backward()
        norm = optimizer.apply()
        return {
            "score_mean": float(scores.mean()), "reward_mean": float(scores.mean()), "held_out_score_mean": float(held_out.mean()),
            "held_out_score_std": float(held_out.std(unbiased=False)), "kl": float((taken.detach() - reference).mean()), "grad_norm": norm,
            "response_tokens": statistics.fmean(len(each) for each in responses),
            "repetition": statistics.fmean(repeated_share(each) for each in responses),
        }  # fmt: skip

    def sample(self, count: int, generator: torch.Generator) -> tuple[list[list[int]], list[Tensor]]:
        """Responses without their end, and the walks that they are: from the end token to the end token where they have one."""
        table = torch.softmax(self._logits.detach(), -1)
        rows = [torch.zeros(count, dtype=torch.long)]
        for _ in range(LONGEST):
            rows.append(torch.multinomial(table[rows[-1]], 1, generator=generator)[:, 0])
        responses, walks = [], []
        for walk in torch.stack(rows, 1):
            ends = (walk[1:] == END).nonzero()
            last = int(ends[0]) + 1 if len(ends) else LONGEST
            walks.append(walk[: last + 1])
            responses.append([token for token in walk[1 : last + 1].tolist() if token != END])
        return responses, walks

    def true_score(self, table: Tensor) -> float:
        """What the held-out scorer gives a policy without noise, over many responses."""
        with torch.no_grad():
            self._logits.copy_(table)
        return statistics.fmean(self._held_out(each) for each in self.sample(400, torch.Generator().manual_seed(5))[0])

    def save(self, folder: Path) -> None:
        (folder / ADAPTER_FOLDER).mkdir()
        save_file({"table": self._logits.detach()}, folder / ADAPTER_FOLDER / "table.safetensors")

    def load(self, checkpoint: Checkpoint) -> None:
        with torch.no_grad():
            self._logits.copy_(load_file(checkpoint.path / ADAPTER_FOLDER / "table.safetensors")["table"])

    def state(self) -> dict[str, Any]:
        return {}

    def publication(self) -> dict[str, Any]:
        return {"kind": "policy", "parents": [], "data_digest": "", "facts": {"algorithm": "table"}}
