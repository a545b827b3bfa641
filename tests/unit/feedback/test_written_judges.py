"""What is read out of a chat endpoint's answers: closed forms for soft labels, text where there are no logprobs, and nothing that is guessed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from accord.client.messages import ModelDigests
from accord.errors import AccordError, OutOfRangeError, UnavailableError
from accord.feedback.completions import Completion, NoUsageError, read_completion
from accord.feedback.endpoint import ChatEndpoint
from accord.feedback.judge_config import OpenAIJudge, Price
from accord.feedback.judge_model import JudgeChangedError
from accord.feedback.judges import make_written_judges
from accord.feedback.judges.written import read_rating, read_verdict
from accord.feedback.records import Answer, JudgeIdentity, Kind, Question
from accord.prompts import default_rubric
from accord.text.chat import Message
from accord.text.tasks import Task

FREE = Price(prompt_per_million=0, completion_per_million=0)
PRICE = Price(prompt_per_million=2, completion_per_million=8, cached_prompt_per_million=0.5)
RANK, RATE = '"rank": [', '"rating": ['
Written = Sequence[tuple[str, dict[str, float]]]


def body(tokens: Written, **changes: Any) -> dict[str, Any]:
    """A chat completion as an endpoint sends it: each token with what could stand there, by probability; none for tokens without a list."""
    content = []
    for text, shares in tokens:
        listed = [{"token": name, "logprob": math.log(share), "bytes": list(name.encode())} for name, share in shares.items()]
        content.append({"token": text, "logprob": math.log(shares.get(text, 0.5)), "bytes": list(text.encode()), "top_logprobs": listed})
    message = {"role": "assistant", "content": "".join(text for text, _ in tokens)}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": {"content": content}}
    usage = {"prompt_tokens": 100, "completion_tokens": 4}
    return {"choices": [choice | changes.pop("choice", {})], "usage": usage, "system_fingerprint": "fp"} | changes


def completion(tokens: Written, **changes: Any) -> Completion:
    return read_completion(body(tokens, **changes), FREE)


def text(words: str, finish: str = "stop") -> Completion:
    return Completion(words, finish_reason=finish)


def verdict(shares: dict[str, float], written: str = "1", before: Sequence[str] = ('"rank"', ": ["), after: str = "]") -> Answer:
    return read_verdict(completion([*((token, {}) for token in before), (written, shares), (after, {})]), RANK)


# Verdicts


def test_a_verdict_is_soft_from_the_two_verdicts_renormalized() -> None:
    answer = verdict({"1": 0.6, "2": 0.2, "both": 0.2})
    assert answer.probability_first == pytest.approx(0.75)
    assert (answer.evidence_first, answer.evidence_second) == (pytest.approx(math.log(0.6)), pytest.approx(math.log(0.2)))
    assert answer.parsed == "first"
    assert verdict({"1": 0.2, "2": 0.6}, written="2").probability_first == pytest.approx(0.25)


def test_all_tokens_that_begin_with_a_verdict_count_for_it() -> None:
    shares = {"1": 0.3, " 1": 0.1, "1]": 0.2, "2": 0.1, "12": 0.2}
    assert verdict(shares).probability_first == pytest.approx(0.6 / 0.7)
    glued = read_verdict(completion([('"rank"', {}), (": [2", {": [2": 0.5, ": [1": 0.3, "[1": 0.1}), ("]", {})]), RANK)
    assert glued.probability_first == pytest.approx(0.3 / 0.8)  # "[1" is not another end of what stands there


def test_a_verdict_that_is_not_listed_has_at_most_what_is_left() -> None:
    by_rest = verdict({"1": 0.9, "so": 0.08})
    assert by_rest.probability_first == pytest.approx(0.9 / 0.92)
    by_list = verdict({"1": 0.5, "so": 0.05, "a": 0.01})
    assert by_list.probability_first == pytest.approx(0.5 / 0.51)
    certain = verdict({"1": 1.0 - 1e-12, "x": 1e-12})
    assert certain.probability_first is not None
    assert 1 - 1e-8 < certain.probability_first < 1


def test_the_verdict_counts_where_the_answer_gives_it_not_where_it_speaks_of_it() -> None:
    tokens: Written = [("Response 1", {}), (" is", {}), (" short.\n", {}), ("1", {"1": 0.9, "2": 0.1}), (" point", {}), ("\n", {}), (RANK, {}),
                       ("2", {"2": 0.8, "1": 0.2}), ("]", {})]  # fmt: skip
    assert read_verdict(completion(tokens), RANK).probability_first == pytest.approx(0.2)


@pytest.mark.parametrize("bare", ["1", " 1", "**1**", "1.", '"1"'])
def test_a_bare_verdict_is_one(bare: str) -> None:
    place = bare.index("1")
    tokens: Written = [(bare[:place], {}), ("1", {"1": 0.7, "2": 0.3}), (bare[place + 1 :], {})]
    assert read_verdict(completion([token for token in tokens if token[0]]), RANK).probability_first == pytest.approx(0.7)


@pytest.mark.parametrize(
    "tokens",
    [
        [("rank", {}), (":", {}), (" [", {}), ("1", {"1": 0.7, "2": 0.3}), ("]", {})],  # what Qwen2.5-Coder-1.5B writes
        [('"rank":', {}), (" ", {}), ("1", {"1": 0.7, "2": 0.3})],
        [("Response", {}), (" 1", {" 1": 0.7, " 2": 0.3}), (" is better", {})],
        [("I choose response ", {}), ("1", {"1": 0.7, "2": 0.3}), (".", {})],
    ],
)
def test_a_verdict_in_another_form_is_soft_where_its_number_is_the_only_one(tokens: Written) -> None:
    assert read_verdict(completion(tokens), RANK).probability_first == pytest.approx(0.7)
    with_reasons = read_verdict(completion(tokens), RANK, reasons=True)  # the number may stand before the judge has decided
    assert (with_reasons.probability_first, with_reasons.evidence_first) == (1.0, None)


def test_a_number_that_is_not_the_verdict_makes_nothing_soft() -> None:
    worse: Written = [("Response ", {}), ("2", {"2": 0.7, "1": 0.3}), (" is worse", {})]
    assert read_verdict(completion(worse), RANK).probability_first == 1.0
    two: Written = [("Response ", {}), ("1", {"1": 0.6, "2": 0.4}), (" is better than 20 others", {})]
    assert read_verdict(completion(two), RANK).probability_first == 1.0


def test_utf8_that_is_cut_by_tokens_moves_nothing() -> None:
    snow = "«☃"
    content = body([(snow, {}), (RANK, {}), ("1", {"1": 0.6, "2": 0.3}), ("]", {})])
    entry = content["choices"][0]["logprobs"]["content"].pop(0)
    for part in (snow.encode()[:1], snow.encode()[1:4], snow.encode()[4:]):
        piece = {**entry, "token": part.decode("utf-8", "replace"), "bytes": list(part)}
        content["choices"][0]["logprobs"]["content"].insert(0, piece)
    content["choices"][0]["logprobs"]["content"][:3] = reversed(content["choices"][0]["logprobs"]["content"][:3])
    assert read_verdict(read_completion(content, FREE), RANK).probability_first == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("words", "probability"),
    [('"rank": [1]', 1.0), ('"rank": [2]', 0.0), ("2", 0.0), ("Response 2 is better.", 0.0), ("It is a tie.", 0.5)],
)
def test_text_without_logprobs_is_a_hard_label(words: str, probability: float) -> None:
    answer = read_verdict(text(words), RANK)
    assert (answer.probability_first, answer.evidence_first, answer.abstention_reason) == (probability, None, "")


@pytest.mark.parametrize("words", ["", "  \n", "I cannot say.", '"rank": [1, 2]', "Response 1 or Response 2", '"rank": [1] "rank": [2]', "3", "12"])
def test_text_that_does_not_say_is_an_abstention_even_with_logprobs(words: str) -> None:
    for found in (text(words), completion([(words, {"1": 0.9, "2": 0.1})] if words else [])):
        answer = read_verdict(found, RANK)
        assert answer.probability_first is None
        assert answer.abstention_reason


def test_an_answer_that_was_cut_off_says_so() -> None:
    assert read_verdict(text("First, both", "length"), RANK).abstention_reason.startswith("cut off")
    assert read_rating(text("Well", "length"), RATE).startswith("cut off")  # type: ignore[union-attr]
    assert read_verdict(text('"rank": [2]', "length"), RANK).probability_first == 0.0


@pytest.mark.parametrize(
    "words", ["**Response 1** is polite, warm and", "Response 1\nThis response is", "**Response 1**: This response is polite but does not"]
)
def test_an_answer_that_was_cut_off_before_the_second_response_is_no_vote_for_the_first(words: str) -> None:
    answer = read_verdict(text(words, "length"), RANK)
    assert answer.probability_first is None
    assert answer.abstention_reason.startswith("cut off")


def test_a_one_that_was_cut_off_may_be_a_ten() -> None:
    assert isinstance(read_rating(text('"rating": [1', "length"), RATE), str)
    assert read_rating(text('"rating": [1', "stop"), RATE) == tuple(float(value == 1) for value in range(1, 11))


def test_logprobs_that_do_not_spell_the_text_are_not_used() -> None:
    other = body([("2", {"2": 0.9, "1": 0.1})])
    other["choices"][0]["message"]["content"] = '"rank": [1]'
    assert read_verdict(read_completion(other, FREE), RANK).probability_first == 1.0


@pytest.mark.parametrize("broken", ["x", None, math.nan, True])
def test_a_token_without_a_number_makes_the_logprobs_unreadable_not_wrong(broken: Any) -> None:
    content = body([(RANK, {}), ("1", {"1": 0.6, "2": 0.3}), ("]", {})])
    content["choices"][0]["logprobs"]["content"][0]["logprob"] = broken
    assert read_verdict(read_completion(content, FREE), RANK).probability_first == 1.0


# Ratings


def rating(shares: dict[str, float], *written: str, following: dict[str, float] | None = None) -> tuple[float, ...] | str:
    """What is read where the rating's tokens have these alternatives: those of its first, and of what follows."""
    first, second, *rest = (*written, "]")
    return read_rating(completion([(RATE, {}), (first, shares), (second, following or {}), *((token, {}) for token in rest)]), RATE)


