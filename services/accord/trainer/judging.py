"""What a judge reads in a step, where it is the one that each workspace has by itself: the base model, asked through the policy service.

A judge that a specification names is another server, of which nothing is known here. What does not belong here: judging (`accord.feedback`).
"""

from __future__ import annotations

from dataclasses import dataclass

from accord.prompts import default_rubric, load_rubric
from accord.runspec import RunSpec
from accord.text.ratings import RATINGS
from accord.text.tasks import Task
from accord.trainer.lengths import TokenCounter


@dataclass(frozen=True, slots=True)
class Judging:
    """Tokens that are read for a row of data besides its prompt, and how many of them are scored (the vocabulary's head)."""

    read: float
    scored: float


def judging_of(spec: RunSpec, counter: TokenCounter) -> Judging | None:
    """What the default judge reads of a run's samples; None where there is no judge, or one that is not known here.

    Likelihood reads each of two responses under the prompt and alone. A rating reads the rubric's part behind the prompt, the response, and ten
    answers; what stands before the prompt is the same for all and in the prefix cache.
    """
    length, part = spec.max_response_tokens, spec.rollout_part
    if spec.online_dpo is not None and spec.online_dpo.judge in ("", "likelihood"):
        return Judging(4 * length, 4 * length)
    if part is None or part.judge_reward is None or part.judge_reward.judge:
        return None
    reward = part.judge_reward
    task = Task(reward.task)
    rubric = load_rubric(reward.rubric, task=task, kind="rating") if reward.rubric else default_rubric(task, "rating")
    behind = counter.text(rubric.template.partition("{prompt}")[2])
    answers = sum(counter.text(f"{rubric.verdict_prefix}{rating}]") for rating in RATINGS)
    return Judging(behind + length + answers, answers)
