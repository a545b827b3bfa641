"""Splits by prompt, never by pair.

A prompt's split is a pure function of seed and prompt: all its pairs, now and in a later file, are on one side. What does not belong here: whether
one split stands in another all the same (`accord.data.contamination`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from accord.data.likeness import conversation_key, prompt_key
from accord.data.records import PreferencePair
from accord.errors import InvalidArgumentError

By = Literal["prompt", "conversation"]


@dataclass(frozen=True, slots=True)
class Shares:
    """Which share of the prompts each split gets; the shares sum to 1."""

    shares: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Shares:
        """Shares out of ``train=0.9,test=0.1``.

        Raises:
            InvalidArgumentError: it has another form, a name twice or with a slash, a share outside (0, 1), or the sum is not 1.
        """
        shares: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = (word.strip() for word in part.partition("="))
            try:
                value = float(number)
            except ValueError:
                value = 0.0
            if not name.replace("_", "").replace("-", "").isalnum() or name in shares or not 0 < value <= 1:
                raise InvalidArgumentError(f"{part.strip()!r} is not NAME=SHARE with a new name and a share in (0, 1]", field="shares")
            shares[name] = value
        if abs(sum(shares.values()) - 1.0) > 1e-9:
            raise InvalidArgumentError(f"the shares of {text!r} sum to {sum(shares.values()):g} and not to 1", field="shares")
        return cls(shares)

    def split_of(self, pair: PreferencePair, seed: int, by: By) -> str:
        """The split of a pair: of its prompt, or of the conversation's first turn."""
        key = prompt_key(pair.messages) if by == "prompt" else conversation_key(pair.messages)
        place = int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big") / 2**64
        for name, share in self.shares.items():
            place -= share
            if place < 0:
                return name
        return list(self.shares)[-1]
