"""An adapter whose numbers overflow: who asked for it is told, and nobody beside or after it is harmed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file
from tests.contract import tiny

from accord.artefacts.store import ArtefactStore
from accord.errors import FailedPreconditionError
from accord.models import inference
from accord.policy.backend import GenerationRequest, LogprobsRequest, SamplingSettings
from accord.policy.config import PolicyConfig
from accord.policy.engine import Terms
from accord.policy.inprocess import InProcessEngine

GREEDY = SamplingSettings(
    max_tokens=12, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, stop=(), stop_token_ids=frozenset(), seed=3,
    ignore_eos=True,
)  # fmt: skip
DRAWN = replace(GREEDY, temperature=0.9)
CUT = replace(DRAWN, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
SHORT, LONG = (5, 6, 7), tuple(range(3, 53))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtefactStore:
    """Holds `adapters/broken`, whose finite weights give infinite sums."""
    source, folder = tiny.store().fetch(f"adapters/{tiny.POLICIES[0]}/versions/1"), tmp_path_factory.mktemp("broken")
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    save_file({key: weights * 1e30 for key, weights in load_file(source / "adapter_model.safetensors").items()}, folder / "adapter_model.safetensors")
    found = ArtefactStore(str(tmp_path_factory.mktemp("store")))
    found.publish("broken", folder, kind="policy", base_model_digest=tiny.base_model().digests.base_model)
    return found


@pytest.fixture(params=["compiled", "plain"])
async def engine(request: pytest.FixtureRequest, store: ArtefactStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[InProcessEngine]:
    if request.param == "plain":
        monkeypatch.setattr(inference, "fused_supported", lambda: False)
    made = InProcessEngine(tiny.base_model(), store, PolicyConfig(artefacts=store.uri, threads=1, prefix_cache_bytes=0))
    assert made._model.fused is (request.param == "compiled")
    yield made
    await asyncio.to_thread(made.stop, 10)


BROKEN = Terms("adapters/broken/versions/1")


async def tokens(engine: InProcessEngine, *requests: GenerationRequest) -> list[tuple[int, ...]]:
    items = engine.submit(requests, Terms())
    answers = await asyncio.wait_for(asyncio.gather(*(item.result() for item in items)), 20)
    return [samples[0].token_ids for samples in answers]  # type: ignore[index, union-attr, misc]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, CUT])
async def test_its_caller_is_told_and_who_shares_the_pass_is_not_harmed(engine: InProcessEngine, sampling: SamplingSettings) -> None:
    asked = (GenerationRequest(SHORT, 1, replace(DRAWN, max_tokens=40)), GenerationRequest(LONG, 1, CUT))
    alone = await tokens(engine, *asked)
    broken = engine.submit([GenerationRequest(SHORT, 3, sampling), GenerationRequest(LONG, 1, sampling)], BROKEN)
    assert await tokens(engine, *asked) == alone
    for item in broken:
        with pytest.raises(FailedPreconditionError, match=r"adapters/broken/versions/1 gives logits that are no finite numbers") as caught:
            await asyncio.wait_for(item.result(), 20)
        assert caught.value.field == "adapter"
    assert await tokens(engine, *asked) == alone
    assert engine._stepper.rows == 0


async def test_its_memory_does_not_spoil_who_has_it_next(engine: InProcessEngine) -> None:
    asked = (GenerationRequest(SHORT, 1, GREEDY), GenerationRequest(LONG, 1, GREEDY))
    alone = await tokens(engine, *asked)
    for broken in (GenerationRequest(LONG, 1, GREEDY), LogprobsRequest(LONG, ((8, 9, 10),), 1.0)):
        (item,) = engine.submit([broken], BROKEN)
        if isinstance(broken, GenerationRequest):
            with pytest.raises(FailedPreconditionError):
                await asyncio.wait_for(item.result(), 20)
        else:
            (logprobs,) = await asyncio.wait_for(item.result(), 20)  # type: ignore[misc]
            assert any(math.isnan(value) for value in logprobs)  # type: ignore[union-attr]
        assert await tokens(engine, *asked) == alone
