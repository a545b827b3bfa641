"""The `verdict` judge: shown both responses, it names the better one; the label is soft, from the logprobs of the two verdicts.

Lee et al. 2023, section 3.1. The judge's answer is made to begin with its rationale, if one is asked for (greedy, or sampled for
self-consistency), and the rubric's `verdict_prefix`, so that what follows is the verdict. With `verdict_source` text the judge writes its whole
answer, and what it says is 1, 0, one half for a tie, or an abstention. What does not belong here: the second order and the averaging
(`accord.feedback.labeller`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from accord.client.policy import GenerateItem, GenerateResult, LogprobsItem, LogprobsResult, Sampling
from accord.errors import AccordError, InternalError, UnavailableError
from accord.feedback.judge_model import JudgeModel
from accord.feedback.judges.asking import NOT_FINITE, alternative_logprobs, finite, no_answer, scored_tokens, user_turn
from accord.feedback.records import Answer, Question
from accord.prompts import Rubric
from accord.text.judge import fenced, parse_verdict, render_conversation, render_template, verdict_probability

_VERDICTS = ("1", "2")
ONLY_VERDICT = "Do not explain. Write only the verdict line: it begins with {prefix} and your verdict, 1 or 2, follows at once."
"""Is said to a judge that is to write its verdict alone, since rubrics may ask for reasons."""
_ONLY_VERDICT_TOKENS = 32
_UNUSABLE = ("empty answer", "ranks both responses")
"""What makes a whole answer worthless. A text that names no response is only a rationale: the logprobs behind it still decide."""


@dataclass(frozen=True, slots=True)
class _Rationale:
    """What the judge wrote before its verdict is read: `lead` starts its answer, the rest is for the ledger."""

    lead: str
    text: str = ""
    parsed: str = ""
    prompt_tokens: int = 0
    response_tokens: int = 0


class VerdictJudge:
    """Implements `Judge`: one call for a batch of rationales where those are asked for, one for the verdicts."""

    weight = 1

    def __init__(self, model: JudgeModel) -> None:
        self._model = model

    async def ask(self, questions: Sequence[Question]) -> list[Answer | AccordError]:
        """Evidence is the logprob of each verdict, in nats."""
        prompts = [judge_prompt(question) for question in questions]
        leads = await self._leads(questions, prompts)
        items = [
            LogprobsItem(user_turn(prompt), tuple(lead.lead + verdict for verdict in _VERDICTS))
            for prompt, lead in zip(prompts, leads, strict=True)
            if isinstance(lead, _Rationale)
        ]
        if not items:
            return [lead for lead in leads if not isinstance(lead, _Rationale)]
        results = iter((await self._model.compute_logprobs(items, questions[0].judge)).results)
        return [_answer(lead, next(results)) if isinstance(lead, _Rationale) else lead for lead in leads]

    async def _leads(self, questions: Sequence[Question], prompts: Sequence[str]) -> list[_Rationale | Answer | AccordError]:
        written = questions[0].verdict_source == "text"
        if not questions[0].rationale and not written:
            return [_Rationale(_rubric(question).verdict_prefix) for question in questions]
        items = [
            GenerateItem(user_turn(_asking_for_text(question, prompt)), _sampling(question))
            for question, prompt in zip(questions, prompts, strict=True)
        ]
        results = (await self._model.generate(items, questions[0].judge)).results
        read: Callable[[Rubric, GenerateResult], _Rationale | Answer | AccordError] = _written if written else _rationale
        return [read(_rubric(question), result) for question, result in zip(questions, results, strict=True)]


def _asking_for_text(question: Question, prompt: str) -> str:
    return prompt if question.rationale else f"{prompt.rstrip()}\n{ONLY_VERDICT.format(prefix=_rubric(question).verdict_prefix)}"


def _sampling(question: Question) -> Sampling:
    """Greedy for one rationale; the samples of self-consistency have seeds of their own, so that each can be drawn again."""
    room = question.max_rationale_tokens if question.rationale else _ONLY_VERDICT_TOKENS
    return Sampling(max_tokens=room, temperature=question.temperature, seed=question.seed if question.temperature else None)


def judge_prompt(question: Question) -> str:
    """The rubric with the prompt and both responses, each fenced so that it stays material to judge."""
    values = {
        "prompt": render_conversation(question.messages),
        "first": fenced(question.first),
        "second": fenced(question.second or ""),
    }
    return render_template(_rubric(question).template, values)


def before_verdict(text: str, prefix: str) -> str:
    """The part of a judge's text before it first writes `prefix` (in any spacing): what it had weighed when it had not yet decided."""
    pattern = r"\s*".join(re.escape(part) for part in re.findall(r"\w+|[^\w\s]", prefix))
    found = re.search(pattern, text)
    return text[: found.start()] if found else text


def _rationale(rubric: Rubric, result: GenerateResult) -> _Rationale | Answer | AccordError:
    if result.error is not None:
        return no_answer(result.error)
    sample = result.samples[0]
    if sample.finish_reason == "aborted":
        return UnavailableError("the judge's generation was paused in the middle of a rationale", retry_after_seconds=1.0)
    verdict = parse_verdict(sample.text, complete=sample.finish_reason != "length")
    parsed = "tie" if verdict.tie else {1: "first", 2: "second", None: f"unusable: {verdict.reason}"}[verdict.choice]
    prompt_tokens, response_tokens = len(result.prompt_token_ids), len(sample.token_ids)
    if verdict.reason in _UNUSABLE:
        return Answer(
            None, rationale=sample.text, parsed=parsed, abstention_reason=verdict.reason,
            prompt_tokens=prompt_tokens, response_tokens=response_tokens,
        )  # fmt: skip
    weighed = before_verdict(sample.text, rubric.verdict_prefix).strip()
    lead = f"{weighed}\n{rubric.verdict_prefix}" if weighed else rubric.verdict_prefix
    return _Rationale(lead, sample.text, parsed, prompt_tokens, response_tokens)


def _written(rubric: Rubric, result: GenerateResult) -> Answer | AccordError:
    """The verdict that the judge's own words are."""
    lead = _rationale(rubric, result)
    if not isinstance(lead, _Rationale):
        return lead
    probability = {"first": 1.0, "second": 0.0, "tie": 0.5}.get(lead.parsed)
    reason = "" if probability is not None else lead.parsed.removeprefix("unusable: ")
    if reason and result.samples[0].finish_reason == "length":
        reason = "cut off: the answer's room ended before its verdict"
    return Answer(
        probability, rationale=lead.text, parsed=lead.parsed, abstention_reason=reason,
        prompt_tokens=lead.prompt_tokens, response_tokens=lead.response_tokens,
    )  # fmt: skip


def _answer(lead: _Rationale, result: LogprobsResult) -> Answer | AccordError:
    known = Answer(
        None, rationale=lead.text, parsed=lead.parsed, prompt_tokens=lead.prompt_tokens + len(result.prompt_token_ids),
        response_tokens=lead.response_tokens + scored_tokens(result.responses),
    )  # fmt: skip
    if result.error is not None:
        problem = no_answer(result.error)
        return replace(known, abstention_reason=problem.abstention_reason) if isinstance(problem, Answer) else problem
    first, second = alternative_logprobs(result.responses)
    if not finite((first, second)):
        return replace(known, abstention_reason=NOT_FINITE)
    return replace(known, probability_first=verdict_probability(first, second), evidence_first=first, evidence_second=second)


def _rubric(question: Question) -> Rubric:
    if question.rubric is None:
        raise InternalError("a verdict needs a rubric")
    return question.rubric
