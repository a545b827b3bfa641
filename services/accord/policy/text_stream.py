"""From token ids to text while they come: whole characters only, and nothing that may turn out to belong to a stop string.

What does not belong here: tokenizing (`accord.models.encoding`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """The text of one sample as far as it is final.

    Args:
        decode: token ids to text, without special tokens.
        stop: strings before which the text ends.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._emitted = 0

    def stopped(self, token_ids: Sequence[int]) -> bool:
        """Whether a stop string is in the text; looks at the tail only, as it is asked after every token."""
        if not self._stop:
            return False
        reach = max(len(stop.encode()) for stop in self._stop) + 8  # every token adds at least a byte, save special ones
        tail = self._decode(token_ids[-reach:])
        return any(stop in tail for stop in self._stop)

    def text(self, token_ids: Sequence[int]) -> str:
        """The whole text of a complete sample, cut before the first stop string."""
        text = self._decode(token_ids)
        cuts = [position for position in (text.find(stop) for stop in self._stop) if position >= 0]
        return text[: min(cuts)] if cuts else text

    def advance(self, token_ids: Sequence[int], *, final: bool) -> str:
        """The text that became final since the last call; the pieces of all calls add up to `text`."""
        text = self.text(token_ids)
        if not final:
            text = text[: len(text) - self._held_back(text)]
        piece, self._emitted = text[self._emitted :], max(self._emitted, len(text))
        return piece

    def _held_back(self, text: str) -> int:
        whole = text.rstrip(_REPLACEMENT)  # what follows are the first bytes of a character, which may be one of a stop string
        partial = max(
            (size for stop in self._stop for size in range(1, len(stop)) if whole.endswith(stop[:size])),
            default=0,
        )
        return len(text) - len(whole) + partial
