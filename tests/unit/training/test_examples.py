"""The order in which a run sees its data, the weights of groups, and the account of rows that do not fit."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.data.agreement import wilson_interval
from accord.data.records import Demonstration, PreferencePair, Prompt, Text
from accord.errors import InvalidArgumentError
from accord.models.base import load_base_model
from accord.models.encoding import PromptEncoder
from accord.text.chat import Message
from accord.text.tasks import Task
from accord.training.examples import (
    EncodedPair,
    Limits,
    batch_at,
    encode_demonstrations,
    encode_pairs,
    encode_prompts,
    encode_texts,
    epoch_order,
    rows_from,
)
from accord.training.pairs import (
    agreement,
    batch_of_groups,
    group_weights,
    hard_label,
    hard_labelled,
    label_gap,
    length_baseline,
    micro_batches_of_pairs,
    read_ratings,
    spread_over_prompts,
    tokens_of,
)


def pair(n: int, *, group: str = "", preference: float = 1.0, chosen: int = 3, rejected: int = 2) -> EncodedPair:
    return EncodedPair(f"p{n}", group or f"g{n}", (1,) * (2 + n % 4), (5,) * chosen, (6,) * rejected, preference)


ROWS = [pair(n) for n in range(7)]


def ids(rows: list[EncodedPair]) -> list[str]:
    return [row.id for row in rows]


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(0, 40))
def test_a_batch_is_a_pure_function_of_seed_and_step(seed: int, size: int, step: int) -> None:
    """Whoever starts at a step sees what whoever came there sees: resuming needs no state."""
    stream = [row.id for at in range(step + 1) for row in batch_at(ROWS, at, size, seed)]
    assert ids(batch_at(ROWS, step, size, seed)) == stream[-size:]
    for epoch in range(len(stream) // len(ROWS)):
        assert sorted(stream[epoch * 7 : epoch * 7 + 7]) == sorted(ids(ROWS)), "each epoch has every row once"


def test_epochs_and_seeds_have_orders_of_their_own_and_the_files_order_does_not_matter() -> None:
    names = [f"row-{n}" for n in range(40)]
    orders = {(epoch, seed): [names[index] for index in epoch_order(names, epoch, seed)] for epoch in range(3) for seed in range(3)}
    assert len({tuple(order) for order in orders.values()}) == 9
    turned = names[::-1]
    assert [turned[index] for index in epoch_order(turned, 1, 2)] == orders[1, 2]
    assert epoch_order(["same", "same"], 0, 0) == [0, 1]


def test_an_order_is_made_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash for each row of the data at each step would take longer than the step."""
    from accord.training import examples

    made: list[int] = []
    monkeypatch.setattr(examples, "epoch_order", lambda keys, epoch, seed: (made.append(epoch), epoch_order(keys, epoch, seed))[1])
    rows = [pair(n) for n in range(1000, 1100)]
    stream = [row for step in range(50) for row in batch_at(rows, step, 5, 11)]
    assert made == [0, 1, 2]
    assert stream == rows_from(rows, 0, 250, 11)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_all_pairs_of_a_prompt_weigh_as_much_as_any_other_prompt(groups: list[str]) -> None:
    """Ouyang et al. 2022, section 3.5: the C(K, 2) pairs of a prompt are one element of the batch."""
    weights = group_weights([pair(n, group=group) for n, group in enumerate(groups)], Counter(groups))
    assert sum(weights) == pytest.approx(1)
    totals: Counter[str] = Counter()
    for group, weight in zip(groups, weights, strict=True):
        totals[group] += weight
    assert all(total == pytest.approx(1 / len(set(groups))) for total in totals.values())


def test_a_part_of_a_prompts_pairs_weighs_its_part() -> None:
    """Two of the six pairs of a prompt beside the only one of another: a third of an element beside a whole one, of 6/7 elements in three pairs."""
    weights = group_weights([pair(0, group="a"), pair(1, group="a"), pair(2, group="b")], {"a": 6, "b": 1})
    assert weights == pytest.approx([7 / 36, 7 / 36, 7 / 6])


