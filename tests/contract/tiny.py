"""The tiny random model with its adapters and reward models, made once for all servers of a test run, and what tests compare those servers with.

Folders live until the tests' process ends. What does not belong here: servers (`entries`), and trained models, which the tests of training make.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from accord.artefacts.store import ArtefactStore
from accord.models.base import BaseModel, load_base_model
from accord.models.heads import HeadFacts, ScalarHead
from accord.models.inference import InferenceModel
from accord.models.lora import AdaptedModel
from accord.models.testing import tiny_model_folder
from accord.runspec_parts import LoraSpec
from accord.text.chat import Message

POLICIES = ("tiny-policy-0", "tiny-policy-1", "tiny-policy-2")
REWARD_MODEL, SECOND_REWARD_MODEL, SHORT_REWARD_MODEL = "tiny-reward", "tiny-reward-second", "tiny-reward-short"
HEAD_FACTS = HeadFacts(mean=0.75, std=2.5, training_data_digest="ab" * 32, held_out_accuracy=0.625, max_tokens=400)
SECOND_HEAD_FACTS = HeadFacts(mean=-0.5, std=0.4, training_data_digest="cd" * 32)
SHORT_HEAD_FACTS = HeadFacts(max_tokens=40)
LORA = LoraSpec(rank=4)
_ROWS_THAT_TAKE_SECONDS = 50_000


@cache
def _home() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="accord-contract-")


@cache
def model_folder() -> Path:
    """The folder of the tiny model."""
    return tiny_model_folder(Path(_home().name) / "model")


@cache
def store() -> ArtefactStore:
    """A store that holds the policies and the reward models; for tests that leave it as it is."""
    found = ArtefactStore(str(Path(_home().name) / "artefacts"))
    for index, name in enumerate(POLICIES):
        publish(found, name, seed=index + 1)
    publish_reward_model(found, REWARD_MODEL, HEAD_FACTS, seed=11)
    publish_reward_model(found, SECOND_REWARD_MODEL, SECOND_HEAD_FACTS, seed=12)
    publish_reward_model(found, SHORT_REWARD_MODEL, SHORT_HEAD_FACTS, seed=13)
    return found


def store_afar(cache: Path) -> ArtefactStore:
    """The same store behind a URL: in its cache stays what is read, and nothing else."""
    return ArtefactStore(f"local://{store().uri}", cache=cache, cache_bytes=0)


def cached(cache: Path) -> list[str]:
    """The versions of `POLICIES` and reward models that a cache holds, sorted."""
    known = [f"adapters/{name}/versions/1" for name in (*POLICIES, REWARD_MODEL, SECOND_REWARD_MODEL, SHORT_REWARD_MODEL)]
    names = {store().manifest(name).digest: name for name in known}  # and not by a list: other tests of this process put damaged ones there
    return sorted(names[path.name] for path in cache.iterdir())


@cache
def policy_bytes() -> int:
    """Bytes in memory of each of the policies."""
    model = InferenceModel(base_model(), kernels=False)
    (found,) = {model.adapter_bytes(store().fetch(f"adapters/{name}/versions/1")) for name in POLICIES}
    return found


@cache
def slow_dataset() -> Path:
    """Demonstrations that take a reader seconds."""
    path = Path(_home().name) / "slow.jsonl"
    rows = (json.dumps({"prompt": f"question {number}", "response": "an answer"}) for number in range(_ROWS_THAT_TAKE_SECONDS))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


@cache
def small_dataset() -> Path:
    """Eight preference pairs, also usable as demonstrations and prompts."""
    path = Path(_home().name) / "pairs.jsonl"
    words = ("alpha", "beta", "gamma", "delta", "omega", "kappa", "sigma", "theta")
    path.write_text("\n".join(json.dumps({"prompt": f"say {word}", "chosen": word * 3, "rejected": word[::-1] * 2}) for word in words))
    return path


def base_model() -> BaseModel:
    """The tiny model, loaded anew: one base takes one AdaptedModel."""
    return load_base_model(str(model_folder()), threads=1)


def publish(to: ArtefactStore, name: str, *, seed: int, base_model_digest: str = "") -> str:
    """Publishes a LoRA adapter whose weights are large enough to change what the model says, and returns its version."""
    return _publish(to, name, "policy", seed, {}, base_model_digest=base_model_digest, change=None)


def publish_reward_model(to: ArtefactStore, name: str, facts: HeadFacts, *, seed: int, base_model_digest: str = "") -> str:
    """As `publish`, with a scalar head."""

    def add_head(folder: Path) -> None:
        ScalarHead(_source().base.hidden_size, seed=seed).save(folder)

    return _publish(to, name, "reward", seed, facts.to_facts(), base_model_digest=base_model_digest, change=add_head)


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one user turn."""
    return (Message("user", text),)


@cache
def _source() -> AdaptedModel:
    return AdaptedModel(base_model())


def _publish(
    to: ArtefactStore, name: str, kind: str, seed: int, facts: dict[str, object], *, base_model_digest: str, change: Callable[[Path], None] | None
) -> str:
    import torch

    adapted, digests = _source(), _source().base.digests
    adapted.add("draft", LORA, seed=seed, trainable=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters("draft"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    with tempfile.TemporaryDirectory() as folder:
        adapted.save("draft", Path(folder))
        adapted.remove("draft")
        if change is not None:
            change(Path(folder))
        return to.publish(
            name, Path(folder), kind=kind, facts=facts, tokenizer_digest=digests.tokenizer, base_model_digest=base_model_digest or digests.base_model
        )  # fmt: skip