def test_a_rating_is_the_distribution_at_its_token() -> None:
    found = rating({"8": 0.5, "10": 0.25, "1": 0.125, "x": 0.1}, "8")
    assert found == pytest.approx((1 / 7, 0, 0, 0, 0, 0, 0, 4 / 7, 0, 2 / 7))


def test_a_ten_that_is_written_as_two_tokens_is_divided_from_one() -> None:
    ten = rating({"1": 0.8, "8": 0.2}, "1", "0", following={"0": 0.9, "]": 0.1})
    assert ten == pytest.approx((0.08, 0, 0, 0, 0, 0, 0, 0.2, 0, 0.72))
    one = rating({"1": 0.8, "8": 0.2}, "1", following={"]": 0.75, "0": 0.25})
    assert one == pytest.approx((0.6, 0, 0, 0, 0, 0, 0, 0.2, 0, 0.2))


def test_a_one_that_may_be_a_ten_is_not_guessed() -> None:
    hidden = rating({"8": 0.6, "1": 0.3}, "8")
    assert hidden == tuple(float(value == 8) for value in range(1, 11))  # the text alone
    little = rating({"8": 0.6, "7": 0.3, "1": 0.005}, "8")
    assert little == pytest.approx((0, 0, 0, 0, 0, 0, 1 / 3, 2 / 3, 0, 0))


