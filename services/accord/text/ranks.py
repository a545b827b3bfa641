"""The line that a rubric asks for, `"rank": [2]`: which response it ranks first, where it is the judge's own and nothing behind it says otherwise.

A number in brackets, or a response's name, is a verdict. A bare number (`rank: 1`) may be the place of a response that is named beside it, and is
read where none is. What does not belong here: verdicts in sentences (`accord.text.claims`) and what makes a line the judge's own
(`accord.text.lines`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from accord.text.claims import KEY, ONE, is_refuted
from accord.text.conditions import NOUN, hangs, is_supposed
from accord.text.lines import is_own_line

_OTHER_DIGIT = r"(?!(?P=choice))[12]"
_OR_THE_OTHER = (  # [1 or 2], [1/2], [1 2], [1] or [2], "Response 1 or Response 2": what was asked for, said again
    rf"(?:[\"' \t]{{0,4}}[ \t]|[\"'\]) \t]{{0,8}}[,/|&=-][\"'\[ \t]{{0,8}}){_OTHER_DIGIT}(?=[\"') \t]{{0,8}}(?:$|[\]\n,.;|}}]))"
    rf"|[\"'\])(\s]{{0,8}}(?:or|vs|versus)\b[\"'\[(\s]{{0,8}}(?:{NOUN}\s*)?#?{_OTHER_DIGIT}\b"
    r"|[\"'\])(\s]{0,8}(?:or\b|[/|])[\"'\s]{0,8}(?:a\s+)?(?:tie|draw|equal|neither|both)\b"
    rf"|[\"'\])(\s]{{0,8}}and\b[\"'\[(\s]{{0,8}}(?:{_OTHER_DIGIT}\b|{NOUN}\s*#?{_OTHER_DIGIT}[\"'\]])"
    rf"|[\"'\])\s]{{0,8}}(?:,\s{{0,4}}{NOUN}\s*#?{_OTHER_DIGIT}\W{{0,8}}(?:$|\n)|\[\s{{0,4}}[12]|<)"
)
_SUPPOSED = r"\s{0,8}(?:\?|,?\s{0,8}(?:if|when|means|stands)\b)"
_GOES_ON = (  # "[1] would be wrong" does not
    r"(?=[^\S\n]{0,8}(?:$|\n|[^\w\s])|\s{1,8}(?:because|since|as|so|and|but|or|for|over|due|while|whereas|though|although)\b)"
)
_RANK = re.compile(
    rf"{KEY}(?P<open>\[{{0,2}})\s{{0,8}}[\"'`*]{{0,2}}(?P<name>{NOUN}\s{{0,4}}#?)?(?P<choice>[12])(?![\w%]|\.\d)(?!{_OR_THE_OTHER})"
    rf"[\"'`*]{{0,2}}+(?:\s{{0,8}}+\]){{0,2}}+(?!\s{{0,8}},\s{{0,8}}[\"']?[12]|{_SUPPOSED}){_GOES_ON}",
    re.IGNORECASE,
)
_RANK_BOTH = re.compile(rf"{KEY}\[\s{{0,8}}[\"']?[12][\"']?\s{{0,8}},", re.IGNORECASE)
_OF_SEVERAL = re.compile(r"[\"'`*]{0,2}\s{0,4}(?:[/=+]|\(?(?:out\s+)?of\b)", re.IGNORECASE)
_HEADED = re.compile(rf"(?:^|\n)[^\w\n]{{0,8}}{ONE}[^\w\n]{{0,8}}\n[^\w]{{0,12}}$", re.IGNORECASE)
_GIVEN_TO = re.compile(  # "rank: 1. Response 2", "rank: 1 goes to response 2"; not "rank: 1, because response 2 is too long"
    rf"\W{{0,12}}(?:(?!(?:because|since|as|than|over|while|whereas|but|though|although)\b)\w{{1,20}}\W{{1,8}}){{0,3}}?{ONE}", re.IGNORECASE
)
_OF_A_RESPONSE = re.compile(
    rf"[\"'](?:{NOUN}|id|name|number|item|candidate)[\"']\s{{0,4}}:\s{{0,4}}[\"']?(?:{NOUN}\s{{0,4}}#?)?[12]\b", re.IGNORECASE
)
_CORRECTED = re.compile(
    r"\b(?:actually|wait|no(?=\s*[,.:;!\u2013\u2014-])|correction|rather|sorry|instead|scratch|oops|meant|mean|mistake)\b(?!\s+(?:than|of)\b)"
    r"[^\n\w]{0,8}(?:[^\n.]{0,40}?\b)?([12])\b|\n[^\w\n]{0,8}([12])[^\w\n?]{0,8}(?=\n|$)",
    re.IGNORECASE,
)


def ranks_both(text: str) -> bool:
    """Whether a list of both responses is ranked, which is more than what was asked for."""
    return _RANK_BOTH.search(text) is not None


def ranked_first(text: str) -> tuple[set[str], int]:
    """Responses ("1", "2") that machine-readable lines of the judge's own rank first, and where the last of these ends (0 without any).

    Both, where a line is taken back behind it, or where its number may be the place of the other response.
    """
    found: set[str] = set()
    end = 0
    for match in _ranks(text):
        found.add(match["choice"])
        end = match.end()
        if not (match["open"] or match["name"]):
            found |= _placed(text, match)
    if end:
        found |= {match["choice"] for match in _RANK.finditer(text, end)}  # "rank": [1] or "rank": [2]
        found |= {number for pair in _CORRECTED.findall(text, end) for number in pair if number}
    return found, end


def _ranks(text: str) -> Iterator[re.Match[str]]:
    listed = None
    for match in _RANK.finditer(text):
        if is_supposed(text, match.start()) or is_refuted(text, match.end()) or hangs(text, match.end()) or not is_own_line(text, match.start()):
            continue
        if not (match["open"] or match["name"]):
            listed = _OF_A_RESPONSE.search(text) is not None if listed is None else listed
            if listed or _OF_SEVERAL.match(text, match.end("choice")):
                continue
        yield match


def _placed(text: str, match: re.Match[str]) -> set[str]:
    """The response whose place a bare number may be: named alone on the line before, or right behind."""
    near = (_HEADED.search(text, max(0, match.start() - 40), match.start()), _GIVEN_TO.match(text, match.end()))
    return {found.group(1) for found in near if found is not None}
