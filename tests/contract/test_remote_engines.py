"""RemoteEngine over doubles of vLLM and TGI in other processes: what it samples, which adapters it loads, how it ends, how it fails."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.contract import tiny
from tests.contract.doubles.process import Double
from tests.nursery import ROOT

from accord.artefacts.store import ArtefactStore
from accord.errors import (
    AccordError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
)
from accord.models.encoding import PromptEncoder
from accord.policy.backend import Chunk, GeneratedSample, GenerationRequest, LogprobsRequest, SamplingSettings
from accord.policy.config import PolicyConfig
from accord.policy.engine import INTERACTIVE, LABELLING, Item, Terms
from accord.policy.remote import RemoteEngine
from accord.policy.remote_build import build_remote
from accord.policy.remote_config import RemoteConfig

pytestmark = pytest.mark.peers
FIRST, SECOND, THIRD = (f"adapters/{name}/versions/1" for name in tiny.POLICIES)
KINDS = ("vllm", "tgi")
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
PROMPTS = ("a", "What is a byte?", "ünïcödé 🌊", "tell me " * 9)
PATHS = {"vllm": "/v1/completions", "tgi": "/generate_stream"}
KEY = "sesame-4711"


class Opened:
    """An engine for one test, with what the test needs of it."""

    def __init__(self, engine: RemoteEngine, encoder: PromptEncoder, double: Double, kind: str) -> None:
        self.engine, self.encoder, self.double, self.kind = engine, encoder, double, kind

    def request(self, text: str = "What is a byte?", n: int = 1, *, stream: bool = False, **changes: Any) -> GenerationRequest:
        return GenerationRequest(tuple(self.encoder.encode_prompt(tiny.user(text))), n, replace(SETTINGS, **changes), stream)

    def submit(self, request: GenerationRequest | LogprobsRequest, **terms: Any) -> Item:
        self.engine.check(request, "items[0]")
        (item,) = self.engine.submit([request], Terms(**terms))
        return item

    async def samples(self, request: GenerationRequest, **terms: Any) -> tuple[GeneratedSample, ...]:
        found = await self.submit(request, **terms).result()
        assert isinstance(found, tuple)
        return found

    async def sample(self, text: str = "What is a byte?", *, version: str = "", **changes: Any) -> GeneratedSample:
        (found,) = await self.samples(self.request(text, **changes), version=version)
        return found


@pytest.fixture(scope="module")
def doubles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Double]]:
    """Running doubles by kind and options, each started once."""
    running: dict[tuple[str, ...], Double] = {}
    folder = tmp_path_factory.mktemp("doubles")

    def get(kind: str, *options: str) -> Double:
        if (kind, *options) not in running:
            adapters = [f"--adapter=first={tiny.store().fetch(FIRST)}", f"--adapter=second={tiny.store().fetch(SECOND)}"] if kind == "tgi" else []
            running[kind, *options] = Double(kind, ["--model", str(tiny.model_folder()), *adapters, *options], folder)
        double = running[kind, *options]
        double.set(reset=True)
        return double

    yield get
    for double in running.values():
        double.kill()


@asynccontextmanager
async def opened(
    kind: str, double: Double, *, store: ArtefactStore | None = None, config: dict[str, Any] | None = None, **remote: Any
) -> AsyncIterator[Opened]:
    if kind == "tgi":
        remote = {"adapters": {FIRST: "first", SECOND: "second"}, **remote}
    found = RemoteConfig(url=double.url, start_seconds=0, **remote)
    policy = PolicyConfig(base_model=str(tiny.model_folder()), artefacts="unused", **{"interactive_rows": 0, **(config or {})})
    engine, encoder = await build_remote("tgi" if kind == "tgi" else "vllm", found, store or tiny.store(), policy)
    try:
        yield Opened(engine, encoder, double, kind)
    finally:
        double.set()
        assert await asyncio.to_thread(engine.stop, 10.0)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def far(kind: str, doubles: Callable[..., Double]) -> AsyncIterator[Opened]:
    async with opened(kind, doubles(kind)) as found:
        yield found


def reference(adapter: str = "") -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.model_folder()).eval()
    return PeftModel.from_pretrained(model, str(tiny.store().fetch(adapter))).eval() if adapter else model


def computed(prompt: tuple[int, ...], response: tuple[int, ...], *, temperature: float = 1.0, adapter: str = "") -> list[float]:
    import torch

    with torch.no_grad():
        logits = reference(adapter)(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1].double()
    logprobs = (logits / temperature).log_softmax(-1)
    return [float(logprobs[place, token]) for place, token in enumerate(response)]


async def until(check: Callable[[], Any], seconds: float = 5.0) -> None:
    give_up = time.monotonic() + seconds
    while not await asyncio.to_thread(check):
        assert time.monotonic() < give_up, f"not within {seconds:g} s"
        await asyncio.sleep(0.02)


async def failing(work: Awaitable[Any], error: type[AccordError]) -> AccordError:
    with pytest.raises(error) as caught:
        await asyncio.wait_for(work, 20)
    return caught.value


# What is sampled


@pytest.mark.parametrize("adapter", ["", FIRST])
async def test_greedy_is_what_transformers_generates_token_for_token(far: Opened, adapter: str) -> None:
    import torch

    model = reference(adapter)
    for text in PROMPTS:
        request = far.request(text)
        prompt = torch.tensor([request.prompt_ids])
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)[0, len(request.prompt_ids) :]
        (sample,) = await far.samples(request, version=adapter)
        assert list(sample.token_ids) == expected.tolist()
        assert sample.text == far.encoder.decode(sample.token_ids)
        assert sample.finish_reason == ("eos" if sample.token_ids[-1] in far.engine.info.eos_token_ids else "length")
        assert sample.logprobs == pytest.approx(computed(request.prompt_ids, sample.token_ids, adapter=adapter), abs=1e-4)


async def test_logprobs_of_sampled_tokens_are_the_model_s(far: Opened) -> None:
    request = far.request(temperature=1.0, max_tokens=40)
    (sample,) = await far.samples(request)
    assert sample.logprobs == pytest.approx(computed(request.prompt_ids, sample.token_ids), abs=1e-4)


@pytest.mark.parametrize("kind", ["processed", "tgi"])
async def test_logprobs_are_those_at_the_sampling_temperature(kind: str, doubles: Callable[..., Double]) -> None:
    double = doubles("vllm", "--logprobs-mode=processed_logprobs") if kind == "processed" else doubles(kind)
    async with opened(kind, double) as far:
        request = far.request(temperature=0.5, max_tokens=40, top_logprobs=3)
        (sample,) = await far.samples(request)
        assert sample.logprobs == pytest.approx(computed(request.prompt_ids, sample.token_ids, temperature=0.5), abs=1e-4)
        assert all(len(place) == 3 and place[0][1] >= place[1][1] >= place[2][1] for place in sample.top_logprobs)
        assert all(
            dict(place).get(token, logprob) == logprob
            for place, token, logprob in zip(sample.top_logprobs, sample.token_ids, sample.logprobs, strict=True)
        )


async def test_logprobs_are_those_before_truncation_and_penalty(doubles: Callable[..., Double]) -> None:
    changed = {"temperature": 1.0, "top_p": 0.6, "top_k": 40, "repetition_penalty": 1.3, "max_tokens": 40}
    answers = []
    for options in ((), ("--logprobs-mode=processed_logprobs",)):
        async with opened("vllm", doubles("vllm", *options)) as far:
            request = far.request(**changed)
            (sample,) = await far.samples(request)
            assert sample.logprobs == pytest.approx(computed(request.prompt_ids, sample.token_ids), abs=1e-4)
            answers.append(sample.token_ids)
    assert answers[0] == answers[1], "the second server scores again, it does not sample differently"


async def test_what_a_server_cannot_report_exactly_is_refused_by_name(doubles: Callable[..., Double]) -> None:
    async with opened("vllm", doubles("vllm")) as far:
        with pytest.raises(FailedPreconditionError, match="--logprobs-mode processed_logprobs"):
            far.engine.check(far.request(temperature=0.5), "items[3]")
        with pytest.raises(InvalidArgumentError, match=r"0\.01") as caught:
            far.engine.check(far.request(temperature=0.001), "items[3]")
        assert caught.value.field == "items[3].sampling.temperature"
    async with opened("vllm", doubles("vllm", "--logprobs-mode=processed_logprobs")) as far:
        far.engine.check(far.request(temperature=struct.unpack("f", struct.pack("f", 0.01))[0]), "items[3]")
        for changes in ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 1.0, "min_p": 0.1, "top_logprobs": 2}):
            with pytest.raises(UnimplementedError, match="after these"):
                far.engine.check(far.request(**changes), "items[3]")
    async with opened("tgi", doubles("tgi")) as far:
        for changes in ({"temperature": 1.0, "top_k": 5}, {"repetition_penalty": 1.2}, {"ignore_eos": True}):
            with pytest.raises(UnimplementedError, match="TGI") as refused:
                far.engine.check(far.request(**changes), "items[3]")
            assert str(refused.value.field).startswith("items[3].sampling")


async def test_a_seed_gives_the_same_samples_alone_and_among_others(far: Opened) -> None:
    three = await far.samples(far.request(n=3, temperature=1.0))
    five = await far.samples(far.request(n=5, temperature=1.0))
    assert [sample.index for sample in five] == [0, 1, 2, 3, 4]
    assert [sample.token_ids for sample in three] == [sample.token_ids for sample in five[:3]]
    assert len({sample.token_ids for sample in five}) == 5
    neighbours = await far.samples(far.request(n=5, temperature=1.0, seed=8))
    assert not {sample.token_ids for sample in five} & {sample.token_ids for sample in neighbours}
    assert {sample.seed for sample in five} == {7}


async def test_stop_strings_and_stop_tokens_end_a_sample(far: Opened) -> None:
    whole = await far.sample("ünïcödé 🌊", temperature=1.0, max_tokens=60, seed=3)
    text = far.encoder.decode(whole.token_ids)
    stop = next(
        text[place : place + 2] for place in range(6, len(text)) if text[place : place + 2].isprintable() and "\ufffd" not in text[place : place + 2]
    )
    cut = await far.sample("ünïcödé 🌊", temperature=1.0, max_tokens=60, seed=3, stop=("never there", stop))
    assert cut.finish_reason == "stop"
    assert cut.text == text[: text.index(stop)]
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert stop in far.encoder.decode(cut.token_ids)
    assert stop not in far.encoder.decode(cut.token_ids[:-1])
    last = whole.token_ids[8]
    ended = await far.sample("ünïcödé 🌊", temperature=1.0, max_tokens=60, seed=3, stop_token_ids=frozenset({last}))
    assert ended.finish_reason == "stop"
    assert ended.token_ids == whole.token_ids[: whole.token_ids.index(last) + 1]


async def test_the_end_of_turn_ends_a_sample_unless_it_is_ignored(far: Opened) -> None:
    (eos,) = far.engine.info.eos_token_ids
    samples = await far.samples(far.request(n=20, temperature=1.0, max_tokens=100))
    ended = next(sample for sample in samples if sample.finish_reason == "eos")
    assert ended.token_ids.index(eos) == len(ended.token_ids) - 1
    if far.kind == "vllm":
        assert far.double.seen("bodies")[-1]["stop_token_ids"] == [eos], "the server may know fewer ends of a turn"
        more = (await far.samples(far.request(n=20, temperature=1.0, max_tokens=100, ignore_eos=True)))[ended.index]
        assert more.token_ids[: len(ended.token_ids)] == ended.token_ids
        assert more.finish_reason == "length"
        assert len(more.token_ids) == 100


async def test_a_stream_adds_up_to_the_whole(far: Opened) -> None:
    whole = await far.samples(far.request(n=2, temperature=1.0, max_tokens=50, seed=5))
    item = far.submit(far.request(n=2, temperature=1.0, max_tokens=50, seed=5, stream=True))
    chunks = [value async for value in item.values() if isinstance(value, Chunk)]
    assert await item.result() == whole
    for sample in whole:
        mine = [chunk for chunk in chunks if chunk.sample_index == sample.index]
        assert "".join(chunk.text for chunk in mine) == sample.text
        assert sum((chunk.token_ids for chunk in mine), ()) == sample.token_ids
        assert len(mine) >= len(sample.token_ids) // 4


@pytest.mark.parametrize("adapter", ["", SECOND])
async def test_given_responses_are_scored(far: Opened, adapter: str) -> None:
    prompt = tuple(far.encoder.encode_prompt(tiny.user("say a word")))
    responses = tuple(tuple(far.encoder.encode_response(text, append_eos=True)) for text in ("alpha", "ünïcödé", "z"))
    rows = await far.submit(LogprobsRequest(prompt, responses, 1.0), version=adapter).result()
    assert isinstance(rows, list)
    for row, response in zip(rows, responses, strict=True):
        assert row == pytest.approx(computed(prompt, response, adapter=adapter), abs=1e-4)
    with pytest.raises(UnimplementedError, match="at 1 alone"):
        far.engine.check(LogprobsRequest(prompt, responses, 0.5), "items[0]")
    with pytest.raises(OutOfRangeError, match="512"):
        far.engine.check(LogprobsRequest(prompt, ((5,) * (512 - len(prompt)),), 1.0), "items[0]")


async def test_a_prompt_without_a_text_is_refused_by_tgi_alone(doubles: Callable[..., Double]) -> None:
    async with opened("tgi", doubles("tgi")) as tgi, opened("vllm", doubles("vllm")) as vllm:
        spelt = tuple(tgi.encoder.encode_prompt(tiny.user("a <|im_end|> inside")))
        half = tuple(tgi.encoder.encode_text("🌊"))[:2]
        for prompt in (spelt, half):
            request = GenerationRequest(prompt, 1, SETTINGS)
            with pytest.raises(InvalidArgumentError, match="not what any text is read as") as caught:
                tgi.engine.check(request, "items[1]")
            assert caught.value.field == "items[1].prompt"
            (sample,) = await vllm.samples(request)
            assert sample.logprobs == pytest.approx(computed(prompt, sample.token_ids), abs=1e-4)


async def test_scoring_says_how_tgi_must_be_started(doubles: Callable[..., Double]) -> None:
    async with opened("tgi", doubles("tgi", "--no-prefill")) as far:
        request = LogprobsRequest(tuple(far.encoder.encode_prompt(tiny.user("x"))), ((70, 71),), 1.0)
        error = await failing(far.submit(request).result(), FailedPreconditionError)
        assert "--enable-prefill-logprobs" in error.message


async def test_what_is_served_is_told_from_the_folder(far: Opened) -> None:
    base = tiny.base_model()
    info = far.engine.info
    assert info.name == far.kind
    assert (info.digests.base_model, info.digests.tokenizer) == (base.digests.base_model, base.digests.tokenizer)
    assert info.digests.chat_template == base.digests.chat_template
    assert (info.vocabulary_size, info.parameters, info.eos_token_ids) == (base.vocabulary_size, base.parameters, base.eos_token_ids)
    assert info.context_tokens in (511, 512)


# Adapters


async def test_adapters_answer_by_our_names_beside_the_base(far: Opened) -> None:
    bare, first, second = await asyncio.gather(far.sample(), far.sample(version=FIRST), far.sample(version=SECOND))
    assert len({bare.token_ids, first.token_ids, second.token_ids}) == 3
    assert far.engine.resolve("adapters/tiny-policy-0") == FIRST
    manifest = tiny.store().manifest(FIRST)
    facts = far.engine.adapters()[FIRST]
    assert (facts.digest, facts.size_bytes) == (manifest.digest, manifest.size_bytes)
    assert await far.engine.command(FIRST, load=False, deadline=None) == facts
    assert FIRST not in far.engine.adapters()
    error = await failing(far.engine.command(FIRST, load=False, deadline=None), NotFoundError)
    assert error.field == "name"
    assert await far.engine.command(FIRST, load=True, deadline=None) == facts
    assert (await far.sample(version=FIRST)).token_ids == first.token_ids


async def test_an_adapter_of_another_base_is_refused_with_both_digests(kind: str, doubles: Callable[..., Double], tmp_path: Path) -> None:
    store = ArtefactStore(str(tmp_path / "store"))
    version = tiny.publish(store, "stranger", seed=5, base_model_digest="ab" * 32)
    async with opened(kind, doubles(kind), store=store) as far:
        error = await failing(far.sample(version=version), FailedPreconditionError)
        assert "ab" * 32 in error.message
        assert far.engine.info.digests.base_model in error.message
        assert error.field == "adapter"
        missing = await failing(far.sample(version="adapters/nobody/versions/1"), NotFoundError)
        assert "adapters/stranger" in missing.message
        assert (await far.sample()).token_ids


async def test_a_damaged_adapter_never_reaches_the_server(doubles: Callable[..., Double], tmp_path: Path) -> None:
    store = ArtefactStore(str(tmp_path / "store"))
    version = tiny.publish(store, "damaged", seed=5)
    weights = store.fetch(version) / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    async with opened("vllm", doubles("vllm"), store=ArtefactStore(str(tmp_path / "store"))) as far:
        await failing(far.sample(version=version), DataLossError)
        assert not [body for body in far.double.seen("bodies") if "lora_name" in body]


async def test_tgi_serves_the_adapters_that_it_was_started_with(doubles: Callable[..., Double]) -> None:
    async with opened("tgi", doubles("tgi")) as far:
        error = await failing(far.sample(version=THIRD), FailedPreconditionError)
        assert FIRST in error.message
        assert "remote.adapters" in error.message


async def test_the_least_recently_used_adapter_goes_first_and_comes_back(doubles: Callable[..., Double]) -> None:
    async with opened("vllm", doubles("vllm"), max_adapters=2) as far:
        before = (await far.sample(version=FIRST)).token_ids
        await far.sample(version=SECOND)
        await far.sample(version=FIRST)
        await asyncio.sleep(1.1)
        await far.sample(version=THIRD)
        assert sorted(far.engine.adapters()) == sorted([FIRST, THIRD])
        loaded = [body["lora_name"] for body in far.double.seen("bodies") if "lora_name" in body and "lora_path" not in body]
        assert [name.partition("@")[0] for name in loaded] == [SECOND]
        answers = await asyncio.gather(*(far.sample(version=version) for version in (SECOND, FIRST, THIRD) * 3))
        assert answers[1].token_ids == answers[4].token_ids == before


async def test_the_folder_of_an_adapter_stays_in_the_cache_as_long_as_the_server_may_read_it(doubles: Callable[..., Double], tmp_path: Path) -> None:
    async with opened("vllm", doubles("vllm"), store=tiny.store_afar(tmp_path), max_adapters=2) as far:
        await far.sample(version=FIRST)
        await far.sample(version=SECOND)
        assert tiny.cached(tmp_path) == [FIRST, SECOND]
        await far.engine.command(FIRST, load=False, deadline=None)
        await far.sample(version=THIRD)
        assert tiny.cached(tmp_path) == [SECOND, THIRD]
        await asyncio.sleep(1.1)  # until an adapter may be evicted
        far.double.set(fail={"path": "/v1/load_lora_adapter", "status": 400, "body": "{}"})
        await failing(far.sample(version=FIRST), AccordError)
        another = tiny.store_afar(tmp_path)
        reward_model = another.resolve(f"adapters/{tiny.REWARD_MODEL}")
        another.fetch(reward_model)
        assert tiny.cached(tmp_path) == [THIRD, reward_model]


async def test_a_failure_to_bring_an_adapter_is_not_answered_to_who_comes_later(far: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = threading.Event()

    def fetch(name: str) -> Path:
        fails.wait(20)
        raise UnavailableError("the store is away")

    with monkeypatch.context() as away:
        away.setattr(far.engine._store, "fetch", fetch)
        left = far.submit(far.request(), version=FIRST)
        await until(lambda: FIRST in far.engine._adapters._bringing)
        left.cancel()
        fails.set()
        await until(far.engine._adapters._bringing[FIRST].task.done)
    assert (await far.sample(version=FIRST)).token_ids


async def test_an_adapter_in_use_is_not_unloaded(doubles: Callable[..., Double]) -> None:
    async with opened("vllm", doubles("vllm")) as far:
        await far.sample(version=FIRST)
        far.double.set(step_seconds=0.02)
        running = far.submit(far.request(ignore_eos=True, max_tokens=40), version=FIRST)
        await until(lambda: far.double.seen("open") == 1)
        unload = asyncio.create_task(far.engine.command(FIRST, load=False, deadline=None))
        await asyncio.sleep(0.2)
        assert not unload.done()
        assert far.engine.calls_with(FIRST) == 2
        await running.result()
        await asyncio.wait_for(unload, 2)
        far.engine.release(FIRST)
        assert far.engine.calls_with(FIRST) == 1


async def test_who_comes_right_after_an_unloading_gets_the_adapter_again(doubles: Callable[..., Double]) -> None:
    async with opened("vllm", doubles("vllm")) as far:
        expected = await far.sample(version=FIRST)
        unload = asyncio.create_task(far.engine.command(FIRST, load=False, deadline=None))
        await asyncio.sleep(0)  # both are in the queue when it is looked at next
        after = far.submit(far.request(), version=FIRST)
        await asyncio.wait_for(unload, 5)
        (sample,) = await asyncio.wait_for(after.result(), 5)  # type: ignore[misc]
        assert sample.token_ids == expected.token_ids
        assert FIRST in far.engine.adapters()


async def test_a_server_that_has_forgotten_an_adapter_gets_it_again(doubles: Callable[..., Double]) -> None:
    async with opened("vllm", doubles("vllm")) as far:
        expected = await far.sample(version=FIRST)
        far.double.post("/v1/unload_lora_adapter", {"lora_name": f"{FIRST}@{tiny.store().manifest(FIRST).digest[:12]}"})
        error = await failing(far.sample(version=FIRST), UnavailableError)
        assert FIRST in error.message
        assert error.retry_after_seconds
        assert (await far.sample(version=FIRST)).token_ids == expected.token_ids


async def test_a_vllm_that_cannot_load_says_what_to_do(doubles: Callable[..., Double], tmp_path: Path) -> None:
    async with opened("vllm", doubles("vllm", "--no-lora")) as far:
        error = await failing(far.sample(version=FIRST), FailedPreconditionError)
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in error.message
    home = Path(tiny.store().uri)
    async with opened("vllm", doubles("vllm"), adapters_here=home, adapters_there="/not/there") as far:
        error = await failing(far.sample(version=THIRD), FailedPreconditionError)
        assert "/not/there/" in error.message
        assert "remote.adapters_there" in error.message
    (tmp_path / "link").symlink_to(home)
    async with opened("vllm", doubles("vllm"), adapters_here=home, adapters_there=str(tmp_path / "link")) as far:
        await far.sample(version=THIRD)
        (load,) = [body for body in far.double.seen("bodies") if "lora_path" in body]
        assert load["lora_path"].startswith(str(tmp_path / "link"))


async def test_an_adapter_of_the_head_is_refused_by_vllm(doubles: Callable[..., Double], tmp_path: Path) -> None:
    """The real server takes it and leaves the head out, or scores wrongly."""
    store = ArtefactStore(str(tmp_path / "store"))
    folder = tmp_path / "adapter"
    shutil.copytree(tiny.store().fetch(FIRST), folder, ignore=shutil.ignore_patterns("manifest.json"))
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["target_modules"].append("lm_head")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    base = tiny.store().manifest(FIRST).base_model_digest
    version = store.publish("headed", folder, kind="policy", base_model_digest=base)
    async with opened("vllm", doubles("vllm"), store=store) as far:
        error = await failing(far.sample(version=version), FailedPreconditionError)
        assert "lm_head" in error.message


# Ending


async def test_a_cancelled_item_frees_the_server(far: Opened) -> None:
    for stream in (False, True):
        far.double.set(step_seconds=0.05)
        left, tokens = far.double.seen("left"), far.double.seen("tokens")
        item = far.submit(far.request(n=3, max_tokens=400, stream=stream))
        await until(lambda tokens=tokens: far.double.seen("open") == 3 and far.double.seen("tokens") > tokens)
        item.cancel()
        await until(lambda: far.double.seen("open") == 0, 1.0)
        assert far.double.seen("left") == left + 3


async def test_a_deadline_ends_the_request_on_the_server(far: Opened) -> None:
    far.double.set(step_seconds=0.05)
    began = time.monotonic()
    item = far.submit(far.request(max_tokens=400), deadline=began + 0.6)
    await failing(item.result(), DeadlineExceededError)
    assert 0.5 < time.monotonic() - began < 1.5
    await until(lambda: far.double.seen("open") == 0, 1.0)


async def test_one_sample_s_failure_ends_its_siblings(far: Opened) -> None:
    far.double.set(step_seconds=0.05, fail={"path": PATHS[far.kind], "status": 503, "body": "{}", "after": 3})
    began = time.monotonic()
    await failing(far.samples(far.request(n=4, max_tokens=400)), UnavailableError)
    assert time.monotonic() - began < 5
    await until(lambda: far.double.seen("open") == 0, 1.0)


async def test_the_number_of_requests_in_flight_is_bounded(kind: str, doubles: Callable[..., Double]) -> None:
    async with opened(kind, doubles(kind), max_concurrency=3) as far:
        far.double.set(step_seconds=0.01)
        prompt = tuple(far.encoder.encode_prompt(tiny.user("x")))
        work: list[Awaitable[Any]] = [far.samples(far.request(n=2, max_tokens=8)) for _ in range(5)]
        work.append(far.submit(LogprobsRequest(prompt, tuple((70 + index,) for index in range(7)), 1.0)).result())
        await asyncio.gather(*work)
        assert far.double.seen("most_open") in (2, 3)
        with pytest.raises(InvalidArgumentError, match="at most 3"):
            far.engine.check(far.request(n=4), "items[0]")


async def test_interactive_calls_go_before_labelling(kind: str, doubles: Callable[..., Double]) -> None:
    async with opened(kind, doubles(kind), max_concurrency=1) as far:
        far.double.set(step_seconds=0.01)
        order: list[str] = []

        async def follow(name: str, item: Item) -> None:
            await item.result()
            order.append(name)

        first = far.submit(far.request(max_tokens=80), priority=LABELLING)
        await until(lambda: far.double.seen("open") == 1)  # and goes on for most of a second, in which the others come
        labels = [far.submit(far.request(max_tokens=4), priority=LABELLING, caller="labels") for _ in range(3)]
        urgent = far.submit(far.request(max_tokens=4), priority=INTERACTIVE, caller="person")
        await asyncio.gather(follow("first", first), follow("urgent", urgent), *(follow("label", item) for item in labels))
        assert order == ["first", "urgent", "label", "label", "label"]


async def test_labelling_that_has_waited_long_leaves_the_reserve_to_interactive_calls(kind: str, doubles: Callable[..., Double]) -> None:
    async with opened(kind, doubles(kind), max_concurrency=3, config={"interactive_rows": 1, "aging_seconds": 1e-6}) as far:
        far.double.set(step_seconds=0.02)
        sent = [far.submit(far.request(max_tokens=80), priority=LABELLING) for _ in range(2)]
        await until(lambda: far.double.seen("open") == 2)
        waiting = far.submit(far.request(max_tokens=4), priority=LABELLING)
        await far.samples(far.request(max_tokens=4), priority=INTERACTIVE, caller="person")
        assert not any(item.done for item in (*sent, waiting))
        await asyncio.gather(*(item.result() for item in (*sent, waiting)))


async def test_a_full_queue_refuses_at_once(kind: str, doubles: Callable[..., Double]) -> None:
    async with opened(kind, doubles(kind), max_concurrency=1, config={"max_queue_items": 2}) as far:
        far.double.set(step_seconds=0.05)
        running = far.submit(far.request(max_tokens=400))
        await until(lambda: far.double.seen("open") == 1)
        waiting = [far.submit(far.request()) for _ in range(2)]
        with pytest.raises(ResourceExhaustedError, match="full") as caught:
            far.submit(far.request())
        assert caught.value.retry_after_seconds
        for item in [running, *waiting]:
            item.cancel()


async def test_pause_abort_ends_what_computes_and_what_waits(kind: str, doubles: Callable[..., Double]) -> None:
    async with opened(kind, doubles(kind), max_concurrency=2) as far:
        far.double.set(step_seconds=0.05)
        items = [far.submit(far.request(n=2, max_tokens=400)) for _ in range(3)]
        await until(lambda: far.double.seen("open") == 2)
        assert await far.engine.pause("abort", timeout_seconds=5) == 6
        await until(lambda: far.double.seen("open") == 0, 1.0)
        for item in items:
            samples = await item.result()
            assert [(sample.index, sample.finish_reason) for sample in samples] == [(0, "aborted"), (1, "aborted")]  # type: ignore[union-attr]
        with pytest.raises(UnavailableError, match="paused"):
            far.submit(far.request())
        far.double.set()
        far.engine.resume()
        assert (await far.sample()).token_ids


async def test_pause_abort_answers_a_stream_with_what_has_come(far: Opened) -> None:
    far.double.set(step_seconds=0.02)
    item = far.submit(far.request(n=2, max_tokens=400, ignore_eos=far.kind == "vllm", stream=True))
    seen: dict[int, list[int]] = {0: [], 1: []}

    async def follow() -> None:
        async for chunk in item.values():
            assert isinstance(chunk, Chunk)
            seen[chunk.sample_index] += chunk.token_ids

    following = asyncio.create_task(follow())
    await until(lambda: all(seen.values()))
    assert await far.engine.pause("abort", timeout_seconds=5) == 2
    await following
    for sample in await item.result():  # type: ignore[union-attr]
        assert sample.finish_reason == "aborted"  # type: ignore[union-attr]
        assert 4 <= len(sample.token_ids) == len(sample.logprobs) < 400  # type: ignore[union-attr]
        assert tuple(seen[sample.index]) == sample.token_ids  # type: ignore[union-attr]


async def test_adapters_are_loaded_and_unloaded_under_a_pause(doubles: Callable[..., Double]) -> None:
    async with opened("vllm", doubles("vllm")) as far:
        assert await far.engine.pause("wait", timeout_seconds=5) == 0
        await asyncio.wait_for(far.engine.command(FIRST, load=True, deadline=None), 5)
        assert FIRST in far.engine.adapters()
        await asyncio.wait_for(far.engine.command(FIRST, load=False, deadline=None), 5)
        assert FIRST not in far.engine.adapters()


async def test_pause_wait_finishes_what_computes(kind: str, doubles: Callable[..., Double]) -> None:
    async with opened(kind, doubles(kind), max_concurrency=1) as far:
        far.double.set(step_seconds=0.05)
        running = far.submit(far.request(max_tokens=12))
        await until(lambda: far.double.seen("open") == 1)
        waiting = far.submit(far.request(max_tokens=3))
        await failing(far.engine.pause("wait", timeout_seconds=0.1), DeadlineExceededError)
        assert await far.engine.pause("wait", timeout_seconds=10) == 0
        (sample,) = await running.result()  # type: ignore[misc]
        assert len(sample.token_ids) == 12
        await asyncio.sleep(0.3)
        assert not waiting.done
        far.engine.resume()
        assert await waiting.result()
        await failing(far.engine.pause("keep", timeout_seconds=1), UnimplementedError)
        await failing(far.engine.update_weights("file:///x", "ab", deadline=None), UnimplementedError)


async def test_stop_ends_what_computes(kind: str, doubles: Callable[..., Double]) -> None:
    async with opened(kind, doubles(kind)) as far:
        far.double.set(step_seconds=0.05)
        item = far.submit(far.request(max_tokens=400))
        await until(lambda: far.double.seen("open") == 1)
        assert await asyncio.to_thread(far.engine.stop, 5.0)
        assert "stopping" in (await failing(item.result(), UnavailableError)).message
        await until(lambda: far.double.seen("open") == 0, 1.0)
        with pytest.raises(UnavailableError):
            far.submit(far.request())


# Failing


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (500, "Traceback (most recent call last)", UnavailableError, "see its log"),
        (503, "{}", UnavailableError, "503"),
        (429, '{"error": "Model is overloaded", "error_type": "overloaded"}', ResourceExhaustedError, "overloaded"),
        (422, '{"error": "no such temperature", "error_type": "validation"}', InvalidArgumentError, "no such temperature"),
        (400, '{"error": {"message": "too long", "code": 400}}', InvalidArgumentError, "too long"),
        (401, '{"error": "Unauthorized"}', FailedPreconditionError, "API key"),
        (200, "<html>welcome</html>", FailedPreconditionError, "correct remote.url"),
        (200, '{"choices": [], "token": null}', FailedPreconditionError, "correct remote.url"),
        (302, "", FailedPreconditionError, "correct remote.url"),
    ],
)
async def test_bad_answers_become_errors_that_say_what_to_do(far: Opened, status: int, body: str, error: type[AccordError], words: str) -> None:
    for stream in (False, True):
        far.double.set(fail={"path": PATHS[far.kind], "status": status, "body": body, "headers": {"retry-after": "7"}})
        found = await failing(far.samples(far.request(stream=stream)), error)
        assert words in found.message
        assert far.double.url in found.message
        assert found.retry_after_seconds == (7 if found.retryable else None)
    far.double.set()
    assert (await far.sample()).token_ids


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("data: {broken\n\n", FailedPreconditionError, "an event holds"),
        ("data: {}\n\n", (UnavailableError, FailedPreconditionError), ""),
        ('data:{"error":"Request failed during generation: boom","error_type":"generation"}\n\n', UnavailableError, "boom"),
        ('data:{"error":"Model is overloaded","error_type":"overloaded"}\n\n', ResourceExhaustedError, "overloaded"),
        ('data: {"error": {"message": "bad seed", "type": "BadRequestError", "code": 400}}\n\ndata: [DONE]\n\n', InvalidArgumentError, "bad seed"),
        ("data: [DONE]\n\n", UnavailableError, "without a reason"),
    ],
)
async def test_streams_that_break_off(far: Opened, body: str, error: Any, words: str) -> None:
    far.double.set(fail={"path": PATHS[far.kind], "status": 200, "body": body, "type": "text/event-stream"})
    found = await failing(far.samples(far.request(stream=True)), error)
    assert words in found.message


async def test_line_separators_inside_an_event_do_not_cut_it(far: Opened) -> None:
    token = {"id": 70, "text": "\u2028\x85", "logprob": -0.5, "special": False}
    choice = {"text": "\u2028\x85", "token_ids": [70], "logprobs": {"token_logprobs": [-0.5], "top_logprobs": [{}]}, "finish_reason": "length"}
    tgi = {"token": token, "generated_text": "\u2028", "details": {"finish_reason": "length"}}
    event = json.dumps(tgi if far.kind == "tgi" else {"choices": [choice]}, ensure_ascii=False)
    far.double.set(fail={"path": PATHS[far.kind], "status": 200, "body": f"data: {event}\r\n\r\n", "type": "text/event-stream"})
    (sample,) = await far.samples(far.request(stream=True))
    assert (sample.token_ids, sample.logprobs, sample.finish_reason) == ((70,), (-0.5,), "length")


async def test_a_server_that_dies_is_unavailable_and_a_fault(kind: str, tmp_path: Path) -> None:
    adapters = ["--adapter", f"first={tiny.store().fetch(FIRST)}"] if kind == "tgi" else []
    with Double(kind, ["--model", str(tiny.model_folder()), *adapters], tmp_path) as double:
        found = RemoteConfig(url=double.url, start_seconds=0, probe_seconds=0.1, probe_timeout_seconds=0.3)
        policy = PolicyConfig(base_model=str(tiny.model_folder()), artefacts="unused")
        engine, encoder = await build_remote("tgi" if kind == "tgi" else "vllm", found, tiny.store(), policy)
        far = Opened(engine, encoder, double, kind)
        double.set(step_seconds=0.05)
        running = far.submit(far.request(max_tokens=400))
        await until(lambda: double.seen("open") == 1)
        assert engine.fault() is None
        double.kill()
        assert "broke off" in (await failing(running.result(), UnavailableError)).message
        error = await failing(far.sample(), UnavailableError)
        assert double.url in error.message
        assert "start it" in error.message
        assert error.retry_after_seconds
        await until(lambda: engine.fault() is not None, 3)
        assert double.url in str(engine.fault())
        assert await asyncio.to_thread(engine.stop, 5.0)
        began = time.monotonic()
        error = await failing(build_remote("tgi" if kind == "tgi" else "vllm", found, tiny.store(), policy), UnavailableError)
        assert double.url in error.message
        assert time.monotonic() - began < 5


async def test_a_server_that_hangs_is_a_fault_until_it_answers_again(kind: str, doubles: Callable[..., Double]) -> None:
    async with opened(kind, doubles(kind), probe_seconds=0.1, probe_timeout_seconds=0.2) as far:
        far.double.set(hang="/health")
        await until(lambda: far.engine.fault() is not None, 3)
        assert "no answer within 0.2 s" in str(far.engine.fault())
        far.double.set()
        await until(lambda: far.engine.fault() is None, 3)


async def faulty(far: Opened, words: str) -> None:
    await until(lambda: words in str(far.engine.fault()))


async def test_a_server_that_comes_back_with_another_logprobs_mode_is_a_fault(doubles: Callable[..., Double]) -> None:
    async with opened("vllm", doubles("vllm", "--logprobs-mode=processed_logprobs"), probe_seconds=0.05) as far:
        far.double.set(fail={"path": "/health", "status": 503, "body": "{}"})
        await faulty(far, "health probes failed")
        far.double.set(processed=False)
        await faulty(far, "its logprobs mode was processed, and is raw; restart this replica")
        error = await failing(far.sample(temperature=0.7), UnavailableError)
        assert "its logprobs mode was processed, and is raw" in error.message


async def test_a_server_that_comes_back_with_another_model_is_a_fault(kind: str, doubles: Callable[..., Double]) -> None:
    card = {"id": "tiny", "root": "elsewhere", "max_model_len": 512}
    other: dict[str, Any] = {
        "vllm": {"path": "/v1/models", "body": json.dumps({"data": [card]})},
        "tgi": {"path": "/info", "body": json.dumps({"model_id": "elsewhere", "max_total_tokens": 512, "max_input_tokens": 511})},
    }
    async with opened(kind, doubles(kind), probe_seconds=0.05) as far:
        far.double.set(fail={"path": "/health", "status": 503, "body": "{}"})
        await faulty(far, "health probes failed")
        far.double.set(fail={"status": 200, **other[kind]})
        await faulty(far, "and is elsewhere")
        far.double.set()
        await until(lambda: far.engine.fault() is None)
        assert (await far.sample()).token_ids


async def test_silence_ends_by_the_read_timeout(kind: str, doubles: Callable[..., Double]) -> None:
    async with opened(kind, doubles(kind), read_seconds=0.5) as far:
        far.double.set(hang=PATHS[kind])
        error = await failing(far.sample(), UnavailableError)
        assert "remote.read_seconds" in error.message


async def test_the_start_waits_for_a_server_that_is_still_loading(kind: str, doubles: Callable[..., Double]) -> None:
    double = doubles(kind)
    path = "/v1/models" if kind == "vllm" else "/info"
    double.set(fail={"path": path, "status": 503, "body": "{}"})
    waiting = asyncio.create_task(_build(kind, double, start_seconds=20))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    double.set()
    engine = await asyncio.wait_for(waiting, 10)
    assert await asyncio.to_thread(engine.stop, 5.0)


async def _build(kind: str, double: Double, *, base_model: Path | None = None, **remote: Any) -> RemoteEngine:
    policy = PolicyConfig(base_model=str(base_model or tiny.model_folder()), artefacts="unused")
    found = RemoteConfig(**{"url": double.url, "start_seconds": 0, **remote})
    engine, _ = await build_remote("tgi" if kind == "tgi" else "vllm", found, tiny.store(), policy)
    return engine


async def test_the_api_key_goes_into_the_header_and_nowhere_else(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Double(kind, ["--model", str(tiny.model_folder()), "--api-key", KEY], tmp_path) as double:
        error = await failing(_build(kind, double), FailedPreconditionError)
        assert "api_key_env" in error.message
        monkeypatch.setenv("FAR_KEY", KEY)
        engine = await _build(kind, double, api_key_env="FAR_KEY")
        assert await asyncio.to_thread(engine.stop, 5.0)
        file = tmp_path / "key"
        file.write_text(f"{KEY}\n")
        async with opened(kind, double, api_key_file=file, adapters={}) as far:
            assert (await far.sample()).token_ids
            far.double.set(fail={"path": PATHS[kind], "status": 500, "body": json.dumps({"error": f"key {KEY} is odd"})})
            error = await failing(far.sample(), UnavailableError)
            assert KEY not in str(error)
            assert "*** is odd" in error.message
        file.write_text(" \n")
        empty = await failing(_build(kind, double, api_key_file=file), FailedPreconditionError)
        assert empty.field == "remote.api_key_file"


async def test_another_tokenizer_or_kind_of_server_is_refused(kind: str, doubles: Callable[..., Double], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.model_folder(), folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    error = await failing(_build(kind, doubles(kind), base_model=folder), FailedPreconditionError)
    assert "tokenizes differently" in error.message
    assert error.field == "base_model"
    other = doubles("tgi" if kind == "vllm" else "vllm")
    error = await failing(_build(kind, other), FailedPreconditionError)
    assert other.url in error.message
    assert "correct remote.url" in error.message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"url": "ftp://x"}, "http://host:port"),
        ({"url": "http://user:secret@x"}, "user, password"),
        ({"url": "http://x", "api_key_env": "A", "api_key_file": "b"}, "at most one"),
        ({"url": "http://x", "adapters_here": "/a"}, "together"),
        ({"url": "http://x", "adapters": {"adapters/x": "y"}}, "version"),
        ({"url": "http://x", "max_concurency": 3}, "Extra inputs"),
    ],
)
def test_bad_configuration_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RemoteConfig.model_validate(values)


def test_a_replica_needs_no_torch(kind: str, doubles: Callable[..., Double]) -> None:
    """In a process where torch cannot be found, as in an image without it."""
    program = f"""
