"""What the engine decides between two passes: commands beside requests, adapters that come and go, other weights, pauses; and who waits quietly."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract import tiny

from accord.api.common.v1 import common_pb2
from accord.api.policy.v1 import policy_pb2 as pb
from accord.artefacts.store import ArtefactStore
from accord.errors import FailedPreconditionError, InternalError, InvalidArgumentError, UnavailableError
from accord.models.digests import folder_digests
from accord.models.testing import tiny_model_folder
from accord.policy import inprocess
from accord.policy.backend import GeneratedSample, GenerationRequest, SamplingSettings
from accord.policy.config import PolicyConfig
from accord.policy.convert import RequestReader
from accord.policy.engine import ROLLOUT, Item, Terms
from accord.policy.inprocess import InProcessEngine

FIRST, SECOND, THIRD = (f"adapters/{name}/versions/1" for name in tiny.POLICIES)


def request(tokens: int = 8, n: int = 1) -> GenerationRequest:
    settings = SamplingSettings(
        max_tokens=tokens, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, stop=(), stop_token_ids=frozenset(), seed=0,
        ignore_eos=True,
    )  # fmt: skip
    return GenerationRequest((5, 6, 7), n, settings)


@contextlib.asynccontextmanager
async def running(store: ArtefactStore | None = None, **settings: Any) -> AsyncIterator[InProcessEngine]:
    config = PolicyConfig(artefacts=tiny.store().uri, threads=1, **{"interactive_rows": 0, **settings})
    engine = InProcessEngine(tiny.base_model(), store or tiny.store(), config)
    try:
        yield engine
    finally:
        engine.resume()
        await asyncio.to_thread(engine.stop, 10)


@pytest.fixture
async def engine() -> AsyncIterator[InProcessEngine]:
    async with running() as made:
        yield made


def submit(engine: InProcessEngine, version: str = "", tokens: int = 8) -> Item:
    (item,) = engine.submit([request(tokens)], Terms(version))
    return item


async def answer(item: Item) -> tuple[int, ...]:
    samples = await asyncio.wait_for(item.result(), 20)
    assert isinstance(samples, tuple)
    assert isinstance(samples[0], GeneratedSample)
    return samples[0].token_ids


@contextlib.contextmanager
def long_pass(engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A request is in a pass that does not end before the event is set."""
    ends, real = threading.Event(), engine._stepper.step
    with monkeypatch.context() as patched:
        patched.setattr(engine._stepper, "step", lambda: (ends.wait(20), real()))
        try:
            yield ends
        finally:
            ends.set()


async def until(check: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not check():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.005)


async def test_two_adapters_that_become_ready_in_one_pass_and_room_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched, real = threading.Event(), tiny.store().fetch

    def fetch(name: str) -> Path:
        fetched.wait(20)
        return real(name)

    async with running(max_adapter_bytes=tiny.policy_bytes()) as engine:
        monkeypatch.setattr(engine._store, "fetch", fetch)
        loads = [asyncio.create_task(engine.command(version, load=True, deadline=None)) for version in (FIRST, SECOND)]
        await until(lambda: len(engine._shelf._fetching) == 2)
        with long_pass(engine, monkeypatch) as ends:
            busy = submit(engine)
            await until(lambda: engine._stepper.active)
            fetched.set()
            await until(lambda: all(future.done() for future in engine._shelf._fetching.values()))
            ends.set()
            assert len(await answer(busy)) == 8, "a command that comes to nothing must not end what computes"
        facts = await asyncio.wait_for(asyncio.gather(*loads), 10)
        assert [each.digest for each in facts] == [tiny.store().manifest(version).digest for version in (FIRST, SECOND)]
        assert list(engine.adapters()) == [SECOND]


