"""2,000 pairs by a judge whose faults are known, through a label job: the card finds each of them, and both orders take the position's away.

Of the pairs, 5 % get garbage for an answer; of the others, 30 % are judged by position alone (whatever is shown first), and the rest by
content: 40 % of these by length, the others as people do in 80 % of the cases. Each draw is the pair's own, so that both orders agree on it.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.feedback.fakes import FakePolicy

from accord.client.feedback import Judge, LabelJobSpec, LabelPairItem
from accord.client.label_cards import Kappa, LabelCard, Share
from accord.data.records import PreferencePair
from accord.data.writers import write_pairs
from accord.feedback.cards import make_cards
from accord.feedback.jobs import LabelJobs
from accord.feedback.records import Origin
from accord.text.chat import Message
from accord.text.tasks import Task

PAIRS, REPEATS = 2000, 400
GARBAGE, POSITION, LENGTH, RIGHT, CONFIDENCE, FICKLE = 0.05, 0.3, 0.4, 0.8, 0.9, 0.1
_FIRST = re.compile(r"### Response 1\n> pair (\d+): (better|worse)\S* (w*)", re.DOTALL)
_SECOND = re.compile(r"### Response 2\n> pair (\d+): (better|worse)\S* (w*)", re.DOTALL)


def drawn(number: int, what: str) -> float:
    """A number in [0, 1) that is the pair's own."""
    return random.Random(f"{what} {number}").random()


def pairs() -> list[PreferencePair]:
    """Pairs whose better response, by people, is the longer one in half of the cases."""
    made = []
    for number in range(PAIRS):
        lengths = sorted((10 + int(40 * drawn(number, "short")), 60 + int(40 * drawn(number, "long"))), reverse=drawn(number, "which") < 0.5)
        better, worse = (f"pair {number}: {name} {'w' * length}" for name, length in zip(("better", "worse"), lengths, strict=True))
        made.append(PreferencePair(f"p{number}", Task.CONVERSATION, (Message("user", f"question {number}"),), better, worse, human_preference=1.0))
    return made


class ScriptedJudge(FakePolicy):
    """The judge of this file; asked the very same a second time, it takes the other response of one pair in ten."""

    def __init__(self) -> None:
        super().__init__(write=lambda prompt: "" if drawn(number_of(prompt), "garbage") < GARBAGE else "One of them is to be preferred.")
        self.seen: Counter[tuple[str, str]] = Counter()
        self.logprob_of = self._logprob

    def _logprob(self, shown: str, text: str) -> float:
        self.seen[shown, text] += 1
        first = self._takes_first(shown, again=self.seen[shown, text] > 1)
        return math.log(CONFIDENCE if first == text.endswith("1") else 1 - CONFIDENCE)

    def _takes_first(self, shown: str, *, again: bool) -> bool:
        first, second = _FIRST.search(shown), _SECOND.search(shown)
        assert first is not None
        assert second is not None
        number = int(first.group(1))
        if drawn(number, "position") < POSITION:
            return True
        if drawn(number, "length") < LENGTH:
            takes = len(first.group(3)) > len(second.group(3))
        else:
            takes = (first.group(2) == "better") == (drawn(number, "right") < RIGHT)
        return takes != (again and drawn(number, "fickle") < FICKLE)


def number_of(prompt: str) -> int:
    found = _FIRST.search(prompt)
    assert found is not None
    return int(found.group(1))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planted") / "pairs.jsonl"
    write_pairs(path, pairs())
    return path


@pytest.fixture
async def label_all(make_bench: Any, data: Path, tmp_path: Path) -> AsyncIterator[Any]:
    """A function that runs a job over all pairs and returns its card and the bench."""
    bench = make_bench(ScriptedJudge(), concurrency=4, batch_pairs=64, max_queue_pairs=4096)
    jobs = LabelJobs(bench.labeller, bench.ledger, bench.config)

    async def run(name: str, **options: Any) -> LabelCard:
        judge = Judge("verdict", rationale=True, **options)
        spec = LabelJobSpec(name, str(data), Task.CONVERSATION, str(tmp_path / name), judge=judge, seed=1, repeats=REPEATS)
        await jobs.create(spec)
        async for job in jobs.watch(f"labelJobs/{name}"):
            last = job
        assert (last.state, last.message, last.done_pairs, last.total_pairs) == ("succeeded", "", PAIRS, PAIRS)
        (card,) = make_cards(bench.ledger.labels(job=f"labelJobs/{name}"), bench.ledger.pair_texts)
        return card

    run.bench = bench  # type: ignore[attr-defined]
    yield run
    await jobs.close()


