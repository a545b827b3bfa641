"""Preference pairs as runs of reward models and DPO use them: reading, passes, weights of groups and ratings, metrics on held-out pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from accord.data.agreement import Estimate
from accord.data.files import shown
from accord.data.intervals import share_of_sums
from accord.data.readers import read_pairs
from accord.data.records import LABEL_JOB
from accord.errors import InvalidArgumentError
from accord.runspec_parts import DataSpec
from accord.training.context import RunContext
from accord.training.examples import Encoded, EncodedPair, batch_at, encode_pairs, rows_from


def read_encoded_pairs(context: RunContext, data: DataSpec, *, hard: bool = False) -> tuple[Encoded[EncodedPair], str]:
    """Pairs of a data set within the run's limits, and the data's digest; the account goes to the run's messages.

    With `hard`, as `hard_labelled` gives them.
    """
    spec = context.spec
    found = read_pairs(data.uri, format=data.format, split=data.split, limit=data.limit, strict=data.strict, seed=spec.seed)
    label_jobs = tuple(sorted({row.metadata[LABEL_JOB] for row in found.rows if LABEL_JOB in row.metadata}))
    encoded = replace(encode_pairs(context.base.encoder, found.rows, context.limits), source=found.report.account(), label_jobs=label_jobs)
    encoded = hard_labelled(encoded) if hard else encoded
    context.events.message(f"{shown(data.uri)} ({data.split}): {encoded.account('pairs')}")
    return encoded, found.report.digest


def unseen(pairs: Sequence[EncodedPair], trained: Sequence[EncodedPair]) -> tuple[EncodedPair, ...]:
    """Those of `pairs` whose prompt, token by token, is none that `trained` has: what a model says of the others it may know by heart."""
    known = {pair.prompt for pair in trained}
    return tuple(pair for pair in pairs if pair.prompt not in known)


def hard_labelled(encoded: Encoded[EncodedPair]) -> Encoded[EncodedPair]:
    """The pairs with their labels rounded: the better response as chosen with preference 1; ties, which have none, left out."""
    kept = []
    left_out = Counter(encoded.left_out)
    for pair in encoded.rows:
        if pair.preference == 0.5:
            left_out["with a tie, which has no better response"] += 1
        else:
            kept.append(replace(pair if pair.preference > 0.5 else pair.turned, preference=1.0))
    return replace(encoded, rows=tuple(kept), left_out=left_out)


def passes(context: RunContext, pairs: Sequence[EncodedPair], size: int = 0) -> list[list[EncodedPair]]:
    """The pairs of each pass over the model, alike lengths together: `size` of them, or as many as `pairs_a_pass`."""
    return micro_batches_of_pairs(pairs, size or pairs_a_pass(context))


def pairs_a_pass(context: RunContext) -> int:
    """Most pairs in a pass that makes logprobs: one on a CPU, elsewhere micro_batch_size.

    Alone no bit of a pair's logprobs depends on its neighbours: cached reference logprobs are then those that any run would compute, and a policy
    that has not moved has margins of exactly 0. Reward models, which compare with nothing that was kept, use micro_batch_size everywhere.
    """
    return 1 if torch.device(context.base.device).type == "cpu" else context.micro_batch_size


def micro_batches_of_pairs(pairs: Sequence[EncodedPair], size: int) -> list[list[EncodedPair]]:
    """Pairs in parts of at most `size`, alike lengths together."""
    ordered = sorted(pairs, key=lambda pair: len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)))
    return [list(ordered[start : start + size]) for start in range(0, len(ordered), size)]


def tokens_of(pairs: Sequence[EncodedPair]) -> int:
    """Tokens of prompts and both responses, each prompt once."""
    return sum(len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs)


def group_sizes(pairs: Sequence[EncodedPair]) -> Counter[str]:
    """Pairs of each prompt in a data set, by group."""
    return Counter(pair.group for pair in pairs)


def batch_of_groups(pairs: Sequence[EncodedPair], step: int, batch_size: int, seed: int) -> list[EncodedPair]:
    """As `examples.batch_at`, the pairs of a prompt one after the other, so that they share a batch as far as it reaches.

    Ouyang et al. 2022 (arXiv:2203.02155), section 3.5: where each of them comes in another step, a reward model sees a prompt as often in one epoch,
    and overfits. Where every prompt has one pair, the order is that of `batch_at`.
    """
    first: dict[str, str] = {}
    for pair in pairs:
        first.setdefault(pair.group, pair.id)
    return batch_at(pairs, step, batch_size, seed, key=lambda pair: first[pair.group])


def group_weights(pairs: Sequence[EncodedPair], sizes: Mapping[str, int]) -> list[float]:
    """Weight of each pair in the loss of a batch: all pairs of a prompt together weigh as much as any other prompt, however batches cut them.

    A pair is one over its prompt's pairs of an element, and an element weighs one over how many of them a batch of this size has on average, a
    constant. Were it what the batch at hand has, a prompt that fills a batch alone would weigh as much as all prompts of another one together.

    Args:
        pairs: the batch.
        sizes: pairs of each prompt in the data, by group.

    Returns: weights that sum to 1 on average over an epoch, and in each batch where all prompts have as many pairs.
    """
    elements = len(pairs) * len(sizes) / sum(sizes.values())
    return [1.0 / (sizes[pair.group] * elements) for pair in pairs]


def spread_over_prompts(pairs: Sequence[EncodedPair], count: int, seed: int) -> list[EncodedPair]:
    """At most `count` pairs of as many prompts as there are: in an order by the seed, first one of each prompt, then a second one, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for pair in rows_from(pairs, 0, len(pairs), seed):
        ranked.append((seen[pair.group], pair))
        seen[pair.group] += 1
    return [pair for _, pair in sorted(ranked, key=lambda each: each[0])[:count]]


