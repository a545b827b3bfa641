r"""Whose a line in the form that was asked for is: the judge's own, or one that it quotes, reports, or gives as an example.

A judge writes `"rank": [2]` or `"rating": [8]` on a line of its own, in an object, behind a sentence or behind what announces it; in the middle of
a sentence it speaks of such a line ("Response 2 tries to win with "rank": [2]"). What does not belong here: what the line says (`accord.text.ranks`,
`accord.text.ratings`).
"""

from __future__ import annotations

import re

from accord.text.claims import ONE, SAYS
from accord.text.conditions import NOUN

_QUOTED_LINE = re.compile(r"^[^\S\n]*>[^\n]*", re.MULTILINE)
_BOXED = re.compile(r"\\boxed\s*\{\s*(?:\\text\s*\{\s*)?([\w .]{1,20}?)\s*\}(?:\s*\})?")
_BACK = 400
"""Characters before a line in which what it stands in is looked for."""
_OBJECT = 4000
"""Characters before a field in which its object begins, and before a line in which it is spoken of: reasons may stand in front of it."""
_MARKS = r"[^\w\n]{0,12}(?:\d{1,2}[.)][^\w\n]{0,8})?(?:json\b[^\w\n]{0,8})?"
_FIRST = re.compile(rf"(?:^|\n){_MARKS}$", re.IGNORECASE)
_FIELD = re.compile(r"(?:[\"'\]}\d]|\b(?:true|false|null))\s*,\s*$")
_BRACE = re.compile(r"\{\s*$")
_AFTER = re.compile(
    r"(?:[.!?;][\"'*)\]`]{0,3}|</?\w{1,20}>|\b(?:therefore|thus|hence|so|overall)\b,?|"
    rf"\b(?:{SAYS}|(?:(?:my|the|final)\s+){{1,3}}(?:answer|rating|score|result))[\"'*]{{0,3}}\s*(?:\bis\b|[:=])|"
    r"(?:^|\n)[^\w\n>]{0,8}(?:sure|ok|okay|certainly|yes|here|output|result|answer|json|verdict|final)\b[^.!?\n]{0,60}[:,])[\s\"'*`(]{0,6}$",
    re.IGNORECASE,
)
_ANNOUNCED = re.compile(  # what a line or sentence begins with: "My verdict is:", "So I choose"; in its middle both may be somebody else's words
    r"(?:^|\n|[.!?;][\"'*)\]`]{0,3}\s)[^\w\n>]{0,8}(?:(?:so|thus|hence|therefore|overall|finally|in\s+conclusion)\b,?\s+)?"
    rf"(?:(?:{SAYS}|(?:(?:my|the|final)\s+){{1,3}}(?:answer|rating|score|result))[\"'*]{{0,3}}\s+is\s*:|(?P<chosen>I\s+(?:choose|pick|rank|give)\s))"
    r"[\s*`(]{0,6}$",
    re.IGNORECASE,
)
_A_RANK = re.compile(r"[\"']rank\b", re.IGNORECASE)
_SETTLED = re.compile(  # not "I give "rank": [2] for response 1", "... for its tone", "... if it is true", "...?"
    rf"[\"'`*]{{0,3}}\w{{1,20}}[\"'`*]{{0,3}}\s{{0,8}}[:=][\s\[\"'`*]{{0,8}}(?:{NOUN}\s{{0,4}}#?)?\w{{1,8}}[\]\"'`*\s}})]{{0,8}}"
    r"(?:$|[\n.,;!]|(?:because|since)\b)(?!\W{0,4}(?:said|not|no|wrong)\b)(?![^\n]{0,200}(?:\?|\b(?:if|when|unless|or)\b))",
    re.IGNORECASE,
)
_REPORTS = (
    r"(?:says|said|writes|wrote|states|stated|contains?|includes?|inserts?|inserted|reads|claims|claimed|tells|told|ends\s+with|begins\s+with|"
    r"instruct\w*|inject\w*|manipulat\w*|tricks?|tries|tried|example|instance)"
)
_REPORTED = re.compile(rf"\b{_REPORTS}\b[^.!?\n]{{0,80}}:[^\w>]{{0,12}}(?:json\b\W{{0,8}})?$|{ONE}[^\w\n]{{0,4}}:[^\w>]{{0,8}}$", re.IGNORECASE)
_SPOKEN_OF = re.compile(
    rf"\b(?:{_REPORTS}\b[^.!?\n]{{0,80}}[:\"\u201c`]|(?:instruct|inject|manipulat|ignor|trick)\w*|"
    r"(?:ask|tell|want|tr[iy])(?:s|es|ed|ing)?\s+(?:me|to)\b)",
    re.IGNORECASE,
)


def plain_text(text: str) -> str:
    r"""The text without lines that it quotes (`> `, as responses are shown), and what stands in a `\boxed{}` without the box."""
    return _BOXED.sub(r"\1", _QUOTED_LINE.sub("(quotation)", text))


def is_own_line(text: str, start: int) -> bool:
    """Whether what begins at `start` is the writer's own, not spoken of: at a line's beginning, as a field, or behind a sentence."""
    least, key = max(0, start - _BACK), start
    if _FIELD.search(text, max(0, start - 12), start):
        start = text.rfind("{", max(0, start - _OBJECT), start)
    elif _BRACE.search(text, max(0, start - 12), start):
        start = text.rfind("{", least, start)
    if start < 0:
        return False
    if ":" in text[max(0, start - 24) : start] and _REPORTED.search(text, max(0, start - _BACK), start):
        return False
    if _FIRST.search(text, max(0, start - 40), start):
        return True
    line = text.rfind("\n", max(0, start - _BACK), start) + 1
    if text.count('"', line, start) % 2 or text.count("\u201c", line, start) > text.count("\u201d", line, start):
        return False
    announced = _AFTER.search(text, max(0, start - 100), start) is not None or _is_announced(text, start, key)
    return announced and _SPOKEN_OF.search(text, max(line, start - _OBJECT), start) is None


def _is_announced(text: str, start: int, key: int) -> bool:
    """Whether a sentence of the writer's own leads to the object at `start`, or to the line itself at `key`: "My verdict is:", "I choose"."""
    found = _ANNOUNCED.search(text, max(0, start - 100), start)
    if found is None or _SETTLED.match(text, key) is None or (found["chosen"] and _A_RANK.match(text, key) is None):
        return False
    return _REPORTED.search(text, max(0, found.start() - _BACK), found.start()) is None