import asyncio, importlib.abc, importlib.util, sys

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "peft", "safetensors"):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, NoTorch())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] == "torch" else found(name, package)

from accord.artefacts.store import ArtefactStore
from accord.policy.backend import GenerationRequest, SamplingSettings
from accord.policy.config import PolicyConfig
from accord.policy.engine import Terms
from accord.policy.remote_build import build_remote
from accord.policy.remote_config import RemoteConfig
from accord.text.chat import Message

async def run():
    config = PolicyConfig(base_model={str(tiny.model_folder())!r}, artefacts="x")
    remote = RemoteConfig(url={doubles(kind).url!r}, start_seconds=0, adapters={{ {FIRST!r}: "first" }})
    engine, encoder = await build_remote({kind!r}, remote, ArtefactStore({tiny.store().uri!r}), config)
    sampling = SamplingSettings(8, 0.0, 1.0, 0, 0.0, 1.0, (), frozenset(), 0, False)
    prompt = tuple(encoder.encode_prompt([Message("user", "hello")]))
    (item,) = engine.submit([GenerationRequest(prompt, 1, sampling)], Terms(engine.resolve("adapters/tiny-policy-0")))
    (sample,) = await item.result()
    assert len(sample.token_ids) == 8 and "torch" not in sys.modules
    assert await asyncio.to_thread(engine.stop, 5.0)
    print("generated without torch")

asyncio.run(run())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "services")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "generated without torch" in done.stdout
