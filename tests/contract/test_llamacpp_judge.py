"""A judge over a real OpenAI-compatible server: llama.cpp with the embedded model's own weights. Skipped where `make llamacpp-peer` installed none.

What the double answers is held to this. A judge of 135 million weights is no good one: what is held here is what can be read out of its answers.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator

import pytest
from tools import llamacpp_peer

from accord.errors import FailedPreconditionError, OutOfRangeError
from accord.feedback.completions import Completion
from accord.feedback.endpoint import ChatEndpoint
from accord.feedback.judge_config import OpenAIJudge, Price
from accord.feedback.judges import make_written_judges
from accord.feedback.records import Answer, Question
from accord.prompts import default_rubric
from accord.text.chat import Message
from accord.text.tasks import Task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not llamacpp_peer.installed(), reason="no llama.cpp in build/llamacpp-peer: make llamacpp-peer"),
]
PRICE = Price(prompt_per_million=1, completion_per_million=3)
ROWS = 4  # 512 tokens of context each, shared


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with llamacpp_peer.running(rows=ROWS, threads=1) as address:
        yield f"{address}/v1"


@pytest.fixture
async def endpoint(url: str) -> AsyncIterator[ChatEndpoint]:
    opened = ChatEndpoint("peer", OpenAIJudge(kind="openai", base_url=url, model="any", context_tokens=100_000), PRICE)
    yield opened
    await opened.close()


def question(kind: str, first: str, second: str | None, endpoint_judge: object) -> Question:
    rubric = default_rubric(Task.CONVERSATION, kind)  # type: ignore[arg-type]
    return Question(kind, Task.CONVERSATION, (Message("user", "Name a river."),), first, second, rubric, endpoint_judge)  # type: ignore[arg-type]


def check(found: Completion, prompt_bytes: int) -> None:
    """Its tokens spell its text, and every list of alternatives is a part of a distribution."""
    assert found.tokens
    assert found.text.encode() in b"".join(token.text for token in found.tokens)
    for token in found.tokens:
        total = math.fsum(math.exp(alternative.logprob) for alternative in token.alternatives)
        assert 0 < total <= 1 + 1e-3
        assert max(token.alternatives, key=lambda alternative: alternative.logprob).text == token.text  # greedily
    assert prompt_bytes / 16 < found.prompt_tokens < prompt_bytes
    assert found.cost == pytest.approx((found.prompt_tokens + 3 * found.completion_tokens) / 1e6)


async def test_what_it_writes_has_tokens_logprobs_and_a_cost(endpoint: ChatEndpoint) -> None:
    prompt = "Say the word river in one word."
    found = await endpoint.complete(prompt, max_tokens=8)
    check(found, len(prompt) + 300)  # its template adds a system turn
    assert await endpoint.complete(prompt, max_tokens=8) == found
    assert (await endpoint.identify("")).digest == endpoint.identity_of(found).digest


async def test_it_judges_or_abstains_with_a_reason(endpoint: ChatEndpoint) -> None:
    judge, judges = await endpoint.identify(""), make_written_judges(endpoint)
    for kind in ("verdict", "rating"):
        (answer,) = await judges[kind].ask([question(kind, "The Danube.", "No.", judge)])  # type: ignore[index]
        assert isinstance(answer, Answer)
        assert (answer.probability_first is None) == bool(answer.abstention_reason)
        assert answer.prompt_tokens > 100
        assert answer.cost > 0


async def test_its_own_overflow_is_found(endpoint: ChatEndpoint) -> None:
    with pytest.raises(OutOfRangeError):
        await endpoint.complete("word " * (512 * ROWS + 100), max_tokens=4)


async def test_its_own_refusal_of_a_parameter_is_named(url: str) -> None:
    wrong = OpenAIJudge(kind="openai", base_url=url, model="any", context_tokens=100_000, body={"temperature": "hot"})
    endpoint = ChatEndpoint("peer", wrong, PRICE)
    with pytest.raises(FailedPreconditionError, match="peer"):
        await endpoint.identify("")
    await endpoint.close()