@pytest.mark.parametrize("size", [1, 8, 36])
def test_over_an_epoch_a_prompt_with_36_pairs_weighs_as_much_as_one_with_a_single_pair(size: int) -> None:
    """Also where it fills whole batches: 36 pairs of one prompt and 36 prompts of one pair."""
    rows = [pair(n, group="many" if n < 36 else f"g{n}") for n in range(72)]
    sizes, totals, batches = Counter(row.group for row in rows), Counter[str](), 72 // size
    for step in range(batches):
        batch = batch_of_groups(rows, step, size, 5)
        for row, weight in zip(batch, group_weights(batch, sizes), strict=True):
            totals[row.group] += weight / batches
    assert len(totals) == 37
    assert list(totals.values()) == pytest.approx([1 / 37] * 37)


def test_pairs_for_statistics_are_of_all_prompts_alike() -> None:
    """Of a sorted file with 30 pairs of one prompt, 3 of another and one of a third."""
    rows = [pair(n, group="a" if n < 30 else "b" if n < 33 else "c") for n in range(34)]
    assert sorted(row.group for row in spread_over_prompts(rows, 3, 1)) == ["a", "b", "c"]
    assert Counter(row.group for row in spread_over_prompts(rows, 9, 1)) == {"a": 5, "b": 3, "c": 1}
    assert sorted(ids(spread_over_prompts(rows, 64, 1))) == sorted(ids(rows))
    assert ids(spread_over_prompts(rows, 9, 1)) == ids(spread_over_prompts(rows, 9, 1)) != ids(spread_over_prompts(rows, 9, 2))


