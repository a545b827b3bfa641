"""What a run asks of services and reward models against what they can do, as far as it is known before anything is sampled: the trainer checks it
before a run, and the run when it begins. What shows in a first long response instead shows hours later, and again whenever the run is resumed.

What does not belong here: which versions a run names (`accord.serving.reward_models`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from accord.client.policy import MOST_TOKENS
from accord.errors import InvalidArgumentError
from accord.runspec import RunSpec


def check_sampled_tokens(spec: RunSpec, prefix: str = "") -> None:
    """Raises InvalidArgumentError where a run asks for longer responses than the policy service samples; the field is below `prefix`."""
    if spec.max_response_tokens > MOST_TOKENS:
        raise InvalidArgumentError(
            f"{spec.max_response_tokens} is more than the policy service samples; a run of {spec.algorithm} allows at most {MOST_TOKENS}",
            field=f"{prefix}max_response_tokens",
        )


def check_reach(
    spec: RunSpec, scorers: Mapping[str, str], facts_of: Callable[[str], Mapping[str, Any]], *, context_tokens: int = 0, prefix: str = ""
) -> None:
    """Raises InvalidArgumentError where a reward model reads less than a run samples.

    Args:
        spec: of a run with rollouts.
        scorers: versions of all its reward models by the field that names them.
        facts_of: a version's facts; `max_tokens` among them is the most that it reads, 0 for no limit.
        context_tokens: of the base model, which holds a prompt with its response; 0 where it is not known.
        prefix: of the field, for errors.
    """
    longest = spec.max_prompt_tokens + spec.max_response_tokens + 1
    if context_tokens:
        longest = min(longest, context_tokens)
    for field, version in scorers.items():
        reads = int(facts_of(version).get("max_tokens", 0))
        if 0 < reads < longest:
            raise InvalidArgumentError(
                f"{version} reads at most {reads} tokens of prompt and response; max_prompt_tokens {spec.max_prompt_tokens}, max_response_tokens "
                f"{spec.max_response_tokens} and an end come to {longest}: lower them, or take a reward model that was trained with as many",
                field=f"{prefix}{field}",
            )
