"""Which of two responses a text calls better, in sentences: as its own opinion, of the whole response, and left standing.

A claim that is denied, asked, supposed, reported of others, limited to one merit, or set against the other response is none: a guess is worse than an
abstention. Time is in proportion to the text. What does not belong here: what a claim hangs on (`accord.text.conditions`), what calls both responses
equal (`accord.text.ties`), ratings (`accord.text.ratings`) and a judge's whole answer (`accord.text.judge`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from accord.text.conditions import NOUN, hangs, is_supposed

ONE = rf"\b{NOUN}\s{{0,8}}#?\s{{0,8}}([12])\b"
OTHER = rf"(?!\s*(?:,|/|&|and\b|or\b|vs\b)\s*(?:{NOUN}\s*)?#?[12]\b)"
DIGIT = rf"([12])(?=\s*(?:$|[.,;!?)\]\"'*\n]))(?!\.\d){OTHER}"
SAYS = r"(?:(?:my|the|final)\s+){0,4}(?:verdict|choice|decision|conclusion|preference|winner)"
KEY = r"(?<![\w-])(?:[\"'`*]{0,3}rank[\"'`*]{0,3}|[\"'](?:verdict|choice|preferred|preference|winner)[\"'])\s{0,8}[:=]\s{0,8}[*`]{0,2}\s{0,8}"
_HOW = (
    r"(?:(?:clearly|much|slightly|far|marginally|a bit|still|overall|the|clear|significantly|definitely|considerably|substantially|noticeably|"
    r"certainly|obviously|undoubtedly|vastly|even|a lot|by far)\s+)*"
)
_GOOD = r"(?:better|best|preferable|preferred|superior|stronger|winner|more helpful|less harmful|more harmless)"
_THING = rf"(?:{NOUN}|one|choice|option|pick)"
_GOES_ON = (
    r"(?:according|and|although|as|at|based|because|but|by|due|even|for|given|here|if|in|instead|of|on|overall|regardless|since|so|than|though|to|when|whereas|"
    r"while|with)"
)
_OF_IT = (  # "is the best example of bad advice" is no verdict
    rf"(?!\s+or\b)(?![^\S\n]+(?!(?:{_THING}|because|than|regardless|instead|overall|here|even|and|but|as)\b)\w+[^\S\n]+(?:of|for|how)\b)"
    r"(?!\s+of\b(?!\s+(?:(?:the|these|both)\s+)?(?:two|pair|them|both|responses|summaries|replies|answers|options)\b(?!\s+worlds)))"
    rf"(?!(?:(?<=best)|(?<=worst)|(?<=better)|(?<=worse))[^\S\n]+(?!(?:{_THING}|{_GOES_ON})\b)[^\W\d])"  # "the best liar"
)
_BETTER = re.compile(
    rf"{ONE}\W*(?:(?:is|was)\s+(?:{_HOW}{_GOOD}\b|an?\s+{_HOW}{_GOOD}\s+{_THING}\b){_OF_IT}|wins(?=\s*(?:[.!\n]|$)))|"
    rf"^\W*{ONE}[^\w?]{{1,8}}(?:it|this(?:\s+{_THING})?)\s+(?:is|was)\s+{_HOW}{_GOOD}\b{_OF_IT}|"  # "Response 1. It is better."
    rf"\b(?:better|best|preferred|prefer|choose|pick|winner)\b(?:\s+(?:one|{NOUN}))?(?:\s+is\b|\s*:)?[^\w,]+(?:the\s+)?(?:{ONE}{OTHER}|{DIGIT})",
    re.IGNORECASE,
)
_BAD = r"(?:worse|worst|inferior|weaker|less helpful|more harmful)"
_STATED = re.compile(rf"\b{SAYS}[*\"'_]{{0,3}}[^\S\n]{{0,4}}(?:\bis\b|[:=])[^\w\n]{{0,6}}([12])\b(?=[^\w\n]{{0,4}}[.,;!])", re.IGNORECASE)
"""A number in mid-line, "My verdict: 2. ...": no verdict by itself, as it may count what follows, but one that a claim must not contradict."""
_WORSE = re.compile(rf"{ONE}\W*(?:is|was)\s+(?:{_HOW}{_BAD}\b|an?\s+{_HOW}{_BAD}\s+{_THING}\b){_OF_IT}", re.IGNORECASE)
_LESSER = re.compile(r"\b(?:least|less|non|not|second|2nd|next|third|worst|lower|lesser|runner-up)[\s*_\"'-]{1,4}$", re.IGNORECASE)
"""What makes a word of preference its contrary: "least preferred", "second-best"."""
_SENTENCE = 400
"""Characters of a sentence that are looked at around a verdict: a judge that says the same over and over must take no time in the square of it."""
_CONCLUDED = re.compile(
    rf"(?:\b(?:therefore|thus|hence|overall|in conclusion|{SAYS})\b|(?:^|\n)[^\w\n>]{{0,8}}(?:(?:my|the)\s+)?final\s+answer(?!\s+is\b))"
    rf"(?:\s+is\b)?\W{{0,6}}(?:{ONE}|{DIGIT})\W*$|"
    rf"(?:^|\n)[^\w\n>]{{0,8}}{SAYS}[*\"'_]{{0,3}}:[^\w\n]{{0,8}}(?:{ONE}|{DIGIT})[^\w\n?]{{0,8}}(?=\n|$)",  # a line of its own
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:\b(?:not|never|hardly|rarely|seldom|barely|no|nobody|none|nor|neither|cannot|unable|refuse|if|when|whether|unless|otherwise|assuming|supposing|"
    r"(?<!I )suppose|provided\s+that)\b|n['\u2019]t\b)[^.,;:!?\n]*$|[12]\s*(?:and|or|/|&)\s*$",
    re.IGNORECASE,
)
_ASKED = re.compile(rf"[^.!?\n]{{0,{_SENTENCE}}}\?")
_THINK = r"(?:say|argue|claim|believe|think|feel|insist|maintain|contend|assume|suppose)"
_THINKS = r"(?:says|said|argue[sd]|claim(?:s|ed)|believe[sd]|thinks|insist(?:s|ed)|contend(?:s|ed))"
_OTHERS = r"(?:some|others?|many|most|few|people|critics|readers?|users?|humans?|one|anyone|someone|nobody|they|you|who)"
_UNTRUE = r"(?:false|wrong|untrue|incorrect|mistaken?|doubtful|debatable|questionable|unlikely|unclear|a mistake|a myth|an error)"
_REPORT = 120
"""Characters before a claim in which what reports it is looked for."""
_DISOWNED = re.compile(  # "I would say" is the judge's own, "they would say" is not
    r"\b(?=[abcdfimnoprstuvwy])(?:"
    rf"{_UNTRUE}\s+(?:that|to)|(?<!without )(?<!without a )(?<!without any )doubt(?:s|ed|ing)?|den(?:y|ies|ied)|disagree[sd]?|disputes?|allegedly|"
    rf"supposedly|reportedly|{_THINKS}|{_OTHERS}\b[^.,;:!?\n]{{0,30}}\b{_THINK}|(?:claim|idea|notion|view|belief|assertion)s?\s+that)\b"
    r"(?:(?!\b(?:so|thus|hence|therefore)\b)[^.!?\n]){0,60}$",  # "response 2 says too much so response 1 is better" reports nothing
    re.IGNORECASE,
)
_THOUGH = re.compile(r"\b(?:al)?though\b", re.IGNORECASE)
_WHILE = re.compile(r"\W{0,4}(?:while|whilst|whereas)\b", re.IGNORECASE)
_REFUTED = re.compile(  # what stands behind one
    rf"[\"'\s]{{1,4}}would\s+be\b|"
    rf"\W{{0,4}}(?:(?:(?:which|that)\s+)?(?:is|was|would be|seems)\s+(?:\w+\s+)?(?:{_UNTRUE}|not\s+(?:true|so|the\s+case))\b|"
    rf"(?:or so\s+)?{_OTHERS}\s+(?:\w+\s+)?{_THINK}\b|said\s+(?:nobody|no\s+one)\b|or\s+is\s+it\b|"
    rf"it\s+is\s+(?:said|claimed|argued|believed|thought)\b|(?:just\s+|only\s+)?(?:kidding|joking)\b|"
    rf"(?:not|{_UNTRUE})(?=[\s.!)\"'*]{{0,8}}(?:$|\n)))|"
    rf"[^\w.!?\n]{{0,4}}(?:(?:said|says|thought|claim(?:s|ed)|argue[sd]|insist(?:s|ed)|wrote|writes)\b(?!\s+I\b)|(?:is|was)\s+what\b|"
    rf"according\s+to\s+{_OTHERS}\b)",
    re.IGNORECASE,
)
_QUOTED = re.compile(  # 'It says "response 2 is better"' and "I was told to choose response 2" are somebody else's words
    r"\b(?:says?|said|writes?|wrote|states?|stated|claims?|reads|tells\s+\w+|ends\s+with|begins\s+with|contains|includes|phrase|words|sentence|text|line|"
    r"instructions?)\b(?:\s+that)?\s*(?:[:,]?\s*[\"\u201c\u2018']|:)[^\w.!?\n]*$|\b(?:supposedly|allegedly|reportedly),?\s*$|"
    r"(?:(?:^|[.!?\n])\W*|\bplease\s+)(?:say|write|answer|output)\s+(?:that\s+)?$|"
    r"\b(?:asked|asks|told|tells|wants?|wanted|instruct(?:s|ed)|order(?:s|ed)|tempted|expected|supposed|tries|tried|trying)\s+(?:\w+\s+){0,3}to\s+"
    r"(?:(?:say|write|answer|reply|claim|output|conclude|pretend)\b\W*(?:that\s+)?)?$",
    re.IGNORECASE,
)
_WHOLE = r"(?:every|all|any|each|both|general|my|this|that|comparison|fact|short|total|balance|the\s+(?:whole|end))"
_WHOM = rf"(?:(?:the\s+)?(?:{NOUN}|other|user|person|human|asker|question|prompt|request|conversation|post)|me|us|this|that|it)"
_REASON = rf"(?:its|their|being|me|this|these|those|that|several|two|three|many|all|the\s+(?:\w+\s+){{0,2}}?(?:reasons?|task|purpose)|{_WHOM})"
_LIMITED = re.compile(  # better written, better in tone, preferred by many: one merit, or someone else's opinion, and no verdict
    rf"(?:\s+(?:one|choice|{NOUN})\b)?(?:\s+than\s+(?:it\b|the\s+other(?:\s+one)?\b|{NOUN}\s*#?[12]\b))?(?:['\u2019]s\s|[\s-]{{1,4}}(?:"
    r"(?:\w+ly\s+)?(?!(?:based|compared|indeed)\b)(?:\w+ed|written|put|laid|told|said|spoken|made|built|known|done)\b|"
    rf"(?:in|at|on|regarding|concerning)\b(?!\s+{_WHOLE}\b)|with\s+(?:regard|respect)\b|as\s+far\s+as\b|as\s+regards\b|"
    r"(?:only|merely|stylistically|grammatically|structurally|visually|technically)\b|"
    rf"by\b(?!\s+(?:far|a|me)\b)|to\s+(?:{_OTHERS}\b|(?!{_WHOM}\b)\w)|for\b(?!\s+{_REASON}\b)|with\b(?!\s+(?:its|a|an|more|fewer|no)\b)|"
    r"(?:the\s+)?(?:less|least|last)\b))",
    re.IGNORECASE,
)
_SENTENCE_REST = re.compile(rf"[^.!?\n]{{0,{_SENTENCE}}}")
_SENTENCE_END = re.compile(r"[.!?\s]{1,8}")
_BUT = re.compile(r"\b(?:but|yet|however|nevertheless|nonetheless)\b", re.IGNORECASE)
_AGAINST = re.compile(
    r"\W{0,4}(?:but|yet|however|nevertheless|nonetheless|still|even so|that said|then again|having said that|on the other hand)\b|"
    rf"\W{{0,4}}(?:{NOUN}\s*#?\s*[12]|the other(?:\s+(?:one|{NOUN}))?)\W{{1,3}}(?:however|nevertheless|nonetheless|on the other hand)\b",
    re.IGNORECASE,
)
_NAMED_OR_OTHER = re.compile(rf"{ONE}|\bthe\s+other\b", re.IGNORECASE)


def said_better(text: str) -> set[str]:
    """Responses ("1", "2") that the text calls better, or where it calls the other one worse, or with which it concludes."""
    better = {name for end, name in _named(text, _BETTER) if not is_answered(text, end, _other(name))}
    worse = {_other(name) for end, name in _named(text, _WORSE) if not is_answered(text, end, "1", "2")}
    concluded = {name for _, name in _named(text, _CONCLUDED)}
    found = better | worse | concluded
    return found | set(_STATED.findall(text)) if found else found


def meant(text: str, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
    """The claims of a pattern that the text makes of its own and of the whole response."""
    for match in pattern.finditer(text):
        start, end = match.span()
        if any(behind.match(text, end) for behind in (_LIMITED, _REFUTED, _ASKED)) or hangs(text, end):
            continue
        if not (_DENIED.search(text, max(0, start - _SENTENCE), start) or _is_disowned(text, start) or is_supposed(text, start)):
            yield match


def is_refuted(text: str, end: int) -> bool:
    """Whether what ends at `end` is called wrong, or somebody else's words, right behind: "..., said nobody"."""
    return _REFUTED.match(text, end) is not None


