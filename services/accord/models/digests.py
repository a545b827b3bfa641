"""Digests of a model folder: weights with configuration, tokenizer, chat template.

Services exchange them so that no two ever disagree silently about the model. Hashing half a gigabyte takes a second, so file digests are
remembered, keyed by size and modification time, in a file beside the weights, or in the cache where the folder cannot be written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accord.artefacts.shelf import hash_file
from accord.artefacts.store import cache_folder

CACHE_FILE = ".accord-digests.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
# What a library writes about itself or its caller into config.json, without any effect on the weights' meaning.
_VOLATILE = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")


@dataclass(frozen=True, slots=True)
class Digests:
    """sha256 digests, hex, that say which model this is."""

    base_model: str
    tokenizer: str
    chat_template: str


def folder_digests(folder: Path, chat_template: str) -> Digests:
    """Digests of a model folder. The same weights, configuration and tokenizer give the same digests wherever the folder lies."""
    weights = _file_digests(folder, sorted(folder.glob("*.safetensors")))
    tokenizer = _file_digests(folder, [folder / file for file in _TOKENIZER_FILES if (folder / file).is_file()])
    return Digests(
        base_model=_digest({"config": _stable_config(folder / "config.json"), "weights": weights}),
        tokenizer=_digest(tokenizer),
        chat_template=hashlib.sha256(chat_template.encode("utf-8")).hexdigest(),
    )


def _stable_config(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in content.items() if key not in _VOLATILE}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode("utf-8")).hexdigest()


def _file_digests(folder: Path, paths: list[Path]) -> dict[str, str]:
    known = _read_cache(folder)
    result, changed = {}, False
    for path in paths:
        stat = path.stat()
        key = f"{path.name}:{stat.st_size}:{stat.st_mtime_ns}"
        if key not in known:
            known[key], changed = hash_file(path).sha256, True
        result[path.name] = known[key]
    if changed:
        _write_cache(folder, known)
    return result


def _cache_paths(folder: Path) -> tuple[Path, Path]:
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return folder / CACHE_FILE, cache_folder() / "digests" / f"{place}.json"


def _read_cache(folder: Path) -> dict[str, str]:
    for path in _cache_paths(folder):
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


def _write_cache(folder: Path, known: dict[str, str]) -> None:
    for path in _cache_paths(folder):
        with contextlib.suppress(OSError):  # a read-only folder: the next place, and in the end only a slower start
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
            partial.write_text(json.dumps(known, sort_keys=True), encoding="utf-8")
            os.replace(partial, path)
            return
