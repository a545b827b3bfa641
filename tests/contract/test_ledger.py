"""What the ledger lists over the wire, the server in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from tests.contract.fake_judge import FakeJudge
from tests.contract.harness import ServerProcess
from tests.contract.test_feedback import PAIR, VERDICT, client, ended, job_spec, start
from tests.unit.feedback.fakes import FakePolicy

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.api.feedback.v1 import feedback_pb2_grpc as rpc
from accord.client.feedback import FeedbackClient
from accord.client.ledger import LabelQuery, LedgerClient
from accord.data.readers import read_pairs
from accord.errors import InvalidArgumentError
from accord.rpc.channels import ChannelConfig


@pytest.fixture(scope="module")
def judge() -> Iterator[FakeJudge]:
    running = FakeJudge(FakePolicy(bias=1.0))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def server(judge: FakeJudge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ledger with two jobs of eight pairs, five calls, and three labels by people."""
    folder = tmp_path_factory.mktemp("ledger")
    with start(judge.address, folder) as running:
        with client(running) as feedback:
            for number in (1, 2):
                (folder / f"{number}").mkdir()
                feedback.create_label_job(job_spec(folder / f"{number}", request_id=f"job-{number}"))
                ended(feedback, f"labelJobs/job-{number}")
            feedback.label_pairs([replace(PAIR, pair_id=f"c{number}", response_b=f"other {number}") for number in range(5)], VERDICT)
            for number in range(3):
                feedback.record_human_label(f"h{number}", PAIR, "b", f"ann{number}", reason="it is", duration_seconds=1.5, confidence=f"{7 + number}")
        yield running


@pytest.fixture
def ledger(server: ServerProcess) -> Iterator[LedgerClient]:
    with LedgerClient(ChannelConfig(address=server.address, attempts=1)) as opened:
        yield opened


def test_labels_come_in_pages_as_they_were_made(ledger: LedgerClient) -> None:
    everything = list(ledger.labels())
    assert [record.job for record in everything] == ["labelJobs/job-1"] * 8 + ["labelJobs/job-2"] * 8 + [""] * 5
    for size in (1, 4, 21, 1000):
        assert list(ledger.labels(page_size=size)) == everything
    times = [record.create_time for record in everything]
    assert times == sorted(times)
    last = everything[-1]
    assert last.pair == replace(PAIR, pair_id="c4", response_b="other 4")
    assert last.label.outcome == "a"
    first, second = last.label.judgements
    assert (first.a_first, second.a_first, first.cached) == (True, False, False)
    assert first.latency_seconds is not None
    assert 0 < first.latency_seconds < 60
    assert (first.judge, first.judge_digest, last.label.judge_digest) == ("fake", first.judge_digest, first.judge_digest)


def test_labels_are_asked_for_by_what_they_are(ledger: LedgerClient) -> None:
    job = list(ledger.labels(LabelQuery(job="labelJobs/job-2"), page_size=3))
    assert sorted(record.label.pair_id for record in job) == [f"p{number:02}" for number in range(8)]
    assert all(record.label.judgements[0].cached for record in job)  # job 1 had paid for them
    (one,) = ledger.labels(LabelQuery(pair_id="c2"))
    assert [record.label.pair_id for record in ledger.labels(LabelQuery(content_key=one.content_key))] == ["c2"]
    assert list(ledger.labels(LabelQuery(outcome="abstain"))) == []
    assert [record.label.pair_id for record in ledger.labels(LabelQuery(made_after=one.create_time, pair_id="c2"))] == ["c2"]
    assert list(ledger.labels(LabelQuery(made_before=one.create_time, pair_id="c2"))) == []


def test_people_are_listed(ledger: LedgerClient) -> None:
    found = list(ledger.human_labels(page_size=2))
    assert [(record.annotator_id, record.outcome, record.reason, record.duration_seconds, record.confidence) for record in found] == [
        (f"ann{number}", "b", "it is", 1.5, f"{7 + number}") for number in range(3)
    ]
    assert found[0].pair == PAIR
    assert list(ledger.human_labels(annotator_id="ann1", content_key=found[1].content_key)) == [found[1]]


def test_jobs_are_listed_newest_first_and_found_by_what_they_made(ledger: LedgerClient) -> None:
    newest, oldest = ledger.label_jobs(page_size=1)
    assert (newest.name, oldest.name) == ("labelJobs/job-2", "labelJobs/job-1")
    assert oldest.source_uri.endswith("pairs.jsonl")
    for digest in (oldest.dataset_digest, oldest.rows_digest):
        assert oldest in list(ledger.label_jobs(dataset_digest=digest))
    assert oldest.rows_digest == read_pairs(oldest.dataset_uri).report.digest  # what a run records that reads all of it
    assert list(ledger.label_jobs(dataset_digest="0" * 64)) == []


def test_a_token_of_another_question_is_refused(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = rpc.FeedbackServiceStub(channel)
        token = stub.ListLabels(pb.ListLabelsRequest(page_size=2)).next_page_token
        assert stub.ListLabels(pb.ListLabelsRequest(page_size=2, page_token=token)).labels[0].label.pair_id
        calls = [
            lambda: stub.ListLabels(pb.ListLabelsRequest(page_token=token, job="labelJobs/job-1")),
            lambda: stub.ListHumanLabels(pb.ListHumanLabelsRequest(page_token=token)),
            lambda: stub.ListLabelJobs(pb.ListLabelJobsRequest(page_token=token)),
            lambda: stub.ListLabels(pb.ListLabelsRequest(page_token="nonsense")),
            lambda: stub.ListLabels(pb.ListLabelsRequest(page_size=1001)),
        ]
        for call in calls:
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_the_client_says_which_field_is_wrong(ledger: LedgerClient) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        list(ledger.labels(page_size=0))
    assert caught.value.field == "page_size"


def test_listings_go_on_after_a_restart(judge: FakeJudge, tmp_path: Path) -> None:
    with start(judge.address, tmp_path) as server, client(server) as feedback:
        feedback.label_pairs([replace(PAIR, pair_id=f"c{number}") for number in range(3)], VERDICT)
        with grpc.insecure_channel(server.address) as channel:
            token = rpc.FeedbackServiceStub(channel).ListLabels(pb.ListLabelsRequest(page_size=2)).next_page_token
    with start(judge.address, tmp_path) as server, FeedbackClient(server.address), grpc.insecure_channel(server.address) as channel:
        page = rpc.FeedbackServiceStub(channel).ListLabels(pb.ListLabelsRequest(page_size=2, page_token=token))
        assert [record.label.pair_id for record in page.labels] == ["c2"]
        assert page.next_page_token == ""
