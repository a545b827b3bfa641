"""The formats of preference and demonstration data, one module each; `detect` finds the one that fits a row.

A format turns one raw row into a `Row`, whatever is in it: a prompt, two responses, a response; or into several, one for each label. What does
not belong here: files (`accord.data.sources`), splits and limits (`accord.data.readers`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accord.data.formats import accord_pairs, alpaca_eval, argilla, autoj, hh, sample, tldr, trl
from accord.data.formats.row import Format
from accord.errors import InvalidArgumentError

_MODULES = (sample, accord_pairs, hh, tldr, autoj, alpaca_eval, argilla, trl)
FORMATS: Mapping[str, Format] = {module.FORMAT.name: module.FORMAT for module in _MODULES} | {trl.PLAIN.name: trl.PLAIN}


def find_format(name: str, first: Mapping[str, Any]) -> Format:
    """The format of that name, or with an empty name the first one that recognises the row.

    Raises:
        InvalidArgumentError: no format has the name, or none recognises the row.
    """
    if name:
        if name not in FORMATS:
            raise InvalidArgumentError(f"format {name!r} is not one of {', '.join(FORMATS)}", field="data.format")
        return FORMATS[name]
    for candidate in FORMATS.values():
        if candidate.recognises(first):
            return candidate
    keys = ", ".join(sorted(map(str, first))[:10])
    raise InvalidArgumentError(f"no format recognises a row with the keys {keys}; name one of {', '.join(FORMATS)}", field="data.format")
