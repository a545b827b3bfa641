"""Two candidates for each prompt of a label job's data, sampled by the policy service: by two adapters, at two temperatures, best of several.

Seeds are a function of the job's seed, the prompt and the side, so that what is sampled again after a kill is the same. What does not belong here:
which prompts there are and what is kept (`accord.feedback.job_candidates`).
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from accord.client.feedback import Candidates
from accord.client.messages import ModelDigests
from accord.client.policy import GenerateItem, GenerateResult, Sampling
from accord.client.reward import RewardModelInfo, ScoreItem, Scores
from accord.data.records import Prompt
from accord.errors import AccordError, FailedPreconditionError, InternalError, InvalidArgumentError, OutOfRangeError, UnavailableError
from accord.feedback.judge_model import PolicyCalls

Side = Literal["a", "b"]
_IDENTIFY_TIMEOUT_SECONDS = 30.0


class RewardCalls(Protocol):
    """What best-of-n needs of a RewardService; `accord.client.reward` has the meaning of each."""

    async def score(
        self, items: Sequence[ScoreItem], reward_model: str, *, expected_digests: ModelDigests | None, timeout_seconds: float | None
    ) -> Scores: ...

    async def reward_model_info(self, reward_model: str, *, timeout_seconds: float | None) -> RewardModelInfo: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Candidate:
    """What was sampled for one prompt. `refused` says why there is no pair; `resampled` that b was equal to a at first; scores are of best-of-n."""

    prompt_id: str
    a: str = ""
    b: str = ""
    refused: str = ""
    resampled: bool = False
    score_a: float | None = None
    score_b: float | None = None


@dataclass(frozen=True, slots=True)
class _Pick:
    text: str = ""
    score: float | None = None
    refused: str = ""


class CandidateSource:
    """Samples candidates. Lives on one event loop.

    Args:
        policy: the service that samples.
        reward: the service that scores for best-of-n; None where there is none.
        timeout_seconds: deadline of one call.
    """

    def __init__(self, policy: PolicyCalls, reward: RewardCalls | None, *, timeout_seconds: float) -> None:
        self._policy = policy
        self._reward = reward
        self._timeout_seconds = timeout_seconds

    def check(self, options: Candidates) -> None:
        """Raises InvalidArgumentError where options contradict each other or this server has no reward service for them."""
        if options.best_of > 1 and not options.reward_model:
            raise InvalidArgumentError("best_of above 1 needs the reward model that chooses", field="candidates.reward_model")
        if options.reward_model and options.best_of == 1:
            raise InvalidArgumentError("a reward model chooses among several samples: best_of must be above 1", field="candidates.best_of")
        if options.reward_model and self._reward is None:
            raise InvalidArgumentError("this server has no reward service (`reward` of its configuration)", field="candidates.reward_model")

    async def identify(self, options: Candidates) -> dict[str, str]:
        """Versions and digests of all that candidates depend on: the lineage of the pairs, and what `sample` holds the services to.

        Raises:
            NotFoundError: there is no such adapter or reward model.
            UnavailableError: a service cannot be reached.
        """
        try:
            info = await self._policy.model_info(timeout_seconds=_IDENTIFY_TIMEOUT_SECONDS)
            found = {
                "base_model": info.base_model, "base_model_digest": info.digests.base_model, "tokenizer_digest": info.digests.tokenizer,
                "chat_template_digest": info.digests.chat_template,
            }  # fmt: skip
            for side, adapter in (("a", options.adapter_a), ("b", options.adapter_b)):
                version, digest = await self._policy.adapter_version(adapter, timeout_seconds=self._timeout_seconds) if adapter else ("", "")
                found |= {f"adapter_{side}": version, f"adapter_{side}_digest": digest}
        except AccordError as error:
            raise _named(error, "the policy that samples candidates") from error
        if options.reward_model and self._reward is not None:
            try:
                model = await self._reward.reward_model_info(options.reward_model, timeout_seconds=_IDENTIFY_TIMEOUT_SECONDS)
            except AccordError as error:
                raise _named(error, "the reward service that chooses candidates") from error
            found |= {"reward_model": model.reward_model, "reward_model_digest": model.digest}
        return found

    async def sample(self, prompts: Sequence[Prompt], options: Candidates, source: Mapping[str, str], seed: int) -> list[Candidate]:
        """A pair of candidates for each prompt, in order. Where b is equal to a, b is sampled once more; equal again, they stay, a tie by rule.

        Raises:
            AccordError: a service cannot answer any of it, or is no longer what `source` says.
        """
        sides: tuple[Side, Side] = ("a", "b")
        picks_a, picks_b = await asyncio.gather(*(self._side(side, prompts, options, source, f"{seed} 0") for side in sides))
        found = [_candidate(prompt, a, b) for prompt, a, b in zip(prompts, picks_a, picks_b, strict=True)]
        equal = [place for place, candidate in enumerate(found) if not candidate.refused and candidate.a.strip() == candidate.b.strip()]
        if equal and (options.temperature_b > 0):
            again = await self._side("b", [prompts[place] for place in equal], options, source, f"{seed} 1")
            for place, pick in zip(equal, again, strict=True):
                found[place] = replace(found[place], b=pick.text, score_b=pick.score, refused=pick.refused, resampled=True)
        return found

    async def close(self) -> None:
        """Closes the channels."""
        await self._policy.close()
        if self._reward is not None:
            await self._reward.close()

    async def _side(self, side: Side, prompts: Sequence[Prompt], options: Candidates, source: Mapping[str, str], salt: str) -> list[_Pick]:
        temperature = options.temperature_a if side == "a" else options.temperature_b
        items = [
            GenerateItem(prompt.messages, Sampling(options.max_tokens, temperature, seed=_seed(salt, prompt.prompt_id, side)), options.best_of)
            for prompt in prompts
        ]
        digests = ModelDigests(source["base_model_digest"], source["tokenizer_digest"], source["chat_template_digest"])
        try:
            found = await self._policy.generate(
                items, adapter=source[f"adapter_{side}"], expected_digests=digests, timeout_seconds=self._timeout_seconds
            )
        except AccordError as error:
            raise _named(error, "the policy that samples candidates") from error
        _check_whole(len(found.results), len(items), "the policy that samples candidates")
        for result in found.results:
            if result.error is None:
                _check_whole(len(result.samples), options.best_of, "the policy that samples candidates")
        texts = [_texts(result) for result in found.results]
        if options.best_of == 1:
            return [_Pick(refused=each) if isinstance(each, str) else _Pick(each[0]) for each in texts]
        return await self._best(prompts, texts, source)

    async def _best(self, prompts: Sequence[Prompt], texts: Sequence[tuple[str, ...] | str], source: Mapping[str, str]) -> list[_Pick]:
        """The response with the highest score of each prompt, the first of equals."""
        if self._reward is None:
            raise InternalError("best-of-n needs a reward service")
        items = [ScoreItem(prompt.messages, text) for prompt, each in zip(prompts, texts, strict=True) if not isinstance(each, str) for text in each]
        try:
            scores = await self._reward.score(items, source["reward_model"], expected_digests=None, timeout_seconds=self._timeout_seconds)
        except AccordError as error:
            raise _named(error, "the reward service that chooses candidates") from error
        _check_whole(len(scores.results), len(items), "the reward service that chooses candidates")
        results = iter(scores.results)
        picks = []
        for each in texts:
            if isinstance(each, str):
                picks.append(_Pick(refused=each))
                continue
            scored = [(next(results), text) for text in each]
            problem = next((result.error for result, _ in scored if result.error is not None), None)
            if problem is None and not all(math.isfinite(result.score) for result, _ in scored):
                raise UnavailableError("the reward service that chooses candidates gave a score that is no finite number", retry_after_seconds=1.0)
            best, text = max(scored, key=lambda pair: pair[0].score)
            picks.append(_Pick(text, best.score) if problem is None else _Pick(refused=f"cannot be scored: {_refusal(problem)}"))
        return picks


def _candidate(prompt: Prompt, a: _Pick, b: _Pick) -> Candidate:
    refused = a.refused or b.refused
    if refused:
        return Candidate(prompt.prompt_id, refused=refused)
    return Candidate(prompt.prompt_id, a.text, b.text, score_a=a.score, score_b=b.score)


def _texts(result: GenerateResult) -> tuple[str, ...] | str:
    """The sampled texts, or why the policy takes no such prompt."""
    if result.error is not None:
        return f"cannot be answered: {_refusal(result.error)}"
    if any(sample.finish_reason == "aborted" for sample in result.samples):
        raise UnavailableError("the policy was paused in the middle of a candidate", retry_after_seconds=1.0)
    return tuple(sample.text for sample in result.samples)


def _refusal(error: AccordError) -> str:
    """Why one prompt cannot be used; an error that is not about the prompt is raised."""
    if isinstance(error, OutOfRangeError):
        return "longer than the model's context"
    if isinstance(error, InvalidArgumentError):
        return "not readable by the model"
    raise error


def _check_whole(found: int, asked: int, who: str) -> None:
    if found != asked:
        raise FailedPreconditionError(f"{who} gave {found} results for {asked} items")


def _named(error: AccordError, who: str) -> AccordError:
    field = f"candidates.{error.field}" if error.field in ("adapter", "reward_model") else None
    return type(error)(f"{who}: {error.message}", field=field, retry_after_seconds=error.retry_after_seconds)


def _seed(salt: str, prompt_id: str, side: Side) -> int:
    """63 bits, the same for the same job seed, prompt, side and attempt."""
    return int.from_bytes(hashlib.sha256(f"candidate {salt} {side} {prompt_id}".encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1
