"""What a replica without torch knows of its base model: tokenizer, digests and sizes out of the model's folder, no weights in memory.

What does not belong here: finding folders (`accord.models.base`), digests themselves (`accord.models.digests`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from accord.client.messages import ModelDigests
from accord.errors import FailedPreconditionError
from accord.models.base import resolve_model_folder
from accord.models.digests import folder_digests
from accord.models.encoding import PromptEncoder
from accord.policy.backend import BackendInfo

_LENGTH_BYTES = 8
_TIED_HEAD = "lm_head.weight"


@dataclass(frozen=True, eq=False)
class FolderModel:
    """A base model as its folder tells it; `info` has the model's own context, and the name that is given."""

    tokenizer: Any
    encoder: PromptEncoder
    info: BackendInfo


def read_model(name: str, backend: str) -> FolderModel:
    """Returns what the folder of a base model says; blocks while weights are hashed for the first time.

    Args:
        name: a folder or hub id; `embedded` too, where it has been converted already (converting needs torch).
        backend: name of the engine, for `info`.

    Raises:
        InvalidArgumentError, NotFoundError, FailedPreconditionError: as `accord.models.base.resolve_model_folder`, or no fast tokenizer.
    """
    folder = resolve_model_folder(name)
    tokenizer = _tokenizer(folder)
    encoder = PromptEncoder(tokenizer)
    digests = folder_digests(folder, encoder.chat_template)
    config = _json(folder / "config.json")
    text = config.get("text_config", config)
    try:
        context, vocabulary = int(text["max_position_embeddings"]), int(text["vocab_size"])
    except (KeyError, TypeError, ValueError) as error:
        raise FailedPreconditionError(f"{folder}/config.json has no max_position_embeddings and vocab_size", field="base_model") from error
    info = BackendInfo(
        name=backend,
        base_model=name,
        digests=ModelDigests(digests.base_model, digests.tokenizer, digests.chat_template),
        context_tokens=context,
        vocabulary_size=vocabulary,
        eos_token_ids=_eos_ids(folder, config, encoder),
        parameters=_parameters(folder, tied=bool(config.get("tie_word_embeddings"))),
    )
    return FolderModel(tokenizer, encoder, info)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise FailedPreconditionError(f"{folder} has no tokenizer that can be loaded (tokenizer.json): {error}", field="base_model") from error


def _eos_ids(folder: Path, config: dict[str, Any], encoder: PromptEncoder) -> tuple[int, ...]:
    """What ends a generation, as `accord.models.base.BaseModel` has it: the end-of-turn token first."""
    path = folder / "generation_config.json"
    configured = (_json(path) if path.is_file() else config).get("eos_token_id")
    more = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    return tuple(dict.fromkeys([encoder.end_of_turn_id, *more]))


def _parameters(folder: Path, *, tied: bool) -> int:
    """Counted from the headers of the safetensors files."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            header = json.loads(file.read(length))
        total += sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__" and not (tied and name == _TIED_HEAD))
    return total


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FailedPreconditionError(f"{path} cannot be read as JSON: {type(error).__name__}", field="base_model") from error
    if not isinstance(content, dict):
        raise FailedPreconditionError(f"{path} is not a JSON object", field="base_model")
    return content
