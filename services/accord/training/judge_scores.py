"""Expected ratings of the feedback service as scores on [-1, 1]: d-RLAIF (Lee et al. 2023, section 3.2), where a part names `judge_reward`.

The judge's expected rating, sum of i P(i) over 1..10, is scaled to (rating - 5.5) / 4.5 by the service. A judgement is in the service's ledger, under
the sha256 of what was asked, before it is answered: what is asked again after a fault or a kill is not bought again and has the same bits.

Nothing is guessed where there is no rating. A response that no judge is shown (empty, or nothing that anybody sees; with characters that no text
has, or spelling a control token; over the service's limit) counts as rated 1, the lowest, as an empty response loses any comparison. What else keeps
the judge from a rating (a prompt over its context, an answer without one) ends the run, which would otherwise learn to provoke it or to avoid it;
with `abstentions: lowest` it counts as rated 1 too. Logprobs that are no numbers end the run in any case: the judge is broken. All ratings of a run
come from one judge by digest, since ratings of two judges are on two scales. What does not belong here: waiting (`accord.training.rollout`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

from accord.client.feedback import ABSTENTION, FeedbackClient, Judge, Rating, Ratings
from accord.data.records import Prompt
from accord.errors import AccordError, DeadlineExceededError, FailedPreconditionError, InternalError, InvalidArgumentError
from accord.runspec_parts import JudgeRewardSpec
from accord.text.judge import visible
from accord.text.tasks import Task
from accord.training.context import RunContext
from accord.training.examples import EncodedPrompt
from accord.training.scorers import Response, Score
from accord.training.services import CALL_SECONDS, one_attempt

LOWEST = -1.0
_ASKED_AT_ONCE = 8
_UNREADABLE = ("", "unreadable text")  # nobody was asked, or the judge's tokenizer refused
_NOT_FINITE = "not finite"
_OWN_FIELDS = ("task", "rubric", "adapter", "judge")


class OneJudge:
    """The judge of a run, for all its sources and processes: how it is asked, and who it is.

    Args:
        spec: how it is asked.
        field: the specification's field, for errors.
    """

    def __init__(self, spec: JudgeRewardSpec, field: str) -> None:
        self.spec = spec
        self.field = field
        self.facts: dict[str, str] = {}
        """`judge`, `judge_digest`, `rubric` and `rubric_digest`; empty before the first rating."""

    def check_prompts(self, prompts: Sequence[EncodedPrompt]) -> None:
        """Raises InvalidArgumentError where a prompt is of another task than the judge is asked about."""
        other = {prompt.record.task for prompt in prompts if prompt.record is not None} - {Task(self.spec.task)}
        if other:
            found = ", ".join(sorted(task.value for task in other))
            raise InvalidArgumentError(f"{self.spec.task}, but there are prompts of the task {found}", field=f"{self.field}.task")

    def take(self, facts: Mapping[str, str]) -> Mapping[str, str]:
        """Takes note of who gave a rating and returns it; empty facts are of a rating by rule.

        Raises:
            FailedPreconditionError: another judge or rubric than before.
        """
        if facts and self.facts and facts != self.facts:
            raise FailedPreconditionError(
                f"the rewards of this run are ratings by {_words(self.facts)}, these are by {_words(facts)}; bring the former back "
                "(where its adapter has no version in judge_reward.adapter, a newer one has been published), or start a new run",
                field=self.field,
            )
        self.facts.update(facts)
        return facts


class JudgeScorer:
    """A judge's ratings. Implements `accord.training.scorers.Scorer`.

    Args:
        context: of the run; its endpoints name the feedback service.
        judge: whose ratings they are.
    """

    def __init__(self, context: RunContext, judge: OneJudge) -> None:
        endpoints, spec = context.run.endpoints, judge.spec
        self._address = endpoints.feedback
        self._client = FeedbackClient(one_attempt(endpoints.feedback, tls=endpoints.tls))
        self._judge = judge
        self._task = Task(spec.task)
        self._asked = Judge("rating", rubric=spec.rubric, adapter=spec.adapter, name=spec.judge)
        self._asking = False

    @property
    def service(self) -> str:
        """The service in words."""
        return f"feedback service at {self._address}"

    def check_service(self) -> None:
        """Raises InvalidArgumentError where the service does not know the rubric, or it is none for ratings of this task."""
        known = sorted(rubric.id for rubric in self._client.list_rubrics() if rubric.kind == "rating" and rubric.task == self._task)
        if self._asked.rubric and self._asked.rubric not in known:
            reason = f"the feedback service has no rating rubric {self._asked.rubric} for {self._task.value}; it has {', '.join(known)}"
            raise InvalidArgumentError(reason, field=f"{self._judge.field}.rubric")

    def owes(self, unscored: bool) -> bool:
        """It is asked for several responses at once, and owes nothing while they are still being sampled."""
        return self._asking

    @property
    def together(self) -> int:
        """Each is rated for itself."""
        return 1

    def scores(self, groups: Iterable[Sequence[Response]]) -> Iterator[Score | AccordError]:
        """As `Scorer`.

        Raises:
            FailedPreconditionError: the judge cannot rate a response, or is another than before.
            AccordError: the service cannot be asked; the error names the field of `judge_reward` that it refuses.
        """
        waiting = chain.from_iterable(groups)
        while part := list(islice(waiting, _ASKED_AT_ONCE)):
            yield from (_lowest(each) for each in part if _is_empty(each))
            asked = [each for each in part if not _is_empty(each)]
            if asked:
                ratings = self._rated(asked)
                yield from (self._score(each, place, ratings) for place, each in enumerate(asked))

    def close(self) -> None:
        """Closes the channel."""
        self._client.close()

    def _rated(self, responses: Sequence[Response]) -> Ratings:
        items = [(_record(each).messages, each.sample.text) for each in responses]
        self._asking = True
        try:
            ratings = self._client.rate_responses(self._task, items, self._asked, timeout_seconds=CALL_SECONDS)
        except AccordError as error:
            own = (error.field or "").partition(".")[0]
            error.field = f"{self._judge.field}.{own}" if own in _OWN_FIELDS else error.field
            raise
        finally:
            self._asking = False
        if len(ratings.results) != len(items):
            raise InternalError(f"the {self.service} gave {len(ratings.results)} ratings of {len(items)} responses")
        return ratings

    def _score(self, response: Response, place: int, ratings: Ratings) -> Score | AccordError:
        result = ratings.results[place]
        if isinstance(result, Rating) and math.isfinite(result.score):
            facts = {"judge": ratings.judge, "judge_digest": ratings.judge_digest, "rubric": result.rubric, "rubric_digest": result.rubric_digest}
            return Score(response.place, result.score, (result.score,), self._judge.take(facts))
        if isinstance(result, AccordError):
            if result.retryable or isinstance(result, DeadlineExceededError):
                return result
            if self._is_lowest(result, f"items[{place}].response"):
                return _lowest(response)
        said = result.message if isinstance(result, AccordError) else f"a rating of {result.score}"
        raise FailedPreconditionError(
            f"{ratings.judge} has no rating of the response to prompt {response.prompt.id} that could be a reward: {said}; take a judge or limits "
            "under which it has one, or abstentions: lowest",
            field=self._judge.field,
        )

    def _is_lowest(self, error: AccordError, field: str) -> bool:
        """Whether a response that has no rating counts as rated 1; `field` is the response's."""
        reason = error.metadata.get(ABSTENTION, "")
        if error.field == field and reason in _UNREADABLE:
            return True
        return self._judge.spec.abstentions == "lowest" and reason not in ("", _NOT_FINITE)


def _is_empty(response: Response) -> bool:
    return not visible(response.sample.text).strip()


def _lowest(response: Response) -> Score:
    return Score(response.place, LOWEST, (LOWEST,))


def _record(response: Response) -> Prompt:
    if response.prompt.record is None:
        raise InternalError("a judge rates responses to prompts in words")
    return response.prompt.record


def _words(facts: Mapping[str, str]) -> str:
    return f"{facts['judge']} ({facts['judge_digest'][:12]}) under {facts['rubric']} ({facts['rubric_digest'][:12]})"
