"""Several labels of a pair as their mean, whichever way round each was written."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from accord.data.merging import MeanLabels
from accord.data.records import PreferencePair
from accord.text.chat import Message
from accord.text.tasks import Task

PAIR = PreferencePair("p", Task.CONVERSATION, (Message("user", "How tall?"),), "30 m", "blue", group="g")


def turned(pair: PreferencePair) -> PreferencePair:
    human, gap = pair.human_preference, pair.rating_gap
    return replace(
        pair, chosen=pair.rejected, rejected=pair.chosen, preference=1 - pair.preference, human_preference=None if human is None else 1 - human,
        rating_gap=None if gap is None else -gap,
    )  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.booleans(), st.booleans()), min_size=2, max_size=6))
def test_the_mean_does_not_depend_on_what_a_label_calls_chosen(labels: list[tuple[float, bool, bool]]) -> None:
    rows = []
    for number, (preference, turn, person) in enumerate(labels):
        facts = {"annotator": f"a{number}", "reason": "so", "batch": "b1"}
        row = replace(
            PAIR, pair_id=f"p{number}", preference=preference, human_preference=preference if person else None, rating_gap=preference * 4, metadata=facts
        )  # fmt: skip
        rows.append(turned(row) if turn else row)
    mean = MeanLabels(rows)
    found = [mean.merged(row) for row in rows]
    assert found[1:] == [None] * (len(rows) - 1)
    merged = found[0]
    assert merged is not None
    wanted = sum(Fraction(preference) for preference, _, _ in labels) / len(labels)
    people = [Fraction(preference) for preference, _, person in labels if person]
    assert abs(merged.preference - float(max(wanted, 1 - wanted))) < 1e-12
    if merged.chosen != "30 m":
        merged = turned(merged)
    assert abs(merged.preference - float(wanted)) < 1e-12
    assert (merged.human_preference is None) == (not people)
    assert not people or abs((merged.human_preference or 0.0) - float(sum(people) / len(people))) < 1e-12
    assert merged.rating_gap is not None
    assert abs(merged.rating_gap - 4 * float(wanted)) < 1e-9
    assert merged.metadata == {"batch": "b1", "labels": str(len(labels))}
    assert merged.pair_id == "p0"


def test_what_is_said_of_a_response_goes_with_it() -> None:
    """The first of four people preferred what the others did not: their row comes round, and who wrote which response with it."""
    said = {"policy_chosen": "sup4", "policy_rejected": "ppo", "field_chosen": "one", "field_rejected": "two", "batch": "b1"}
    first = replace(PAIR, metadata=said)
    others = [replace(turned(PAIR), pair_id=f"p{n}", preference=1.0, metadata={"policy_chosen": "ppo", "policy_rejected": "sup4"}) for n in (1, 2, 3)]
    merged = MeanLabels([first, *others]).merged(first)
    assert merged is not None
    assert (merged.chosen, merged.preference) == ("blue", 0.75)
    assert merged.metadata == {
        "policy_chosen": "ppo", "policy_rejected": "sup4", "field_chosen": "two", "field_rejected": "one", "batch": "b1", "labels": "4",
    }  # fmt: skip
    agreeing = MeanLabels([first, first]).merged(first)
    assert agreeing is not None
    assert agreeing.metadata == {**said, "labels": "2"}


def test_pairs_of_one_label_stay_as_they_are() -> None:
    rows = [replace(PAIR, pair_id=f"p{n}", chosen=f"a{n}", preference=random.Random(n).random(), metadata={"annotator": "x"}) for n in range(20)]
    mean = MeanLabels(rows)
    assert [mean.merged(row) for row in rows] == rows