@pytest.mark.parametrize(("words", "expected"), [('"rating": [7]', 7), ("10", 10), ("8/10", 8), ("I give it a 3.", 3)])
def test_a_rating_without_logprobs_is_what_the_text_says(words: str, expected: int) -> None:
    assert read_rating(text(words), RATE) == tuple(float(value == expected) for value in range(1, 11))


@pytest.mark.parametrize("words", ["", "7.5", "3 or 4", "eleven", "11", "It leaves out 3 important points.", "I'd say 8-9.", "4/5"])
def test_a_text_without_one_rating_is_an_abstention(words: str) -> None:
    assert isinstance(read_rating(text(words), RATE), str)


# What a body must have


@pytest.mark.parametrize(
    "wrong",
    [None, [], {}, {"choices": []}, {"choices": [{"text": "1"}]}, {"choices": ["1"]}, {"choices": [{"message": {"content": 5}}]}, "oops"],
)
def test_what_is_no_completion_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"missing|no text"):
        read_completion(wrong, FREE)


def test_tokens_cost_what_the_table_says() -> None:
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 500_000, "prompt_tokens_details": {"cached_tokens": 400_000}}
    found = read_completion(body([("1", {})], usage=usage), PRICE)
    assert found.cost == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 0.5 * 8)
    plain = Price(prompt_per_million=2, completion_per_million=8)
    assert read_completion(body([("1", {})], usage=usage), plain).cost == pytest.approx(2 + 4)
    with pytest.raises(NoUsageError):
        read_completion(body([("1", {})], usage=None), PRICE)
    assert read_completion(body([("1", {})], usage=None), FREE).prompt_tokens == 0
    for usage in ({"total_tokens": 9}, {"prompt_tokens": 7, "completion_tokens": None}):  # as some local servers say it
        with pytest.raises(NoUsageError):
            read_completion(body([("1", {})], usage=usage), PRICE)
        assert read_completion(body([("1", {})], usage=usage), FREE).prompt_tokens == usage.get("prompt_tokens", 0)
    with pytest.raises(ValueError, match="no number of tokens"):
        read_completion(body([("1", {})], usage={"prompt_tokens": -1, "completion_tokens": 1}), PRICE)


