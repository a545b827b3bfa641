"""What llama.cpp's converter would stumble over, planted one by one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.unit.export.conftest import Export

from accord.export.conventions import converter_problems


@pytest.fixture
def exported(export: Export, tmp_path: Path) -> Path:
    assert export("adapters/dpo", tmp_path / "out")[0] == 0
    assert converter_problems(tmp_path / "out") == []
    return tmp_path / "out"


def set_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_names_that_gguf_does_not_know(exported: Path) -> None:
    weights = load_file(exported / "model.safetensors")
    first = next(iter(sorted(weights)))
    save_file({("base_model." + name if name == first else name): tensor for name, tensor in weights.items()}, exported / "model.safetensors")
    assert converter_problems(exported) == [f"gguf knows no tensor base_model.{first}"]


def test_a_head_that_should_not_be_there(exported: Path) -> None:
    weights = load_file(exported / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, exported / "model.safetensors")
    assert converter_problems(exported) == ["tie_word_embeddings and lm_head.weight contradict each other"]


def test_files_and_configuration(exported: Path) -> None:
    shutil.copyfile(exported / "model.safetensors", exported / "weights.safetensors")
    assert "weights.safetensors is not model*.safetensors" in converter_problems(exported)
    (exported / "weights.safetensors").unlink()
    set_config(exported, rope_theta=1.0)
    assert converter_problems(exported) == ["rope_theta is not at the top of config.json, where converters from before transformers 5 read it"]
    set_config(exported, rope_theta=10000.0, vocab_size=100)
    assert converter_problems(exported) == ["token id 258 is past vocab_size 100"]
    set_config(exported, vocab_size=259, model_type="unheard", architectures=[])
    assert converter_problems(exported) == ["config.json names no architecture", "gguf has no architecture for model_type 'unheard'"]
    set_config(exported, model_type="llama", architectures=["LlamaForCausalLM"])
    (exported / "tokenizer.json").unlink()
    assert converter_problems(exported) == ["none of tokenizer.json, tokenizer.model is there"]
