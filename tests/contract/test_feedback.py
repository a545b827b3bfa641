"""The feedback server in a process of its own: labels over the wire, a judge that is slow, away or killed with, jobs that outlive their server."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.contract.entries import FEEDBACK_SERVICE, feedback_config
from tests.contract.fake_judge import SLOW, FakeJudge
from tests.contract.harness import ServerProcess, eventually
from tests.unit.feedback.fakes import FakePolicy

from accord.api.common.v1 import common_pb2
from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.api.feedback.v1 import feedback_pb2_grpc as rpc
from accord.client.feedback import FeedbackClient, Judge, LabelJob, LabelJobSpec, LabelPairItem
from accord.client.policy import LogprobsItem, PolicyClient
from accord.data.readers import read_pairs
from accord.data.records import PreferencePair
from accord.data.writers import write_pairs
from accord.errors import (
    AccordError,
    AlreadyExistsError,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    UnavailableError,
)
from accord.models.testing import tiny_model_folder
from accord.rpc.channels import ChannelConfig
from accord.text.chat import Message
from accord.text.tasks import Task

TASK = Task.CONVERSATION
PAIR = LabelPairItem(TASK, (Message("user", "How do I keep basil alive?"),), "good good advice", "other words", "p1")
VERDICT = Judge("verdict")


def start(judge: str, folder: Path, **fields: Any) -> ServerProcess:
    return ServerProcess("accord.feedback", {**feedback_config(folder), "policy": judge, **fields}, folder)


def client(server: ServerProcess) -> FeedbackClient:
    return FeedbackClient(ChannelConfig(address=server.address, attempts=1))


@pytest.fixture(scope="module")
def judge() -> Iterator[FakeJudge]:
    running = FakeJudge(FakePolicy(bias=1.0, write=lambda prompt: 'Hm.\n"rank": [1]'))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def server(judge: FakeJudge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with start(judge.address, tmp_path_factory.mktemp("feedback"), max_text_bytes=100_000) as running:
        yield running


@pytest.fixture
def feedback(server: ServerProcess) -> Iterator[FeedbackClient]:
    with client(server) as open_client:
        yield open_client


def write_data(folder: Path, count: int) -> Path:
    rows = [
        PreferencePair(f"p{n:02}", TASK, (Message("user", f"question {n}"),), f"good answer {n}", f"another one, {n}", 1.0, f"g{n}", 1.0)
        for n in range(count)
    ]
    write_pairs(folder / "pairs.jsonl", rows)
    return folder / "pairs.jsonl"


def job_spec(folder: Path, count: int = 8, **changes: Any) -> LabelJobSpec:
    spec = LabelJobSpec("job-1", str(write_data(folder, count)), TASK, str(folder / "out"), judge=VERDICT, seed=5)
    return replace(spec, **changes)


def ended(feedback: FeedbackClient, name: str = "labelJobs/job-1") -> LabelJob:
    return list(feedback.watch_label_job(name, timeout_seconds=60))[-1]


# Labels over the wire


def test_a_label_comes_back_with_its_provenance(feedback: FeedbackClient) -> None:
    label = feedback.label_pair(PAIR, Judge("verdict", rationale=True, max_rationale_tokens=50))
    assert (label.pair_id, label.outcome, label.kind, label.judge) == ("p1", "a", "verdict", "fake")
    assert label.rubric == "conversation/detailed/1"
    assert len(label.rubric_digest) == len(label.judge_digest) == 64
    first, second = label.judgements
    assert (first.a_first, second.a_first) == (True, False)
    assert (first.parsed, second.parsed, first.rationale) == ("a", "b", 'Hm.\n"rank": [1]')
    assert label.preference == pytest.approx((first.probability_a + second.probability_a) / 2)  # type: ignore[operator]
    assert first.evidence_a is not None
    assert first.prompt_tokens > 500
    again = feedback.label_pair(PAIR, Judge("verdict", rationale=True, max_rationale_tokens=50))
    assert [judgement.cached for judgement in again.judgements] == [True, True]
    assert replace(again, judgements=()) == replace(label, judgements=())


def test_likelihood_is_the_default(feedback: FeedbackClient) -> None:
    label = feedback.label_pair(replace(PAIR, response_a="keep basil", response_b="other things"))
    assert (label.kind, label.outcome, label.rubric) == ("likelihood", "a", "")
    assert len(label.judgements) == 1


def test_an_abstention_is_no_error_and_has_no_preference(feedback: FeedbackClient, judge: FakeJudge) -> None:
    judge.policy.context_tokens = 3000
    try:
        label = feedback.label_pair(replace(PAIR, response_a="x" * 9000))
        with pytest.raises(OutOfRangeError, match="context overflow"):
            feedback.rate_response(TASK, PAIR.messages, "x" * 9000)
    finally:
        judge.policy.context_tokens = 100_000
    assert (label.preference, label.outcome) == (None, "abstain")
    assert label.judgements[0].probability_a is None
    assert "context overflow" in label.abstention_reason


def test_a_bad_pair_of_a_batch_is_named_and_alone(feedback: FeedbackClient) -> None:
    pairs = [PAIR, replace(PAIR, pair_id="nul", response_b="a\x00b"), replace(PAIR, pair_id="p3", response_a="", response_b="x")]
    good, bad, empty = feedback.label_pairs(pairs, VERDICT)
    assert (good.pair_id, bad.pair_id, empty.pair_id) == ("p1", "nul", "p3")
    assert good.label is not None
    assert isinstance(bad.error, InvalidArgumentError)
    assert bad.error.field == "pairs[1].response_b"
    assert empty.label is not None
    assert empty.label.preference == 0.0


def test_a_stream_answers_out_of_order(feedback: FeedbackClient, judge: FakeJudge) -> None:
    pairs = [replace(PAIR, pair_id="slow", response_a=f"{SLOW} stream"), *(replace(PAIR, pair_id=f"q{n}", response_a=f"good {n}") for n in range(6))]
    pairs.insert(2, replace(PAIR, pair_id="bad", response_a="\x00"))

    def paced() -> Iterator[LabelPairItem]:
        for pair in pairs:
            yield pair
            time.sleep(0.1)  # so that the slow one is in a call of its own

    results = list(feedback.label_stream(paced(), VERDICT, timeout_seconds=30))
    names = [result.pair_id for result in results]
    assert names[-1] == "slow"
    assert sorted(names) == sorted(pair.pair_id for pair in pairs)
    assert [result.pair_id for result in results if result.error is not None] == ["bad"]


def test_a_stream_keeps_the_options_of_its_first_message(server: ServerProcess) -> None:
    def wire(name: str, judge: pb.JudgeOptions | None) -> pb.LabelStreamRequest:
        turn = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content="hello")
        pair = pb.Pair(
            pair_id=name, task=pb.TASK_CONVERSATION, prompt=common_pb2.ChatMessages(messages=[turn]), response_a=f"good {name}", response_b="x"
        )
        return pb.LabelStreamRequest(pair=pair, judge=judge)

    rating, verdict = pb.JudgeOptions(kind=pb.JUDGE_KIND_RATING), pb.JudgeOptions(kind=pb.JUDGE_KIND_VERDICT)
    requests = [wire("1", rating), wire("2", None), wire("3", verdict), wire("4", None)]
    with server.channel() as channel:
        found = {reply.result.pair_id: reply.result.label.kind for reply in rpc.FeedbackServiceStub(channel).LabelStream(iter(requests), timeout=30)}
    assert found == {"1": rating.kind, "2": rating.kind, "3": verdict.kind, "4": verdict.kind}


def test_self_consistency_and_text_over_the_wire(feedback: FeedbackClient) -> None:
    asked = Judge("verdict", rubric="conversation/helpful-cot/1", consistency_samples=2, consistency_temperature=0.5)
    made = feedback.label_pair(replace(PAIR, response_b="consistent"), asked)
    assert [(item.a_first, item.sample) for item in made.judgements] == [(True, 0), (True, 1), (False, 0), (False, 1)]
    text = feedback.label_pair(PAIR, Judge("verdict", verdict_source="text"))
    assert text.judgements[0].probability_a in (0.0, 0.5, 1.0)


def test_ratings_rubrics_and_cards(feedback: FeedbackClient) -> None:
    rating = feedback.rate_response(TASK, PAIR.messages, "good good good")
    assert max(range(10), key=rating.distribution.__getitem__) == 4
    assert 1 < rating.expected_rating < 10
    assert rating.rubric == "conversation/rating/1"
    several = feedback.rate_responses(TASK, [(PAIR.messages, "good good good"), (PAIR.messages, "nul\0")])
    assert several.results[0] == rating
    assert isinstance(several.results[1], InvalidArgumentError)
    assert several.results[1].field == "items[1].response"
    assert several.judge == "fake"
    assert len(several.judge_digest) == 64
    rubrics = {rubric.id: rubric for rubric in feedback.list_rubrics()}
    assert {"summarization/detailed/1", "conversation/rating/1"} <= rubrics.keys()
    assert rubrics["conversation/rating/1"].digest == rating.rubric_digest
    assert rubrics["summarization/detailed/1"].kind == "verdict"
    feedback.label_pair(replace(PAIR, pair_id="card", response_a="good card", human_preference=1.0), VERDICT)
    (card,) = [card for card in feedback.label_cards(kind="verdict", task=TASK) if card.rubric == "conversation/detailed/1"]
    assert card.judge == "fake"
    assert card.human_agreement is not None
    assert card.first_preferred is not None
    assert card.tokens > 0
    assert card.notes
    assert card.random_baseline is not None
    assert (card.random_baseline.value, card.random_baseline.n) == (0.5, card.human_agreement.n)
    assert card.calibration_error is not None
    assert card.reliability
    assert sum(found.agreement.n for found in card.agreement_by_length) == card.human_agreement.n
    assert card.judge_digest
    (likelihood,) = feedback.label_cards(kind="likelihood")
    assert likelihood.first_preferred is None
    with pytest.raises(NotFoundError):
        feedback.label_cards(task=Task.SUMMARIZATION)


def test_a_human_label_is_kept_once(feedback: FeedbackClient) -> None:
    key = feedback.record_human_label("h-1", PAIR, "b", "annotator-7", reason="clearer", duration_seconds=12.5)
    assert feedback.record_human_label("h-1", PAIR, "b", "annotator-7", reason="clearer", duration_seconds=12.5) == key
    with pytest.raises(AlreadyExistsError):
        feedback.record_human_label("h-1", PAIR, "a", "annotator-7")
    with pytest.raises(InvalidArgumentError) as caught:
        feedback.record_human_label("h-2", PAIR, "abstain", "annotator-7")
    assert caught.value.field == "outcome"


@pytest.mark.parametrize(
    ("call", "error", "field"),
    [
        (lambda f: f.label_pair(PAIR, Judge("verdict", rubric="none/1")), NotFoundError, "judge.rubric"),
        (lambda f: f.label_pair(PAIR, Judge("likelihood", rubric="conversation/detailed/1")), InvalidArgumentError, "judge.rubric"),
        (lambda f: f.label_pair(PAIR, Judge("verdict", rubric="summarization/detailed/1")), InvalidArgumentError, "judge.rubric"),
        (lambda f: f.label_pair(PAIR, Judge("verdict", tie_margin=0.5)), InvalidArgumentError, "judge.tie_margin"),
        (lambda f: f.label_pair(PAIR, Judge("verdict", adapter="adapters/none")), NotFoundError, "judge.adapter"),
        (lambda f: f.label_pair(replace(PAIR, response_a="x" * 100_001)), InvalidArgumentError, "pair.response_a"),
        (lambda f: f.label_pair(replace(PAIR, messages=())), InvalidArgumentError, "pair.prompt.messages"),
        (lambda f: f.label_pair(replace(PAIR, messages=(Message("assistant", "x"),))), InvalidArgumentError, "pair.prompt.messages"),
        (lambda f: f.label_pair(replace(PAIR, human_preference=1.5)), InvalidArgumentError, "pair.human_preference"),
        (lambda f: f.rate_response(TASK, PAIR.messages, "x", rubric="conversation/detailed/1"), InvalidArgumentError, "rubric"),
        (lambda f: f.rate_response(TASK, PAIR.messages, "x", adapter="adapters/none"), NotFoundError, "adapter"),
        (lambda f: f.rate_response(TASK, PAIR.messages, ""), InvalidArgumentError, "response"),
        (lambda f: f.get_label_job("labelJobs/none"), NotFoundError, "name"),
        (lambda f: f.cancel_label_job("labelJobs/none"), NotFoundError, "name"),
        (lambda f: list(f.watch_label_job("labelJobs/none")), NotFoundError, "name"),
        (lambda f: f.create_label_job(LabelJobSpec("j", "/nowhere.jsonl", TASK, "never")), NotFoundError, "dataset_uri"),
    ],
)
def test_what_is_wrong_is_named(feedback: FeedbackClient, call: Callable[[FeedbackClient], Any], error: type[AccordError], field: str) -> None:
    with pytest.raises(AccordError) as caught:
        call(feedback)
    assert type(caught.value) is error
    assert caught.value.field == field


# A judge that is slow or away


def test_a_deadline_reaches_the_judge(feedback: FeedbackClient, judge: FakeJudge) -> None:
    before = judge.cancelled
    with pytest.raises(DeadlineExceededError):
        feedback.label_pair(replace(PAIR, response_a=f"{SLOW} deadline"), VERDICT, timeout_seconds=0.5)
    eventually(lambda: judge.cancelled == before + 1, timeout_seconds=2)


def test_a_cancelled_call_reaches_the_judge(server: ServerProcess, judge: FakeJudge) -> None:
    turn = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content="hello")
    pair = pb.Pair(task=pb.TASK_CONVERSATION, prompt=common_pb2.ChatMessages(messages=[turn]), response_a=f"{SLOW} cancel", response_b="x")
    calls, before = judge.calls, judge.cancelled
    with server.channel() as channel:
        call = rpc.FeedbackServiceStub(channel).LabelPair.future(pb.LabelPairRequest(pair=pair), timeout=30)
        eventually(lambda: judge.calls > calls)
        call.cancel()
    eventually(lambda: judge.cancelled == before + 1, timeout_seconds=2)


def test_a_judge_that_takes_too_long_is_a_deadline_that_names_it(judge: FakeJudge, tmp_path: Path) -> None:
    late = pytest.raises(DeadlineExceededError, match=f"{judge.address} did not answer within 0.5 s")
    with start(judge.address, tmp_path, judge_timeout_seconds=0.5) as server, client(server) as feedback, late:
        feedback.label_pair(replace(PAIR, response_a=f"{SLOW} timeout"), VERDICT)


@pytest.fixture
def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_judge_that_is_away_is_unavailable_by_address_and_a_job_waits_for_it(tmp_path: Path, free_address: str) -> None:
    with start(free_address, tmp_path) as server, client(server) as feedback:  # it is SERVING although the judge is away
        with pytest.raises(UnavailableError, match=free_address):
            feedback.label_pair(PAIR)
        feedback.create_label_job(job_spec(tmp_path))
        waiting = eventually(lambda: (job := feedback.get_label_job("labelJobs/job-1")).message and job)
        assert waiting.state == "running"
        assert free_address in waiting.message
        judge = FakeJudge(listen=free_address)
        try:
            assert ended(feedback).state == "succeeded"
        finally:
            judge.stop()


# Jobs that outlive their server


def test_a_killed_server_buys_no_judgement_twice(tmp_path: Path) -> None:
    judge = FakeJudge(FakePolicy(bias=0.5))
    config = {"batch_pairs": 2, "concurrency": 2}
    spec = job_spec(tmp_path, count=12)
    try:
        with start(judge.address, tmp_path, **config) as whole, client(whole) as feedback:
            feedback.create_label_job(replace(spec, request_id="whole", output_uri=str(tmp_path / "whole"), judge=Judge("rating")))
            ended(feedback, "labelJobs/whole")
        judge.answered.clear()
        for stop_after in (6, 14):
            judge.hold_after(stop_after)
            with start(judge.address, tmp_path, **config) as server, client(server) as feedback:
                if stop_after == 6:
                    feedback.create_label_job(spec)
                # A held call has been asked but not answered: killing now loses nothing that was paid for.
                eventually(lambda stop_after=stop_after: verdicts_in(tmp_path) == stop_after, timeout_seconds=30)
                eventually(lambda: judge.waiting > 0)
                server.signal(signal.SIGKILL)
                server.wait(10)
            eventually(lambda: judge.waiting == 0)
            judge.release()
        with start(judge.address, tmp_path, **config) as server, client(server) as feedback:
            job = ended(feedback)
            assert (job.state, job.total_pairs, job.done_pairs) == ("succeeded", 12, 12)
            assert feedback.create_label_job(spec) == job  # the same request is the same job, after any number of kills
        assert len(judge.answered) == 24
        assert len(set(judge.answered)) == 24
        rows = read_pairs(job.dataset_uri, strict=True).rows
        assert [row.pair_id for row in rows] == [f"p{n:02}" for n in range(12)]
        assert all(row.chosen.startswith("good") for row in rows)
        (card,) = json.loads(Path(job.card_uri).read_text())["cards"]
        assert (card["pairs"], card["tokens"]) == (12, job.tokens)
    finally:
        judge.stop()


def verdicts_in(folder: Path) -> int:
    """Verdicts that are in the ledger, read beside the server."""
    connection = sqlite3.connect(f"file:{folder / 'ledger.sqlite'}?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT count(*) FROM judgements WHERE kind = 'verdict'").fetchone()[0])
    finally:
        connection.close()


def test_sigterm_in_the_middle_of_a_job_exits_0_and_the_next_start_goes_on(tmp_path: Path) -> None:
    judge = FakeJudge()
    try:
        with start(judge.address, tmp_path, batch_pairs=1, concurrency=1) as server, client(server) as feedback:
            judge.hold_after(5)
            feedback.create_label_job(job_spec(tmp_path))
            eventually(lambda: len(judge.answered) >= 5)
            server.signal(signal.SIGTERM)
            time.sleep(0.3)
            judge.release()
            assert server.wait(20) == 0, server.log
            assert judge.cancelled == 0  # what was in work was finished
        with start(judge.address, tmp_path) as server, client(server) as feedback:
            assert ended(feedback).state == "succeeded"
        assert len(judge.answered) == len(set(judge.answered)) == 16
    finally:
        judge.stop()


def test_a_watch_outlives_the_servers_deadlines(tmp_path: Path) -> None:
    judge = FakeJudge()
    judge.hold_after(0)
    try:
        config = {"server": {"default_deadline_seconds": 2.0, "max_deadline_seconds": 2.0}}
        with start(judge.address, tmp_path, **config) as server, server.channel() as channel, client(server) as feedback:
            feedback.create_label_job(job_spec(tmp_path))
            watching = rpc.FeedbackServiceStub(channel).WatchLabelJob(pb.WatchLabelJobRequest(name="labelJobs/job-1"))
            assert next(watching).job.state == pb.LABEL_JOB_STATE_RUNNING
            time.sleep(2.5)
            judge.release()
            assert list(watching)[-1].job.state == pb.LABEL_JOB_STATE_SUCCEEDED
    finally:
        judge.stop()


def test_cancelling_a_job_ends_its_call_to_the_judge(tmp_path: Path) -> None:
    judge = FakeJudge()
    judge.hold_after(0)
    try:
        with start(judge.address, tmp_path) as server, client(server) as feedback:
            feedback.create_label_job(job_spec(tmp_path))
            eventually(lambda: judge.calls > 0)
            assert feedback.cancel_label_job("labelJobs/job-1").state == "cancelled"
            eventually(lambda: judge.cancelled == judge.calls, timeout_seconds=2)
            assert feedback.cancel_label_job("labelJobs/job-1").state == "cancelled"
    finally:
        judge.stop()


def test_a_second_server_on_the_same_ledger_does_not_start(server: ServerProcess, tmp_path: Path) -> None:
    taken = server._config.read_text().partition("ledger: ")[2].splitlines()[0]
    with ServerProcess("accord.feedback", {**feedback_config(tmp_path), "ledger": taken}, tmp_path, wait="nothing") as second:
        assert second.wait(30) == 1
        assert "another process has the ledger" in second.log


# A real model


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The real policy service over a tiny random model whose context is long enough for a rubric in bytes."""
    folder = tmp_path_factory.mktemp("policy")
    model = tiny_model_folder(folder / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    fields = {"base_model": str(model), "artefacts": str(folder / "artefacts"), "threads": 1}
    with ServerProcess("accord.policy", fields, folder, environment={"OMP_NUM_THREADS": "1"}) as running:
        yield running


@pytest.fixture(scope="module")
def real(policy: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeedbackClient]:
    with start(policy.address, tmp_path_factory.mktemp("real")) as server, client(server) as feedback:
        yield feedback


@pytest.mark.parametrize("judge", [VERDICT, Judge("verdict", rationale=True, max_rationale_tokens=12), Judge("rating"), Judge("likelihood")], ids=str)
def test_every_kind_works_over_a_real_model_and_is_symmetric(real: FeedbackClient, judge: Judge) -> None:
    label = real.label_pair(PAIR, judge)
    back = real.label_pair(replace(PAIR, response_a=PAIR.response_b, response_b=PAIR.response_a), judge)
    if label.outcome == "abstain":  # a random model may write an empty rationale
        assert judge.rationale
        assert label.abstention_reason == "empty answer"
        return
    assert label.preference is not None
    assert back.preference == 1 - label.preference
    assert 0 < label.preference < 1
    assert all(judgement.cached for judgement in back.judgements)


def test_the_verdict_follows_the_rubrics_prefix_in_the_models_own_tokens(real: FeedbackClient, policy: ServerProcess) -> None:
    """The evidence is what the model gives to "1" and "2" behind the prefix, and the odds are those of the whole answers."""
    from accord.feedback.judges.verdict import judge_prompt
    from accord.feedback.records import JudgeIdentity, Question
    from accord.prompts import default_rubric

    judgement = real.label_pair(PAIR, Judge("verdict", both_orders=False)).judgements[0]
    with PolicyClient(policy.address) as model:
        info = model.model_info()
        rubric = default_rubric(TASK, "verdict")
        identity = JudgeIdentity(info.base_model, info.digests)
        question = Question("verdict", TASK, PAIR.messages, PAIR.response_a, PAIR.response_b, rubric, identity)
        prompt = (Message("user", judge_prompt(question)),)
        answers = ('"rank": [1', '"rank": [2')
        one, two = model.compute_logprobs([LogprobsItem(prompt, answers)]).results[0].responses
    assert question.key == judgement.ledger_key
    assert len(one.token_ids) == len(answers[0])  # a byte-level tokenizer
    assert one.token_ids[:-1] == two.token_ids[:-1]
    assert judgement.evidence_a == pytest.approx(one.logprobs[-1], abs=1e-5)
    assert judgement.evidence_b == pytest.approx(two.logprobs[-1], abs=1e-5)
    assert judgement.evidence_a - judgement.evidence_b == pytest.approx(one.sequence_logprob - two.sequence_logprob, abs=1e-4)  # type: ignore[operator]


def test_the_real_context_ends_in_an_abstention(real: FeedbackClient) -> None:
    label = real.label_pair(replace(PAIR, response_a="x" * 5000))
    assert label.outcome == "abstain"
    assert "at most 4096" in label.abstention_reason


def test_the_service_name_is_that_of_the_proto() -> None:
    assert pb.DESCRIPTOR.services_by_name["FeedbackService"].full_name == FEEDBACK_SERVICE
    assert grpc.StatusCode.OK is not None
