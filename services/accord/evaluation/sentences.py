"""Splitting a text into sentences by rule, without data that has to be downloaded.

What does not belong here: words, which each metric's own library splits in its own way.
"""

from __future__ import annotations

import re

# The end of a sentence: its mark, closing quotes or brackets, then white space and something that can begin one. CJK marks need no space.
_END = re.compile(r"""(?<=[.!?…])["'”’)\]]*(?P<space>\s+)(?=["'“‘(\[]*[^\W_a-z])|(?<=[。！？])(?P<none>\s*)(?=\S)""")
_ABBREVIATION = re.compile(r"(?:^|[\s(\"“‘])(?:mr|mrs|ms|dr|prof|st|sr|jr|vs|etc|e\.g|i\.e|approx|fig|inc|ltd|[a-z])\.$", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped, without empty ones. Line breaks always end a sentence.

    A mark ends one only before white space and a capital, a digit or a letter without case, and not after a title, a known abbreviation
    or an initial: ``sentences("Dr. Li left. He ran!") == ["Dr. Li left.", "He ran!"]``.
    """
    return [sentence for line in text.splitlines() for sentence in _of_line(line)]


def _of_line(line: str) -> list[str]:
    found, start = [], 0
    for end in _END.finditer(line):
        cut = end.start("space") if end.group("space") is not None else end.start()
        if _ABBREVIATION.search(line, max(start, cut - 12), cut):
            continue
        found.append(line[start:cut].strip())
        start = end.end()
    found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]
