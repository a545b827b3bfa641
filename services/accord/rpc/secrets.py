"""Secrets from an environment variable or a mounted file: read once, put into a header, and blotted out wherever another side quotes them.

What does not belong here: certificates (`accord.rpc.channels`, `accord.rpc.config`).
"""

from __future__ import annotations

import os
from pathlib import Path

from accord.errors import FailedPreconditionError


class Secret:
    """A secret that neither repr, str nor a format gives away; empty where none is configured."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "Secret(***)" if self._value else "Secret()"

    def __bool__(self) -> bool:
        return bool(self._value)

    def bearer(self) -> dict[str, str]:
        """The header that shows it to a server; no header where there is no secret."""
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def blotted(self, words: str) -> str:
        """Text of another side without the secret."""
        return words.replace(self._value, "***") if self._value else words


def read_secret(variable: str | None, file: Path | None, field: str) -> Secret:
    """The secret of an environment variable, else of a file; an empty one where neither is named.

    Args:
        variable: name of the environment variable.
        file: a file of one line.
        field: the configuration's section, such as `remote`; errors name `{field}.api_key_env` or `{field}.api_key_file`.

    Raises:
        FailedPreconditionError: the variable is unset, the file cannot be read, or what is there is not one line of printable ASCII.
    """
    if variable is not None:
        return _checked(os.environ.get(variable, ""), f"environment variable {variable}", f"{field}.api_key_env")
    if file is None:
        return Secret("")
    try:
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPreconditionError(f"{file} cannot be read: {type(error).__name__}", field=f"{field}.api_key_file") from None
    return _checked(content, str(file), f"{field}.api_key_file")


def _checked(content: str, where: str, field: str) -> Secret:
    key = content.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise FailedPreconditionError(f"{where} holds no API key: one line of printable ASCII is needed", field=field)
    return Secret(key)