@pytest.mark.parametrize("change", [{"message": {"content": None, "refusal": "I cannot\nhelp."}}, {"finish_reason": "content_filter"}])
def test_a_refusal_is_an_abstention_with_its_reason(change: dict[str, Any]) -> None:
    found = completion([('"rank": [1]', {})], choice=change)
    assert read_verdict(found, RANK).abstention_reason.startswith("refused: ")
    assert read_rating(found, RATE) == found.unusable


@pytest.mark.parametrize("logprob", [3.5, 1000.0, 10**400, -(10**400), float("nan"), True, "-0.1", None])
def test_what_is_no_logprob_is_not_read_as_one(logprob: Any) -> None:
    """A server that gives logits, say: then the text decides."""
    made = body([('"rank": [', {}), ("1", {"1": 0.6, "2": 0.4}), ("]", {})])
    made["choices"][0]["logprobs"]["content"][1] |= {"logprob": logprob}
    assert read_verdict(read_completion(made, FREE), RANK) == Answer(1.0, parsed="first")
    made["choices"][0]["logprobs"]["content"][1] |= {"logprob": 1e-6}  # rounded
    assert read_verdict(read_completion(made, FREE), RANK).probability_first == pytest.approx(0.6, abs=0.3)


# Judges

IDENTITY = JudgeIdentity("m at host", ModelDigests(), configured="big", endpoint_digest="d")


class FakeEndpoint:
    """Answers what it is told to, in turn; an error is raised."""

    max_verdict_tokens = 24

    def __init__(self, *answers: Completion | AccordError, judges: Sequence[JudgeIdentity] = ()) -> None:
        self.answers = list(answers)
        self.judges = list(judges)
        self.asked: list[tuple[str, int]] = []
        self.drawn: list[tuple[float, int | None]] = []

    async def complete(self, prompt: str, *, max_tokens: int, temperature: float = 0.0, seed: int | None = None) -> Completion:
        self.asked.append((prompt, max_tokens))
        self.drawn.append((temperature, seed))
        answer = self.answers.pop(0)
        if isinstance(answer, AccordError):
            raise answer
        return answer

    def identity_of(self, completion: Completion) -> JudgeIdentity:
        return self.judges.pop(0) if self.judges else IDENTITY


def question(kind: Kind, second: str | None = "birch", **changes: Any) -> Question:
    rubric = default_rubric(Task.CONVERSATION, kind)  # type: ignore[arg-type]
    return Question(kind, Task.CONVERSATION, (Message("user", "hello"),), "oak", second, rubric, IDENTITY, **changes)


async def ask(endpoint: FakeEndpoint, asked: Question) -> Answer | AccordError:
    return (await make_written_judges(endpoint)[asked.kind].ask([asked]))[0]


async def test_a_verdict_is_asked_for_in_the_rubrics_form() -> None:
    endpoint = FakeEndpoint(Completion('"rank": [2]', prompt_tokens=90, completion_tokens=4, cost=0.5))
    answer = await ask(endpoint, question("verdict"))
    assert answer == Answer(0.0, parsed="second", prompt_tokens=90, response_tokens=4, cost=0.5)
    (prompt, room) = endpoint.asked[0]
    assert prompt.index("### Response 1") < prompt.index("oak") < prompt.index("### Response 2") < prompt.index("birch")
    assert prompt.endswith('it begins with "rank": [ and your verdict, 1 or 2, follows at once.')
    assert room == 24


async def test_a_rationale_has_room_and_is_kept() -> None:
    endpoint = FakeEndpoint(text('Two is warmer.\n"rank": [2]'))
    answer = await ask(endpoint, question("verdict", rationale=True, max_rationale_tokens=100))
    assert isinstance(answer, Answer)
    assert (answer.rationale, answer.probability_first) == ('Two is warmer.\n"rank": [2]', 0.0)
    assert endpoint.asked[0][1] == 124


async def test_a_sample_of_self_consistency_is_drawn_with_its_seed() -> None:
    endpoint = FakeEndpoint(text('"rank": [2]'), text('"rank": [2]'))
    await ask(endpoint, question("verdict", rationale=True, max_rationale_tokens=100, temperature=0.7, sample=3))
    await ask(endpoint, question("verdict"))
    assert endpoint.drawn == [(0.7, 3), (0.0, None)]


