"""A verdict belongs to what is said, not to the numbers: who exchanges 1 and 2 in a text exchanges its verdict, whatever the text is."""

from __future__ import annotations

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from accord.text.judge import parse_verdict

PIECES = (
    "response 1", "Response 2", "summary 1", "Summary 2", "the first one", "the second response", "1", "2", "[1]", "[2]", "\"rank\": [1]", "\"rank\": [2]",
    "\"rank\": [1, 2]", "rank: 2", "is better", "is worse", "is the best", "is", "was", "not", "isn't", "if", "and", "or", ",", ".", "?", "\n", "**", "because",
    "I prefer", "I choose", "the winner:", "Therefore,", "Overall,", "than", "cannot", "both", "a tie", "equally good", "clearly", "{", "}", "better", "it covers the post",
    "Verdict:", "final answer", "A", "B", "whether", "no", "I think that", "10", "1.5",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).flatmap(
    lambda pieces: st.sampled_from((" ", "", "\n")).map(lambda between: between.join(pieces))
)
EXCHANGED = {"1": "2", "2": "1", "first": "second", "second": "first"}


def exchanged(text: str) -> str:
    return re.sub(r"1|2|first|second", lambda match: EXCHANGED[match.group()], text)


@settings(max_examples=600, deadline=None)
@given(TEXTS)
@example("Response 1 is better than response 2.")
@example("the second one is worse")
def test_exchanging_the_numbers_exchanges_the_verdict(text: str) -> None:
    mine, other = parse_verdict(text), parse_verdict(exchanged(text))
    assert other.choice == {1: 2, 2: 1, None: None}[mine.choice], (text, mine, other)
    assert (other.tie, other.reason) == (mine.tie, mine.reason)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="12"), max_size=200).filter(lambda text: not re.search("first|second", text, re.IGNORECASE)))
def test_a_text_that_names_neither_has_no_verdict(text: str) -> None:
    verdict = parse_verdict(text)
    assert verdict.choice is None
    assert verdict.tie or verdict.reason


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_what_is_read_says_exactly_one_thing(text: str) -> None:
    verdict = parse_verdict(text)
    assert [verdict.choice is not None, verdict.tie, bool(verdict.reason)].count(True) == 1
