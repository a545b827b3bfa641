"""Verdicts and ratings that a chat endpoint writes: soft where it gives logprobs at the verdict, hard where text alone is there, never guessed.

An endpoint cannot be made to begin its answer in a given way, nor score a given text: it is asked to write the rubric's `verdict_prefix` and its
verdict. The text decides what is said (`accord.text.judge`); where it says it behind the prefix, or in the only number of an answer without reasons,
the alternatives at that very token make the label soft. Everything else (two verdicts, none, a refusal) is an abstention with its reason. What does
not belong here: HTTP.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from accord.errors import AccordError, InternalError
from accord.feedback.completions import Completion, log_sum
from accord.feedback.judge_model import JudgeChangedError
from accord.feedback.judges.asking import no_answer
from accord.feedback.judges.rating import rating_preference, rating_prompt
from accord.feedback.judges.verdict import ONLY_VERDICT, judge_prompt
from accord.feedback.records import Answer, JudgeIdentity, Question, VerdictSource
from accord.prompts import Rubric
from accord.text.judge import parse_verdict, verdict_probability
from accord.text.ratings import RATINGS, parse_rating

_ONLY_RATING = "Do not explain. Write only the line of the rating: it begins with {prefix} and your rating, from 1 to 10, follows at once."
_AT_THE_END = "End with the verdict line: it begins with {prefix} and your verdict, 1 or 2, follows at once."
_ANOTHER = "another system_fingerprint; where that comes and goes, set fingerprint_in_digest: false for this judge"
_ROUNDING = 1e-9
_LOST_SHARE = 0.01
_PAID_KEPT = 1024


class Endpoint(Protocol):
    """What a judge needs of a chat endpoint."""

    async def complete(self, prompt: str, *, max_tokens: int, temperature: float = 0.0, seed: int | None = None) -> Completion:
        """The answer to one question, greedily where no temperature is given.

        Raises OutOfRangeError where the prompt does not fit, and other AccordErrors.
        """
        ...

    def identity_of(self, completion: Completion) -> JudgeIdentity:
        """Who has answered."""
        ...

    @property
    def max_verdict_tokens(self) -> int:
        """Room for a verdict or rating."""
        ...


class WrittenVerdictJudge:
    """Implements `Judge` with one completion for a question. Evidence is the logprob of each verdict in nats, None where text alone decided."""

    weight = 1

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def ask(self, questions: Sequence[Question]) -> list[Answer | AccordError]:
        """One after the other: the desk gives one at a time, so that each is kept as soon as it is there."""
        return [await self._ask(question) for question in questions]

    async def _ask(self, question: Question) -> Answer | AccordError:
        rubric = _rubric(question)
        wish = (_AT_THE_END if question.rationale else ONLY_VERDICT).format(prefix=rubric.verdict_prefix)
        room = self._endpoint.max_verdict_tokens + question.max_rationale_tokens
        try:
            completion = await self._endpoint.complete(
                f"{judge_prompt(question).rstrip()}\n{wish}", max_tokens=room, temperature=question.temperature,
                seed=question.seed if question.temperature else None,
            )  # fmt: skip
        except AccordError as error:
            return no_answer(error)
        read = read_verdict(completion, rubric.verdict_prefix, question.verdict_source, reasons=question.rationale)
        answer = replace(read, rationale=completion.text if question.rationale else "")
        return _by(self._endpoint, question, [completion], answer)


class WrittenRatingJudge:
    """Implements `Judge` with a completion for each response, which is read alone. Evidence is each response's expected rating.

    Where the second completion fails, the first one, which is paid for, waits for the next try of the question.
    """

    weight = 1

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._paid: dict[str, Completion] = {}

    async def ask(self, questions: Sequence[Question]) -> list[Answer | AccordError]:
        """One after the other, as verdicts are."""
        return [await self._ask(question) for question in questions]

    async def _ask(self, question: Question) -> Answer | AccordError:
        prefix = _rubric(question).verdict_prefix
        completions: list[Completion] = []
        distributions: list[tuple[float, ...]] = []
        asked: list[str] = []
        for response in (question.first, question.second):
            if response is None:
                continue
            asked.append(f"{rating_prompt(question, response).rstrip()}\n{_ONLY_RATING.format(prefix=prefix)}")
            try:
                completions.append(await self._complete(asked[-1]))
            except AccordError as error:
                problem = no_answer(error)
                if isinstance(problem, Answer):
                    return _by(self._endpoint, question, completions, problem)
                self._keep(dict(zip(asked, completions, strict=False)))
                return problem
            found = read_rating(completions[-1], prefix)
            if isinstance(found, str):
                return _by(self._endpoint, question, completions, Answer(None, abstention_reason=found))
            distributions.append(found)
        means = [math.fsum(rating * share for rating, share in enumerate(shares, start=1)) for shares in distributions]
        preference = rating_preference(*distributions) if len(distributions) == 2 else None
        answer = Answer(preference, means[0], means[1] if len(means) == 2 else None, tuple(distributions))
        return _by(self._endpoint, question, completions, answer)

    async def _complete(self, prompt: str) -> Completion:
        return self._paid.pop(prompt, None) or await self._endpoint.complete(prompt, max_tokens=self._endpoint.max_verdict_tokens)

    def _keep(self, paid: dict[str, Completion]) -> None:
        """For the next try; of questions that nobody asks again the oldest are dropped."""
        self._paid |= paid
        while len(self._paid) > _PAID_KEPT:
            del self._paid[next(iter(self._paid))]


def read_verdict(completion: Completion, prefix: str, source: VerdictSource = "", *, reasons: bool = False) -> Answer:
    """What a completion says of the responses as shown: P(first is better) is soft where the verdict's token has alternatives, else 1, 0 or 1/2.

    With the source `text` it is never soft; with `logprobs` a verdict without alternatives is an abstention. With `reasons` the completion was to
    give them first, so that a number in it may stand before the judge has decided.
    """
    if completion.unusable:
        return Answer(None, abstention_reason=completion.unusable)
    verdict = parse_verdict(completion.text, complete=completion.finish_reason != "length")
    if verdict.tie:
        return Answer(0.5, parsed="tie")
    if verdict.choice is None:
        return Answer(None, parsed=f"unusable: {verdict.reason}", abstention_reason=_cut_off(completion) or verdict.reason)
    parsed = "first" if verdict.choice == 1 else "second"
    position = _position(completion.text, prefix, "[12]")
    if position is None and not reasons:
        position = _only_number(completion.text)
    if source != "text" and position is not None and completion.text[position] == str(verdict.choice):
        logprobs = verdict_logprobs(completion, position)
        if logprobs is not None:
            return Answer(verdict_probability(*logprobs), *logprobs, parsed=parsed)
    if source == "logprobs":
        return Answer(None, parsed=parsed, abstention_reason="no logprobs of both verdicts where the verdict is written")
    return Answer(float(verdict.choice == 1), parsed=parsed)


def verdict_logprobs(completion: Completion, position: int) -> tuple[float, float] | None:
    """Logprobs in nats of the verdicts 1 and 2 at a character of the text; None where the endpoint lists no alternatives there.

    A verdict's logprob is that of all listed tokens that begin with it. One that is not listed is given the most that it can have: the least
    that is listed, or what the listed ones leave of 1. So the label is at most as sure as the judge is.
    """
    listed = completion.alternatives_from(position)
    found = [log_sum([logprob for text, logprob in listed if re.match(rf"{verdict}(?!\d)", text)]) for verdict in (1, 2)]
    if len(listed) < 2 or found == [-math.inf, -math.inf]:
        return None
    left = max(1.0 - math.fsum(math.exp(logprob) for _, logprob in listed), _ROUNDING)
    most = min(math.log(left), *(logprob for _, logprob in listed))
    first, second = (most if value == -math.inf else value for value in found)
    return first, second


def read_rating(completion: Completion, prefix: str) -> tuple[float, ...] | str:
    """The distribution over ratings 1 to 10 that a completion gives, all on one rating where text alone is there; else why there is none."""
    if completion.unusable:
        return completion.unusable
    written = parse_rating(completion.text)
    if written is None:
        return _cut_off(completion) or ("gives no rating" if completion.text.strip() else "empty answer")
    position = _position(completion.text, prefix, "10|[1-9]")
    shares = None
    if position is not None and re.match(rf"{written}(?!\d|\.\d)", completion.text[position:]):
        shares = rating_shares(completion, position)
    if shares is None and written == 1 and completion.text.endswith("1") and _cut_off(completion):
        return _cut_off(completion)  # of a 10, maybe
    return shares or tuple(float(rating == written) for rating in range(1, 11))


def rating_shares(completion: Completion, position: int) -> tuple[float, ...] | None:
    """Probability of each rating at a character of the text, renormalized over the listed ones; None where it cannot be told.

    A tokenizer that writes 10 as 1 and 0 hides 10 behind 1. Then the next token's alternatives divide the two where a 1 was written; where
    another rating was, up to 1 % that lies on them is left out, and more cannot be told.
    """
    listed = completion.alternatives_from(position)
    shares = [math.fsum(math.exp(logprob) for text, logprob in listed if re.match(rf"{rating}(?!\d)", text) and text != "1") for rating in RATINGS]
    ones = math.fsum(math.exp(logprob) for text, logprob in listed if text == "1")
    if len(listed) < 2 or ones + math.fsum(shares) <= 0:
        return None
    if any(text.startswith("10") for text, _ in listed):
        shares[0] += ones
    elif completion.text[position] == "1" and completion.is_last_byte(position):
        ten = _share_of_zero(completion, position + 1)
        if ten is None:
            return None
        shares[0] += ones * (1 - ten)
        shares[9] += ones * ten
    elif ones > _LOST_SHARE * (ones + math.fsum(shares)):
        return None
    total = math.fsum(shares)
    return tuple(share / total for share in shares)


def _share_of_zero(completion: Completion, position: int) -> float | None:
    """How probable a 0 is as the next character, among the alternatives listed there; None where none are."""
    place = completion.place_of(position)
    following = completion.tokens[place[0]].alternatives if place is not None else ()
    total = math.fsum(math.exp(alternative.logprob) for alternative in following)
    zero = math.fsum(math.exp(alternative.logprob) for alternative in following if alternative.text.startswith(b"0"))
    return zero / total if len(following) > 1 and total > 0 else None


def _position(text: str, prefix: str, choices: str) -> int | None:
    """Where the verdict stands: behind the prefix (in any spacing, however often, but always the same), or where it is all that is written."""
    pattern = r"\s*".join(re.escape(part) for part in re.findall(r"\w+|[^\w\s]", prefix))
    found = list(re.finditer(rf"{pattern}\s*[\"'*]*({choices})(?!\d)", text))
    if found:
        return found[0].start(1) if len({match.group(1) for match in found}) == 1 else None
    bare = re.fullmatch(rf"\W*({choices})\W*", text)
    return bare.start(1) if bare else None


def _only_number(text: str) -> int | None:
    """Where the one number of a text stands, as in `rank: [1]` or "Response 2 is better"; None for none, several, or one that is no verdict."""
    numbers = list(re.finditer(r"\d+", text))
    return numbers[0].start() if len(numbers) == 1 and numbers[0].group() in ("1", "2") else None


def _cut_off(completion: Completion) -> str:
    return "cut off: the answer's room ended before its verdict" if completion.finish_reason == "length" else ""


def _by(endpoint: Endpoint, question: Question, completions: Sequence[Completion], answer: Answer) -> Answer | AccordError:
    """The answer with what it cost, where who was asked has given it."""
    paid = _paid(answer, completions)
    judges = {endpoint.identity_of(completion) for completion in completions}
    if judges <= {question.judge}:
        return paid
    asked = question.judge.name
    if len(judges) == 1:
        return JudgeChangedError(f"{asked} has changed between question and answer: {_ANOTHER}", field="judge", judge=judges.pop(), answer=paid)
    return JudgeChangedError(f"{asked} has changed in the middle of an answer: {_ANOTHER}", field="judge")


def _paid(answer: Answer, completions: Sequence[Completion]) -> Answer:
    return replace(
        answer,
        prompt_tokens=sum(completion.prompt_tokens for completion in completions),
        response_tokens=sum(completion.completion_tokens for completion in completions),
        cost=math.fsum(completion.cost for completion in completions),
    )


def _rubric(question: Question) -> Rubric:
    if question.rubric is None:
        raise InternalError("a verdict or rating needs a rubric")
    return question.rubric
