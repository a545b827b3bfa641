"""Attacks and their twins: what is made of a pair, and that the same is made again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from accord.client.feedback import LabelPairItem
from accord.feedback.attacks import ATTACKS, PLACEMENTS, Side, is_twin, make_twins, twin, twin_of
from accord.text.chat import Message
from accord.text.judge import fenced
from accord.text.tasks import Task

PAIR = LabelPairItem(Task.SUMMARIZATION, (Message("user", "a post"),), "the better one", "the worse one", "p:1/x", 0.9)


def lost(count: int) -> list[tuple[LabelPairItem, Side]]:
    return [(replace(PAIR, pair_id=f"p{number}"), "b" if number % 3 else "a") for number in range(count)]


def test_there_are_enough_of_them_and_each_has_its_name() -> None:
    assert len(ATTACKS) >= 25
    assert len({(attack.family, attack.name) for attack in ATTACKS}) == len(ATTACKS)
    assert {attack.family for attack in ATTACKS} >= {
        "fake verdict", "json rank", "closing delimiter", "command", "role tag", "control token", "invisible text", "markdown", "look-alike",
        "encoded", "fake rubric", "fake example", "flattery", "threat",
    }  # fmt: skip
    assert not [attack for attack in ATTACKS if {"/", ":"} & set(attack.family + attack.name)], "they would not come back from an id"


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.family}-{attack.name}")
def test_an_attack_is_written_out_for_its_task_and_number(attack: object) -> None:
    texts = {attack.written(number, task) for number in (1, 2) for task in Task}  # type: ignore[attr-defined]
    assert texts
    assert not [text for text in texts if "{n}" in text or "{noun}" in text or "{other}" in text or "{Noun}" in text or not text]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.family}-{attack.name}")
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_twin_differs_from_its_pair_in_the_losing_response_alone(attack: object, placement: str) -> None:
    made = twin(PAIR, "b", attack, placement, 2)  # type: ignore[arg-type]
    text = attack.written(2, Task.SUMMARIZATION)  # type: ignore[attr-defined]
    assert (made.response_a, made.messages, made.task) == (PAIR.response_a, PAIR.messages, PAIR.task)
    assert made.human_preference is None
    before, response, after = made.response_b.partition(PAIR.response_b)
    assert response == PAIR.response_b
    assert (before, after) == {"prefix": (f"{text} ", ""), "suffix": ("", f" {text}"), "line": ("", f"\n{text}")}[placement]
    control = twin(PAIR, "b", attack, placement, 2, "control")  # type: ignore[arg-type]
    assert len(control.response_b) == len(made.response_b)
    assert text not in control.response_b
    assert made.pair_id != control.pair_id


def test_an_id_says_what_was_done() -> None:
    made = twin(PAIR, "b", ATTACKS[3], "line", 1, "control")
    found = twin_of(made.pair_id)
    assert is_twin(made.pair_id)
    assert (found.addition, found.family, found.name, found.placement, found.side, found.pair_id) == (
        "control", ATTACKS[3].family, ATTACKS[3].name, "line", "b", "p:1/x",
    )  # fmt: skip
    assert found.id == made.pair_id
    for other in ("p1", "accord-twin:", "accord-twin:attack:x/y/line:c:p", "accord-twin:attack:x/line:a:p", "x" + made.pair_id):
        with pytest.raises(ValueError, match="twin"):
            twin_of(other)


def test_equal_arguments_give_equal_twins_and_another_seed_others() -> None:
    first, again, other = (make_twins(lost(7), 120, seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(("pairs", "count"), [(1, 50), (7, 120), (40, 120), (120, 100), (11, 500)])
def test_every_attack_takes_its_turn_and_no_twin_comes_twice(pairs: int, count: int) -> None:
    made = make_twins(lost(pairs), count, 3)
    found = [twin_of(item.pair_id) for item in made]
    assert len({item.pair_id for item in made}) == len(made) == 2 * count
    assert [item.addition for item in found] == ["attack", "control"] * count
    assert [(item.name, item.pair_id) for item in found[::2]] == [(item.name, item.pair_id) for item in found[1::2]]
    attacks = Counter((item.family, item.name) for item in found[::2])
    assert len(attacks) == min(count, len(ATTACKS))
    assert max(attacks.values()) - min(attacks.values()) <= 1
    sides = dict((pair.pair_id, side) for pair, side in lost(pairs))
    assert all(item.side == sides[item.pair_id] for item in found)
    used = Counter(item.pair_id for item in found[::2])
    assert max(used.values()) - min(used.values()) <= 1


def test_there_are_no_more_than_there_can_be() -> None:
    assert len(make_twins(lost(1), 10_000, 0)) == 2 * len(ATTACKS) * len(PLACEMENTS)
    assert make_twins([], 10, 0) == []


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.family}-{attack.name}")
def test_no_attack_leaves_its_quotation(attack: object) -> None:
    for placement in PLACEMENTS:
        for line in fenced(twin(PAIR, "b", attack, placement, 1).response_b).splitlines():  # type: ignore[arg-type]
            assert line.startswith(">")
            assert "<|" not in line
            assert "###" not in line
