"""What llama.cpp's converter expects of a model folder, checked without the converter.

Names of tensors go through the table of `gguf`, the package that the converter uses. What does not belong here: converting.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
_SKIPPED = (".rotary_emb.inv_freq", ".attention.rotary_emb.inv_freq")
# model_type of transformers to the name of an architecture in gguf, where they differ.
_ARCHITECTURES = {"mistral": "llama", "mixtral": "llama", "gpt_neox": "gptneox"}


def converter_problems(folder: Path) -> list[str]:
    """What would keep llama.cpp's converter from reading the folder, in sentences; empty where nothing is known to.

    Checked: config.json names an architecture; weights are model*.safetensors and complete by their index; every tensor has a name in gguf; an
    output head is there, or the embeddings are tied and it is absent; a tokenizer file is there and no id exceeds the vocabulary; the base of
    the rotary positions is where older converters look for it too.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = tensor_names(folder)
    problems = _file_problems(folder, config, names) + _name_problems(config, names) + _vocabulary_problems(folder, config)
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope and config.get("rope_theta") != rope["rope_theta"]:
        problems.append("rope_theta is not at the top of config.json, where converters from before transformers 5 read it")
    return problems


def tensor_names(folder: Path) -> list[str]:
    """Names of all tensors in the folder's safetensors."""
    from safetensors import safe_open

    names: list[str] = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            names += list(file.keys())
    return names


def _file_problems(folder: Path, config: Mapping[str, Any], names: list[str]) -> list[str]:
    problems = [] if config.get("architectures") else ["config.json names no architecture"]
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    problems += [f"{name} is not model*.safetensors" for name in files if not name.startswith("model")]
    index = folder / "model.safetensors.index.json"
    if len(files) > 1 and not index.is_file():
        problems.append("several shards have no model.safetensors.index.json")
    if index.is_file() and set(json.loads(index.read_text(encoding="utf-8"))["weight_map"]) != set(names):
        problems.append("the index does not list the tensors that the shards have")
    return problems


def _name_problems(config: Mapping[str, Any], names: list[str]) -> list[str]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = str(config.get("model_type", ""))
    wanted = _ARCHITECTURES.get(kind, kind)
    known = {name: arch for arch, name in MODEL_ARCH_NAMES.items()}
    if wanted not in known:
        return [f"gguf has no architecture for model_type {kind!r}"]
    table = get_tensor_name_map(known[wanted], int(config.get("num_hidden_layers", 0)))
    unknown = [name for name in names if not name.endswith(_SKIPPED) and table.get_name(name, try_suffixes=(".weight", ".bias")) is None]
    problems = [f"gguf knows no tensor {name}" for name in unknown[:3]]
    classifier = "score.weight" in names
    if not classifier and bool(config.get("tie_word_embeddings")) == ("lm_head.weight" in names):
        problems.append("tie_word_embeddings and lm_head.weight contradict each other")
    return problems


def _vocabulary_problems(folder: Path, config: Mapping[str, Any]) -> list[str]:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return [f"none of {', '.join(_TOKENIZER_FILES)} is there"]
    path = folder / "tokenizer.json"
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    ids += [int(token["id"]) for token in content.get("added_tokens", [])]
    return [f"token id {max(ids)} is past vocab_size {config['vocab_size']}"] if max(ids) >= int(config["vocab_size"]) else []
