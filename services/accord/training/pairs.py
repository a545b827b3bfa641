"""Preference pairs as runs of reward models and DPO use them: reading, batches, weights of groups, metrics on held-out pairs."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from accord.data.readers import read_pairs
from accord.runspec import DataSpec
from accord.training.context import RunContext
from accord.training.examples import Encoded, EncodedPair, encode_pairs


def read_encoded_pairs(context: RunContext, data: DataSpec, *, ordered: bool = False) -> tuple[Encoded[EncodedPair], str]:
    """Pairs of a data set within the run's limits, and the data's digest; the account goes to the run's messages.

    With `ordered`, as `better_first` gives them.
    """
    spec = context.spec
    found = read_pairs(data.uri, format=data.format, split=data.split, limit=data.limit, strict=data.strict, seed=spec.seed)
    encoded = replace(encode_pairs(context.base.encoder, found.rows, context.limits), source=found.report.account())
    encoded = better_first(encoded) if ordered else encoded
    context.events.message(f"{data.uri} ({data.split}): {encoded.account('pairs')}")
    return encoded, found.report.digest


def better_first(encoded: Encoded[EncodedPair]) -> Encoded[EncodedPair]:
    """The pairs for a loss without soft labels: the better response as chosen with preference 1; ties, which have none, left out."""
    kept = []
    left_out = Counter(encoded.left_out)
    for pair in encoded.rows:
        if pair.preference == 0.5:
            left_out["with a tie, for which this loss has no place"] += 1
        elif pair.preference > 0.5:
            kept.append(replace(pair, preference=1.0))
        else:
            kept.append(replace(pair, chosen=pair.rejected, rejected=pair.chosen, preference=1.0))
    return Encoded(tuple(kept), left_out, encoded.source)


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