async def test_who_comes_right_after_an_unloading_gets_the_adapter_and_not_the_base(engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    bare, expected = await answer(submit(engine)), await answer(submit(engine, FIRST))
    assert bare != expected
    with long_pass(engine, monkeypatch) as ends:
        submit(engine)
        await until(lambda: engine._stepper.active)
        unload = asyncio.create_task(engine.command(FIRST, load=False, deadline=None))
        await asyncio.sleep(0)
        after = submit(engine, FIRST)
        ends.set()
        assert await answer(after) == expected
    await asyncio.wait_for(unload, 10)


async def test_a_call_is_answered_by_the_weights_that_it_came_for_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = tiny_model_folder(tmp_path / "update", seed=5)
    async with running(max_batch_rows=1) as engine:
        terms = Terms(digests=engine.info.digests)
        old = await answer(submit(engine))
        wanted = folder_digests(update, tiny.base_model().encoder.chat_template).base_model
        with long_pass(engine, monkeypatch) as ends:
            first, second = engine.submit([request(), request()], terms)
            (anybody,) = engine.submit([request()], Terms())
            await until(lambda: engine._stepper.active)
            updating = asyncio.create_task(engine.update_weights(str(update), wanted, deadline=None))
            await until(lambda: engine._update is not None)
            ends.set()
            assert await answer(first) == old
            assert await asyncio.wait_for(updating, 20) == wanted
        with pytest.raises(UnavailableError, match="other weights are served") as caught:
            await answer(second)
        assert caught.value.retry_after_seconds
        (again,) = engine.submit([request()], replace(terms, digests=engine.info.digests))
        assert await answer(again) == await answer(anybody) != old


async def test_weights_that_cannot_be_taken_over_leave_the_old_ones(engine: InProcessEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = tiny_model_folder(tmp_path / "update", seed=5)
    old = await answer(submit(engine))

    def no_memory(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(inprocess, "InferenceModel", no_memory)
    wanted = folder_digests(update, tiny.base_model().encoder.chat_template).base_model
    with pytest.raises(InternalError, match="could not be replaced"):
        await asyncio.wait_for(engine.update_weights(str(update), wanted, deadline=None), 20)
    assert await answer(submit(engine)) == old
    assert engine.info.digests.base_model != wanted


@pytest.mark.parametrize("mode", ["abort", "wait", "keep"])
async def test_adapters_are_loaded_and_unloaded_under_a_pause(engine: InProcessEngine, mode: inprocess.PauseMode) -> None:
    await engine.pause(mode, timeout_seconds=5)
    await asyncio.wait_for(engine.command(FIRST, load=True, deadline=None), 5)
    assert list(engine.adapters()) == [FIRST]
    await asyncio.wait_for(engine.command(FIRST, load=False, deadline=None), 5)
    assert list(engine.adapters()) == []
    engine.resume()
    assert len(await answer(submit(engine, FIRST))) == 8


async def test_who_waits_for_an_adapter_does_not_keep_a_core_busy(engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched, real_fetch, real_turn, turns = threading.Event(), tiny.store().fetch, engine._turn, 0

    def fetch(name: str) -> Path:
        fetched.wait(20)
        return real_fetch(name)

    def turn() -> None:
        nonlocal turns
        turns += 1
        real_turn()

    monkeypatch.setattr(inprocess, "_IDLE_SECONDS", 9.0)
    monkeypatch.setattr(engine._store, "fetch", fetch)
    monkeypatch.setattr(engine, "_turn", turn)
    item = submit(engine, FIRST)
    await asyncio.sleep(0.6)
    assert turns < 20
    fetched.set()
    began = time.monotonic()
    assert len(await answer(item)) == 8
    assert time.monotonic() - began < 3, "it is woken when the adapter has come"


async def test_an_adapter_that_takes_long_to_load_holds_up_no_caller_and_is_a_fault_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(stall_seconds=0.2) as engine:
        ends, real = threading.Event(), engine._model.load_adapter
        monkeypatch.setattr(engine._model, "load_adapter", lambda name, folder: (ends.wait(20), real(name, folder)))
        item = submit(engine, FIRST)
        await until(lambda: engine._pass_since is not None)
        began = time.monotonic()
        other = submit(engine)
        assert time.monotonic() - began < 2, "the event loop waited for the disk"
        await asyncio.sleep(0.4)
        assert f"loading {FIRST}" in str(engine.fault())
        ends.set()
        assert len(await answer(item)) == len(await answer(other)) == 8
        assert engine.fault() is None


async def test_an_adapter_that_cannot_be_loaded_is_refused_each_time_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as engine:
        for raised, error, words in (
            (FailedPreconditionError("odd targets", field="adapter"), FailedPreconditionError, "odd targets"),
            (RuntimeError("a secret"), InternalError, "could not be loaded: RuntimeError"),
        ):

            def refuse(name: str, folder: Path, raised: Exception = raised) -> None:
                raise raised

            with monkeypatch.context() as patched:
                patched.setattr(engine._model, "load_adapter", refuse)
                for _ in range(2):
                    with pytest.raises(error, match=words):
                        await answer(submit(engine, FIRST))
            assert engine.adapters() == {}
        assert len(await answer(submit(engine, FIRST))) == 8


async def test_an_adapter_in_memory_may_leave_the_cache_whether_it_could_be_loaded_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, folder: Path) -> None:
        raise FailedPreconditionError("odd targets", field="adapter")

    async with running(tiny.store_afar(tmp_path)) as engine:
        assert len(await answer(submit(engine, FIRST))) == 8
        with monkeypatch.context() as patched:
            patched.setattr(engine._model, "load_adapter", refuse)
            with pytest.raises(FailedPreconditionError):
                await answer(submit(engine, SECOND))
        assert tiny.cached(tmp_path) == [SECOND]
        with monkeypatch.context() as patched:
            patched.setattr(engine._model, "adapter_bytes", lambda folder: 2**60)
            with pytest.raises(FailedPreconditionError, match="at most"):
                await answer(submit(engine, SECOND))
        assert len(await answer(submit(engine, THIRD))) == 8
        assert tiny.cached(tmp_path) == [THIRD]


async def test_a_fetch_that_failed_for_who_has_left_is_not_answered_to_who_comes_later(
    engine: InProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = threading.Event()

    def fetch(name: str) -> Path:
        fails.wait(20)
        raise UnavailableError("the store is away")

    with monkeypatch.context() as away:
        away.setattr(engine._store, "fetch", fetch)
        left = submit(engine, FIRST)
        await until(lambda: len(engine._shelf._fetching) == 1)
        left.cancel()
        fails.set()
        await until(engine._shelf._fetching[FIRST].done)
    assert len(await answer(submit(engine, FIRST))) == 8


async def test_rollouts_that_have_waited_long_leave_the_reserved_rows_to_people() -> None:
    async with running(max_batch_rows=4, interactive_rows=1, aging_seconds=1e-6) as engine:
        rollouts = Terms(priority=ROLLOUT, caller="run")
        computing = engine.submit([request(400)] * 3, rollouts)
        await until(lambda: engine._stepper.rows == 3)
        (waiting,) = engine.submit([request(4)], rollouts)
        assert len(await answer(submit(engine))) == 8
        assert not any(item.done for item in computing)
        assert len(await answer(waiting)) == 4


async def test_more_than_the_server_could_ever_hold_is_refused_by_field_with_the_limit() -> None:
    async with running(max_batch_tokens=512, max_item_tokens=600) as engine:
        engine.check(request(n=8), "items[0]")
        with pytest.raises(InvalidArgumentError, match=r"n x \(prompt \+ max_tokens\) takes 576 tokens .*; at most 512 is allowed") as memory:
            engine.check(request(n=9), "items[0]")
        assert memory.value.field == "items[0].n"
        reader = RequestReader(tiny.base_model().encoder, engine.info, PolicyConfig(artefacts="x", max_item_tokens=600))
        item = pb.GenerateItem(prompt=common_pb2.Prompt(text="hello"), sampling=pb.SamplingParams(max_tokens=200), n=3)
        assert reader.generation(item, "items[0]", stream=False).n == 3
        item.n = 4
        with pytest.raises(InvalidArgumentError, match="n x max_tokens is 800; at most 600 is allowed") as budget:
            reader.generation(item, "items[0]", stream=False)
        assert budget.value.field == "items[0].n"
