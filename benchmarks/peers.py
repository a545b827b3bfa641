"""The policy server beside other servers on the same machine: vLLM's CPU build and llama.cpp, each at its best settings, in closed loop.

    python benchmarks/peers.py [--rounds 5] [--requests 64] [--only vllm,llamacpp] [--json FILE]

Both peers are installed once into environments of their own (vLLM takes about 3 GB). Same requests for all: unlike prompts and lengths, greedy, the
end of turn ignored, every token that was asked for counted, prefill included; each system answers over its own wire. vLLM: float32, Intel's OpenMP
loaded first, cores bound, no LoRA; prefix caches are off everywhere. llama.cpp computes with the 4-bit weights that the embedded model was
converted from: other arithmetic, an eighth of the memory traffic.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from accord.client.messages import TokenIds
from accord.client.policy import AsyncPolicyClient, GenerateItem, Sampling
from accord.models.base import load_base_model
from accord.policy.backend import GenerationRequest
from accord.rpc.channels import ChannelConfig
from figures import Figures, in_turn, options_of, ratios
from generation import policy_server, workload

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
import llamacpp_peer
import vllm_peer

CALLERS = (8, 32)
PEERS = ("vllm", "llamacpp")


def ours(address: str, requests: Sequence[GenerationRequest], callers: int) -> Callable[[], None]:
    """The requests through gRPC, so many at a time."""

    async def run() -> None:
        gate = asyncio.Semaphore(callers)
        async with AsyncPolicyClient(ChannelConfig(address=address, attempts=1)) as policy:

            async def one(request: GenerationRequest) -> None:
                tokens = request.sampling.max_tokens
                async with gate:
                    item = GenerateItem(TokenIds(request.prompt_ids), Sampling(max_tokens=tokens, temperature=0, ignore_eos=True))
                    reply = await policy.generate([item], timeout_seconds=600)
                assert len(reply.results[0].samples[0].token_ids) == tokens

            await asyncio.gather(*map(one, requests))

    def work() -> None:
        asyncio.run(run())

    return work


def openai(url: str, model: str, requests: Sequence[GenerationRequest], callers: int) -> Callable[[], None]:
    """The requests through the OpenAI-compatible wire."""

    async def run() -> None:
        gate = asyncio.Semaphore(callers)
        async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=callers)) as client:

            async def one(request: GenerationRequest) -> None:
                tokens = request.sampling.max_tokens
                body = {"model": model, "prompt": list(request.prompt_ids), "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
                async with gate:
                    reply = await client.post(f"{url}/v1/completions", json=body)
                assert reply.json()["usage"]["completion_tokens"] == tokens, reply.text[:300]

            await asyncio.gather(*map(one, requests))

    def work() -> None:
        asyncio.run(run())

    return work


def compare(figures: Figures, peer: str, url: str, model: str, address: str, requests: Sequence[GenerationRequest], rounds: int) -> None:
    """Both at each number of callers."""
    tokens = sum(request.sampling.max_tokens for request in requests)
    for callers in CALLERS:
        ours(address, requests[:8], callers)()
        openai(url, model, requests[:8], callers)()
        took = in_turn(rounds, accord=ours(address, requests, callers), peer=openai(url, model, requests, callers))
        figures.add(f"{callers} concurrent: accord", "tokens/s", [tokens / value for value in took["accord"]])
        figures.add(f"{callers} concurrent: {peer}", "tokens/s", [tokens / value for value in took["peer"]])
        reach = ">= 1.0" if peer == "vllm" else ""
        figures.add(f"{callers} concurrent: accord over {peer}", "times", ratios(took["peer"], took["accord"]), reach)


def main() -> None:
    """Measures what is asked for."""
    parser = options_of(__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--only", default=",".join(PEERS))
    options = parser.parse_args()
    figures = Figures("peers")
    requests = workload(load_base_model("embedded", threads=2), options.requests)
    with tempfile.TemporaryDirectory() as folder, policy_server(folder, prefix_cache_bytes=0) as server:
        if "vllm" in options.only:
            with vllm_peer.running(bare=True) as url:
                compare(figures, "vllm", url, vllm_peer.MODEL_NAME, server.address, requests, options.rounds)
        if "llamacpp" in options.only:
            with llamacpp_peer.running(rows=max(CALLERS)) as url:
                compare(figures, "llamacpp", url, "", server.address, requests, options.rounds)
    figures.write(options.json)


if __name__ == "__main__":
    main()
