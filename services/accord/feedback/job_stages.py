"""What a label job has judged, stage by stage. A stage begins when the one before has ended, and what it asks for follows from the data and the
ledger alone, so that a restart finds the same.

A new kind of pair to judge is a function here and a place in `STAGES`. What does not belong here: judging (`accord.feedback.job_run`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from accord.client.feedback import LabelJobSpec, LabelPairItem
from accord.data.records import PreferencePair
from accord.feedback.attacks import Side, make_twins
from accord.feedback.job_data import shown_pair
from accord.feedback.labeller import Plan
from accord.feedback.ledger import Ledger
from accord.feedback.repeats import repeat_of


@dataclass(frozen=True, slots=True)
class JobWork:
    """What a stage works on: the job's name and options, the pairs of its data, who judges them and how, and what is labelled already."""

    name: str
    spec: LabelJobSpec
    pairs: tuple[PreferencePair, ...]
    plan: Plan
    ledger: Ledger


Asked = tuple[LabelPairItem, Plan]


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage. `asked` gives pairs with how they are to be judged; it is called in a thread, and those that have a label in this job are left out.

    `name` is what is said of them while they are judged, empty for the pairs of the data, which are counted anyhow.
    """

    name: str
    asked: Callable[[JobWork], Iterator[Asked]]


def pairs_of_the_data(work: JobWork) -> Iterator[Asked]:
    """Every pair of the data."""
    return ((shown_pair(pair, work.spec.seed), work.plan) for pair in work.pairs)


def attacked_twins(work: JobWork) -> Iterator[Asked]:
    """Twins of decided pairs with an attack in the response that lost, and their harmless controls, as many as the job asks for."""
    if not work.spec.attacks:
        return iter(())
    decided = [label for label in work.ledger.labels(job=work.name) if label.outcome in ("a", "b")]
    sides: dict[str, Side] = {label.pair_id: "b" if label.outcome == "a" else "a" for label in decided}
    lost = [(shown_pair(pair, work.spec.seed), sides[pair.pair_id]) for pair in work.pairs if pair.pair_id in sides]
    return ((twin, work.plan) for twin in make_twins(lost, work.spec.attacks, work.spec.seed))


def repeated_pairs(work: JobWork) -> Iterator[Asked]:
    """As many of the data's first pairs as the job asks for, once more."""
    again = replace(work.plan, settings=replace(work.plan.settings, repeat=1))
    return ((repeat_of(shown_pair(pair, work.spec.seed)), again) for pair in work.pairs[: work.spec.repeats])


STAGES: tuple[Stage, ...] = (
    Stage("", pairs_of_the_data),
    Stage("pairs a second time", repeated_pairs),
    Stage("attacked twins and their controls", attacked_twins),
)
