"""Rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732): updates count alpha / sqrt(rank), wherever such an adapter is read, copied or merged."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from accord.models.adapter_files import lora_config, write_adapter
from accord.models.base import load_base_model
from accord.models.inference import InferenceModel
from accord.models.kvpool import KvPool
from accord.models.lora import AdaptedModel
from accord.models.ragged import Piece
from accord.runspec_parts import LoraSpec

RANK, ALPHA, TARGETS = 9, 6.0, ["q_proj", "down_proj"]
IDS = [1, 70, 71, 72, 90, 100]


def logits(adapted: AdaptedModel, adapter: str | None) -> Tensor:
    ids = torch.tensor([IDS])
    with torch.no_grad():
        return adapted.logits_of(adapted.hidden(ids, torch.ones_like(ids, dtype=torch.bool), adapter=adapter)[0])


def test_it_is_plain_lora_with_an_alpha_larger_by_the_root_of_the_rank(tmp_path: Path, tiny_folder: Path) -> None:
    adapted = AdaptedModel(load_base_model(str(tiny_folder), threads=1))
    adapted.add("draft", LoraSpec(rank=RANK, target_modules=tuple(TARGETS)), seed=1)
    generator = torch.Generator().manual_seed(2)
    state = {key: 0.1 * torch.randn(tensor.shape, generator=generator) for key, tensor in adapted.state("draft").items()}
    for name, alpha, stabilised in (("plain", 3 * ALPHA, False), ("stabilised", ALPHA, True), ("weak", ALPHA, False)):
        write_adapter(tmp_path / name, lora_config(RANK, alpha, TARGETS, hub_id=None, rank_stabilised=stabilised), state)
        adapted.load(name, tmp_path / name)
    plain = logits(adapted, "plain")
    assert float((plain - logits(adapted, "weak")).abs().max()) > 0.05
    torch.testing.assert_close(logits(adapted, "stabilised"), plain)
    adapted.copy("stabilised", "copy", trainable=True)
    torch.testing.assert_close(logits(adapted, "copy"), plain)
    adapted.save("copy", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["use_rslora"] is True
    merged = adapted.merge("copy")
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=torch.tensor([IDS])).logits[0], plain, rtol=1e-4, atol=1e-5)
    served = InferenceModel(load_base_model(str(tiny_folder), threads=1))
    served.load_adapter("again", tmp_path / "again")
    with torch.inference_mode():
        found = served.logits(served.forward([Piece(KvPool(served.shape, max_tokens=512).take(16), IDS, 0, 0, adapter="again")]))
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