def _named(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Where each claim that is meant ends, with the response that it names."""
    for match in meant(text, pattern):
        if not _LESSER.search(text, max(0, match.start() - 16), match.start()):
            yield match.end(), next(group for group in match.groups() if group)


def _is_disowned(text: str, start: int) -> bool:
    """Whether the clause that leads to `start` reports, doubts or concedes what follows; "I doubt, frankly, that" is one clause."""
    least = max(0, start - _SENTENCE)
    sentence = max(least, *(text.rfind(mark, least, start) + 1 for mark in ".!?\n"))
    clause = max(sentence, *(text.rfind(mark, sentence, start) + 1 for mark in ",;:"))
    if text[clause:start].strip().lower() == "that":
        clause = sentence
    if _DISOWNED.search(text, max(clause, start - _REPORT), start) or _THOUGH.search(text, clause, start):
        return True
    if _QUOTED.search(text, max(sentence - 1, start - _REPORT, 0), start):
        return True
    return clause == sentence and _WHILE.match(text, clause, start) is not None


def _other(name: str) -> str:
    return "1" if name == "2" else "2"


def is_answered(text: str, end: int, *names: str) -> bool:
    """Whether what stands behind a verdict sets one of these responses against it: "..., but response 2 is right", "... However, response 2 ..."."""
    rest = _SENTENCE_REST.match(text, end)
    stop = end if rest is None else rest.end()
    but = _BUT.search(text, end, stop)
    if but is not None and _names_one_of(text, but.end(), stop, names):
        return True
    gap = _SENTENCE_END.match(text, stop)
    if gap is None or _AGAINST.match(text, gap.end()) is None:
        return False
    following = _SENTENCE_REST.match(text, gap.end())
    return following is not None and _names_one_of(text, gap.end(), following.end(), names)


def _names_one_of(text: str, start: int, stop: int, names: tuple[str, ...]) -> bool:
    return any(found.group(1) in (None, *names) for found in _NAMED_OR_OTHER.finditer(text, start, stop))
