"""Text while it comes: the pieces add up to the whole, wherever tokens cut characters and stop strings."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.policy.text_stream import TextStream


def decode(ids: Sequence[int]) -> str:
    """Every byte is a token."""
    return bytes(ids).decode("utf-8", errors="replace")


def streamed(text: str, stop: Sequence[str], every: int) -> tuple[list[str], str, bool]:
    """The pieces of a stream that is looked at every few tokens, the whole text, and whether a stop string ended it."""
    stream, ids, pieces = TextStream(decode, stop), list[int](), list[str]()
    stopped = False
    for byte in text.encode():
        ids.append(byte)
        stopped = stream.stopped(ids)
        if stopped:
            break
        if len(ids) % every == 0:
            pieces.append(stream.advance(ids, final=False))
    pieces.append(stream.advance(ids, final=True))
    return pieces, stream.text(ids), stopped


@pytest.mark.parametrize("stop", ["aé", "a🌊", "b🌊c", "éé", "🌊"])
def test_a_stop_string_whose_character_comes_in_parts_is_held_back_whole(stop: str) -> None:
    pieces, whole, stopped = streamed(f"say {stop} and more", (stop,), every=1)
    assert stopped
    assert whole == "say "
    assert "".join(pieces) == whole


def test_characters_come_whole_and_what_only_begins_like_a_stop_string_comes_too() -> None:
    pieces, whole, stopped = streamed("x🌊 aé aü", ("aé!", "aüx"), every=1)
    assert (whole, stopped) == ("x🌊 aé aü", False)
    assert "".join(pieces) == whole
    assert "🌊" in pieces
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@given(
    text=st.text("aé🌊b\n", min_size=1, max_size=24), cuts=st.lists(st.tuples(st.integers(0, 23), st.integers(1, 5)), max_size=3),
    others=st.lists(st.text("aé🌊b\n", min_size=1, max_size=4), max_size=2), every=st.integers(1, 5),
)  # fmt: skip
def test_the_pieces_add_up_to_the_text_before_the_first_stop_string(text: str, cuts: list[tuple[int, int]], others: list[str], every: int) -> None:
    stop = tuple(part for part in [*(text[start : start + length] for start, length in cuts), *others] if part)
    pieces, whole, stopped = streamed(text, stop, every)
    assert "".join(pieces) == whole
    assert stopped == any(string in text for string in stop)
    ends = [text.find(string) + len(string) for string in stop if string in text]
    assert text.startswith(whole)
    assert not any(string in whole for string in stop)
    assert whole == text if not ends else len(whole) < min(ends)
