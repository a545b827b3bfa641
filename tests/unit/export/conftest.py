"""A store with a policy, its parent and a reward model over the tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from accord.artefacts.store import ArtefactStore
from accord.export.__main__ import main
from accord.models.base import BaseModel, load_base_model
from accord.models.heads import HeadFacts, ScalarHead
from accord.models.lora import AdaptedModel
from accord.models.testing import tiny_model_folder
from accord.runspec_parts import LoraSpec
from accord.training.examples import EncodedPair
from accord.training.held_out import held_out

Export = Callable[..., tuple[int, dict[str, Any]]]
IDS = [1, 70, 80, 90, 13, 100, 110, 2]


@dataclass(frozen=True)
class Shop:
    """Where the tiny model and the store are."""

    model: Path
    store: ArtefactStore

    def adapted(self, version: str) -> AdaptedModel:
        """The base with a version of the store."""
        adapted = AdaptedModel(load_base_model(str(self.model)))
        adapted.load("it", self.store.fetch(version))
        return adapted


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    torch.set_num_threads(1)
    model = tiny_model_folder(root / "model")
    store = ArtefactStore(str(root / "artefacts"))
    base = load_base_model(str(model))
    adapted = AdaptedModel(base)
    for seed, name in enumerate(("sft", "dpo", "rm")):
        _shaken(adapted, name, seed)
        adapted.save(name, root / name)
    head = ScalarHead(base.hidden_size, seed=7)
    torch.nn.init.constant_(head.bias, 0.6)
    head.save(root / "rm")
    _publish(store, base, root)
    return Shop(model, store)


def _shaken(adapted: AdaptedModel, name: str, seed: int) -> None:
    adapted.add(name, LoraSpec(rank=4), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    state = {key: 0.2 * torch.randn(tensor.shape, generator=generator) for key, tensor in adapted.state(name).items()}
    adapted.load_state(name, state)


def _publish(store: ArtefactStore, base: BaseModel, root: Path) -> None:
    more: dict[str, Any] = {"base_model_digest": base.digests.base_model, "tokenizer_digest": base.digests.tokenizer}
    sft = store.publish("sft", root / "sft", kind="policy", run="runs/one", step=3, data_digest="d" * 64, facts={"algorithm": "sft"}, **more)
    measured = {"eval_score": 0.5, "rollout_kl": 1.25, "rollout_score_mean": -0.125}
    facts = {"algorithm": "dpo", "beta": 0.1, **measured}
    store.publish("dpo", root / "dpo", kind="policy", parents=[sft], run="runs/two", step=5, facts=facts, **more)
    pairs = [EncodedPair(name, name, (1,), (2,) * length, (3,) * 4, 1.0) for name, length in zip("abcd", (3, 5, 3, 3), strict=True)]
    of_pairs = held_out([2.0, 1.0, 3.0, -0.5], pairs).facts() | {
        "eval_data_digest": "e" * 64,
        "eval_data_uri": "held-out.jsonl",
        "eval_pairs_left_out": 0,
    }
    facts = HeadFacts(mean=0.25, std=2.0, held_out_accuracy=0.75).to_facts() | {"algorithm": "reward_model"} | of_pairs
    store.publish("rm", root / "rm", kind="reward", parents=[sft], facts=facts, **more)


@pytest.fixture
def export(shop: Shop, capsys: pytest.CaptureFixture[str]) -> Export:
    """Runs the export's process here; returns its exit code and last line."""

    def call(adapter: str, folder: Path, *more: str, base_model: str | None = None) -> tuple[int, dict[str, Any]]:
        code = main([adapter, str(folder), "--artefacts", shop.store.uri, "--base-model", base_model or str(shop.model), *more])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return call


def logits_of(adapted: AdaptedModel, ids: Sequence[int] = IDS) -> Tensor:
    """Logits of base plus adapter, (T, vocabulary)."""
    tokens = torch.tensor([list(ids)])
    with torch.no_grad():
        return adapted.logits_of(adapted.hidden(tokens, torch.ones_like(tokens), adapter="it"))[0]
