"""A label job whose server is killed at random, five times (three for all but plain verdicts) and at depth twenty: every judgement once in the
ledger, none lost, and none bought twice but those that a judge had answered when the server that had asked died.
"""

from __future__ import annotations

import json
import math
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.entries import feedback_config
from tests.contract.fake_judge import FakeJudge
from tests.contract.harness import ServerProcess, eventually
from tests.unit.feedback.fakes import FakePolicy

from accord.client.feedback import Candidates, FeedbackClient, Judge, LabelJob, LabelJobSpec
from accord.data.readers import read_pairs
from accord.data.records import PreferencePair
from accord.data.writers import write_pairs
from accord.rpc.channels import ChannelConfig
from accord.text.chat import Message
from accord.text.tasks import Task

CALLS, A_CALL = 3, 4
CONFIG = {"concurrency": CALLS, "batch_pairs": A_CALL}
TASK = Task.CONVERSATION


def likes_plain(shown: str, text: str) -> float:
    """A judge that is sure of the response that begins with `plain`, wherever it is shown."""
    plain_first = shown.index("plain answer") < shown.index("another one,")
    return math.log(0.9 if plain_first == text.endswith("1") else 0.1)


def larger() -> FakePolicy:
    policy = FakePolicy(base="base-2")
    policy.logprob_of = likes_plain
    return policy


