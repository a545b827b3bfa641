"""A judge's PolicyService in memory: one token a character, opinions that can be calculated by hand, and faults on demand."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Mapping, Sequence

from accord.client.messages import EmptyPrompt, ModelDigests, PromptForm, Usage
from accord.client.policy import (
    FinishReason,
    GenerateItem,
    GenerateResult,
    Generation,
    Logprobs,
    LogprobsItem,
    LogprobsResult,
    ModelInfo,
    ResponseLogprobs,
    Sample,
)
from accord.errors import AccordError, FailedPreconditionError, NotFoundError, OutOfRangeError
from accord.feedback.config import FeedbackConfig
from accord.feedback.desk import Desk, Lane
from accord.feedback.judge_config import PolicyJudge
from accord.feedback.judge_model import JudgeModel
from accord.feedback.judges import make_judges
from accord.feedback.labeller import Labeller
from accord.feedback.ledger import Ledger
from accord.feedback.roster import Backend, Roster

_VERDICT = re.compile(r"### (?:Summary|Response) 1\n(.*?)\n\n### (?:Summary|Response) 2\n(.*?)\n\n### Your task", re.DOTALL)
_RATING = re.compile(r"### (?:Summary|Response)\n(.*?)\n\n### Your task", re.DOTALL)
COMMON_TOKEN_LOGPROB = -0.25


def quality(text: str) -> float:
    """The fake's taste: the number of times that a response says good."""
    return float(text.count("good"))


def rating_shares(text: str) -> list[float]:
    """Probability of each rating 1..10 of a response: 0.6 on 2 + its quality, the rest spread evenly over the others."""
    peak = min(9, int(1 + quality(text)))
    return [0.6 if rating == peak else 0.4 / 9 for rating in range(10)]


class FakePolicy:
    """Implements `accord.feedback.judge_model.PolicyCalls`.

    A verdict has log-odds ``quality(first) - quality(second) + bias``, doubled when a rationale stands before it; a rating follows
    `rating_shares`; a response costs 1 nat a character, or 0.1 for the characters of words that its prompt has too.

    Args:
        bias: how much it likes what is shown first.
        context_tokens: prompts and responses over this are OUT_OF_RANGE.
        write: what it writes when it is asked to generate.
        seeded: whether a text says by which seed it was sampled, so that each is another.
        base: its base model's digest.
    """

    def __init__(
        self, *, bias: float = 0.0, context_tokens: int = 100_000, write: Callable[[str], str] = lambda prompt: "", base: str = "base-1",
        seeded: bool = False,
    ) -> None:  # fmt: skip
        self.bias = bias
        self.context_tokens = context_tokens
        self.write = write
        self.base = base
        self.seeded = seeded
        self.adapters: dict[str, tuple[str, str]] = {}
        self.calls: list[int] = []
        self.asked: list[str] = []
        self.generated: list[GenerateItem] = []
        self.failures: list[AccordError] = []
        self.gate: asyncio.Event | None = None
        self.cancelled = 0
        self.closed = False
        self.info_calls = 0
        self.down: AccordError | None = None
        self.finish: FinishReason = "eos"
        self.logprob_of: Callable[[str, str], float] | None = None

    async def model_info(self, *, timeout_seconds: float | None) -> ModelInfo:
        self.info_calls += 1
        if self.down is not None:
            raise self.down
        return ModelInfo("fake", self._digests, self.context_tokens, 1000, (0,), "fake", 100, 0, "0")

    async def adapter_version(self, name: str, *, timeout_seconds: float) -> tuple[str, str]:
        if name not in self.adapters:
            raise NotFoundError(f"there is no {name}", field="adapter")
        return self.adapters[name]

    async def generate(
        self, items: Sequence[GenerateItem], *, adapter: str, expected_digests: ModelDigests | None, timeout_seconds: float | None
    ) -> Generation:
        await self._arrive(expected_digests)
        self.generated += items
        results = []
        for item in items:
            prompt = text_of(item.prompt)
            text = self.write(prompt) + (f" [seed {item.sampling.seed}]" if self.seeded else "")
            error = self._overflow(prompt, "")
            samples = () if error else (Sample(0, text, ids_of(text), (-0.1,) * len(text), self.finish, 0),)
            results.append(GenerateResult("", error, samples, ids_of(prompt)))
        return Generation(tuple(results), adapter, self._digests, Usage())

    async def compute_logprobs(
        self, items: Sequence[LogprobsItem], *, adapter: str, expected_digests: ModelDigests | None, timeout_seconds: float | None
    ) -> Logprobs:
        self.calls.append(len(items))
        await self._arrive(expected_digests)
        self.asked += [text_of(item.prompt) for item in items]
        return Logprobs(tuple(self._scored(item) for item in items), adapter, self._digests, Usage())

    async def close(self) -> None:
        self.closed = True

    @property
    def _digests(self) -> ModelDigests:
        return ModelDigests(self.base, "tokenizer-1", "template-1")

    async def _arrive(self, expected: ModelDigests | None) -> None:
        try:
            if self.gate is not None:
                await self.gate.wait()
            else:
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.down is not None:
            raise self.down
        if self.failures:
            raise self.failures.pop(0)
        if expected is not None and expected != self._digests:
            raise FailedPreconditionError(
                f"the caller expects base_model {expected.base_model}, this service has {self.base}", field="expected_digests.base_model"
            )

    def _scored(self, item: LogprobsItem) -> LogprobsResult:
        prompt = text_of(item.prompt)
        texts = [str(response) for response in item.responses]
        error = next((found for text in texts if (found := self._overflow(prompt, text)) is not None), None)
        if error is not None:
            return LogprobsResult("", error, (), ())
        return LogprobsResult("", None, tuple(self._response(item.prompt, text) for text in texts), ids_of(prompt))

    def _response(self, prompt: PromptForm, text: str) -> ResponseLogprobs:
        shown = text_of(prompt)
        if (verdict := _VERDICT.search(shown)) is not None:
            logprobs = self._verdict(verdict, text)
        elif (rating := _RATING.search(shown)) is not None:
            logprobs = rating_logprobs(rating.group(1), text)
        else:
            known = set(re.findall(r"\w+", shown))
            words = re.findall(r"\w+|\W", text)
            logprobs = [-0.1 if word in known else -1.0 for word in words for _ in word]
        if self.logprob_of is not None:
            logprobs[-1] = self.logprob_of(shown, text)
        return ResponseLogprobs(ids_of(text), tuple(logprobs), math.fsum(logprobs))

    def _verdict(self, shown: re.Match[str], text: str) -> list[float]:
        odds = quality(shown.group(1)) - quality(shown.group(2)) + self.bias
        if not text.startswith('"rank"'):
            odds *= 2
        last = -math.log1p(math.exp(-odds if text.endswith("1") else odds)) - 0.5  # half a nat goes to other tokens
        return [COMMON_TOKEN_LOGPROB] * (len(text) - 1) + [last]

    def _overflow(self, prompt: str, response: str) -> OutOfRangeError | None:
        size = len(prompt) + len(response)
        if size <= self.context_tokens:
            return None
        return OutOfRangeError(f"prompt and response have {size} tokens; at most {self.context_tokens} are allowed", field="items[0]")


