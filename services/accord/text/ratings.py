"""The rating that a text gives: a number from 1 to 10 that it calls its rating, or that is all it says.

Texts that rate hold other numbers: of sentences, points, steps, other scales. A rating that is denied, asked, supposed or somebody else's is held to
what a choice is held to (`accord.text.claims`). What does not belong here: the distribution over ratings (`accord.text.judge`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from accord.text.claims import meant
from accord.text.conditions import NOUN
from accord.text.lines import is_own_line, plain_text

RATINGS = tuple(str(number) for number in range(1, 11))
_SCALE = re.compile(
    r"\(?\b(?:on\s+)?(?:a\s+|the\s+)?(?:scale\s+)?(?:of|from)\s+1\s{0,4}(?:-|\u2013|to)\s{0,4}10\b\)?|\(\s{0,4}(?:out\s+)?of\s+(?:10|ten)\s{0,4}\)|"
    r"\(\s{0,4}1\s{0,4}(?:-|\u2013|to)\s{0,4}10\s{0,4}\)|\(\s{0,4}1\s{0,4}(?:=|:|is)\s{0,4}[^()\d\n]{0,40}10\s{0,4}(?:=|:|is)[^()\d\n]{0,40}\)",
    re.IGNORECASE,
)
_TEN = r"(?:\s{0,8}/\s{0,8}10\b(?!\s{0,8}/)|\s{0,8}\(?(?:out\s{1,8})?of\s{1,8}(?:10|ten)\b)"
_ANOTHER = (  # a range, two ratings, another scale
    r"\s{0,8}/\s{0,8}(?!10\b)\d|\s{0,8}\(?(?:out\s{1,8})?of\s{1,8}(?!(?:10|ten)\b)\w|[\s-]{0,8}(?:stars?\b|%|\uff05|\ufe6a|per\s?cent\b)|"
    r"\s{0,8}(?:\([^()\n]{0,30}\)\s{0,4})?(?:-|\u2013|\u2014|~|\.{2,}|\u2026|to\b|\u00b1|\+/-)\s{0,8}\d|\+|"
    r"\s{0,8}(?:[,;|]|and\b|&)\s{0,8}\d{1,4}(?=\s{0,8}(?:$|[.,;|/\n\])}\"']))|"
    r"\s{0,8}\([^()\n]{0,30}\)\s{0,4}[,;]\s{0,4}\d{1,2}\s{0,4}\(|"
    r"[\s,(]{1,3}(?:or|maybe|perhaps|possibly|even|almost|nearly|if\s+not)\b[^.!?\n\d]{0,20}\d"
)
_END = (
    r"(?=[\"'*_\])}`]{0,8}(?:\s*$|\s{0,8}(?:[.,;:!?(<\n|}\u2013\u2014]|-\s))|[\"'*_]{0,8}\s{1,8}(?:because|since|as|so|overall|for|in|and|but|though|with|if|unless|"
    r"when|on)\b)"
)
_NUMBER = rf"(-?\d+(?:[.,]\d+)?)(?![\w-])(?:{_TEN}?{_END}|(?={_TEN}?(?:{_ANOTHER})))"
_OVER_TEN = rf"(-?\d+(?:[.,]\d+)?){_TEN}(?:{_END}|(?={_ANOTHER}))"
_OPEN = r"[\"'*_\[(`\s]{0,8}"
_ABOUT_IT = rf"(?:\s+(?:it|this|that|the|a|an|as|at|with|of|to|my|overall|final|rating|score|grade|solid|{NOUN}))*"
_IS = r"(?:(?:is|would\s+be)\b|[:=>]|[-\u2013\u2014]\s)"
_KEYED = re.compile(
    r"[\"'](?:(?:overall|final|total|quality|response|summary|general)_)?(?:rating|score|grade)[\"']\s{0,8}[:=]\s{0,8}\[?\s{0,8}[\"']?(-?\d+(?:[.,]\d+)?)(?![\w-])",
    re.IGNORECASE,
)
_LABELLED = re.compile(  # "Rating: 8", "Score of this response: 8", "Rating: 8 points", "Grade: 8"
    rf"\b(?:(?:rating|score)\b[\"'*_]{{0,4}}(?:\s+(?:for|of)\s+(?:this|the)\s+(?:{NOUN}|text|one))?\s{{0,8}}(?:{_IS}|(?!{_OPEN}-?\d+\W{{0,4}}:))|grade\b[\"'*_]{{0,4}}\s{{0,8}}(?:is\b|[:=]))"
    rf"(?:\s+an?\b)?{_OPEN}{_NUMBER}|"
    rf"\b(?:rating|score)\b[\"'*_]{{0,4}}\s{{0,8}}[:=]{_OPEN}(-?\d+(?:[.,]\d+)?)\s+points?\b(?=\s{{0,8}}(?:$|[.,;!)\n]))",
    re.IGNORECASE,
)
_OWN_LABEL = re.compile(  # not "accuracy rating: 9", "her score is 9": a rating of something else
    rf"(?:(?:(?:^|\n)[^\w\n]{{0,12}}(?:\d{{1,2}}[.)]\s{{0,4}})?|[^\w\s'\u2019:-])\s{{0,8}}|\b(?:my|the|this|that|an?|its|and|so|{NOUN}|{NOUN}['\u2019]s)\s{{1,4}})"
    r"(?:(?:final|overall|total|general|quality|numerical|numeric|integer)\s{1,4}){0,3}$",
    re.IGNORECASE,
)
_CALLED = re.compile(
    rf"(?:^|\n)[^\w\n]{{0,8}}(?:(?:my|overall|final)\s+)?(?:rating|score)\s+of\s+{_OPEN}{_NUMBER}|"
    rf"(?:\b(?:I|we)(?:\s+(?:would|will|must|can)|['\u2019](?:d|ll))?\s+|^\W*|[.,;\n]\s{{0,8}})"
    rf"(?:giv(?:e|ing)|rat(?:e|ing(?=\s+[a-z]))|scor(?:e|ing)|grad(?:e|ing)|assign|award|say)"
    rf"{_ABOUT_IT}{_OPEN}{_NUMBER}|"
    rf"\b(?:it|this|that|(?:this|the)\s+{NOUN})(?:\s+(?:gets|deserves|earns|receives|merits|is|is\s+worth)|['\u2019]s)\s+an?\s+(?:solid\s+|clear\s+)?"
    rf"(?:(?:rating|score|grade)\s+of\s+)?{_OPEN}{_NUMBER}|"
    rf"\b(?:it|this|that|(?:this|the)\s+{NOUN})(?:\s+(?:gets|deserves|earns|receives|merits|scores|is|is\s+worth)|['\u2019]s)\s+{_OPEN}{_OVER_TEN}|"
    rf"(?:\b(?:therefore|thus|hence|overall(?:\s+quality)?|in\s+conclusion|my\s+(?:final\s+)?(?:answer|verdict))\b|"
    rf"(?:^|\n)[^\w\n]{{0,12}}final\s+(?:answer|verdict)\b)"
    rf"(?:\s+is\b)?[^\w\n-]{{1,6}}(?:an?\s+)?{_NUMBER}|"
    rf"(?:make|makes|bring|brings|lower|reduce)\s+(?:it|this)(?:\s+down)?(?:\s+to)?(?:\s+an?)?\s+{_NUMBER}",
    re.IGNORECASE,
)
_OF_TEN = re.compile(  # at the beginning of a line or sentence: "My pain is 8/10" and "IMDb: 8/10" rate something else
    rf"(?:(?:^|\n)[^\w\n]{{0,8}}|[.!?][\"')*]{{0,3}}\s{{1,8}})(?:(?:not\s+bad|good|great|okay|ok|fine|fair|decent|excellent|poor|weak|mediocre|perfect)"
    rf"(?:\s+(?:{NOUN}|job|work))?[,.:;!\u2013\u2014-]\s{{1,4}})?(?:(?:an?|solid|clear|strong|so)\s+){{0,3}}{_OPEN}{_OVER_TEN}",
    re.IGNORECASE,
)
_ALONE = re.compile(
    rf"^[^\w-]*(-?\d+(?:[.,]\d+)?)(?![\w-])(?:{_TEN}?[^\w\n?-]*(?=$|\n)|(?=\s{{0,8}},?\s+(?:so|because|since|as)\b)|(?=\s{{0,8}}(?:{_ANOTHER})))|"
    r"\n[^\w\n-]{0,8}(-?\d+(?:[.,]\d+)?)(?:[^\w\n?-]{0,8}(?=\s*$)|(?=\s{0,8}/\s{0,8}\d+[^\w\n?-]{0,8}\s*$))",
    re.IGNORECASE,
)
_LIST = re.compile(r"^\W*1\s*[.)]\s*\n\s*\w")
_WRONG = re.compile(rf"{_TEN}?(?:{_ANOTHER})", re.IGNORECASE)
_WHOLE = re.compile(r"[.,]0+$")
_LABEL = 60
_NEAR = 120
_OF_ANOTHER = re.compile(  # "The user gives the film 8/10", "on 9/10"
    rf"\b(?:he|she|they|op|the\s+(?:post|user|author|reviewer|critics?|writer|poster|person|film|movie|game|book|show|team|player)|{NOUN}\s+(?:says|gives|mentions|rates)|"
    r"possible|maximum|minimum|highest|lowest|average|example)\b[^.,;:!?\n]*$|"
    r"\b(?:people|some|many|most|others?|readers?|users?|critics?|anyone|someone|you)\b[^.,;:!?\n]*\b(?:rate|give|score|grade|call)\b[^.,;:!?\n]*$|"
    r"\b(?:on|until|by|page|chapter|step|part|question|answered|least|most|than|up\s+to)[^\S\n]+$",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    rf"\b(?:but|however|though|yet|wait|actually|correction|rather|no|so)\b[^\d\n]{{0,80}}\b(10|[1-9])\b(?:{_TEN})?{_END}", re.IGNORECASE
)


def parse_rating(text: str) -> int | None:
    """The rating from 1 to 10 in a judge's answer; None where there is none, several differ, or it is on another scale or between two.

    A rating is what is all of the text or of its first or last line, what it calls so ("Rating: 8", "I give it an 8"), or what is out of ten where a
    line or sentence begins. "8/10" and "8.0" are 8; "7.5", "8-9" and "4/5" are none, and neither is a number of sentences, what is rated by one
    merit ("Accuracy rating: 9"), or what belongs to somebody else ("her score is 9").
    """
    plain = _SCALE.sub(" ", plain_text(text))
    found: set[str] = set()
    for match in _rated(plain):
        number = next(place for place in range(1, len(match.groups()) + 1) if match.group(place))
        if _OF_ANOTHER.search(plain, max(0, match.start() - _NEAR), match.start()) or (match.re is _ALONE and _LIST.match(plain)):
            continue
        found.add("" if _WRONG.match(plain, match.end(number)) else _WHOLE.sub("", match.group(number)))
        found.update(_TAKEN_BACK.findall(plain, match.end(), match.end() + _NEAR))
    return int(found.pop()) if len(found) == 1 and found <= set(RATINGS) else None


def _rated(text: str) -> Iterator[re.Match[str]]:
    """What the text gives as a rating, in the form that was asked for or in words."""
    yield from (match for match in _KEYED.finditer(text) if is_own_line(text, match.start()))
    for match in meant(text, _LABELLED):
        if _OWN_LABEL.search(text, max(0, match.start() - _LABEL), match.start()):
            yield match
    for pattern in (_CALLED, _OF_TEN, _ALONE):
        yield from meant(text, pattern)
