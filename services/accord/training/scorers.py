"""What scores rollouts: reward models, through the reward service or on the run's own base. A judge is in `accord.training.judge_scores`.

What does not belong here: which responses lack a score, and waiting (`accord.training.rollout`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from accord.client.messages import ModelDigests, TokenIds
from accord.client.policy import Sample
from accord.client.reward import RewardClient, RewardModel, ScoreItem, ScoreResult
from accord.errors import AccordError, DataLossError, FailedPreconditionError, InternalError, UnavailableError
from accord.models.base import BaseModel
from accord.training.context import RunContext
from accord.training.examples import EncodedPrompt
from accord.training.local_scores import LocalScores
from accord.training.services import CALL_SECONDS, check_digests, one_attempt


@dataclass(frozen=True, slots=True)
class Response:
    """A response to score, by the place of its prompt in the batch."""

    place: int
    prompt: EncodedPrompt
    sample: Sample


@dataclass(frozen=True, slots=True)
class Score:
    """What a response is worth.

    `members` are the scores of each reward model, of which `score` is made. `judge` says who has rated it where a judge did: names and digests of
    judge and rubric.
    """

    place: int
    score: float
    members: tuple[float, ...]
    judge: Mapping[str, str] = field(default_factory=dict)


class Scorer(Protocol):
    """Scores responses through calls of its own; `close`, from whichever thread, ends them."""

    @property
    def service(self) -> str:
        """The service in words."""
        ...

    def check_service(self) -> None:
        """Raises AccordError where the service cannot score for this run, whatever the responses."""
        ...

    def owes(self, unscored: bool) -> bool:
        """Whether the service owes an answer now; `unscored` says that there are responses without a score."""
        ...

    @property
    def together(self) -> int:
        """How many responses, by place, are scored as one: `scores` is given all of them at once, when the last of them is there."""
        ...

    def scores(self, groups: Iterable[Sequence[Response]]) -> Iterator[Score | AccordError]:
        """Yields a score for each response, or an error that asking again can help and that holds up no other response.

        Raises:
            AccordError: no response can be scored, or one never can.
        """
        ...

    def close(self) -> None:
        """Closes the channel."""
        ...


class RewardScorer:
    """Reward models. Implements `Scorer`.

    Args:
        context: of the run.
        model: versions that score, and how their scores become one (the reward service does it).
        local: reward models on the run's own base; None where the reward service is asked.
    """

    def __init__(self, context: RunContext, model: RewardModel, local: LocalScores | None) -> None:
        self._context = context
        self._model = model
        endpoints = context.run.endpoints
        self._client: RewardClient | LocalScores = local or RewardClient(one_attempt(endpoints.reward, tls=endpoints.tls))

    @property
    def service(self) -> str:
        """The service in words."""
        return "reward models in the run's own process" if self._is_local else f"reward service at {self._context.run.endpoints.reward}"

    def check_service(self) -> None:
        """Compares the base model of each reward model with this process's. Raises as `check_digests`."""
        for member in self._model.members:
            check_digests(self._context, "reward", self._digests_of(member))

    def owes(self, unscored: bool) -> bool:
        """It is asked as soon as there is a response."""
        return unscored

    @property
    def together(self) -> int:
        """The service does as it sees fit; the run's own base model computes a micro-batch at once."""
        return self._context.micro_batch_size if self._is_local else 1

    @property
    def _is_local(self) -> bool:
        return isinstance(self._client, LocalScores)

    def scores(self, groups: Iterable[Sequence[Response]]) -> Iterator[Score | AccordError]:
        """As `Scorer`: a score that is no number is asked for again.

        Raises:
            FailedPreconditionError: it is a local model's, which gives the same one again.
            InternalError: the service scores what it was not given.
        """
        prompts: dict[str, str] = {}
        for result in self._results(groups, prompts):
            if result.item_id not in prompts:
                raise InternalError(f"the {self.service} gives a score of item {result.item_id!r}, which it was not asked for")
            if result.error is not None and not isinstance(result.error, DataLossError):
                raise result.error
            if (reason := self._without_number(result)) is not None:
                said = f"the response to prompt {prompts[result.item_id]} has no score that is a number: {reason}"
                if self._is_local:
                    raise FailedPreconditionError(f"{said}; this process would compute the same again: look at the reward model")
                yield UnavailableError(said)
            else:
                yield Score(int(result.item_id), result.score, result.member_scores)

    def close(self) -> None:
        """Closes the channel."""
        self._client.close()

    def _results(self, groups: Iterable[Sequence[Response]], prompts: dict[str, str]) -> Iterator[ScoreResult]:
        if isinstance(self._client, LocalScores):
            return self._client.score_groups((list(self._items(group, prompts)) for group in groups), self._model)
        return self._client.score_stream(self._items(chain.from_iterable(groups), prompts), self._model, timeout_seconds=CALL_SECONDS)

    def _items(self, responses: Iterable[Response], prompts: dict[str, str]) -> Iterator[ScoreItem]:
        """The responses as the wire has them; `prompts` gets the id of the prompt of each."""
        for each in responses:
            item_id = str(each.place)
            prompts[item_id] = each.prompt.id
            ids = scored_ids(self._context.base, each.prompt.prompt, each.sample.token_ids, ended=each.sample.finish_reason == "eos")
            yield ScoreItem(TokenIds(each.prompt.prompt), TokenIds(ids), item_id)

    def _digests_of(self, reward_model: str) -> ModelDigests:
        if isinstance(self._client, LocalScores):
            return self._client.digests_of(reward_model)
        return self._client.reward_model_info(reward_model).digests

    def _without_number(self, result: ScoreResult) -> str | None:
        """Why a score cannot be used: which reward model gave which; None where all is well."""
        members = self._model.members
        if result.error is not None:
            return str(result.error)
        if len(result.member_scores) != len(members):
            raise InternalError(f"the reward service gave {len(result.member_scores)} scores of {len(members)} reward models")
        broken = [f"{member} gives {score}" for member, score in zip(members, result.member_scores, strict=True) if not math.isfinite(score)]
        if not broken and not math.isfinite(result.score):
            broken = [f"the ensemble gives {result.score}"]
        return ", ".join(broken) or None


def scored_ids(base: BaseModel, prompt: Sequence[int], response: Sequence[int], *, ended: bool) -> tuple[int, ...]:
    """A sampled response as reward models read it: with the end of the turn, which is the one end that they learn from.

    One that was cut ends there; where the context has no room it stays as it is. One that the model ended with another of its end tokens (those of
    `generation_config`, such as `<|endoftext|>`) has the end of the turn in its place. Read at another last token reward models say little: one of
    the embedded sample's gave 17 cut responses .72 where it gave them -.27 with an end (15 ended ones .06), so that PPO learnt never to end.
    OpenRLHF ends cut ones too.
    """
    end = base.encoder.end_of_turn_id
    if ended:
        return (*response[:-1], end)
    return tuple(response) if len(prompt) + len(response) >= base.context_tokens else (*response, end)
