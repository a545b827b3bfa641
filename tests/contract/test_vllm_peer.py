"""The vllm engine against a real vLLM on this machine's CPU with the embedded model: `make vllm-peer`. Skipped where that is not installed.

What the double answers is held to this. What does not belong here: failures that need a double (`test_remote_engines`).
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tools import vllm_peer

from accord.artefacts.store import ArtefactStore
from accord.models.encoding import PromptEncoder
from accord.policy.backend import Chunk, GeneratedSample, GenerationRequest, LogprobsRequest, SamplingSettings
from accord.policy.config import PolicyConfig
from accord.policy.engine import Item, Terms
from accord.policy.remote import RemoteEngine
from accord.policy.remote_build import build_remote
from accord.policy.remote_config import RemoteConfig
from accord.runspec_parts import LoraSpec
from accord.text.chat import Message

pytestmark = [
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not vllm_peer.installed(), reason="no vLLM in build/vllm-peer: make vllm-peer"),
]
SETTINGS = SamplingSettings(
    max_tokens=24,
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.0,
    stop=(),
    stop_token_ids=frozenset(),
    seed=7,
    ignore_eos=False,
)


@dataclass(frozen=True)
class Peer:
    """A running server, a store with one adapter of the embedded model, and transformers' models to compare with."""

    url: str
    mode: str
    store: ArtefactStore
    version: str
    models: dict[str, Any]

    def logits(self, prompt: tuple[int, ...], response: tuple[int, ...], version: str) -> Any:
        import torch

        with torch.no_grad():
            return self.models[version](torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double()

    def computed(self, prompt: tuple[int, ...], response: tuple[int, ...], *, version: str = "", temperature: float = 1.0) -> list[float]:
        logprobs = (self.logits(prompt, response, version) / temperature).log_softmax(-1)
        return [float(logprobs[place, token]) for place, token in enumerate(response)]


@pytest.fixture(scope="module", params=["raw_logprobs", "processed_logprobs"])
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    folder = tmp_path_factory.mktemp("peer")
    store, version, models = _published(folder)
    with vllm_peer.running(logprobs_mode=request.param, log=folder / "server.log") as url:
        yield Peer(url, request.param, store, version, models)


def _published(folder: Path) -> tuple[ArtefactStore, str, dict[str, Any]]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from accord.models.base import load_base_model
    from accord.models.lora import AdaptedModel

    base = load_base_model("embedded", threads=1)
    adapted = AdaptedModel(base)
    adapted.add("draft", LoraSpec(rank=8), seed=1, trainable=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters("draft"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.03)
    adapted.save("draft", folder / "adapter")
    store = ArtefactStore(str(folder / "store"))
    version = store.publish("peer-probe", folder / "adapter", kind="policy", base_model_digest=base.digests.base_model)

    def plain() -> Any:
        return AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32).eval()

    return store, version, {"": plain(), version: PeftModel.from_pretrained(plain(), str(store.fetch(version))).eval()}


class Opened:
    """An engine over the peer for one test."""

    def __init__(self, engine: RemoteEngine, encoder: PromptEncoder) -> None:
        self.engine = engine
        self.prompt = tuple(encoder.encode_prompt((Message("user", "Name three rivers of Europe."),)))

    def submit(self, request: GenerationRequest | LogprobsRequest, version: str = "") -> Item:
        self.engine.check(request, "items[0]")
        (item,) = self.engine.submit([request], Terms(version))
        return item

    def request(self, n: int = 1, *, stream: bool = False, **changes: Any) -> GenerationRequest:
        return GenerationRequest(self.prompt, n, replace(SETTINGS, **changes), stream)

    async def samples(self, n: int = 1, *, version: str = "", **changes: Any) -> tuple[GeneratedSample, ...]:
        found = await self.submit(self.request(n, **changes), version).result()
        assert isinstance(found, tuple)
        return found


@pytest.fixture
async def far(peer: Peer) -> Any:
    config = PolicyConfig(base_model="embedded", artefacts="unused")
    engine, encoder = await build_remote("vllm", RemoteConfig(url=peer.url, start_seconds=5), peer.store, config)
    yield Opened(engine, encoder)
    assert await asyncio.to_thread(engine.stop, 10.0)


async def test_greedy_takes_the_likeliest_token_with_its_logprob(peer: Peer, far: Opened) -> None:
    texts = set()
    for version in ("", peer.version):
        (sample,) = await far.samples(version=version, max_tokens=40)
        assert peer.logits(far.prompt, sample.token_ids, version).argmax(-1).tolist() == list(sample.token_ids)
        assert sample.logprobs == pytest.approx(peer.computed(far.prompt, sample.token_ids, version=version), abs=1e-3)
        texts.add(sample.text)
    assert len(texts) == 2


async def test_samples_are_seeded_and_their_logprobs_are_the_contract_s(peer: Peer, far: Opened) -> None:
    temperature = 1.0 if peer.mode == "raw_logprobs" else 0.7
    three = await far.samples(3, temperature=temperature, top_logprobs=3)
    five = await far.samples(5, temperature=temperature)
    assert [sample.token_ids for sample in three] == [sample.token_ids for sample in five[:3]]
    assert len({sample.token_ids for sample in five}) == 5
    for sample in three:
        assert sample.logprobs == pytest.approx(peer.computed(far.prompt, sample.token_ids, temperature=temperature), abs=1e-3)
        assert all(len(place) == 3 for place in sample.top_logprobs)
    (cut,) = await far.samples(temperature=1.0, top_p=0.8, top_k=50, repetition_penalty=1.2)
    assert cut.logprobs == pytest.approx(peer.computed(far.prompt, cut.token_ids), abs=1e-3)


async def test_streams_and_stop_strings(far: Opened) -> None:
    (whole,) = await far.samples(temperature=1.0, max_tokens=40)
    item = far.submit(far.request(stream=True, temperature=1.0, max_tokens=40))
    chunks = [value async for value in item.values() if isinstance(value, Chunk)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert sum((chunk.token_ids for chunk in chunks), ()) == whole.token_ids
    stop = whole.text[12:16]
    (cut,) = await far.samples(temperature=1.0, max_tokens=40, stop=(stop,))
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]


async def test_given_responses_are_scored_together(peer: Peer, far: Opened) -> None:
    responses = tuple(tuple(sample.token_ids) for sample in await far.samples(4, temperature=1.0))
    for version in ("", peer.version):
        rows = await far.submit(LogprobsRequest(far.prompt, responses, 1.0), version).result()
        assert isinstance(rows, list)
        for row, response in zip(rows, responses, strict=True):
            assert row == pytest.approx(peer.computed(far.prompt, response, version=version), abs=1e-3)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancelled_item_frees_the_server(peer: Peer, far: Opened, stream: bool) -> None:
    def running() -> float:
        with urllib.request.urlopen(f"{peer.url}/metrics", timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:num_requests_running"))

    async def until(count: int, seconds: float) -> None:
        give_up = time.monotonic() + seconds
        while await asyncio.to_thread(running) != count:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.05)

    item = far.submit(far.request(3, stream=stream, max_tokens=1500, ignore_eos=True, temperature=1.0))
    await until(3, 20)
    item.cancel()
    await until(0, 3)
