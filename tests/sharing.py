"""Which test files a run has where it has a share of them alone (ACCORD_TEST_SHARE, .ci/run)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def shared(files: Sequence[Path], share: str) -> list[Path]:
    """The files of a share: of "2/3", every third from the second on. All shares together are all files, each once.

    Raises:
        ValueError: the share is none.
    """
    number, _, shares = share.partition("/")
    if not (number.isdecimal() and shares.isdecimal() and 1 <= int(number) <= int(shares)):
        raise ValueError(f"ACCORD_TEST_SHARE is {share!r}; it is a number of a share and how many there are, as 2/3")
    return list(files[int(number) - 1 :: int(shares)])