def rating_logprobs(response: str, text: str) -> list[float]:
    """Token by token: the first digit, then either 0 or the closing bracket, so that the product is the rating's share."""
    shares = rating_shares(response)
    digits = text.rpartition("[")[2].rstrip("]")
    starts = shares[0] + shares[9] if digits[0] == "1" else shares[int(digits) - 1]
    logprobs = [COMMON_TOKEN_LOGPROB] * (len(text) - len(digits) - 1) + [math.log(starts)]
    if digits[0] == "1":
        logprobs.append(math.log((shares[9] if digits == "10" else shares[0]) / starts))
    return logprobs + [0.0] * (len(text) - len(logprobs))


def ids_of(text: str) -> tuple[int, ...]:
    """One token a character."""
    return tuple(ord(character) for character in text)


def text_of(prompt: PromptForm) -> str:
    """All that a prompt says."""
    if isinstance(prompt, EmptyPrompt):
        return ""
    assert not isinstance(prompt, str)
    return "\n".join(message.content for message in prompt)  # type: ignore[union-attr]


class Bench:
    """A labeller over fake judges, with its parts at hand: `policy` is the judge named default, `others` those of `config.judges` by name."""

    def __init__(self, ledger: Ledger, policy: FakePolicy, config: FeedbackConfig, others: Mapping[str, FakePolicy]) -> None:
        self.ledger = ledger
        self.policy = policy
        self.others = others
        self.config = config
        self.model = JudgeModel(policy, "fake:1", timeout_seconds=config.judge_timeout_seconds)
        backends = {"default": self._backend(self.model, "default")}
        for name, other in others.items():
            backends[name] = self._backend(JudgeModel(other, f"{name}:1", timeout_seconds=config.judge_timeout_seconds, name=name), name)
        self.roster = Roster(config, backends)
        self.desk = Desk(ledger, self.roster.lanes)
        self.labeller = Labeller(ledger, self.roster, self.desk, config)

    def _backend(self, model: JudgeModel, name: str) -> Backend:
        judge = self.config.named_judges[name]
        price = self.config.prices[judge.price] if isinstance(judge, PolicyJudge) and judge.price is not None else None
        return Backend(model, Lane(make_judges(model, price, name), self.config.concurrency, self.config.batch_pairs))