def holds(share: Share | Kappa | None, planted: float) -> bool:
    assert share is not None
    return share.low <= planted <= share.high


async def test_the_card_recovers_each_planted_bias(label_all: Any) -> None:
    card = await label_all("both")
    by_content = (1 - GARBAGE) * (1 - POSITION)
    assert card.pairs == PAIRS
    assert card.human_agreement.n == pytest.approx(PAIRS * by_content, abs=80)  # positions cancel to a tie, garbage abstains
    assert holds(card.human_agreement, LENGTH * 0.5 + (1 - LENGTH) * RIGHT)
    assert holds(card.length_baseline, 0.5)
    assert holds(card.longer_preferred, LENGTH + (1 - LENGTH) * 0.5)
    assert holds(card.first_preferred, POSITION + (1 - POSITION) * 0.5)
    assert holds(card.same_position_after_swap, POSITION)
    right = LENGTH * 0.5 + (1 - LENGTH) * RIGHT  # chance: people take either response in half of the pairs, the judge in (1 - POSITION) / 2
    observed, chance = (1 - POSITION) * right, (1 - POSITION) / 2
    assert holds(card.kappa, (observed - chance) / (1 - chance))
    assert card.abstentions.keys() == {"empty answer"}
    garbage = card.abstentions["empty answer"] / PAIRS
    assert abs(garbage - GARBAGE) < 1.96 * math.sqrt(GARBAGE * (1 - GARBAGE) / PAIRS)
    assert card.repeat_consistency.n == pytest.approx(REPEATS * (1 - GARBAGE), abs=15)
    assert holds(card.repeat_consistency, 1 - FICKLE * (1 - POSITION))
    assert card.calibration_error == pytest.approx((1 - POSITION) * abs(CONFIDENCE - card.human_agreement.value), abs=0.02)
    (even, sure) = card.reliability
    assert (even.confidence, even.accuracy.value, sure.confidence) == (0.5, 0.5, pytest.approx(CONFIDENCE))
    assert holds(sure.accuracy, LENGTH * 0.5 + (1 - LENGTH) * RIGHT)
    assert any("surer than it is right" in note for note in card.notes)
    assert all(
        found.judge_takes.startswith("pair") and ": worse" in found.judge_takes and ": better" in found.people_take for found in card.disagreements
    )


async def test_both_orders_take_the_preference_for_a_position_away(label_all: Any) -> None:
    both, one = await label_all("both"), await label_all("one", both_orders=False)
    labels = {name: label_all.bench.ledger.labels(job=f"labelJobs/{name}") for name in ("both", "one")}
    takes_a = {name: [float(each.outcome == "a") for each in labels[name] if each.outcome in ("a", "b")] for name in labels}
    shares = {name: sum(found) / len(found) for name, found in takes_a.items()}
    assert abs(shares["both"] - 0.5) < 3 * 0.5 / math.sqrt(len(takes_a["both"]))
    assert abs(shares["one"] - (POSITION + (1 - POSITION) / 2)) < 3 * 0.5 / math.sqrt(len(takes_a["one"]))
    right = LENGTH * 0.5 + (1 - LENGTH) * RIGHT
    assert holds(one.human_agreement, POSITION * 0.5 + (1 - POSITION) * right)
    assert one.human_agreement.high < both.human_agreement.value
    assert any("in one order only" in note for note in one.notes)
    assert one.cached_judgements == PAIRS + REPEATS  # A first was asked for already, the second time too


async def test_the_other_way_round_is_exactly_one_less(label_all: Any) -> None:
    bench = label_all.bench
    items = [LabelPairItem(pair.task, pair.messages, pair.chosen, pair.rejected, pair.pair_id) for pair in pairs()]
    swapped = [replace(item, response_a=item.response_b, response_b=item.response_a) for item in items]
    plan = await bench.labeller.plan(bench.labeller.settings(Judge("verdict", rationale=True)))
    there = await bench.labeller.label_many(items, plan, Origin("there"))
    back = await bench.labeller.label_many(swapped, plan, Origin("back"))
    decided = [(ab.preference, ba.preference) for ab, ba in zip(there, back, strict=True) if ab.outcome != "abstain"]
    assert len(decided) == pytest.approx(PAIRS * (1 - GARBAGE), abs=60)
    assert all(ab == 1.0 - ba for ab, ba in decided)
    assert all((ab.outcome == "abstain") == (ba.outcome == "abstain") for ab, ba in zip(there, back, strict=True))
    assert len(set(bench.policy.asked)) == len(bench.policy.asked)  # nothing was asked twice
