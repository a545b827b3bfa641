"""What vLLM's completions say: tokens with their logprobs, and which logprobs they are. Pure.

What does not belong here: asking (`accord.policy.vllm`). A reply of another shape raises whatever Python raises; the caller knows whose it was.
"""

from __future__ import annotations

from math import exp, isclose
from typing import Any, Literal

from accord.policy.backend import FinishReason, TopLogprobs
from accord.policy.remote_server import Piece

PROBE_TOP = 5
_TOKEN_ID = "token_id:"
_FINISH: dict[str | None, FinishReason | None] = {None: None, "length": "length", "stop": "stop"}


def piece_of(choice: dict[str, Any], top: int) -> Piece:
    """Returns the tokens of a choice; "stop" is the server's word for eos too, which `accord.policy.remote_row` tells by the last token.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it lacks something.
    """
    token_ids = tuple(int(token) for token in choice["token_ids"])
    reported = choice["logprobs"] or {"token_logprobs": [], "top_logprobs": []}
    logprobs = tuple(float(value) for value in reported["token_logprobs"])
    tops = tuple(likeliest(place, top) for place in reported["top_logprobs"]) if top else ()
    if len(logprobs) != len(token_ids) or (top and len(tops) != len(token_ids)):
        raise ValueError("token_ids and logprobs differ in length")
    return Piece(token_ids, logprobs, tops, _FINISH[choice.get("finish_reason")])


def likeliest(place: dict[str, float], count: int) -> TopLogprobs:
    """Returns the `count` likeliest tokens; the server adds the sampled one where it is not among them."""
    pairs = ((int(name.removeprefix(_TOKEN_ID)), float(logprob)) for name, logprob in place.items())
    return tuple(sorted(pairs, key=lambda pair: -pair[1])[:count])


def logprobs_mode_of(once: dict[str, Any], twice: dict[str, Any]) -> Literal["raw", "processed"]:
    """Returns which logprobs two choices report that were asked for at temperatures 1 and 2.

    Between the likeliest tokens the raw gap is the same at both; the processed one halves at 2.

    Raises:
        KeyError, IndexError, TypeError, ValueError, AttributeError: neither, or no probabilities (raw_logits, processed_logits).
    """
    tops = [likeliest(choice["logprobs"]["top_logprobs"][0], PROBE_TOP) for choice in (once, twice)]
    gaps = [top[0][1] - top[-1][1] for top in tops]
    if any(sum(exp(logprob) for _, logprob in top) > 1.01 for top in tops):
        raise ValueError("no log probabilities")
    if isclose(gaps[1], gaps[0], rel_tol=0.05):
        return "raw"
    if isclose(gaps[1], gaps[0] / 2, rel_tol=0.05):
        return "processed"
    raise ValueError("neither raw nor processed logprobs")
