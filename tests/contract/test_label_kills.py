"""A label job whose server is killed at random, five times and at depth twenty: every judgement once in the ledger, none lost, and none bought twice
but those that the judge had answered when the server that had asked died.
"""

from __future__ import annotations

import json
import random
import signal
import sqlite3
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.entries import feedback_config
from tests.contract.fake_judge import FakeJudge
from tests.contract.harness import ServerProcess, eventually
from tests.unit.feedback.fakes import FakePolicy

from accord.client.feedback import FeedbackClient, Judge, LabelJob, LabelJobSpec
from accord.data.readers import read_pairs
from accord.data.records import PreferencePair
from accord.data.writers import write_pairs
from accord.rpc.channels import ChannelConfig
from accord.text.chat import Message
from accord.text.tasks import Task

PAIRS_A_KILL, CALLS, A_CALL = 40, 3, 4  # up to 40 questions and those that come until the kill; a pair is two questions
CONFIG = {"concurrency": CALLS, "batch_pairs": A_CALL}
TASK = Task.CONVERSATION


def start(judge: FakeJudge, folder: Path) -> ServerProcess:
    return ServerProcess("accord.feedback", {**feedback_config(folder), "policy": judge.address, **CONFIG}, folder)


def client(server: ServerProcess) -> FeedbackClient:
    return FeedbackClient(ChannelConfig(address=server.address, attempts=1))


def write_data(path: Path, count: int) -> str:
    rows = [
        PreferencePair(f"p{n:03}", TASK, (Message("user", f"question {n}"),), f"good answer {n}", f"another one, {n}", 1.0, f"g{n}", 1.0)
        for n in range(count)
    ]
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


def kill_in_the_middle(server: ServerProcess, judge: FakeJudge, more: int) -> None:
    """SIGKILL once so many more questions are answered; returns when the judge is at rest."""
    target = len(judge.answered) + more
    eventually(lambda: len(judge.answered) >= target, timeout_seconds=30)
    server.signal(signal.SIGKILL)
    server.wait(10)
    eventually(lambda: judge.waiting == 0 and judge.finished + judge.cancelled == judge.calls, timeout_seconds=10)


@pytest.fixture
def judge() -> Any:
    running = FakeJudge(FakePolicy(bias=0.5), latency_seconds=0.03)
    yield running
    running.stop()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.training)])
def test_kills_lose_nothing_and_buy_only_what_was_in_flight_again(judge: FakeJudge, tmp_path: Path, kills: int) -> None:
    draw, pairs = random.Random(20), PAIRS_A_KILL * kills
    spec = LabelJobSpec("job-1", write_data(tmp_path / "pairs.jsonl", pairs), TASK, str(tmp_path / "out"), judge=Judge("verdict"), seed=5)
    lost = 0  # answered by the judge, and not in the ledger when the server died
    for kill in range(kills):
        with start(judge, tmp_path) as server, client(server) as feedback:
            if kill == 0:
                feedback.create_label_job(spec)
            kill_in_the_middle(server, judge, draw.randint(1, 40))
        lost_now = len(judge.answered) - judgements(tmp_path) - lost
        assert 0 <= lost_now <= CALLS * A_CALL, f"kill {kill}"
        lost += lost_now
    assert 2 * pairs > judgements(tmp_path) > kills  # the kills were in the middle
    with start(judge, tmp_path) as server, client(server) as feedback:
        job = ended(feedback, "labelJobs/job-1")
        assert (job.state, job.total_pairs, job.done_pairs) == ("succeeded", pairs, pairs)

        asked = Counter(judge.answered)
        assert len(asked) == 2 * pairs  # no question is missing
        assert sum(asked.values()) == 2 * pairs + lost  # and only what was lost in flight was asked again
        assert lost <= kills * CALLS * A_CALL
        assert judgements(tmp_path) == 2 * pairs
        assert len(rows_of(tmp_path, "SELECT DISTINCT pair_id FROM labels")) == len(rows_of(tmp_path, "SELECT pair_id FROM labels")) == pairs
        rows = read_pairs(job.dataset_uri, strict=True).rows
        assert [row.pair_id for row in rows] == [f"p{n:03}" for n in range(pairs)]
        assert all(row.chosen.startswith("good") for row in rows)
        (card,) = json.loads(Path(job.card_uri).read_text())["cards"]
        assert (card["pairs"], card["tokens"]) == (pairs, job.tokens)

        before = len(judge.answered)
        feedback.create_label_job(replace(spec, request_id="job-2", output_uri=str(tmp_path / "out2"), seed=6))
        second = ended(feedback, "labelJobs/job-2")
        assert (second.state, second.tokens, second.cached_judgements) == ("succeeded", 0, 2 * pairs)
        assert len(judge.answered) == before
    print(f"\n{kills} kills: {lost} of {2 * pairs} judgements answered and lost in flight, asked again")


def test_two_jobs_at_once_over_the_same_pairs_ask_each_question_once(judge: FakeJudge, tmp_path: Path) -> None:
    spec = LabelJobSpec("job-1", write_data(tmp_path / "pairs.jsonl", 60), TASK, str(tmp_path / "out"), judge=Judge("verdict"))
    with start(judge, tmp_path) as server, client(server) as feedback:
        feedback.create_label_job(spec)
        feedback.create_label_job(replace(spec, request_id="job-2", output_uri=str(tmp_path / "out2"), seed=6))
        first, second = ended(feedback, "labelJobs/job-1"), ended(feedback, "labelJobs/job-2")
    assert (first.state, second.state) == ("succeeded", "succeeded")
    assert max(Counter(judge.answered).values()) == 1
    assert len(judge.answered) == judgements(tmp_path) == 120
    assert first.cached_judgements + second.cached_judgements == 120