@dataclass(frozen=True)
class Method:
    """A way of judging: who answers (`default` first), the judges over them, how they are asked, and what is asked of each about a pair.

    `unsure` pairs, every second one, are those that the first judge cannot tell; `asked` is the number of questions of an even and of an odd pair.
    """

    judge: Judge = field(default_factory=lambda: Judge("verdict"))
    policies: Mapping[str, Callable[[], FakePolicy]] = field(default_factory=lambda: {"default": lambda: FakePolicy(bias=0.5)})
    judges: Mapping[str, Any] = field(default_factory=dict)
    pairs_a_kill: int = 40
    asked: tuple[int, int] = (2, 2)
    unsure: bool = False
    candidates: Candidates | None = None

    def questions(self, pairs: int) -> int:
        """What is asked of all judges together."""
        return self.asked[0] * ((pairs + 1) // 2) + self.asked[1] * (pairs // 2)


METHODS = {
    "verdict": Method(),
    "ensemble": Method(
        Judge("verdict", name="both"),
        {"default": lambda: FakePolicy(bias=0.5), "second": lambda: FakePolicy(bias=-0.5, base="base-2")},
        {"both": {"kind": "ensemble", "members": ["default", "second"]}}, pairs_a_kill=20, asked=(4, 4),
    ),
    "escalation": Method(
        Judge("verdict", name="careful"),
        {"default": lambda: FakePolicy(bias=0.5), "second": larger},
        {"careful": {"kind": "escalation", "first": "default", "then": "second", "threshold": 0.1}}, pairs_a_kill=30, asked=(2, 4), unsure=True,
    ),
    "self-consistency": Method(
        Judge("verdict", rationale=True, max_rationale_tokens=64, consistency_samples=2),
        {"default": lambda: FakePolicy(bias=0.5, write=lambda prompt: "I weigh them.", seeded=True)}, pairs_a_kill=20, asked=(4, 4),
    ),
    "candidates": Method(policies={"default": lambda: FakePolicy(bias=0.5, write=lambda prompt: "good", seeded=True)}, candidates=Candidates()),
}  # fmt: skip


class Judges:
    """The judges of a method, each with a server of its own."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.running = {name: FakeJudge(make(), latency_seconds=0.03) for name, make in method.policies.items()}

    @property
    def answered(self) -> list[str]:
        return [f"{name}: {asked}" for name, judge in self.running.items() for asked in judge.answered]

    @property
    def written(self) -> list[tuple[str, int | None]]:
        return [text for judge in self.running.values() for text in judge.written]

    @property
    def done(self) -> int:
        """Questions answered and texts written."""
        return sum(len(judge.answered) + len(judge.written) for judge in self.running.values())

    def hold_after(self, more: int) -> None:
        """Each judge answers so many more, and those in flight with them, and then waits: a job does not end before its server is killed."""
        for judge in self.running.values():
            judge.hold_after(len(judge.answered) + more + CALLS * A_CALL)

    def release(self) -> None:
        for judge in self.running.values():
            judge.release()

    @property
    def at_rest(self) -> bool:
        return all(judge.waiting == 0 and judge.finished + judge.cancelled == judge.calls for judge in self.running.values())

    @property
    def in_flight(self) -> int:
        """Most questions that can be lost at once."""
        return len(self.running) * CALLS * A_CALL

    def start(self, folder: Path) -> ServerProcess:
        """A feedback server over them."""
        others = {name: {"kind": "policy", "address": judge.address} for name, judge in self.running.items() if name != "default"}
        config = {**feedback_config(folder), "policy": self.running["default"].address, "judges": {**others, **self.method.judges}, **CONFIG}
        return ServerProcess("accord.feedback", config, folder)

    def stop(self) -> None:
        for judge in self.running.values():
            judge.stop()


@pytest.fixture
def judges(request: pytest.FixtureRequest) -> Iterator[Judges]:
    running = Judges(METHODS[getattr(request, "param", "verdict")])
    yield running
    running.stop()


def client(server: ServerProcess) -> FeedbackClient:
    return FeedbackClient(ChannelConfig(address=server.address, attempts=1))


def write_data(path: Path, count: int, *, unsure: bool = False) -> str:
    rows = []
    for n in range(count):
        better = f"plain answer {n}" if unsure and n % 2 else f"good answer {n}"
        rows.append(PreferencePair(f"p{n:03}", TASK, (Message("user", f"question {n}"),), better, f"another one, {n}", 1.0, f"g{n}", 1.0))
    write_pairs(path, rows)
    return str(path)


def rows_of(folder: Path, query: str) -> list[Any]:
    """Out of the ledger, read beside the server or after it."""
    connection = sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def judgements(folder: Path) -> int:
    return int(rows_of(folder, "SELECT count(*) FROM judgements")[0][0])


def ended(feedback: FeedbackClient, name: str) -> LabelJob:
    return list(feedback.watch_label_job(name, timeout_seconds=90))[-1]


def kill_in_the_middle(server: ServerProcess, judges: Judges, target: int) -> None:
    """SIGKILL once so much is answered or written; returns when the judges are at rest."""

    eventually(lambda: judges.done >= target, timeout_seconds=30)
    server.signal(signal.SIGKILL)
    server.wait(10)
    eventually(lambda: judges.at_rest, timeout_seconds=10)
    judges.release()


def killed(judges: Judges, folder: Path, spec: LabelJobSpec, kills: int) -> int:
    """Kills a job's server so often, each time in the midst of its work; what was answered and lost."""
    draw, lost = random.Random(20), 0
    for kill in range(kills):
        more = draw.randint(1, 40)
        target = judges.done + more  # a server that is started again works on before anybody asks it to
        judges.hold_after(more)
        with judges.start(folder) as server, client(server) as feedback:
            if kill == 0:
                feedback.create_label_job(spec)
            kill_in_the_middle(server, judges, target)
        lost_now = len(judges.answered) - judgements(folder) - lost
        assert 0 <= lost_now <= judges.in_flight, f"kill {kill}"
        lost += lost_now
    return lost


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("judges", "kills"),
    [
        pytest.param(name, kills, marks=[pytest.mark.training] if kills == 20 else [])
        for name in METHODS
        for kills in (5 if name == "verdict" else 3, 20)
    ],
    indirect=["judges"],
)
def test_kills_lose_nothing_and_buy_only_what_was_in_flight_again(judges: Judges, tmp_path: Path, kills: int) -> None:
    method = judges.method
    pairs = method.pairs_a_kill * kills
    questions = method.questions(pairs)
    data = write_data(tmp_path / "pairs.jsonl", pairs, unsure=method.unsure)
    spec = LabelJobSpec("job-1", data, TASK, str(tmp_path / "out"), judge=method.judge, seed=5, candidates=method.candidates)
    lost = killed(judges, tmp_path, spec, kills)
    assert questions > judgements(tmp_path)  # the kills were in the middle
    with judges.start(tmp_path) as server, client(server) as feedback:
        job = ended(feedback, "labelJobs/job-1")
        assert (job.state, job.total_pairs, job.done_pairs) == ("succeeded", pairs, pairs), job.message
        assert job.escalated_pairs == (pairs // 2 if method.unsure else 0)

        asked = Counter(judges.answered)
        assert len(asked) == questions  # no question is missing
        assert sum(asked.values()) == questions + lost  # and only what was lost in flight was asked again
        assert judgements(tmp_path) == questions
        assert rows_of(tmp_path, "SELECT count(*), count(DISTINCT key) FROM label_judgements") == [(questions, questions)]
        assert len(rows_of(tmp_path, "SELECT DISTINCT pair_id FROM labels")) == len(rows_of(tmp_path, "SELECT pair_id FROM labels")) == pairs
        check_output(job, pairs, method)
        check_texts(judges, tmp_path, pairs, kills)

        before = len(judges.answered)
        feedback.create_label_job(replace(spec, request_id="job-2", output_uri=str(tmp_path / "out2"), seed=6 if method.candidates is None else 5))
        second = ended(feedback, "labelJobs/job-2")
        assert (second.state, second.tokens, second.cached_judgements) == ("succeeded", 0, questions)
        assert len(judges.answered) == before
    print(f"\n{kills} kills: {lost} of {questions} judgements answered and lost in flight, asked again")


def check_output(job: LabelJob, pairs: int, method: Method) -> None:
    """Each pair is in the data set once, as the judges see it, and what it took is on the card."""
    rows = read_pairs(job.dataset_uri, strict=True).rows
    assert [row.pair_id for row in rows] == [f"p{n:03}" if method.candidates is None else f"g{n}" for n in range(pairs)]
    if method.candidates is None:
        assert all(row.chosen.startswith(("good", "plain")) for row in rows)
    (card,) = json.loads(Path(job.card_uri).read_text())["cards"]
    assert (card["pairs"], card["tokens"]) == (pairs, job.tokens)


def check_texts(judges: Judges, folder: Path, pairs: int, kills: int) -> None:
    """Rationales and candidates: each is written once, but for those in flight, and again by the seed that it had."""
    method, written = judges.method, Counter(judges.written)
    if method.candidates is not None:
        (file,) = (folder / "jobs").glob("*.candidates.jsonl")
        kept = [json.loads(line) for line in file.read_text().splitlines()]
        assert sorted(each["prompt_id"] for each in kept) == sorted(f"g{n}" for n in range(pairs))
        assert {each[side] for each in kept for side in ("a", "b")} == {f"good [seed {seed}]" for _, seed in written}
    expected = 2 * pairs if method.candidates else method.questions(pairs) if method.judge.rationale else 0
    assert len(written) == expected
    assert sum(written.values()) <= expected + kills * 2 * judges.in_flight


def test_two_jobs_at_once_over_the_same_pairs_ask_each_question_once(judges: Judges, tmp_path: Path) -> None:
    spec = LabelJobSpec("job-1", write_data(tmp_path / "pairs.jsonl", 60), TASK, str(tmp_path / "out"), judge=Judge("verdict"))
    with judges.start(tmp_path) as server, client(server) as feedback:
        feedback.create_label_job(spec)
        feedback.create_label_job(replace(spec, request_id="job-2", output_uri=str(tmp_path / "out2"), seed=6))
        first, second = ended(feedback, "labelJobs/job-1"), ended(feedback, "labelJobs/job-2")
    assert (first.state, second.state) == ("succeeded", "succeeded")
    assert max(Counter(judges.answered).values()) == 1
    assert len(judges.answered) == judgements(tmp_path) == 120
    assert first.cached_judgements + second.cached_judgements == 120