@pytest.mark.parametrize("size", [1, 3, 4])
def test_pairs_of_a_prompt_come_together_once_an_epoch(size: int) -> None:
    rows = [pair(n, group="abcabcdae"[n]) for n in range(9)]
    stream = [each for step in range(36) for each in batch_of_groups(rows, step, size, 5)]
    orders = set()
    for epoch in range(36 * size // 9):
        part = stream[9 * epoch : 9 * epoch + 9]
        assert sorted(ids(part)) == sorted(ids(rows))
        runs = [group for group, _ in itertools.groupby(part, key=lambda each: each.group)]
        assert sorted(runs) == list("abcde"), "each prompt in one piece"
        orders.add(tuple(runs))
    assert len(orders) > 2


def test_where_each_prompt_has_one_pair_the_order_is_that_of_all_data() -> None:
    rows = [pair(n, group=f"prompt {n}") for n in range(20)]
    for step in range(8):
        assert ids(batch_of_groups(rows, step, 7, 3)) == ids(batch_at(rows, step, 7, 3))


@given(st.integers(1, 5), st.integers(1, 9))
def test_micro_batches_hold_each_pair_once(size: int, count: int) -> None:
    rows = [pair(n, chosen=1 + (5 * n) % 7) for n in range(count)]
    parts = micro_batches_of_pairs(rows, size)
    assert sorted(ids([each for part in parts for each in part])) == sorted(ids(rows))
    assert all(len(part) <= size for part in parts)
    assert tokens_of(rows) == sum(len(row.prompt) + len(row.chosen) + len(row.rejected) for row in rows)


@pytest.mark.parametrize(("soft", "hard"), [(0.0, 0.0), (0.3, 0.0), (0.5, 0.5), (0.51, 1.0), (1.0, 1.0)])
def test_hard_labels(soft: float, hard: float) -> None:
    assert hard_label(soft) == hard


def test_hard_labels_turn_pairs_round_and_leave_ties_out() -> None:
    """A run without soft labels must not learn the worse response, nor either of a tie."""
    from accord.training.examples import Encoded

    rows = (pair(0, preference=0.9), pair(1, preference=0.2), pair(2, preference=0.5), pair(3, preference=0.0))
    found = hard_labelled(Encoded(rows, Counter(), "read 4 of 4 rows"))
    assert found.rows == (
        replace(rows[0], preference=1.0),
        replace(rows[1], chosen=rows[1].rejected, rejected=rows[1].chosen, preference=1.0),
        replace(rows[3], chosen=rows[3].rejected, rejected=rows[3].chosen, preference=1.0),
    )
    assert found.account("pairs") == "read 4 of 4 rows; kept 3 of 4 pairs: 1 with a tie, which has no better response"


def test_agreement_counts_ties_of_the_model_half_and_ties_of_the_label_not_at_all() -> None:
    assert agreement([1.0, -1.0, 0.0, 5.0], [1.0, 1.0, 1.0, 0.5]) == (1.5, 3)
    assert agreement([-2.0], [0.1]) == (1.0, 1)
    assert agreement([], []) == (0.0, 0)


def test_the_length_baseline_takes_the_longer() -> None:
    rows = [
        pair(0, chosen=3, rejected=2),
        pair(1, chosen=2, rejected=3),
        pair(2, chosen=2, rejected=3, preference=0.0),
        pair(3, chosen=2, rejected=2),
    ]
    assert length_baseline(rows) == pytest.approx(2.5 / 4)
    assert length_baseline([]) == 0.5


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)]
)
def test_wilson_intervals(hits: float, n: int, low: float, high: float) -> None:
    """Wilson 1927; figures from the formula worked by hand."""
    assert wilson_interval(hits, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert wilson_interval(0, 0) == (0.0, 1.0)


def rated(preference: float, gap: float | None) -> EncodedPair:
    return replace(ROWS[0], preference=preference, rating_gap=gap)


@pytest.mark.parametrize(
    ("preference", "gap", "expected"),
    [(1.0, 2.0, 2.0), (0.7, -2.0, 0.0), (0.3, -2.0, 2.0), (0.3, 2.0, 0.0), (0.5, 2.0, 0.0), (0.5, -2.0, 0.0), (0.9, None, None)],
)
def test_a_gap_counts_in_the_direction_of_the_label(preference: float, gap: float | None, expected: float | None) -> None:
    pair = rated(preference, gap)
    assert label_gap(pair) == expected
    assert label_gap(pair.turned) == expected, "however the pair is written"


def test_ratings_as_margins_and_as_weights() -> None:
    """The rated pairs weigh 1 on average; those without ratings weigh 1 and have no margin."""
    pairs = [rated(1.0, 1.0), rated(0.2, -3.0), rated(1.0, None), rated(1.0, -5.0)]
    ratings = read_ratings(pairs, margin=0.5, weights=True, part="dpo")
    assert ratings.margins(pairs).tolist() == [0.5, 1.5, 0, 0]
    assert ratings.weights_of(pairs).tolist() == [0.75, 2.25, 1, 0]
    off = read_ratings(pairs, margin=0.0, weights=False, part="dpo")
    assert (off.margins(pairs).tolist(), off.weights_of(pairs).tolist()) == ([0] * 4, [1] * 4)


@pytest.mark.parametrize(
    ("gaps", "asked", "field", "words"),
    [
        ((None, None), {"margin": 0.5, "weights": False}, "dpo.rating_margin", "none of the 2 pairs has a rating_gap"),
        ((None, None), {"margin": 0.0, "weights": True}, "dpo.rating_weights", "none of the 2 pairs"),
        ((0.0, -1.0), {"margin": 0.0, "weights": True}, "dpo.rating_weights", "gaps of all 2 rated pairs are 0"),
    ],
)
def test_ratings_that_are_asked_for_must_be_there(gaps: tuple[float | None, ...], asked: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        read_ratings([rated(1.0, gap) for gap in gaps], part="dpo", **asked)
    assert caught.value.field == field


@pytest.fixture(scope="module")
def encoder(tiny_folder: Path) -> PromptEncoder:
    return load_base_model(str(tiny_folder)).encoder


def a_pair(prompt: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt[:20] + chosen[:5], Task.CONVERSATION, (Message("user", prompt),), chosen, rejected)


def test_what_is_too_long_is_counted_by_its_reason(encoder: PromptEncoder) -> None:
    limits = Limits(100, 20, 110)
    room = 95 - len(encoder.encode_empty_prompt())
    rows = [
        a_pair("a", "b", "c"), a_pair("x" * 200, "b", "c"), a_pair("a", "y" * 30, "c"), a_pair("a", "b", "z" * 30), a_pair("w" * room, "b" * 18, "c"),
    ]  # fmt: skip
    found = encode_pairs(encoder, rows, limits)
    assert [row.id for row in found.rows] == ["ab"]
    assert found.left_out == {
        "with a prompt over max_prompt_tokens 100": 1,
        "with a response over max_response_tokens 20": 2,
        "with prompt and response over the model's context of 110 tokens": 1,
    }
    assert found.account("pairs").startswith("kept 1 of 5 pairs: 1 with a prompt over max_prompt_tokens 100, 2 with a response")
    exact = Limits(len(found.rows[0].prompt), 2, len(found.rows[0].prompt) + 2)
    assert len(encode_pairs(encoder, rows[:1], exact).rows) == 1, "a limit is what is still allowed; the end of the turn counts"
    assert not encode_pairs(encoder, rows[:1], replace(exact, response=1)).rows
    assert not encode_pairs(encoder, rows[:1], replace(exact, prompt=exact.prompt - 1)).rows
    assert not encode_pairs(encoder, rows[:1], replace(exact, context=exact.context - 1)).rows


def test_nothing_left_says_why(encoder: PromptEncoder) -> None:
    found = replace(encode_pairs(encoder, [a_pair("x" * 200, "b", "c")], Limits(10, 10, 20)), source="read 1 of 3 rows (2 not JSON)")
    with pytest.raises(
        InvalidArgumentError, match=r"read 1 of 3 rows \(2 not JSON\); kept 0 of 1 pairs: 1 with a prompt over .* nothing is left"
    ) as error:
        found.at_least_one("pairs", "dpo.data")
    assert error.value.field == "dpo.data"


def test_demonstrations_prompts_and_texts(encoder: PromptEncoder) -> None:
    turn = (Message("user", "hello"),)
    shown = encode_demonstrations(encoder, [Demonstration("d", Task.CONVERSATION, turn, "hi")], Limits(100, 10, 200)).rows[0]
    asked = encode_prompts(encoder, [Prompt("p", Task.CONVERSATION, turn)], Limits(100, 10, 200)).rows[0]
    assert shown.prompt == asked.prompt == tuple(encoder.encode_prompt(turn))
    assert shown.response == (*encoder.encode_response("hi", append_eos=False), encoder.end_of_turn_id)
    room = encode_prompts(encoder, [Prompt("p", Task.CONVERSATION, turn)], Limits(100, 10, len(asked.prompt) + 9))
    assert room.left_out == {f"with prompt and response over the model's context of {len(asked.prompt) + 9} tokens": 1}
    texts = encode_texts(encoder, [Text("t", "abcdef"), Text("u", "x")], 4)
    assert [(len(row.prompt), len(row.response)) for row in texts.rows] == [(1, 3)]
    assert texts.left_out == {"shorter than 2 tokens": 1}


class Refusing:
    """A tokenizer whose template wants roles to alternate, as some do."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder

    def encode_prompt(self, messages: tuple[Message, ...]) -> list[int]:
        if len(messages) > 1 and messages[-2].role == "user":
            raise InvalidArgumentError("the model's chat template refuses the conversation: roles must alternate", field="messages")
        return self._encoder.encode_prompt(messages)

    def encode_response(self, text: str, *, append_eos: bool) -> list[int]:
        return self._encoder.encode_response(text, append_eos=append_eos)


def test_a_conversation_that_the_template_refuses_is_counted_and_not_the_end(encoder: PromptEncoder) -> None:
    twice = (Message("user", "a"), Message("user", "b"))
    rows = [Prompt("p", Task.CONVERSATION, twice), Prompt("q", Task.CONVERSATION, twice[1:])]
    found = encode_prompts(Refusing(encoder), rows, Limits(100, 10, 200))  # type: ignore[arg-type]
    assert [row.id for row in found.rows] == ["q"]
    assert found.left_out == {"refused (the model's chat template refuses the conversation: roles must alternate)": 1}
