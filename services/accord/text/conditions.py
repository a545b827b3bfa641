"""Whether a claim holds under a condition, or for one merit alone, that a text names in front of it or behind it.

"If you want brevity, response 2 is better" says nothing of two responses that are compared as wholes. What says how sure a judge is ("if I had to
choose") is no condition. What does not belong here: what a claim is, and what denies it (`accord.text.claims`).
"""

from __future__ import annotations

import re

NOUN = r"(?:response|summary|reply|answer|option)"
_BACK = 400
"""Characters before a claim in which its condition is looked for."""
_CHOOSE = r"(?:choose|pick|decide|select|say|name|rank|rate|answer|give)"
_HOW_SURE = (
    rf"\s+(?:(?:I|we)\s+(?:really\s+)?(?:had|have|must|were|was|am|are|need)\b(?:\s+\w+){{0,3}}?\s+{_CHOOSE}\b|(?:I|we)\s+must\b|"
    r"(?:forced|pressed|made)\b|you\s+ask\s+me\b|anything\b|I\s+(?:may|am\s+honest)\b)"
)
_CONCEDED = r"\s+(?:only|not|a|an|somewhat|slightly|rather|barely|even)\b"
_COMPARING = (
    r"\s+(?:(?:I|we|you)\s+)?(?:compar\w+|weigh\w*|read\w*|all|everything|"
    r"(?:consider\w*|tak(?:e|en|ing)|look(?:ing)?\s+at)\s+(?:all|everything|both|them|the\s+two|the\s+whole|together|as\s+a\s+whole))\b"
)
_UNDER = (
    rf"when(?:ever)?\b(?!{_COMPARING})|unless\b|otherwise\b|assuming\b|suppos(?:e|ing)\b|provided\b|should\s+(?:you|one|we|the)\b|in\s+case\b|(?:as|so)\s+long\s+as\b|where\b|"
    r"depending\s+on\b|for\s+(?:those|people|readers|users|anyone|someone|somebody|an?\s+\w+)\s+(?:who|that|seeking|looking|wanting)\b"
)
_MERIT = (
    r"(?:coheren(?:ce|cy)|accuracy|correctness|factuality|coverage|complet(?:eness|ion)|clarity|readability|tone|style|length|brevity|concis(?:eness|ion)|"
    r"grammar|spelling|fluency|wording|structure|format(?:ting)?|relevance|detail|depth|empathy|politeness|creativity|danger|respect|honesty|care)"
)
_OF_A_RESPONSE = re.compile(rf"\bif\s[^.,:;!?\n]*\b(?:{NOUN}\s*)?#?[12]\b[^.,:;!?\n]*,[^.:;!?\n]*$", re.IGNORECASE)
_LED = re.compile(  # a clause that begins with a condition, or with one merit, ends, and no "but" sets the claim against it
    rf"(?:^|[.,;:!?\n(]|\b(?:and|but|so|then|because|that|or|only)\b)\W{{0,8}}(?:if\b(?!{_HOW_SURE})|{_UNDER}|"
    r"(?:in\s+terms\s+of|with\s+(?:regard|respect)\s+to|regarding|concerning|as\s+(?:regards|for|far\s+as))\s+"
    rf"(?!(?:the\s+)?(?:overall|all|every|general|whole|balance|my|me)\b)|(?:for|in|on)\s+(?:its\s+|the\s+)?{_MERIT}\b|in\s+a\s+tie\b|were\b|had\s+(?:it|you|one|they)\b|for\s+an?\b|"
    rf"from\s+(?:the|an?)\s+(?:point\s+of\s+view|standpoint|perspective)\b|as\s+an?\s+(?!(?:whole|result|consequence|judge|rater|AI|language)\b))"
    r"[^.,:;!?\n]*[,:]\n{0,2}(?:(?!\b(?:but|yet|however)\b)[^.:;!?\n])*$",
    re.IGNORECASE,
)
_LABELLED = re.compile(  # "1. Coherence: ...", "**Tone** - ..."
    rf"(?:^|[.;!?\n])[^\w\n]{{0,8}}(?:\d\s*[.)]\s*)?[^\w\n]{{0,8}}{_MERIT}(?:\s+and\s+{_MERIT})?[^\w\n.,]{{0,8}}[:\u2013\u2014-](?:[^\w.!?;]{{0,8}}|(?:(?!\boverall\b)[^.!?;\n])*)\Z",
    re.IGNORECASE,
)
_HANGS = re.compile(
    rf"(?:\s+than\s+(?:it\b|the\s+other(?:\s+one)?\b|{NOUN}\s*#?[12]\b))?[\s,(\u2013\u2014-]{{1,4}}(?:but\s+)?(?:only\s+|just\s+)?"
    rf"(?:if\b(?!{_HOW_SURE}|{_CONCEDED})|{_UNDER})",
    re.IGNORECASE,
)


def is_supposed(text: str, start: int) -> bool:
    """Whether what begins at `start` holds on a condition, or for one merit: "If response 1 is better, choose 1", "Tone: response 2 is better"."""
    least = max(0, start - _BACK)
    sentence = max(least, *(text.rfind(mark, least, start) for mark in ".!?"))  # with the mark, behind which a clause begins
    led = any(before.search(text, sentence, start) for before in (_OF_A_RESPONSE, _LED))
    return led or (_LABELLED.search(text, least, start) is not None and text[start : start + 7].lower() != "overall")


def hangs(text: str, end: int) -> bool:
    """Whether what ends at `end` is followed by its condition: "Response 2 is better if you want brevity"."""
    return _HANGS.match(text, end) is not None
