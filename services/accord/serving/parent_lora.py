"""The form of an adapter that a run goes on with: it stays the parent's, and a specification that asks for another is refused.

The trainer checks it before a run and plans by it, the run checks it again. What does not belong here: reading weights (`accord.models`).
"""

from __future__ import annotations

import json
from typing import Any

from accord.errors import InvalidArgumentError
from accord.runspec_parts import LoraSpec

CONFIG_FILE = "adapter_config.json"


def read_lora(content: bytes) -> LoraSpec | None:
    """The form of an adapter by its adapter_config.json (PEFT's); None where that does not tell, which `accord.models` says when it loads it.

    Adapters on some layers count as on the last so many, as those of runs are.
    """
    try:
        config: dict[str, Any] = json.loads(content)
        layers = config.get("layers_to_transform")
        count = len([layers] if isinstance(layers, int) else layers or ())
        return LoraSpec(rank=config["r"], alpha=config["lora_alpha"], target_modules=config["target_modules"], last_layers=count)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def check_lora(asked: LoraSpec, parent: LoraSpec, version: str, *, prefix: str = "") -> None:
    """Compares what was given of `asked` with the form of the parent `version`; what is left out is the parent's.

    Raises:
        InvalidArgumentError: something differs; the field is named below `prefix`, with both values.
    """
    given = asked.model_dump(exclude_none=True, exclude_unset=True)
    for name, value in given.items():
        one, other = _words(value), _words(getattr(parent, name))
        if one != other:
            reason = f"{version}, which the run starts from, has {other}, not {one}; an adapter keeps its form: leave the field out, or give {other}"
            raise InvalidArgumentError(reason, field=f"{prefix}lora.{name}")


def _words(value: Any) -> str:
    return ", ".join(sorted(value)) if isinstance(value, tuple) else f"{value:g}"
