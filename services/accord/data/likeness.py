"""When are two texts the same: exactly, or but for case, punctuation and spaces; and how much of one stands in another, in word n-grams.

Texts are known by 64-bit digests, so that a million of them are about 100 MB and not their text. What does not belong here: what is done about
duplicates.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from hashlib import blake2b

from accord.data.records import PreferencePair
from accord.text.chat import Message

NGRAM_WORDS = 8
_WORD = re.compile(r"\w+")
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_PIECES = re.compile(f"[{_UNSPACED}]|[^{_UNSPACED}]+")


def digest64(*parts: str) -> int:
    """64 bits of a digest of texts; two of a million differing texts share one with probability 3e-8."""
    content = blake2b(digest_size=8)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        content.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(content.digest(), "little")


def words(text: str) -> list[str]:
    """The words of a text as they are compared: compatibility forms resolved (NFKC), case folded, punctuation and spaces gone."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalised(text: str) -> str:
    """A text as near duplicates share it; text without any word is itself, but for spaces at its ends."""
    return " ".join(words(text)) or text.strip()


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

    In scripts without spaces (Chinese, Japanese, Thai) each character counts as a word.
    """
    found = words(text)
    if not text.isascii():
        found = [piece for word in found for piece in _PIECES.findall(word)]
    if not found:
        return set()
    return {hash(tuple(found[start : start + size])) for start in range(max(1, len(found) - size + 1))}


def _pair_key(pair: PreferencePair, take: Callable[[str], str]) -> int:
    turns = [part for message in pair.messages for part in (message.role, take(message.content))]
    return digest64(*turns, *sorted((take(pair.chosen), take(pair.rejected))))
