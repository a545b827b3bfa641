"""Full weights that replace the served ones: found, verified by digest, and checked to be the same model with other numbers.

What does not belong here: when they take over (`accord.policy.inprocess`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from accord.models.base import BaseModel, load_base_model
from accord.models.digests import folder_digests
from accord.serving.fields import naming

_SAME = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size", "max_position_embeddings")


def load_update(uri: str, digest: str, served: BaseModel, threads: int) -> BaseModel:
    """Loads a model folder in place of the served one.

    Args:
        uri: a path or file:// URI of a model folder.
        digest: sha256 (hex) that its weights and configuration must have.
        served: what it replaces.
        threads: torch's threads.

    Raises:
        InvalidArgumentError: another scheme than file.
        NotFoundError: there is no such folder.
        FailedPreconditionError: no safetensors, or another digest, tokenizer, chat template or shape than the served model's.
    """
    folder = _folder(uri)
    with naming("uri"):
        found = folder_digests(folder, served.encoder.chat_template)
        if digest and found.base_model != digest:
            raise FailedPreconditionError(
                f"{folder.name} has digest {found.base_model}, the caller expects {digest}", metadata={"expected": digest, "found": found.base_model}
            )
        base = load_base_model(str(folder), device=served.device, threads=threads)
        for name in ("tokenizer", "chat_template"):
            new, old = getattr(base.digests, name), getattr(served.digests, name)
            if new != old:
                raise FailedPreconditionError(f"the new weights come with {name} {new}, this service has {old}")
        for name in _SAME:
            new, old = getattr(base.model.config, name, None), getattr(served.model.config, name, None)
            if new != old:
                raise FailedPreconditionError(f"the new model's {name} is {new}, the served one's is {old}")
    return replace(base, name=served.name)


def _folder(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        raise InvalidArgumentError(f"scheme {parts.scheme!r} is not supported; a path or file:// is allowed", field="uri")
    folder = Path(url2pathname(parts.path) if parts.scheme else uri)
    if not folder.is_dir():
        raise NotFoundError(f"there is no model folder at {uri!r}", field="uri")
    return folder
