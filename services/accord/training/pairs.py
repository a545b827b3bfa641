"""Preference pairs as runs of reward models and DPO use them: reading, batches, weights of groups, metrics on held-out pairs."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

from accord.data.readers import read_pairs
from accord.runspec import DataSpec
from accord.training.context import RunContext
from accord.training.examples import Encoded, EncodedPair, Limits, encode_pairs


def read_encoded_pairs(context: RunContext, data: DataSpec) -> tuple[Encoded[EncodedPair], str]:
    """Pairs of a data set within the run's limits, and the data's digest; the account goes to the run's messages."""
    spec = context.spec
    found = read_pairs(data.uri, format=data.format, split=data.split, limit=data.limit, strict=data.strict, seed=spec.seed)
    encoded = encode_pairs(context.base.encoder, found.rows, Limits(spec.max_prompt_tokens, spec.max_response_tokens))
    context.events.message(f"{data.uri} ({data.split}): {encoded.account('pairs')}")
    return encoded, found.report.digest


def micro_batches_of_pairs(pairs: Sequence[EncodedPair], size: int) -> list[list[EncodedPair]]:
    """Pairs in parts of at most `size`, alike lengths together."""
    ordered = sorted(pairs, key=lambda pair: len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)))
    return [list(ordered[start : start + size]) for start in range(0, len(ordered), size)]


def tokens_of(pairs: Sequence[EncodedPair]) -> int:
    """Tokens of prompts and both responses, each prompt once."""
    return sum(len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs)


def group_weights(pairs: Sequence[EncodedPair]) -> list[float]:
    """Weight of each pair in a batch's mean: all pairs of one prompt together weigh as much as any other prompt; the weights sum to 1."""
    sizes = Counter(pair.group for pair in pairs)
    return [1.0 / (sizes[pair.group] * len(sizes)) for pair in pairs]


def hard_label(preference: float) -> float:
    """A soft label rounded; a tie stays one."""
    return 0.5 if preference == 0.5 else float(preference > 0.5)


def wilson_interval(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share, square = successes / n, z * z
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = z * math.sqrt(share * (1 - share) / n + square / (4 * n * n)) / (1 + square / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def agreement(margins: Sequence[float], preferences: Sequence[float]) -> tuple[float, int]:
    """Pairs whose margin has the sign of their label (a margin of 0 counts half), and how many have a label that is no tie."""
    decided = [(margin, preference) for margin, preference in zip(margins, preferences, strict=True) if preference != 0.5]
    hits = sum(0.5 if margin == 0 else float((margin > 0) == (preference > 0.5)) for margin, preference in decided)
    return hits, len(decided)


def length_baseline(pairs: Sequence[EncodedPair]) -> float:
    """Accuracy of always taking the longer response, in tokens; what every accuracy must be seen beside."""
    margins = [float(len(pair.chosen) - len(pair.rejected)) for pair in pairs]
    hits, n = agreement(margins, [pair.preference for pair in pairs])
    return hits / n if n else 0.5


def content_key(pairs: Sequence[EncodedPair], *more: str) -> str:
    """sha256 of pairs and anything else that a cached number depends on."""
    total = hashlib.sha256("\n".join(more).encode())
    for pair in pairs:
        total.update(repr((pair.prompt, pair.chosen, pair.rejected)).encode())
    return total.hexdigest()
