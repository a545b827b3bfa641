"""Judges over an OpenAI-compatible endpoint, and several judges with a rule, through a feedback server in a process of its own.

The endpoint is a double in another process, with faults on demand. What does not belong here: what is read out of an answer
(`tests/unit/feedback/test_written_judges.py`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract.doubles.openai_double import BIAS, MODEL, verdict_share
from tests.contract.doubles.process import Double
from tests.contract.entries import feedback_config
from tests.contract.fake_judge import FakeJudge
from tests.contract.harness import ServerProcess, eventually
from tests.contract.test_feedback import verdicts_in
from tests.unit.feedback.fakes import FakePolicy, rating_shares

from accord.api.common.v1 import common_pb2
from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.api.feedback.v1 import feedback_pb2_grpc as rpc
from accord.client.feedback import FeedbackClient, Judge, Label, LabelJobSpec, LabelPairItem
from accord.data.records import PreferencePair
from accord.data.writers import write_pairs
from accord.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
)
from accord.rpc.channels import ChannelConfig
from accord.text.chat import Message
from accord.text.judge import swap_average
from accord.text.tasks import Task

KEY = "sk-contract-0123456789"
TASK = Task.CONVERSATION
PROMPT = (Message("user", "How do I keep basil alive?"),)
PRICES = {MODEL: {"prompt_per_million": 2.0, "completion_per_million": 10.0, "cached_prompt_per_million": 1.0}}
VERDICT = Judge("verdict", name="big")
FAST = {"timeout_seconds": 20, "attempts": 4}


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Double]:
    with Double("openai", ["--api-key", KEY], tmp_path_factory.mktemp("openai")) as running:
        yield running


@pytest.fixture(scope="module")
def small() -> Iterator[FakeJudge]:
    running = FakeJudge(FakePolicy(bias=0.25))
    yield running
    running.stop()


def settings(endpoint: Double, small: FakeJudge, **changes: Any) -> dict[str, Any]:
    big = {"kind": "openai", "base_url": f"{endpoint.url}/v1", "model": MODEL, "api_key_env": "JUDGE_KEY", "context_tokens": 8192, **FAST, **changes}
    return {
        "policy": small.address,
        "max_text_bytes": 300_000,
        "prices": PRICES,
        "judges": {
            "big": big,
            "impatient": {**big, "timeout_seconds": 1.0},
            "hopeful": {**big, "attempts": 2},
            "texts": {**big, "top_logprobs": 0},
            "nameless": {**big, "model": "no-such-model", "price": MODEL},
            "thinker": {
                **big,
                "max_tokens_field": "max_completion_tokens",
                "max_verdict_tokens": 500,
                "body": {"temperature": None, "effort": "low"},
            },
            "proxied": {**big, "base_url": "http://judge.invalid/v1", "proxy": endpoint.url},
            "tight": {**big, "context_tokens": 600},
            "both": {"kind": "ensemble", "members": ["default", "big"]},
            "ladder": {"kind": "escalation", "first": "default", "then": "big", "threshold": 0.2},
        },
    }


def start(folder: Path, config: dict[str, Any], key: str = KEY) -> ServerProcess:
    return ServerProcess("accord.feedback", {**feedback_config(folder), **config}, folder, environment={"JUDGE_KEY": key})


def client(server: ServerProcess) -> FeedbackClient:
    return FeedbackClient(ChannelConfig(address=server.address, attempts=1))


@pytest.fixture(scope="module")
def server(endpoint: Double, small: FakeJudge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with start(tmp_path_factory.mktemp("feedback"), settings(endpoint, small)) as running:
        yield running
        assert KEY not in running.log


@pytest.fixture
def feedback(server: ServerProcess, endpoint: Double) -> Iterator[FeedbackClient]:
    calm(endpoint)
    with client(server) as opened:
        yield opened


def calm(endpoint: Double, **changes: Any) -> None:
    quiet = {"faults": [], "fingerprint": "fp_1", "logprobs": True, "context": 0, "cached_tokens": 0, "no_usage": False}
    endpoint.set(**{**quiet, **changes})


def pair(name: str, first: str = "good good", second: str = "plain", **changes: Any) -> LabelPairItem:
    """A pair that no other test has asked about."""
    return LabelPairItem(TASK, PROMPT, f"{first} {name}", f"{second} {name}", name, **changes)


def chats(endpoint: Double) -> list[dict[str, Any]]:
    """Bodies of the chat requests since the double was last set."""
    return list(endpoint.seen("bodies"))


def expected(item: LabelPairItem) -> float:
    return swap_average(verdict_share(item.response_a, item.response_b), verdict_share(item.response_b, item.response_a))


# Labels


def test_a_soft_label_with_its_tokens_and_money(feedback: FeedbackClient, endpoint: Double, server: ServerProcess) -> None:
    calm(endpoint, cached_tokens=100)
    spent = server.metric("accord_feedback_judge_cost_total")
    label = feedback.label_pair(pair("soft"), VERDICT)
    assert label.preference == pytest.approx(expected(pair("soft")))
    assert (label.outcome, label.agreement, label.escalated) == ("a", None, False)
    assert label.judge == f"{MODEL} at {endpoint.url.removeprefix('http://')}"
    first, second = label.judgements
    assert first.probability_a == pytest.approx(verdict_share("good good", "plain"))
    assert first.evidence_a is not None
    asked = [len(body["messages"][0]["content"]) // 4 for body in chats(endpoint)[-2:]]
    assert sorted(asked) == sorted((first.prompt_tokens, second.prompt_tokens))
    assert first.response_tokens == 4
    assert first.cost == pytest.approx(((first.prompt_tokens - 100) * 2 + 100 * 1 + 4 * 10) / 1e6)
    assert (first.judge, first.judge_digest) == (label.judge, label.judge_digest)
    assert server.metric("accord_feedback_judge_cost_total") - spent >= first.cost + second.cost - 1e-12
    again = feedback.label_pair(pair("soft"), VERDICT)
    assert [judgement.cached for judgement in again.judgements] == [True, True]
    assert [judgement.cost for judgement in again.judgements] == [first.cost, second.cost]
    assert first.latency_seconds is not None
    assert len(chats(endpoint)) <= 3  # the first call of a server asks who is there
    body = chats(endpoint)[-1]
    assert (body["temperature"], body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (0.0, True, 20, 24)


def test_a_swap_turns_p_into_one_minus_p(feedback: FeedbackClient) -> None:
    there = feedback.label_pair(pair("swap"), VERDICT)
    item = pair("swap")
    back = feedback.label_pair(replace(item, response_a=item.response_b, response_b=item.response_a), VERDICT)
    assert there.preference is not None
    assert back.preference == 1.0 - there.preference
    assert all(judgement.cached for judgement in back.judgements)


def test_text_decides_where_no_logprobs_are_asked_for_or_given(feedback: FeedbackClient, endpoint: Double) -> None:
    asked = feedback.label_pair(pair("hard"), replace(VERDICT, name="texts"))
    calm(endpoint, logprobs=False)
    refused = feedback.label_pair(pair("hard"), VERDICT)
    for label in (asked, refused):
        assert label.preference == 1.0
        assert [judgement.evidence_a for judgement in label.judgements] == [None, None]
    assert asked.judge_digest != refused.judge_digest
    assert "logprobs" in chats(endpoint)[-1]


def test_a_rationale_is_kept_and_its_verdict_is_soft(feedback: FeedbackClient) -> None:
    label = feedback.label_pair(pair("why"), replace(VERDICT, rationale=True, max_rationale_tokens=40))
    assert label.preference == pytest.approx(expected(pair("why")))
    assert label.judgements[0].rationale.startswith("Both were weighed.\n")
    assert (label.judgements[0].parsed, label.judgements[1].parsed) == ("a", "a")


def test_ratings(feedback: FeedbackClient, endpoint: Double) -> None:
    rating = feedback.rate_response(TASK, PROMPT, "good good rating", judge="big")
    assert rating.distribution == pytest.approx(rating_shares("good good"))
    label = feedback.label_pair(pair("rated"), Judge("rating", name="big"))
    assert label.outcome == "a"
    assert label.judgements[0].cost > 0
    calm(endpoint, faults=[{"text": "no idea"}])
    with pytest.raises(InvalidArgumentError, match="gives no rating"):
        feedback.rate_response(TASK, PROMPT, "another rating", judge="big")


@pytest.mark.parametrize("words", ["", "I like both.", '"rank": [1, 2]', "Response 1 or Response 2"])
def test_what_names_no_response_is_an_abstention(feedback: FeedbackClient, endpoint: Double, words: str) -> None:
    calm(endpoint, faults=[{"text": words}] * 2)
    label = feedback.label_pair(pair(f"mute {words}"), VERDICT)
    assert (label.preference, label.outcome) == (None, "abstain")
    assert label.abstention_reason
    assert label.judgements[0].cost > 0


# What a judge cannot do


def test_likelihood_is_refused_with_what_the_judge_can_do(feedback: FeedbackClient) -> None:
    for name in ("big", "both"):
        with pytest.raises(FailedPreconditionError, match="it can do verdict, rating") as caught:
            feedback.label_pair(pair("likely"), Judge("likelihood", name=name))
        assert caught.value.field == "judge.kind"
    assert feedback.label_pair(pair("kind"), Judge(name="big")).kind == "verdict"  # the default kind, likelihood, is not for it


def test_names_and_adapters(feedback: FeedbackClient, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="big, both, default, hopeful, impatient") as caught:
        feedback.label_pair(pair("nobody"), Judge("verdict", name="huge"))
    assert caught.value.field == "judge.judge"
    with pytest.raises(NotFoundError) as rated:
        feedback.rate_response(TASK, PROMPT, "x", judge="huge")
    assert rated.value.field == "judge"
    with pytest.raises(InvalidArgumentError, match="takes no adapter"):
        feedback.label_pair(pair("adapter"), replace(VERDICT, adapter="adapters/x"))
    with pytest.raises(NotFoundError):
        feedback.create_label_job(LabelJobSpec("j", "sample:conversation", TASK, str(tmp_path), judge=Judge(name="huge")))


def test_an_overflow_is_an_abstention_whoever_finds_it(feedback: FeedbackClient, endpoint: Double) -> None:
    local = feedback.label_pair(pair("long", "word " * 40_000), VERDICT)
    assert "tokens" in local.abstention_reason
    assert not any("word word" in body["messages"][0]["content"] for body in chats(endpoint))
    calm(endpoint, context=500)
    refused = feedback.label_pair(pair("longer", "word " * 1_000), VERDICT)
    assert "maximum context length is 500 tokens" in refused.abstention_reason
    calm(endpoint)
    counted = feedback.label_pair(pair("longest", "word " * 1_000), replace(VERDICT, name="tight"))
    assert "at most 600 are allowed" in counted.abstention_reason
    assert counted.judgements[0].cost > 0  # it was read, and paid for
    for label in (local, refused, counted):
        assert label.outcome == "abstain"
        assert label.abstention_reason.startswith("context overflow: ")
    with pytest.raises(OutOfRangeError):
        feedback.rate_response(TASK, PROMPT, "word " * 40_000, judge="big")


def test_an_endpoint_is_asked_as_it_wants_to_be(feedback: FeedbackClient, endpoint: Double) -> None:
    label = feedback.label_pair(pair("thinker"), replace(VERDICT, name="thinker"))
    assert label.preference == pytest.approx(expected(pair("thinker")))
    assert label.judge_digest != feedback.label_pair(pair("thinker"), VERDICT).judge_digest
    body = next(body for body in chats(endpoint) if body.get("max_completion_tokens") == 500)
    assert body["effort"] == "low"
    assert not {"temperature", "max_tokens"} & body.keys()


def test_a_proxy_is_used(feedback: FeedbackClient) -> None:
    with pytest.raises(FailedPreconditionError, match=r"judge\.invalid/v1\) answered 404: .*Not Found"):  # the double knows no such address
        feedback.label_pair(pair("proxied"), replace(VERDICT, name="proxied"))


# Faults


def test_what_a_try_again_can_help_is_tried_again(feedback: FeedbackClient, endpoint: Double, server: ServerProcess) -> None:
    faults: list[dict[str, Any]] = [{"status": 500}, {"status": 503}, {"drop": True}]
    before = server.metric("accord_feedback_judge_retries_total")
    calm(endpoint, faults=faults)
    single = replace(VERDICT, both_orders=False)
    assert feedback.label_pair(pair("again"), single).preference == pytest.approx(verdict_share("good good", "plain"))
    calm(endpoint, faults=[{"garbage": "<html>"}, {"garbage": '{"choices": []}'}, {"garbage": "[1"}])
    assert feedback.label_pair(pair("garbage"), single).outcome == "a"
    assert server.metric("accord_feedback_judge_retries_total") - before == 6


def test_retry_after_is_waited_for(feedback: FeedbackClient, endpoint: Double) -> None:
    calm(endpoint, faults=[{"status": 429, "headers": {"retry-after": "2"}}])
    began = time.monotonic()
    assert feedback.label_pair(pair("busy"), replace(VERDICT, both_orders=False)).outcome == "a"
    assert time.monotonic() - began >= 2
    calm(endpoint, faults=[{"status": 429, "headers": {"retry-after": "600"}}])
    began = time.monotonic()
    with pytest.raises(ResourceExhaustedError, match="answered 429") as caught:
        feedback.label_pair(pair("too busy"), replace(VERDICT, both_orders=False))
    assert time.monotonic() - began < 10
    assert caught.value.retry_after_seconds == 600


def test_tries_end(feedback: FeedbackClient, endpoint: Double) -> None:
    calm(endpoint, faults=[{"status": 500}] * 9)
    with pytest.raises(UnavailableError, match="answered 500"):
        feedback.label_pair(pair("down"), replace(VERDICT, name="hopeful", both_orders=False))
    assert len(chats(endpoint)) == 2


def test_a_slow_answer_ends_at_the_judges_deadline_and_the_request_with_it(feedback: FeedbackClient, endpoint: Double) -> None:
    feedback.label_pair(pair("known"), replace(VERDICT, name="impatient"))
    left = endpoint.seen("left")
    calm(endpoint, faults=[{"seconds": 8}])
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError, match="did not answer within 1 s"):
        feedback.label_pair(pair("slow"), replace(VERDICT, name="impatient", both_orders=False))
    assert time.monotonic() - began < 4
    eventually(lambda: endpoint.seen("left") == left + 1, timeout_seconds=4)


def test_a_caller_that_leaves_ends_the_request(server: ServerProcess, feedback: FeedbackClient, endpoint: Double) -> None:
    feedback.label_pair(pair("here"), VERDICT)
    left = endpoint.seen("left")
    calm(endpoint, faults=[{"seconds": 8}])
    turn = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content="hello")
    wire = pb.Pair(task=pb.TASK_CONVERSATION, prompt=common_pb2.ChatMessages(messages=[turn]), response_a="good leave", response_b="x")
    options = pb.JudgeOptions(kind=pb.JUDGE_KIND_VERDICT, judge="big", both_orders=False)
    with server.channel() as channel:
        call = rpc.FeedbackServiceStub(channel).LabelPair.future(pb.LabelPairRequest(pair=wire, judge=options), timeout=30)
        eventually(lambda: len(chats(endpoint)) == 1)
        call.cancel()
    eventually(lambda: endpoint.seen("left") == left + 1, timeout_seconds=4)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"status": 429, "body": {"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}}}, "no money left"),
        ({"status": 404, "body": {"error": {"message": "no such model"}}}, "correct judges.big.base_url or model"),
        ({"status": 403}, "see judges.big.api_key_env"),
        ({"status": 302}, "correct judges.big.base_url"),
    ],
)
def test_what_no_try_again_helps_says_what_to_do(feedback: FeedbackClient, endpoint: Double, fault: dict[str, Any], text: str) -> None:
    calm(endpoint, faults=[fault])
    with pytest.raises(FailedPreconditionError, match=text) as caught:
        feedback.label_pair(pair(f"never {text}"), replace(VERDICT, both_orders=False))
    assert KEY not in str(caught.value)
    assert len(chats(endpoint)) == 1


def test_a_prompt_that_is_refused_is_an_abstention(feedback: FeedbackClient, endpoint: Double) -> None:
    calm(endpoint, faults=[{"status": 400, "body": {"error": {"message": "The text is not allowed."}}}, {"refusal": "No.", "text": ""}])
    label = feedback.label_pair(pair("refused"), VERDICT)
    assert label.outcome == "abstain"
    reasons = sorted(judgement.abstention_reason.partition(":")[0] for judgement in label.judgements)
    assert reasons == ["refused", "unreadable text"]


def test_settings_that_an_endpoint_does_not_take_show_before_any_pair(feedback: FeedbackClient, endpoint: Double) -> None:
    with pytest.raises(FailedPreconditionError, match="no-such-model"):
        feedback.label_pair(pair("model"), replace(VERDICT, name="nameless"))
    assert [body["max_tokens"] for body in chats(endpoint)] == [1]


def test_a_wrong_key_is_named_by_its_variable_and_by_nothing_else(endpoint: Double, small: FakeJudge, tmp_path: Path) -> None:
    wrong = "sk-wrong-9876543210"
    calm(endpoint)
    config = settings(endpoint, small)
    with start(tmp_path, {**config, "server": {"log_level": "debug"}}, key=wrong) as server, client(server) as feedback:
        with pytest.raises(FailedPreconditionError, match=r"Incorrect API key provided: Bearer \*\*\*.*judges.big.api_key_env") as caught:
            feedback.label_pair(pair("wrong"), VERDICT)
        calm(endpoint, fail={"path": "/v1/chat/completions", "status": 500, "body": f"a page that quotes {wrong}"})
        with pytest.raises(UnavailableError) as away:
            feedback.label_pair(pair("wrong"), replace(VERDICT, name="hopeful"))
    assert "judge_retry" in server.log
    for text in (server.log, str(caught.value), str(away.value), str(caught.value.metadata), str(away.value.metadata)):
        assert wrong not in text


def test_a_key_that_is_not_there_stops_the_server(endpoint: Double, small: FakeJudge, tmp_path: Path) -> None:
    config = {**feedback_config(tmp_path), **settings(endpoint, small)}
    with ServerProcess("accord.feedback", config, tmp_path, wait="nothing") as server:
        assert server.wait(60) == 1
        assert "environment variable JUDGE_KEY holds no API key" in server.log


# Who answers


def test_a_new_fingerprint_is_a_new_judge_and_what_it_said_is_kept(endpoint: Double, small: FakeJudge, tmp_path: Path) -> None:
    calm(endpoint)
    with start(tmp_path, settings(endpoint, small)) as server, client(server) as feedback:
        before = feedback.label_pair(pair("who"), VERDICT)
        calm(endpoint, fingerprint="fp_2")
        after = feedback.label_pair(pair("who 2"), VERDICT)
        assert after.judge_digest != before.judge_digest
        assert len(chats(endpoint)) == 2  # asked once each, although the answers came from another judge than was asked
        again = feedback.label_pair(pair("who"), VERDICT)
        assert [judgement.cached for judgement in again.judgements] == [False, False]
        assert again.judge_digest == after.judge_digest


def test_a_job_keeps_its_judge_unless_the_fingerprint_is_left_out(endpoint: Double, small: FakeJudge, tmp_path: Path) -> None:
    rows = [PreferencePair(f"p{n}", TASK, PROMPT, f"good answer {n}", f"another one, {n}", 1.0, f"g{n}", 1.0) for n in range(4)]
    write_pairs(tmp_path / "pairs.jsonl", rows)
    for wanted, state in ((True, "failed"), (False, "succeeded")):
        calm(endpoint)
        config = settings(endpoint, small, fingerprint_in_digest=wanted)
        folder = tmp_path / str(wanted)
        with start(folder, config) as server, client(server) as feedback:
            feedback.label_pair(pair("first"), VERDICT)
            calm(endpoint, fingerprint="fp_2")
            job = feedback.create_label_job(LabelJobSpec("job", str(tmp_path / "pairs.jsonl"), TASK, str(folder / "out"), judge=VERDICT))
            ended = list(feedback.watch_label_job(job.name, timeout_seconds=60))[-1]
        assert ended.state == state, ended.message
        assert (state == "succeeded") or "has changed" in ended.message


def test_tokens_that_are_not_said_cannot_be_priced(endpoint: Double, small: FakeJudge, tmp_path: Path) -> None:
    calm(endpoint, no_usage=True)
    refused = pytest.raises(FailedPreconditionError, match="only a price of 0")
    with start(tmp_path, settings(endpoint, small)) as server, client(server) as feedback, refused:
        feedback.label_pair(pair("price"), VERDICT)
    free = {MODEL: {"prompt_per_million": 0, "completion_per_million": 0}}
    with start(tmp_path, {**settings(endpoint, small), "prices": free}) as server, client(server) as feedback:
        assert feedback.label_pair(pair("price"), VERDICT).judgements[0].cost == 0


# Several judges


@pytest.mark.parametrize("kill_after", [2, 5, 9])
def test_a_killed_job_of_an_ensemble_buys_nothing_twice(endpoint: Double, small: FakeJudge, tmp_path: Path, kill_after: int) -> None:
    rows = [PreferencePair(f"p{n}", TASK, PROMPT, f"good killed {n}", f"another one, {n}", 1.0, f"g{n}", 1.0) for n in range(6)]
    write_pairs(tmp_path / "pairs.jsonl", rows)
    spec = LabelJobSpec("job", str(tmp_path / "pairs.jsonl"), TASK, str(tmp_path / "out"), judge=Judge("verdict", name="both"))
    config = settings(endpoint, small, max_concurrency=1)
    before = len(small.answered)
    calm(endpoint, faults=[{}] * kill_after + [{"seconds": 60}])  # the first request asks who is there
    with start(tmp_path, config) as server, client(server) as feedback:
        feedback.create_label_job(spec)
        eventually(lambda: len(chats(endpoint)) == kill_after + 1, timeout_seconds=30)  # the last one has no answer yet
        eventually(lambda: len(small.answered) - before == 12, timeout_seconds=30)
        eventually(lambda: verdicts_in(tmp_path) == 12 + kill_after - 1, timeout_seconds=30)  # the last answers reach the ledger
        server.signal(signal.SIGKILL)
        server.wait(10)
    left = chats(endpoint)
    calm(endpoint)
    with start(tmp_path, config) as server, client(server) as feedback:
        job = list(feedback.watch_label_job("labelJobs/job", timeout_seconds=60))[-1]
        assert (job.state, job.done_pairs) == ("succeeded", 6)
    prompts = [body["messages"][0]["content"] for body in [*left[1:-1], *chats(endpoint)[1:]]]
    assert len(prompts) == len(set(prompts)) == 12
    assert len(small.answered) - before == 12


def of(label: Label, name: str) -> list[float]:
    return [judgement.cost for judgement in label.judgements if name in judgement.judge]


def test_an_ensemble_and_an_escalation_over_both_kinds_of_judge(feedback: FeedbackClient, endpoint: Double, small: FakeJudge) -> None:
    item = pair("panel", "good")
    alone = feedback.label_pair(item, Judge("verdict"))
    both = feedback.label_pair(item, Judge("verdict", name="both"))
    assert both.preference == pytest.approx((alone.preference + expected(item)) / 2)  # type: ignore[operator]
    assert both.agreement == 1.0
    assert [judgement.cached for judgement in both.judgements] == [True, True, False, False]
    assert len({judgement.judge_digest for judgement in both.judgements}) == 2
    assert len(of(both, MODEL)) == 2
    assert all(cost > 0 for cost in of(both, MODEL))
    asked = len(chats(endpoint))
    ladder = feedback.label_pair(item, Judge("verdict", name="ladder"))
    assert (ladder.escalated, ladder.preference) == (False, alone.preference)
    equal = pair("equal", "one", "other")
    unsure = feedback.label_pair(equal, Judge("verdict", name="ladder"))
    assert (unsure.escalated, unsure.outcome) == (True, "tie")
    assert len(unsure.judgements) == 4
    assert len(chats(endpoint)) == asked + 2
    assert BIAS > 0  # the endpoint likes what is shown first; both orders take that out
