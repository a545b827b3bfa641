"""Asking a language model which of two responses is better, and reading its answer; the arithmetic of soft labels.

Responses are data, never instructions: `fenced` quotes every line of them, so that none can close its own block or open another, and takes
apart what a chat server would read as a control token. The fence is fixed: one drawn at random would make prompts that neither the prefix cache
nor the ledger finds again, and a secret is needed only where data could write the fence, which no line of it can. Parsing never guesses: what
names no response, or both, is no verdict. What does not belong here: which response a sentence calls better
(`accord.text.claims`), ratings in words
(`accord.text.ratings`), rubric files (`accord.prompts`) and calls (`accord.feedback`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from accord.text.chat import Message
from accord.text.claims import ONE, OTHER, SAYS, said_better
from accord.text.conditions import NOUN
from accord.text.lines import plain_text
from accord.text.ranks import ranked_first, ranks_both
from accord.text.ratings import RATINGS
from accord.text.ties import is_only_equal, leans, ranked_equal, said_equal

Outcome = Literal["a", "b", "tie"]
TIE = "tie"
RENDERING = 2
"""Counts the changes of what a judge is shown of the same rubric and the same pair; part of a question's key. 1 quoted nothing."""
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_HEADING = re.compile("[#\uff03\ufe5f]{3,}")
_LEFT, _RIGHT, _BAR = "[<\uff1c\ufe64]", "[>\uff1e\ufe65]", "[|\uff5c]"
_OPEN, _CLOSE, _CAPITAL = r"[\[\uff3b]", r"[\]\uff3d]", r"[A-Z\uff21-\uff3a]"
_CONTROL = re.compile(  # shapes of control tokens, full-width forms too, which NFKC turns into these
    rf"{_LEFT}(?=[^\s<>\uff1c\uff1e\ufe64\ufe65]{{1,64}}{_RIGHT}|{_BAR}[^<>\n]{{1,64}}{_BAR}{_RIGHT})|"  # <|im_end|> </s> <<SYS>>
    rf"{_OPEN}(?=/?{_CAPITAL}(?:{_CAPITAL}|[_\uff3f])+{_CLOSE}|{_BAR}[^\[\]\n\uff3b\uff3d]{{1,64}}{_BAR}{_CLOSE}|[gs]MASK{_CLOSE})|"  # [INST]
    rf"(?:{_OPEN}|{_CLOSE})(?=(?:[!~]\w{{0,16}}~?|\w{{1,16}}~)(?:{_OPEN}|{_CLOSE}))"  # ]~b] [e~[
)
_SHOWN_CHARACTERS = 12
_NAMED = re.compile(ONE, re.IGNORECASE)
_LABEL = rf"(?:{SAYS}|(?:(?:my|the|final)\s+)*answer)[*_\"'\s]{{0,4}}(?:\bis\b|[:=]|\n)\W*"
_WHY = r",?\s+(?:because|since)\b(?![^.!?\n]*,\s*(?:\w+[^s\W]s|is|was|has|had|did|may|might|can|could|will|would)\b)"
"""A reason that ends its sentence: "Response 1, since it is longer, repeats itself" only mentions the response."""
_BARE = re.compile(
    rf"^\W*(?:(?:{SAYS}|(?:(?:my|the|final)\s+)*{NOUN})[*_\"'\s]{{0,4}}(?:\bis\b|[:=]|\n)\W*)?([12])(?:[^\w?]*$|[\"'*\]]{{0,3}}(?={_WHY}))",
    re.IGNORECASE,
)
_ONLY = re.compile(r"^[\s\"'*(\[]*([12])[\s\"'*)\]]*$")
_ALONE = re.compile(rf"^\W*(?:{_LABEL}{ONE}(?=\W*$|[.,!\n*]|{_WHY})|{ONE}(?=\W*$|{_WHY})){OTHER}", re.IGNORECASE)
_SETTLED = re.compile(r".*(?:[.!?\n]|\b(?:because|since)\b)", re.IGNORECASE | re.DOTALL)
_ORDINAL = re.compile(rf"\b(?:the\s+)?(first|second)\s+(?:{NOUN}|one)\b(?!\s*#?\s*[12])|(?<=prefer )the\s+(first|second)\b(?=\W*$)", re.IGNORECASE)
_LETTERED = re.compile(rf"^\W*[AB]\W*$|\b{NOUN}\s+[AB]\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge's text says: 1 or 2 (as shown), a tie, or nothing usable with the reason."""

    choice: Literal[1, 2] | None
    tie: bool = False
    reason: str = ""


def visible(text: str) -> str:
    """The text without characters that nobody sees: what its reader judges is what a judge reads."""
    return _INVISIBLE.sub("", text)


def fenced(text: str) -> str:
    """A response as data: every line of it is a quotation (`> `), nothing in it spells a control token or a heading, nothing invisible remains.

    A control token is taken apart (`< |im_end|>`), since a server that applies the chat template itself would tokenize it. Lines are those of
    `str.splitlines`, so that no separator that Unicode has begins a line without the mark.
    """
    apart = _CONTROL.sub(r"\g<0> ", visible(text).strip())
    plain = _HEADING.sub(lambda run: " ".join(run.group()), apart)
    return "\n".join(f"> {line}".rstrip() for line in plain.splitlines())


def render_conversation(messages: Sequence[Message]) -> str:
    """The conversation, quoted below lines `User:` and `Assistant:`, which no content can write; a single user turn stands alone."""
    if len(messages) == 1:
        return fenced(messages[0].content)
    return "\n".join(f"{message.role.capitalize()}:\n{fenced(message.content)}" for message in messages)


def render_template(template: str, values: Mapping[str, str]) -> str:
    """A rubric's template with `{prompt}`, `{first}`, `{second}`, `{response}` replaced once; values are not scanned again."""
    return re.sub(r"\{(prompt|first|second|response)\}", lambda match: values[match.group(1)], template)


def parse_verdict(text: str, *, complete: bool = True) -> Verdict:
    """The verdict in a judge's answer: `"rank": [2]`, a bare number, "Response 2 is better", a conclusion, or one name as the answer.

    "The second summary" is summary 2; that both are equal is a tie where it is said as a choice would be. Ambiguous text (both named, two ranks, a
    rank that what follows contradicts, a tie that leans), a verdict that is denied, asked, conditional, reported of others, limited ("better
    written") or set against the other response, a response that is only mentioned, letters that the judge was not shown, and text without any give
    no choice, with the reason. Of an answer that is not `complete`, since its room ended, only what nothing behind it could have limited is read.
    """
    if not text.strip():
        return Verdict(None, reason="empty answer")
    if ranks_both(text):
        return Verdict(None, reason="ranks both responses")
    text = _ORDINAL.sub(lambda match: "response " + ("1" if (match.group(1) or match.group(2)).lower() == "first" else "2"), plain_text(text))
    named = set(_NAMED.findall(text))
    for found in (_ranked(text), _bare(text, complete), _said(text) | _alone(text, named) if complete else _settled(text)):
        if TIE in found and leans(text):
            return Verdict(None, reason="calls both equal, and leans to one of them")
        if len(found) == 1:
            return Verdict(None, tie=True) if found == {TIE} else Verdict(1 if found == {"1"} else 2)
        if found:
            return Verdict(None, reason="calls both equal, and one of them better" if TIE in found else "names both responses")
    if not named and _LETTERED.search(text):
        return Verdict(None, reason="names A or B, which the judge was not shown")
    return Verdict(None, reason=("names no response", "gives no verdict", "names both responses")[len(named)])


def _ranked(text: str) -> set[str]:
    """What the machine-readable line ranks first ("1", "2", "tie"), with what the text behind it says."""
    first, end = ranked_first(text)
    found = first | ({TIE} if ranked_equal(text) else set())
    return found | (_said(text[end:]) if first else said_better(text) if found else set())


def _bare(text: str, complete: bool) -> set[str]:
    """The verdict that is the whole answer, or its beginning with a reason behind."""
    if not complete:
        return set(_ONLY.findall(text))
    match = _BARE.match(text)
    if match is None:
        return {TIE} if is_only_equal(text) else set()
    return {match.group(1)} | (_said(text) if text[match.end() :].strip() else set())


def _said(text: str) -> set[str]:
    """What the text calls better, and whether it calls both equal."""
    return said_better(text) | ({TIE} if said_equal(text) else set())


def _settled(text: str) -> set[str]:
    """What a text whose end is missing calls better in its whole sentences, where the last one takes nothing back.

    "Response 1 is better" may go on "in tone", and behind "It is a tie." a lean may follow.
    """
    whole = _SETTLED.match(text)
    said = _said(text)
    return said if whole is not None and TIE not in said and _said(whole.group()) == said else set()


def _alone(text: str, named: set[str]) -> set[str]:
    """The one response that is named as the answer, not mentioned as what a sentence is about."""
    return {name for names in _ALONE.findall(text) for name in names if name} if len(named) == 1 else set()


def verdict_probability(logprob_1: float, logprob_2: float) -> float:
    """Probability of verdict 1 out of the logprobs of both verdict tokens, renormalized over the two. Lee et al. 2023, section 3.1."""
    return _sigmoid(logprob_1 - logprob_2)


def swap_average(first_when_ab: float, first_when_ba: float) -> float:
    """P(A better) from both orders: A's probability when shown first, and B's when B is shown first.

    Averaging the order pair removes position bias (Lee et al. 2023, section 3.1). ``swap_average(x, y) + swap_average(y, x) == 1`` exactly.
    """
    difference = (first_when_ab - first_when_ba) / 2
    return 0.5 + difference if difference >= 0 else 1.0 - (0.5 - difference)


def expected_rating(logprobs: Sequence[float]) -> tuple[tuple[float, ...], float]:
    """The distribution over ratings 1 to 10 and its mean, out of the ten logprobs (renormalized). Lee et al. 2023, section 3.2.

    Raises:
        ValueError: there are not ten of them.
    """
    if len(logprobs) != len(RATINGS):
        raise ValueError(f"{len(RATINGS)} logprobs are needed, got {len(logprobs)}")
    top = max(logprobs)
    weights = [math.exp(value - top) for value in logprobs]
    total = math.fsum(weights)
    distribution = tuple(weight / total for weight in weights)
    return distribution, math.fsum(rating * share for rating, share in enumerate(distribution, start=1))


def scaled_rating(rating: float) -> float:
    """A rating from 1 to 10 on [-1, 1]."""
    return (rating - 5.5) / 4.5


def mutual_information_preference(a: float, b: float) -> float:
    """P(A better) from the pointwise mutual information of prompt and response, in nats: ``sigmoid(a - b)``.

    log p(response | prompt) - log p(response | empty prompt), summed over the response's tokens: the sum, not a mean over tokens, is what
    separates right from wrong summaries with the embedded model. P(A > B) =
    1 - P(B > A) exactly.
    """
    return _sigmoid(a - b)


def outcome(preference: float, tie_margin: float) -> Outcome:
    """What a preference says: a tie within `tie_margin` of one half (inclusive), else the better response."""
    if abs(preference - 0.5) <= tie_margin:
        return "tie"
    return "a" if preference > 0.5 else "b"


def _sigmoid(value: float) -> float:
    """sigmoid(x), with sigmoid(-x) == 1 - sigmoid(x) exactly."""
    positive = 1.0 / (1.0 + math.exp(-abs(value)))
    return positive if value >= 0 else 1.0 - positive


def named(judge: str, digest: str) -> str:
    """A judge for people: its name, with the beginning of its digest where that is known, since another one may have the same name."""
    return f"{judge} (digest {digest[:_SHOWN_CHARACTERS]})" if digest else judge
