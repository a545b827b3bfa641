"""Page tokens of the listings: where a page ended, tied to what was asked for, so that a token of another listing is refused and not misread.

What does not belong here: reading pages (`accord.feedback.ledger`, `accord.feedback.jobs`).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TypeVar

from google.protobuf.message import Message

from accord.errors import InvalidArgumentError
from accord.feedback.records import digest_of

T = TypeVar("T", bound=Message)
_ASKED_CHARACTERS = 16
_DEFAULT_SIZE = 100
_MOST_BYTES = 8 * 2**20


class Paging:
    """The page that a request asks for.

    Args:
        asked: all of the request but size and token; a token goes on with the same question alone.
        size: most items, None for 100.
        token: of the last page, empty for the first.

    Raises:
        InvalidArgumentError: the token is none that the same question was given.
    """

    def __init__(self, asked: Sequence[object], size: int | None, token: str) -> None:
        self.size = size or _DEFAULT_SIZE
        self._asked = digest_of(*asked)[:_ASKED_CHARACTERS]
        self.after = self._read(token) if token else None

    def page(self, found: Sequence[tuple[int, T]]) -> tuple[list[T], str]:
        """The items of the page, on the wire, and the token of the next; `found` are up to `size` + 1 items with their places in the order.

        A page ends early where another item would make it larger than a message should be; one item alone always fits into a page.
        """
        kept: list[T] = []
        room, last = _MOST_BYTES, 0
        for place, item in found[: self.size]:
            room -= item.ByteSize()
            if kept and room < 0:
                break
            kept.append(item)
            last = place
        return kept, self._make(last) if len(kept) < len(found) else ""

    def _make(self, place: int) -> str:
        return base64.urlsafe_b64encode(f"v1:{self._asked}:{place}".encode()).decode()

    def _read(self, token: str) -> int:
        try:
            version, asked, place = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode().split(":")
            if version != "v1" or asked != self._asked or not (place.isascii() and place.isdigit()) or int(place) >= 2**63:
                raise ValueError(token)
        except ValueError as error:
            raise InvalidArgumentError("the page token is not one that this service gave for the same question", field="page_token") from error
        return int(place)
