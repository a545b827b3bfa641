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
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"), "-")
_LAST_MARK = 0x1F000
"""Combining marks end below it, but for selectors of variants, which are invisible."""
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

    Signs stay where they are all that tells two texts apart: vowel signs of a word (Hindi din and dan), operators between digits ("1 + 1", "1 - 1"),
    and plus and hash directly behind a letter ("C++", "C#").
    """
    if text.isascii():
        return [word.strip() for word in _word("").findall(visible(text).casefold())]
    plain = unicodedata.normalize("NFKC", visible(text)).casefold().translate(_DASHES)
    return [word.strip() for word in _word(_marks()).findall(plain)]


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


@cache
def _marks() -> str:
    """All combining marks, as a part of a character class; 20 ms, and only where a text is not ASCII."""
    return "".join(re.escape(chr(code)) for code in range(0x300, _LAST_MARK) if unicodedata.category(chr(code))[0] == "M")


@cache
def _word(marks: str) -> re.Pattern[str]:
    return re.compile(
        rf"[\w{marks}]+(?:(?<=[^\W\d_])[+#]{{1,4}})?|(?<=\d)\s{{0,2}}[-+*/=<>^%\u00b1\u00d7\u00f7\u2260\u2264\u2265]{{1,3}}\s{{0,2}}(?=\d)"
    )


@cache
def _pieces() -> re.Pattern[str]:
    return re.compile(f"[{_UNSPACED}][{_marks()}]*|[^{_UNSPACED}]+")


def _pair_key(pair: PreferencePair, take: Callable[[str], str]) -> int:
    turns = [part for message in pair.messages for part in (message.role, take(message.content))]
    return digest64(*turns, *sorted((take(pair.chosen), take(pair.rejected))))
