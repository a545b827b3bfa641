"""Token ids as a text that the same tokenizer reads back as exactly these ids, for servers that take text alone.

What does not belong here: encoding of conversations (`accord.models.encoding`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accord.errors import InvalidArgumentError


class TextForm:
    """Writes ids as text. Safe to share between threads.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._added = tuple(self._tokenizer.encode("", add_special_tokens=True).ids)  # a beginning-of-text token, for many models

    def text(self, ids: Sequence[int]) -> str:
        """Returns a text that is read as `ids`, special tokens by their names, and the tokens that every text gets added left out.

        Raises:
            InvalidArgumentError: no text is.
        """
        wanted = list(ids)
        start = len(self._added) if tuple(wanted[: len(self._added)]) == self._added else 0
        text: str = self._tokenizer.decode(wanted[start:], skip_special_tokens=False)
        if text and self._tokenizer.encode(text, add_special_tokens=True).ids == wanted:
            return text
        raise InvalidArgumentError(
            "these tokens are not what any text is read as: they hold a part of a character, a control token spelt out in a message, "
            "or lack the token that begins every text; this server takes text alone"
        )
