"""When are two texts the same: exactly, or but for case, punctuation, spaces and what nobody sees; and how much of one stands in another, in word
n-grams.

Texts are known by 64-bit digests, so that a million of them are about 100 MB and not their text. What does not belong here: what is done about
duplicates.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import blake2b

from accord.data.records import PreferencePair
from accord.text.chat import Message
from accord.text.judge import visible

NGRAM_WORDS = 8
_PLAIN = {**dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-"), **dict.fromkeys(map(ord, "\u2044\u2215"), "/")}
"""Dashes and slashes that are written as another character than the keyboard's."""
_LAST_SIGN = 0x20000
"""Marks and symbols end below it, but for selectors of variants, which are invisible."""
_ASCII_SYMBOLS = "$<=|~^"
_BULLETS = "+>\u25a0-\u25ff"
"""Symbols that are none at the beginning of a line in front of a space: a bullet, a quotation, a figure that is a bullet."""
_LEFT, _RIGHT = r"(?<=\d|\b\w|[)\]])", r"(?=\d|\w\b|[(\[])"
"""Beside an operator: a number, a single letter or a bracket."""
_LONG_SPACE = re.compile(r"[ \t]{4,}")
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"


def digest64(*parts: str) -> int:
    """64 bits of a digest of texts; two of a million differing texts share one with probability 3e-8."""
    content = blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        content.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(content.digest(), "little")


def words(text: str) -> list[str]:
    """The words of a text as they are compared: compatibility forms resolved (NFKC), case folded; punctuation, spaces and what is invisible gone.

    Signs stay, each as a word, where they say something: symbols (Unicode's categories S: currencies, mathematics, pictures; not backticks, nor what
    begins a line as a bullet), % and & anywhere, # directly behind a letter, and - * / ! as operators of numbers, single letters and brackets.
    """
    if text.isascii():
        return [word.strip() for word in _word().findall(_narrowed(visible(text).casefold()))]
    plain = unicodedata.normalize("NFKC", visible(text)).casefold().translate(_PLAIN)
    return [word.strip() for word in _word(also_other=True).findall(_narrowed(plain))]


def normalised(text: str) -> str:
    """A text as near duplicates share it; text without any word is itself, but for spaces at its ends."""
    return " ".join(words(text)) or visible(text).strip()


def prompt_text(messages: Iterable[Message]) -> str:
    """What is asked, turn by turn; instructions of the system, which all prompts of a set may share, are not part of it."""
    return "\n".join(f"{message.role}: {message.content}" for message in messages if message.role != "system")


def exact_key(pair: PreferencePair) -> int:
    """The same for pairs of one prompt and the same two responses, whichever is chosen."""
    return _pair_key(pair, str)


def near_key(pair: PreferencePair) -> int:
    """As `exact_key`, of normalised texts."""
    return _pair_key(pair, normalised)


def exact_prompt_key(messages: Iterable[Message]) -> int:
    """The same for prompts that are equal, turn by turn, to the letter."""
    return digest64(*(part for message in messages for part in (message.role, message.content)))


def prompt_key(messages: Iterable[Message]) -> int:
    """The same for prompts that are equal when normalised."""
    return digest64(*(part for message in messages if message.role != "system" for part in (message.role, normalised(message.content))))


def conversation_key(messages: Iterable[Message]) -> int:
    """The same for prompts that begin with the same user turn, normalised: a conversation at any of its depths."""
    first = next((message.content for message in messages if message.role == "user"), "")
    return digest64(normalised(first))


def ngrams(text: str, size: int = NGRAM_WORDS) -> set[int]:
    """Hashes of the word n-grams of a text, the same within a process; of a text with fewer words, of all its words; empty without any word.

    In scripts without spaces (Chinese, Japanese, Thai) each character counts as a word, with the marks on it.
    """
    found = words(text)
    if not text.isascii():
        found = [piece for word in found for piece in _pieces().findall(word)]
    if not found:
        return set()
    return {hash(tuple(found[start : start + size])) for start in range(max(1, len(found) - size + 1))}


def _narrowed(text: str) -> str:
    """The text with no more than three spaces or tabs in a row, which words do not tell from any more of them: `_word` looks from each of them at
    all that follow, so that a long run would take the square of its length."""
    return _LONG_SPACE.sub("   ", text)


@cache
def _category(first: str) -> str:
    """All characters beyond ASCII of categories that begin with a letter, as ranges of a character class; 40 ms, once."""
    codes = [code for code in range(0x80, _LAST_SIGN) if unicodedata.category(chr(code))[0] == first]
    starts = [code for code, before in zip(codes, [0, *codes], strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], 0], strict=True) if after != code + 1]
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in zip(starts, ends, strict=True))


@cache
def _word(*, also_other: bool = False) -> re.Pattern[str]:
    """A word or a sign (see `words`) of ASCII text, or of any."""
    marks, symbols = (_category("M"), _category("S")) if also_other else ("", "")
    signs = (
        rf"(?![{_BULLETS}])[%&{_ASCII_SYMBOLS}{symbols}]|!(?==)",
        rf"[{_BULLETS}](?=\S)|(?<=\S)[ \t]*[{_BULLETS}]",
        rf"{_LEFT}(?:[ \t]{{0,2}}[-/]{{1,3}}[ \t]{{0,2}}|[ \t]{{1,2}}\*{{1,2}}[ \t]{{1,2}}|\*{{1,2}}){_RIGHT}",
        rf"(?<![\w)\]])[-!]{_RIGHT}",
    )
    any_sign = rf"(?=[ \t]*[-*/!%&{_BULLETS}{_ASCII_SYMBOLS}{symbols}])"  # first, since it fails at once at nearly all spaces
    return re.compile(rf"[\w{marks}]+(?:#(?<=[^\W\d_]#))?|{any_sign}(?:{'|'.join(signs)})")


@cache
def _pieces() -> re.Pattern[str]:
    return re.compile(f"[{_UNSPACED}][{_category('M')}]*|[^{_UNSPACED}]+")


def _pair_key(pair: PreferencePair, take: Callable[[str], str]) -> int:
    turns = [part for message in pair.messages for part in (message.role, take(message.content))]
    return digest64(*turns, *sorted((take(pair.chosen), take(pair.rejected))))