def hard_label(preference: float) -> float:
    """A soft label rounded; a tie stays one."""
    return 0.5 if preference == 0.5 else float(preference > 0.5)


def agreement(margins: Sequence[float], preferences: Sequence[float]) -> tuple[float, int]:
    """Pairs whose margin has the sign of their label (a margin of 0 counts half), and how many have a label that is no tie."""
    decided = [(margin, preference) for margin, preference in zip(margins, preferences, strict=True) if preference != 0.5]
    hits = sum(0.5 if margin == 0 else float((margin > 0) == (preference > 0.5)) for margin, preference in decided)
    return hits, len(decided)


def agreement_estimate(margins: Sequence[float], pairs: Sequence[EncodedPair]) -> Estimate:
    """The share of `agreement` with its interval, which draws prompts, each with all of its pairs; one half in [0, 1] where every label is a tie."""
    sums: dict[str, tuple[float, int]] = {}
    for margin, pair in zip(margins, pairs, strict=True):
        hits, count = agreement([margin], [pair.preference])
        known = sums.get(pair.group, (0.0, 0))
        sums[pair.group] = known[0] + hits, known[1] + count
    decided = [own for own in sums.values() if own[1]]
    return share_of_sums(decided, sum(count for _, count in decided)) or Estimate(0.5, 0.0, 1.0, 0)


def toward_labels(margins: Sequence[float], preferences: Sequence[float]) -> list[float]:
    """The margins of the responses that the labels prefer over the others (of a tie, as it is)."""
    return [margin if preference >= 0.5 else -margin for margin, preference in zip(margins, preferences, strict=True)]


def length_baseline(pairs: Sequence[EncodedPair]) -> float:
    """Accuracy of always taking the longer response, in tokens; what every accuracy must be seen beside."""
    margins = [float(len(pair.chosen) - len(pair.rejected)) for pair in pairs]
    hits, n = agreement(margins, [pair.preference for pair in pairs])
    return hits / n if n else 0.5


@dataclass(frozen=True, slots=True)
class Ratings:
    """How rating gaps count in a loss.

    A gap is taken in the label's direction and at least 0: ratings that contradict the label, and those of a tie, ask for nothing. As a margin it
    counts `margin` times (Touvron et al. 2023, arXiv:2307.09288, eq. 2; Amini et al. 2024, arXiv:2402.10571); with `weights`, a pair weighs its
    gap over `mean_gap`. Pairs without ratings have margin 0 and weight 1.
    """

    margin: float = 0.0
    weights: bool = False
    mean_gap: float = 1.0

    def margins(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """The margin that the loss of each pair asks for, (pairs,)."""
        return torch.tensor([self.margin * (label_gap(pair) or 0.0) for pair in pairs])

    def weights_of(self, pairs: Sequence[EncodedPair]) -> Tensor:
        """What each pair's loss is multiplied by, (pairs,); 1 on average over the rated pairs of the data."""
        gaps = [label_gap(pair) if self.weights else None for pair in pairs]
        return torch.tensor([1.0 if gap is None else gap / self.mean_gap for gap in gaps])


def label_gap(pair: EncodedPair) -> float | None:
    """How much better the response that the label prefers is rated, at least 0; None where the pair has no ratings."""
    if pair.rating_gap is None:
        return None
    direction = (pair.preference > 0.5) - (pair.preference < 0.5)
    return max(0.0, direction * pair.rating_gap)


def read_ratings(pairs: Sequence[EncodedPair], *, margin: float, weights: bool, part: str) -> Ratings:
    """How the ratings of a run's pairs count. `part` is the specification's, for messages.

    Raises:
        InvalidArgumentError: ratings are asked for and no pair has any, or weights are and all gaps are 0.
    """
    if not margin and not weights:
        return Ratings()
    gaps = [gap for gap in map(label_gap, pairs) if gap is not None]
    field = f"{part}.rating_margin" if margin else f"{part}.rating_weights"
    if not gaps:
        reason = f"none of the {len(pairs)} pairs has a rating_gap, a margin, or a rating of each response"
        raise InvalidArgumentError(f"{field} needs ratings: {reason}", field=field)
    mean = math.fsum(gaps) / len(gaps)
    if weights and mean == 0:
        raise InvalidArgumentError(f"{part}.rating_weights: the gaps of all {len(gaps)} rated pairs are 0: there is nothing to weigh by", field=field)
    return Ratings(margin, weights, mean or 1.0)
