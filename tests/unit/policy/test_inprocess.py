"""The engine when something goes wrong in its compute thread: what its callers and its health hear, and that it goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from torch import Tensor

from accord.artefacts.store import ArtefactStore
from accord.errors import DeadlineExceededError, InternalError, InvalidArgumentError, ResourceExhaustedError, UnavailableError
from accord.models.base import load_base_model
from accord.models.testing import tiny_model_folder
from accord.policy.backend import GenerationRequest, LogprobsRequest, SamplingSettings
from accord.policy.config import PolicyConfig
from accord.policy.engine import Terms
from accord.policy.inprocess import InProcessEngine


def request(tokens: int = 4) -> GenerationRequest:
    settings = SamplingSettings(
        max_tokens=tokens, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, stop=(), stop_token_ids=frozenset(), seed=0,
        ignore_eos=True,
    )  # fmt: skip
    return GenerationRequest((5, 6, 7), 1, settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def engine(folder: Path, tmp_path: Path) -> AsyncIterator[InProcessEngine]:
    config = PolicyConfig(artefacts=str(tmp_path), threads=1, stall_seconds=0.2)
    made = InProcessEngine(load_base_model(str(folder), threads=1), ArtefactStore(str(tmp_path)), config)
    yield made
    await asyncio.to_thread(made.stop, 10)


async def ask(engine: InProcessEngine, tokens: int = 4) -> int:
    (item,) = engine.submit([request(tokens)], Terms())
    samples = await asyncio.wait_for(item.result(), 10)
    return len(samples[0].token_ids)  # type: ignore[index, union-attr, arg-type]


async def test_a_stuck_pass_is_a_fault_that_says_what_was_computed_and_passes(engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await ask(engine) == 4
    assert engine.fault() is None
    stuck, real = threading.Event(), engine._stepper.step

    def step() -> None:
        stuck.wait(10)
        real()

    monkeypatch.setattr(engine._stepper, "step", step)
    (item,) = engine.submit([request()], Terms())
    give_up = time.monotonic() + 8
    while (fault := engine.fault()) is None:
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)
    assert "1 prompts being read" in fault
    assert "the bare base model" in fault
    assert "0.2 s are allowed" in fault
    stuck.set()
    assert await asyncio.wait_for(item.result(), 10)
    assert engine.fault() is None


async def test_a_pass_that_fails_fails_its_requests_and_no_other(engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> None:
        raise RuntimeError("prompt text must not get out")

    with monkeypatch.context() as broken:
        broken.setattr(engine._stepper, "step", step)
        with pytest.raises(InternalError, match="see server log") as caught:
            await ask(engine)
        assert "prompt text" not in str(caught.value)
    assert await ask(engine) == 4
    assert engine.fault() is None
    assert engine._stepper.rows == 0


async def test_stopping_fails_what_is_in_compute_and_what_comes(engine: InProcessEngine) -> None:
    (item,) = engine.submit([request(400)], Terms())
    await asyncio.sleep(0.05)
    assert await asyncio.to_thread(engine.stop, 10)
    with pytest.raises(UnavailableError):
        await item.result()
    with pytest.raises(UnavailableError):
        engine.submit([request()], Terms())


async def test_a_pause_that_cannot_come_in_time_says_so(engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, real = threading.Event(), engine._stepper.step
    monkeypatch.setattr(engine._stepper, "step", lambda: (stuck.wait(10), real()))
    (item,) = engine.submit([request()], Terms())
    while engine._pass_since is None:  # a request that is still queued would hold up no pause
        await asyncio.sleep(0.01)
    with pytest.raises(DeadlineExceededError, match="did not stop in time"):
        await engine.pause("wait", timeout_seconds=0.2)
    engine.resume()
    stuck.set()
    assert await asyncio.wait_for(item.result(), 10)


@pytest.mark.parametrize("cancelled", [True, False])
async def test_what_nobody_waits_for_leaves_before_the_next_pass(engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch, cancelled: bool) -> None:
    ends, passes, real = threading.Event(), 0, engine._stepper.step

    def step() -> None:
        nonlocal passes
        passes += 1
        ends.wait(10)
        real()

    monkeypatch.setattr(engine._stepper, "step", step)
    (item,) = engine.submit([request(500)], Terms(deadline=None if cancelled else time.monotonic() + 1.0))
    while passes == 0:
        await asyncio.sleep(0.01)
    if cancelled:
        item.cancel()
    else:
        await asyncio.sleep(1.2)
    ends.set()
    if not cancelled:
        with pytest.raises(DeadlineExceededError, match="during compute"):
            await asyncio.wait_for(item.result(), 10)
    for _ in range(100):
        await asyncio.sleep(0.01)
        if engine._stepper.rows == 0:
            break
    assert engine._stepper.rows == 0
    assert passes == 1


async def test_logits_are_computed_where_they_are_asked_for_alone(engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, real = 0, engine._model.logits

    def logits(hidden: Tensor) -> Tensor:
        nonlocal asked
        asked += hidden.shape[0]
        return real(hidden)

    monkeypatch.setattr(engine._model, "logits", logits)
    (item,) = engine.submit([LogprobsRequest(tuple(range(3, 203)), ((8, 9, 10), (11,), (12, 13)), 1.0)], Terms())
    found = await asyncio.wait_for(item.result(), 10)
    assert [len(response) for response in found] == [3, 1, 2]  # type: ignore[union-attr, arg-type]
    assert asked == 1 + 2 + 0 + 1, "the prompt's last place predicts the first token of each response, and no response's last token predicts any"


@pytest.fixture
async def unqueued(folder: Path, tmp_path: Path) -> AsyncIterator[InProcessEngine]:
    config = PolicyConfig(artefacts=str(tmp_path), threads=1, max_batch_rows=2, interactive_rows=0, refuse_when_busy=True)
    made = InProcessEngine(load_base_model(str(folder), threads=1), ArtefactStore(str(tmp_path)), config)
    yield made
    await asyncio.to_thread(made.stop, 10)


async def test_a_server_that_refuses_when_busy_takes_what_has_a_row_and_queues_nothing(
    unqueued: InProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, real = threading.Event(), unqueued._stepper.step

    def step() -> None:
        go_on.wait(10)
        real()

    monkeypatch.setattr(unqueued._stepper, "step", step)
    (first,) = unqueued.submit([request()], Terms())
    await asyncio.sleep(0.1)  # it is in compute
    (second,) = unqueued.submit([request()], Terms())  # a row is free: it begins at the next pass
    with pytest.raises(ResourceExhaustedError, match="2 of 2 rows are taken and the call needs 1") as refused:
        unqueued.submit([request()], Terms())
    assert refused.value.retry_after_seconds
    go_on.set()
    assert await asyncio.wait_for(first.result(), 10)
    assert await asyncio.wait_for(second.result(), 10)
    assert await ask(unqueued) == 4


async def test_a_server_that_refuses_when_busy_names_a_call_that_it_could_never_take(unqueued: InProcessEngine) -> None:
    with pytest.raises(InvalidArgumentError, match="3 samples in one call; this server never queues, and has 2 rows"):
        unqueued.submit([request()] * 3, Terms())


def test_rows_of_another_server_cannot_be_promised() -> None:
    with pytest.raises(ValueError, match="refuse_when_busy is of backend transformers"):
        PolicyConfig(artefacts="here", backend="vllm", remote={"url": "http://127.0.0.1:8000"}, refuse_when_busy=True)  # type: ignore[arg-type]