def test_the_source_of_a_verdict_is_kept_to() -> None:
    soft = completion([('"rank"', {}), (": [", {}), ("1", {"1": 0.6, "2": 0.2}), ("]", {})])
    assert read_verdict(soft, RANK, "text").probability_first == 1.0
    assert read_verdict(soft, RANK, "logprobs").probability_first == pytest.approx(0.75)
    without = read_verdict(text('"rank": [1]'), RANK, "logprobs")
    assert (without.probability_first, without.parsed) == (None, "first")
    assert without.abstention_reason == "no logprobs of both verdicts where the verdict is written"


async def test_a_rating_reads_each_response_alone() -> None:
    endpoint = FakeEndpoint(Completion("8", prompt_tokens=50, completion_tokens=1, cost=0.25), Completion("3", prompt_tokens=60, cost=0.5))
    answer = await ask(endpoint, question("rating"))
    assert isinstance(answer, Answer)
    assert (answer.probability_first, answer.evidence_first, answer.evidence_second) == (1.0, 8.0, 3.0)
    assert (answer.prompt_tokens, answer.response_tokens, answer.cost) == (110, 1, 0.75)
    assert [("oak" in prompt, "birch" in prompt) for prompt, _ in endpoint.asked] == [(True, False), (False, True)]
    alone = await ask(FakeEndpoint(text("4")), question("rating", second=None))
    assert isinstance(alone, Answer)
    assert (alone.probability_first, alone.evidence_first, alone.evidence_second, len(alone.distributions)) == (None, 4.0, None, 1)


async def test_a_response_that_was_rated_is_not_paid_for_again_where_the_other_one_failed() -> None:
    endpoint = FakeEndpoint(Completion("8", prompt_tokens=50, cost=0.25), UnavailableError("away"), Completion("3", prompt_tokens=60, cost=0.5))
    judge = make_written_judges(endpoint)["rating"]
    (failed,) = await judge.ask([question("rating")])
    assert isinstance(failed, UnavailableError)
    (answer,) = await judge.ask([question("rating")])
    assert isinstance(answer, Answer)
    assert (answer.evidence_first, answer.evidence_second, answer.prompt_tokens, answer.cost) == (8.0, 3.0, 110, 0.75)
    assert len(endpoint.asked) == 3
    endpoint.answers = [text("5"), text("6")]
    (other,) = await judge.ask([question("rating", repeat=1)])
    assert isinstance(other, Answer)
    assert other.evidence_first == 5.0  # what was used is not used again


@pytest.mark.parametrize("kind", ["verdict", "rating"])
async def test_an_overflow_is_an_abstention_and_what_was_paid_before_it_counts(kind: Kind) -> None:
    first = [Completion("8", prompt_tokens=50, cost=0.25)] if kind == "rating" else []
    answer = await ask(FakeEndpoint(*first, OutOfRangeError("9000 tokens")), question(kind))
    assert isinstance(answer, Answer)
    assert (answer.probability_first, answer.abstention_reason) == (None, "context overflow: 9000 tokens")
    assert answer.cost == (0.25 if first else 0.0)


async def test_an_endpoint_that_is_away_is_an_error() -> None:
    assert isinstance(await ask(FakeEndpoint(UnavailableError("away")), question("verdict")), UnavailableError)


def endpoint_digest(**changes: Any) -> str:
    config = OpenAIJudge.model_validate({"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m", "context_tokens": 100, **changes})
    return ChatEndpoint("big", config, Price(prompt_per_million=0, completion_per_million=0)).identity_of(text("1")).digest


def test_who_an_endpoint_is_follows_from_how_it_is_asked() -> None:
    """What was cut off for want of room must not answer for the same judge with more room."""
    differing = [{}, {"max_verdict_tokens": 500}, {"top_logprobs": 5}, {"body": {"effort": "low"}}, {"model": "n"}]
    assert len({endpoint_digest(**changes) for changes in differing}) == len(differing)
    same = [{}, {"max_verdict_tokens": 24}, {"context_tokens": 200}, {"attempts": 2}, {"timeout_seconds": 1}, {"max_concurrency": 1}]
    assert {endpoint_digest(**changes) for changes in same} == {endpoint_digest()}


async def test_an_answer_by_another_judge_is_kept_under_that_one() -> None:
    other = JudgeIdentity("m at host", ModelDigests(), configured="big", endpoint_digest="e")
    found = await ask(FakeEndpoint(text("1"), judges=[other]), question("verdict"))
    assert isinstance(found, JudgeChangedError)
    assert found.judge == other
    assert found.answer == Answer(1.0, parsed="first")
    mixed = await ask(FakeEndpoint(text("1"), text("2"), judges=[IDENTITY, other]), question("rating"))
    assert isinstance(mixed, JudgeChangedError)
    assert (mixed.judge, mixed.answer) == (None, None)
