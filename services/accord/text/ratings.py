"""The rating that a text gives: a number from 1 to 10 that it calls its rating, or that is all it says.

Texts that rate hold other numbers: of sentences, points, steps, other scales. A rating that is denied, asked, supposed or somebody else's is held to
what a choice is held to (`accord.text.claims`). What does not belong here: the distribution over ratings (`accord.text.judge`).
"""

from __future__ import annotations

import re

from accord.text.claims import meant
from accord.text.conditions import NOUN

RATINGS = tuple(str(number) for number in range(1, 11))
_SCALE = re.compile(
    r"\(?\b(?:on\s+)?(?:a\s+|the\s+)?(?:scale\s+)?(?:of|from)\s+1\s*(?:-|\u2013|to)\s*10\b\)?|\(\s*1\s*(?:-|\u2013|to)\s*10\s*\)", re.IGNORECASE
)
_TEN = r"(?:\s*/\s*10\b(?!\s*/)|\s*\(?(?:out\s+)?of\s+(?:10|ten)\b)"
_ANOTHER = (  # a range, two ratings, another scale
    r"\s*/\s*(?!10\b)\d|\s*\(?(?:out\s+)?of\s+(?!(?:10|ten)\b)\w|[\s-]*(?:stars?\b|%|\uff05|\ufe6a|per\s?cent\b)|"
    r"\s*(?:-|\u2013|\u2014|~|\.{2,}|\u2026|to\b|\u00b1|\+/-)\s*\d|\+|\s*(?:,|and\b|&)\s*\d+(?=\s*(?:$|[.,/\n]))|"
    r"[\s,(]{1,3}(?:or|maybe|perhaps|possibly|even|almost|nearly|if\s+not)\b[^.!?\n\d]{0,20}\d"
)
_END = (
    r"(?=[\"'*_\])}`]*\s*(?:$|[.,;:!?(<\n|}\u2013\u2014]|-\s)|[\"'*_]*\s+(?:because|since|as|so|overall|for|in|and|but|though|with|if|unless|"
    r"when|on)\b)"
)
_NUMBER = rf"(-?\d+(?:[.,]\d+)?)(?![\w-])(?:{_TEN}?{_END}|(?={_TEN}?(?:{_ANOTHER})))"
_OVER_TEN = rf"(-?\d+(?:[.,]\d+)?){_TEN}(?:{_END}|(?={_ANOTHER}))"
_OPEN = r"[\"'*_\[(\s]{0,8}"
_ABOUT_IT = rf"(?:\s+(?:it|this|that|the|a|an|as|at|with|of|to|my|overall|final|rating|score|grade|solid|{NOUN}))*"
_KEYED = re.compile(r"[\"'](?:\w+_)?(?:rating|score|grade)[\"']\s*[:=]\s*\[?\s*[\"']?(-?\d+(?:[.,]\d+)?)(?![\w-])", re.IGNORECASE)
_CALLED = re.compile(
    rf"\b(?:rating|score|grade)\b[\"'*_]*(?:\s+(?:for|of)\s+(?:this|the)\s+\w+)?\s*(?:(?:is|of|would\s+be)\b|[:=>]|[-\u2013\u2014]\s)?"
    rf"(?:\s+an?\b)?{_OPEN}{_NUMBER}|"
    rf"(?:\b(?:I|we)(?:\s+(?:would|will|must|can)|['\u2019](?:d|ll))?\s+|^\W*|[.,;:\n]\s*)(?:giv(?:e|ing)|rat(?:e|ing)|scor(?:e|ing)|grad(?:e|ing)|assign|award|say)"
    rf"{_ABOUT_IT}{_OPEN}{_NUMBER}|"
    rf"\b(?:it|this|that|(?:this|the)\s+{NOUN})(?:\s+(?:gets|deserves|earns|receives|merits|is|is\s+worth)|['\u2019]s)\s+an?\s+(?:solid\s+|clear\s+)?{_OPEN}{_NUMBER}|"
    rf"\b(?:therefore|thus|hence|overall(?:\s+quality)?|in\s+conclusion|(?:final|my)\s+(?:answer|verdict))\b(?:\s+is\b)?[^\w\n-]{{1,6}}(?:an?\s+)?{_NUMBER}|"
    rf"(?:make|makes|bring|brings|lower|reduce)\s+(?:it|this)(?:\s+down)?(?:\s+to)?(?:\s+an?)?\s+{_NUMBER}",
    re.IGNORECASE,
)
_OF_TEN = re.compile(rf"(?<![\w.,/\u2013-])(?<!\d to )(?<!\d or )(?<!\d - )(?<!\d \u2013 )(?<!\d and ){_OVER_TEN}", re.IGNORECASE)
_ALONE = re.compile(
    rf"^[^\w-]*(-?\d+(?:[.,]\d+)?)(?![\w-])(?:{_TEN}?[^\w\n?-]*(?:$|\n)|(?=\s*,?\s+(?:so|because|since|as)\b)|(?=\s*(?:{_ANOTHER})))|"
    r"\n[^\w\n-]{0,8}(-?\d+)[^\w\n?-]*\s*$",
    re.IGNORECASE,
)
_LIST = re.compile(r"^\W*1\s*[.)]\s*\n\s*\w")
_WRONG = re.compile(rf"{_TEN}?(?:{_ANOTHER})", re.IGNORECASE)
_NEAR = 120
_OF_ANOTHER = re.compile(  # "The user gives the film 8/10", "on 9/10"
    rf"\b(?:he|she|they|op|the\s+(?:post|user|author|reviewer|critics?|writer|poster|person|film|movie|game|book|show|team|player)|{NOUN}\s+(?:says|gives|mentions|rates)|"
    r"possible|maximum|minimum|highest|lowest|average|example)\b[^.,;:!?\n]*$|"
    r"\b(?:people|some|many|most|others?|readers?|users?|critics?|anyone|someone|you)\b[^.,;:!?\n]*\b(?:rate|give|score|grade|call)\b[^.,;:!?\n]*$|"
    r"\b(?:on|until|by|page|chapter|step|part|question|answered|least|most|than|up\s+to)\s+$",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    rf"\b(?:but|however|though|yet|wait|actually|correction|rather|no|so)\b[^\d\n]{{0,80}}\b(10|[1-9])\b(?:{_TEN})?{_END}", re.IGNORECASE
)


def parse_rating(text: str) -> int | None:
    """The rating from 1 to 10 in a judge's answer; None where there is none, several differ, or it is on another scale or between two.

    A rating is what is all of the text or of its first or last line, what it calls so ("Rating: 8", "I give it an 8"), or what is out of ten.
    "8/10" is 8; "7.5", "8-9" and "4/5" are none, and neither is a number of sentences.
    """
    plain = _SCALE.sub(" ", text)
    found: set[str] = set()
    for match in [*_KEYED.finditer(plain), *(match for pattern in (_CALLED, _OF_TEN, _ALONE) for match in meant(plain, pattern))]:
        number = next(place for place in range(1, len(match.groups()) + 1) if match.group(place))
        if _OF_ANOTHER.search(plain, max(0, match.start() - _NEAR), match.start()) or (match.re is _ALONE and _LIST.match(plain)):
            continue
        found.add("" if _WRONG.match(plain, match.end(number)) else match.group(number))
        found.update(_TAKEN_BACK.findall(plain, match.end(), match.end() + _NEAR))
    return int(found.pop()) if len(found) == 1 and found <= set(RATINGS) else None
