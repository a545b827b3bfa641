"""Whether a text calls both responses equal: as its whole answer, in the form that was asked for, or in a sentence of its own.

A sentence is held to what a choice is held to (`accord.text.claims`): not denied, asked, supposed, reported or limited, and with nothing said
against it. "Tie" is a word of posts and responses too, so that alone it is a verdict at an answer's beginning or end only. What does not belong here:
a judge's whole answer (`accord.text.judge`).
"""

from __future__ import annotations

import re

from accord.text.claims import DIGIT, KEY, ONE, OTHER, SAYS, is_answered, meant
from accord.text.conditions import NOUN
from accord.text.lines import is_own_line

_MANY = r"(?:responses|summaries|replies|answers|options)"
_BOTH_NAMED = rf"(?:{_MANY}\s*#?[12]\s*(?:and|&)\s*#?[12]|{NOUN}\s*#?[12]\s*(?:and|&)\s*(?:{NOUN}\s*)?#?[12])"
_THEY = (
    rf"(?:they\b|both\b(?:\s+(?:of\s+(?:them|these)|(?:of\s+)?(?:the\s+|these\s+)?{_MANY}))?|"
    rf"(?:the\s+|these\s+)?(?:two\b|two\s+{_MANY}|{_MANY})|{_BOTH_NAMED})"
)
_HOW = (
    r"(?:(?:all|clearly|basically|essentially|effectively|practically|really|simply|just|still|indeed|therefore|thus|overall|about|roughly|exactly)"
    r"\s+)*"
)
_A_TIE = r"(?:(?:an?\s+(?:exact\s+|clear\s+|complete\s+|dead\s+)?)(?:tie|draw)|tied)\b(?!\s*-|\s+break)"
_GOOD = r"(?:good|bad|strong|weak|helpful|unhelpful|harmless|harmful|safe)"
_EQUALLY = rf"equally\s+{_GOOD}(?:\s+and\s+{_GOOD})?\b(?!-)"
_EQUAL = (
    rf"(?:{_EQUALLY}|(?:equal|equivalent|on\s+(?:a\s+)?par|evenly\s+matched|equally\s+matched|of\s+(?:equal|the\s+same)\s+quality|{_A_TIE}|"
    r"(?:the\s+same|identical)(?!\W{1,4}(?:except|apart|but|only|other|save|with)\b))"
    r"(?:\s+in\s+(?:overall\s+)?(?:quality|value|merit))?)"
)
_END = (  # a tie with stripes is something to wear
    rf"(?=[\"'*\])]*\s*(?:$|[.!,;:(\n\u2013\u2014]|-\s)|\s+(?:because|since|as|so|overall|here|to\s+me|in\s+my|in\s+(?:every|all|general)|and\s+(?:I|both|neither|they)|"
    rf"(?:but|though|if|when|unless)\b|{_MANY}|between\s+(?:them|both|(?:the\s+)?(?:two|{_MANY})|{_BOTH_NAMED}))\b)(?!\W{{1,6}}(?:or\b|(?:{NOUN}\s*)?#?[12]\b))"
)
_BETWEEN = (
    rf"(?:\s+(?:between|among)\s+(?:them|both|(?:the\s+)?(?:two(?:\s+{_MANY})?|{_MANY})|{_BOTH_NAMED})|"
    rf"\s+for\s+(?:either|one)(?:\s+of\s+them|\s+{NOUN})?)?"
)
_WORD = (
    r"(?:(?:it(?:\s+is|['\u2019]s)\s+)?(?:a\s+)?(?:tie|draw)\b(?!-|\s+break)|tied|equal|"
    rf"(?:both\s+|both\s+{_MANY}\s+)?{_EQUALLY}|no\s+(?:clear\s+)?(?:preference|winner))"
)
_WHOLE = re.compile(rf"^\W*(?:(?:{SAYS}|(?:(?:my|the|final)\s+)*(?:answer|result))\s*(?:is\b|:)\W*)?{_WORD}\W*$", re.IGNORECASE)
_CLAIMED = re.compile(
    rf"\b(?:it|this|that|(?:the|my|final|overall)\s+(?:result|outcome|comparison|answer|verdict|decision|conclusion|choice))(?:\s+is|['\u2019]s)\s+{_HOW}{_A_TIE}{_END}|"
    rf"\b(?:I|we)(?:\s+(?:would|will|must|have\s+to|can\s+only|do|should)|['\u2019](?:d|ll))?\s+(?:still\s+|therefore\s+|thus\s+)?"
    rf"(?:call|declare|give|rate|consider|judge|say|choose|pick|vote|rule|rank|score|mark|deem|find|see|go\s+with)\s+"
    rf"(?:(?:it|this|that|them|{_THEY})\s+)?(?:as\s+|for\s+|to\s+be\s+)?{_HOW}(?:{_EQUAL}|tie\b(?!-)){_END}|"
    rf"\b{_THEY}(?:\s+(?:are|were)|['\u2019]re)\s+{_HOW}{_EQUAL}{_END}|\bwe\s+have\s+{_A_TIE}{_END}|"
    rf"\bneither\s+(?:(?:{NOUN}|one|of\s+(?:them|these|(?:the\s+)?(?:two|{_MANY})))\s+)?(?:(?:is|was)\s+(?:really\s+|overall\s+|the\s+)?"
    r"(?:better|best|preferable|superior|stronger|winner)\b(?:\s+than\s+the\s+other(?:\s+one)?\b)?|wins\b)"
    rf"{_END}|"
    rf"\b(?:I\s+have|there\s+is|there['\u2019]s)\s+no\s+(?:clear\s+|real\s+)?(?:preference|winner)\b{_BETWEEN}{_END}",
    re.IGNORECASE,
)
_LEADING = re.compile(  # "Tie: both say the same."
    rf"^[^\w?]*{_WORD}(?=[\"'*\])]*\s*(?:[.!:;\n(\u2013\u2014]|-\s|,\s*(?:because|since|as|both|they)\b)|\s+(?:because|since|as|between)\b)"
    rf"(?!\W{{1,8}}(?:or\b|not\b|but\b|(?:{NOUN}\s*)?#?[12]\b\W*(?:$|[\n,])))",
    re.IGNORECASE,
)
_CONCLUDED = re.compile(
    rf"(?:\b(?:{SAYS}|(?:final|my)\s+answer)\b[\"'*]*\s*(?:is\b|[:=\u2013\u2014-])[\"'*\s]*|(?:\b(?:therefore|thus|hence|overall|in\s+conclusion)\b[,:]?\s*|"
    rf"[.!][\"'*)]{{0,4}}\s{{0,8}}?\n\s{{0,8}})[\"'*_]{{0,4}}){_WORD}{_END}",
    re.IGNORECASE,
)
_RANKED = re.compile(
    rf"{KEY}\[?\s*[\"']?(?:{_WORD}|both\s+equal|both\s+are\s+equal)[\"']?\s*\]?(?=\s*(?:$|[\n,.;}}`]))(?!\s*,\s*[\"']?[12]\b)", re.IGNORECASE
)
_AS_MODEL = re.compile(r"\bas\s+an?\s+(?:AI|\w*\s*language\s+model|assistant|chatbot)\b", re.IGNORECASE)
_LEANING = r"(?:slight\w*|edge|lean\w*|prefer\w*|favou?r\w*|advantage|ahead|nod|better|best|stronger|superior|win(?:s|ner)?)"
_LEAN = re.compile(  # "..., so I'll go with 1", "..., with response 2 being slightly better"
    rf"\b(?:{_LEANING}|go(?:ing|es)?\s+(?:with|for|to)|choos(?:e|ing)|pick\w*|opt\w*|select\w*|tie-?break\w*)\b"
    rf"(?:(?!\b(?:than|over)\b)[^.!?\n]){{0,60}}?(?:{ONE}{OTHER}|\b{DIGIT})|{ONE}{OTHER}(?:(?!{ONE})[^.!?\n]){{0,60}}?\b{_LEANING}\b",
    re.IGNORECASE,
)
_NONE = re.compile(r"(?:\b(?:neither|nor|no|not|cannot|never|if|whether)\b|n['\u2019]t\b)[^.!?\n]{0,60}$", re.IGNORECASE)


def leans(text: str) -> bool:
    """Whether a text that calls both equal leans to one of them behind that: "equally good, with a slight edge to response 2" is no tie."""
    equal = next((match for pattern in (_CLAIMED, _LEADING, _CONCLUDED, _RANKED) for match in pattern.finditer(text)), None)
    if equal is None:
        return False
    named = set()
    for match in _LEAN.finditer(text, equal.end()):
        if not _NONE.search(text, max(equal.end(), match.start() - 60), match.start()):
            named.add(next(group for group in match.groups() if group))
    return len(named) == 1


def said_equal(text: str) -> bool:
    """Whether the text calls both responses equal in a sentence, or begins or ends with that; not where it then speaks for one of them."""
    if _AS_MODEL.search(text):
        return False
    return any(not is_answered(text, match.end(), "1", "2") for pattern in (_CLAIMED, _LEADING, _CONCLUDED) for match in meant(text, pattern))


def is_only_equal(text: str) -> bool:
    """Whether that both are equal is the whole answer."""
    return _WHOLE.match(text) is not None and "?" not in text


def ranked_equal(text: str) -> bool:
    """Whether a machine-readable line calls both equal."""
    return any(is_own_line(text, match.start()) for match in meant(text, _RANKED))
