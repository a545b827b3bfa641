"""How fast the policy's engine samples, against transformers doing the same work, with the embedded model in float32.

    python benchmarks/generation.py [--rounds 5] [--requests 64] [--only mixed,alone,...] [--json FILE]

mixed      many requests of unlike lengths: the engine, and transformers' static batches of 8 in order of arrival
alone      the same requests, transformers one at a time
shared     8 samples of one prompt of 256 tokens, and 8 requests without any sharing
wire       a call of 64 tokens through the server, and the same request in the engine alone
judge      scoring after 600 tokens that all requests share, with the prefix cache and without
floor      a decode pass against what memory and cores allow
memory     what 32 slots of 512 tokens add to the process, and what the arithmetic says
overload   ten times the calls that the server can answer, for a minute
deadlines  a thousand calls whose deadline passes in the queue
Only tokens that a request asked for count; prefill is included. Greedy, end-of-turn tokens ignored, so that every system does the same work.
The largest matrix product and memory bandwidth of the machine are measured in the same run.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accord.artefacts.store import ArtefactStore
from accord.client.messages import TokenIds
from accord.client.policy import AsyncPolicyClient, GenerateItem, PolicyClient, Sampling
from accord.data.readers import read_pairs
from accord.errors import AccordError, DeadlineExceededError, ResourceExhaustedError
from accord.models.base import BaseModel, load_base_model
from accord.models.inference import InferenceModel
from accord.models.kvpool import KvPool
from accord.models.ragged import Piece
from accord.policy.backend import GenerationRequest, LogprobsRequest, SamplingSettings
from accord.policy.config import PolicyConfig
from accord.policy.engine import Terms
from accord.policy.inprocess import InProcessEngine
from accord.rpc.channels import ChannelConfig
from figures import Figures, in_turn, options_of, ratios, seconds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.contract.harness import ServerProcess

THREADS = 2
MEAN_TOKENS, SHORTEST, LONGEST = 48, 16, 256
PARTS = ("mixed", "alone", "shared", "judge", "floor", "memory", "wire", "overload", "deadlines")


def request(prompt: Sequence[int], tokens: int, n: int = 1) -> GenerationRequest:
    """A greedy request for exactly that many tokens."""
    settings = SamplingSettings(
        max_tokens=tokens, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, repetition_penalty=1.0, stop=(), stop_token_ids=frozenset(), seed=0,
        ignore_eos=True,
    )  # fmt: skip
    return GenerationRequest(tuple(prompt), n, settings)


def workload(base: BaseModel, count: int, seed: int = 0) -> list[GenerationRequest]:
    """Requests with prompts of 16 to 256 tokens of real text and geometric output lengths."""
    draw = random.Random(seed)
    text = " ".join(f"{row.messages[-1].content} {row.chosen}" for row in read_pairs("sample:summarization").rows)
    tokens = base.encoder.encode_text(text)
    found = []
    for _ in range(count):
        length = draw.randint(SHORTEST, LONGEST)
        start = draw.randrange(len(tokens) - length)
        answer = 1
        while draw.random() > 1 / MEAN_TOKENS and answer < 256:
            answer += 1
        found.append(request(tokens[start : start + length], answer))
    return found


def engine(base: BaseModel, folder: str, **config: Any) -> InProcessEngine:
    """An engine with nothing in it."""
    settings = PolicyConfig(artefacts=folder, threads=THREADS, **config)
    return InProcessEngine(base, ArtefactStore(folder), settings)


def through(served: InProcessEngine, requests: Sequence[GenerationRequest]) -> Callable[[], int]:
    """All requests at once."""

    async def run() -> int:
        items = served.submit(requests, Terms())
        answers = await asyncio.gather(*(item.result() for item in items))
        tokens = sum(len(sample.token_ids) for samples in answers for sample in samples)  # type: ignore[union-attr, misc]
        wanted = sum(each.n * each.sampling.max_tokens for each in requests)
        assert tokens == wanted, f"{tokens} tokens came, {wanted} were asked for"
        return tokens

    def work() -> int:
        return asyncio.run(run())

    return work


def static(base: BaseModel, requests: Sequence[GenerationRequest], size: int) -> Callable[[], None]:
    """transformers' generate over batches in order of arrival, each as long as its longest answer."""
    import torch

    def run() -> None:
        for start in range(0, len(requests), size):
            batch = requests[start : start + size]
            width = max(len(each.prompt_ids) for each in batch)
            ids = torch.tensor([[base.pad_token_id] * (width - len(each.prompt_ids)) + list(each.prompt_ids) for each in batch])
            mask = torch.tensor([[0] * (width - len(each.prompt_ids)) + [1] * len(each.prompt_ids) for each in batch])
            longest = max(each.sampling.max_tokens for each in batch)
            with torch.inference_mode():
                out = base.model.generate(
                    ids, attention_mask=mask, do_sample=False, max_new_tokens=longest, min_new_tokens=longest, pad_token_id=base.pad_token_id
                )
            assert out.shape[1] == width + longest

    return run


class Machine:
    """What this machine's cores and memory can do; measured again beside what is compared with it, since a shared host changes its speed."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(THREADS)
        self._left, self._right = torch.randn(1024, 1024), torch.randn(1024, 1024)
        self._big = torch.ones(128 * 2**20)  # written, or every page would be the system's one page of zeros

    def gflops(self) -> float:
        """Of the largest matrix product."""
        return max(2 * 1024**3 / seconds(lambda: self._left @ self._right) / 1e9 for _ in range(5))

    def gbytes(self) -> float:
        """Read in a second."""
        return max(self._big.numel() * 4 / seconds(self._big.sum) / 1e9 for _ in range(3))


def ceilings(figures: Figures) -> None:
    """What is printed of the machine."""
    found = Machine()
    found.gflops()
    figures.machine_figure("gemm_gflops", found.gflops())
    figures.machine_figure("read_gbytes_per_second", found.gbytes())


def mixed(figures: Figures, folder: str, rounds: int, count: int, *, alone: bool) -> None:
    """The engine against transformers over many unlike requests."""
    plain = load_base_model("embedded", threads=THREADS)
    served = engine(load_base_model("embedded", threads=THREADS), folder, prefix_cache_bytes=0)
    requests = workload(plain, count)
    tokens = sum(each.sampling.max_tokens for each in requests)
    works: dict[str, Callable[[], object]] = {"engine": through(served, requests), "static": static(plain, requests, 8)}
    if alone:
        works["alone"] = static(plain, requests, 1)
    through(served, requests[:4])()
    static(plain, requests[:8], 8)()
    took = in_turn(rounds, **works)
    served.stop(10)
    for name, values in took.items():
        figures.add(f"{count} mixed requests: {name}", "tokens/s", [tokens / value for value in values])
    figures.add("engine over transformers' static batches of 8", "times", ratios(took["static"], took["engine"]), ">= 2.5")
    if alone:
        figures.add("engine over transformers one at a time", "times", ratios(took["alone"], took["engine"]), ">= 3.5")


def shared(figures: Figures, folder: str, rounds: int) -> None:
    """n samples of one prompt against as many requests that share nothing."""
    served = engine(load_base_model("embedded", threads=THREADS), folder, prefix_cache_bytes=0)
    prompt = next(each.prompt_ids for each in workload(load_base_model("embedded"), 500, seed=1) if len(each.prompt_ids) == LONGEST)
    for answer in (16, 48):
        took = in_turn(
            rounds, together=through(served, [request(prompt, answer, n=8)]), apart=through(served, [request(prompt, answer) for _ in range(8)])
        )
        reach = ">= 2" if answer == 16 else ""
        figures.add(f"8 samples of a 256-token prompt over 8 requests, {answer} tokens each", "times", ratios(took["apart"], took["together"]), reach)
    served.stop(10)


def judge(figures: Figures, folder: str, rounds: int) -> None:
    """Verdicts after a template of 600 tokens and 300 tokens of their own, as a judge of pairs asks for them."""
    base = load_base_model("embedded", threads=THREADS)
    text = [token for each in workload(base, 60, seed=2) for token in each.prompt_ids]

    def verdicts(number: int) -> list[LogprobsRequest]:
        own = [tuple(text[600 + 300 * row : 900 + 300 * row]) for row in range(16)]
        return [LogprobsRequest((number, *text[:599], *tail), ((33,), (34,)), 1.0) for tail in own]  # each round a template that is new

    cached = engine(base, folder)
    plain = engine(load_base_model("embedded", threads=THREADS), folder, prefix_cache_bytes=0)
    rounds_left = {"cached": iter(range(10, 11 + rounds)), "plain": iter(range(10, 11 + rounds))}

    def run(name: str, served: InProcessEngine) -> Callable[[], object]:
        return lambda: asyncio.run(score(served, verdicts(next(rounds_left[name]))))

    run("cached", cached)(), run("plain", plain)()
    took = in_turn(rounds, cached=run("cached", cached), plain=run("plain", plain))
    cached.stop(10)
    plain.stop(10)
    figures.add("16 verdicts after 600 shared and 300 own tokens, over no cache", "times", ratios(took["plain"], took["cached"]), ">= 2.2")


async def score(served: InProcessEngine, requests: Sequence[LogprobsRequest]) -> None:
    """All at once."""
    items = served.submit(requests, Terms())
    await asyncio.gather(*(item.result() for item in items))


def floor(figures: Figures, rounds: int) -> None:
    """A pass in which every row reads one token, over the larger of reading the weights and multiplying by them, at rates measured beside it."""
    import torch

    model = InferenceModel(load_base_model("embedded", threads=THREADS))
    plain = InferenceModel(load_base_model("embedded", threads=THREADS), kernels=False)
    weights = 4 * model.base.parameters
    pool = KvPool(model.shape, max_tokens=16384)
    limits = Machine()
    found: dict[int, list[float]] = {rows: [] for rows in (1, 8, 32)}
    slots = [slot for slot in (pool.take(256) for _ in range(max(found))) if slot is not None]
    took: dict[int, list[float]] = {rows: [] for rows in found}
    over_plain: dict[int, list[float]] = {rows: [] for rows in found}
    gflops, gbytes = [], []
    with torch.inference_mode():
        for slot in slots:
            model.forward([Piece(slot, range(100, 228), 0, 0)])
        for _ in range(4 * rounds):
            gflops.append(limits.gflops())
            gbytes.append(limits.gbytes())
            for rows, ratios_found in found.items():
                passes = [[Piece(slot, (7,), 128 + number, 128 + number) for slot in slots[:rows]] for number in range(20)]
                fast, slow = (
                    statistics.median(seconds(lambda: each.logits(each.forward(pieces))) for pieces in passes)  # noqa: B023
                    for each in (model, plain)
                )
                took[rows].append(1000 * fast)
                over_plain[rows].append(slow / fast)
                ratios_found.append(fast / max(weights / gbytes[-1] / 1e9, 2 * model.base.parameters * rows / gflops[-1] / 1e9))
    figures.add("matrix products beside the passes", "GFLOP/s", gflops)
    figures.add("memory read beside the passes", "GB/s", gbytes)
    for rows, values in found.items():
        figures.add(f"decode pass, {rows} rows", "ms", took[rows])
        figures.add(f"decode pass over the floor, {rows} rows", "times", values, "<= 2.0" if rows != 8 else "")
        figures.add(f"packed and compiled kernels over plain PyTorch, {rows} rows", "times", over_plain[rows])


def wire(figures: Figures, folder: str, rounds: int) -> None:
    """What servicer and wire add to the passes of a call of 64 tokens. The server runs in a process of its own and counts its passes' seconds."""
    with policy_server(folder) as server, PolicyClient(ChannelConfig(address=server.address, attempts=1)) as policy:
        item = GenerateItem(TokenIds(tuple(range(100, 164))), Sampling(max_tokens=64, temperature=0, ignore_eos=True))
        policy.generate([item])
        calls = {
            "a unary call of 64 tokens": lambda: policy.generate([item], timeout_seconds=60),
            "the same, streamed": lambda: list(policy.generate_stream([item], timeout_seconds=60)),
        }
        added: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(4 * rounds):
            for name, call in calls.items():
                before = server.metric("accord_policy_step_seconds_sum")
                whole = seconds(call)
                inside = server.metric("accord_policy_step_seconds_sum") - before
                added[name].append(100 * (whole - inside) / inside)
    for name, values in added.items():
        figures.add(f"{name}: wire and servicer above its passes", "percent", values, "< 1")


def overload(figures: Figures, folder: str, duration: float) -> None:
    """Ten times more calls than the server can answer, in open loop: what is accepted stays fast, the rest is told when to come back.

    The server is set up for latency: four rows, nothing waits for one, and one of the two cores, since the callers of the benchmark need the
    other one.
    """
    config = {"threads": 1, "max_batch_rows": 4, "refuse_when_busy": True, "interactive_rows": 0}
    item = GenerateItem(TokenIds(tuple(range(100, 132))), Sampling(max_tokens=16, temperature=0, ignore_eos=True))
    with policy_server(folder, **config) as server:
        with PolicyClient(ChannelConfig(address=server.address, attempts=1)) as policy:
            policy.generate([item])
            unloaded = [seconds(lambda: policy.generate([item])) for _ in range(100)]
        closed = asyncio.run(_closed_loop(server.address, item, callers=4, duration=10))
        resident = server.resident_bytes()
        found = asyncio.run(_open_loop(server.address, item, per_second=10 * closed, duration=duration))
        grown = server.resident_bytes() - resident
    figures.add("capacity, 4 callers in closed loop", "calls/s", [closed])
    figures.add("offered in open loop", "calls/s", [found["offered"]])
    figures.add("calls that ended otherwise than OK or RESOURCE_EXHAUSTED with RetryInfo", "calls", [found["other"]], "0")
    figures.add("accepted", "calls/s", [found["accepted"]])
    figures.add("overload, 99th percentile of the accepted over unloaded", "times", [found["p99"] / _percentile(unloaded, 0.99)], "<= 2")
    figures.add("resident memory that the overload added", "MiB", [grown / 2**20], "flat")


async def _closed_loop(address: str, item: GenerateItem, *, callers: int, duration: float) -> float:
    async with AsyncPolicyClient(ChannelConfig(address=address, attempts=1)) as policy:
        end = time.perf_counter() + duration
        calls = 0

        async def caller() -> None:
            nonlocal calls
            while time.perf_counter() < end:
                try:
                    await policy.generate([item])
                    calls += 1
                except ResourceExhaustedError:
                    await asyncio.sleep(0.01)

        began = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(callers)))
        return calls / (time.perf_counter() - began)


async def _open_loop(address: str, item: GenerateItem, *, per_second: float, duration: float) -> dict[str, float]:
    took: list[float] = []
    other = offered = 0

    async with AsyncPolicyClient(ChannelConfig(address=address, attempts=1)) as policy:

        async def call() -> None:
            nonlocal other
            began = time.perf_counter()
            try:
                await policy.generate([item], timeout_seconds=30)
                took.append(time.perf_counter() - began)
            except ResourceExhaustedError as error:
                other += error.retry_after_seconds is None
            except AccordError:
                other += 1

        tasks: set[asyncio.Task[None]] = set()
        began = time.perf_counter()
        while (now := time.perf_counter() - began) < duration:
            while offered < now * per_second:
                task = asyncio.create_task(call())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                offered += 1
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
    return {"offered": offered / duration, "other": other, "accepted": len(took) / duration, "p99": _percentile(took, 0.99)}


def deadlines(figures: Figures, folder: str, calls: int = 1000) -> None:
    """Calls whose deadline passes while they wait: how many of them were computed all the same."""
    item = GenerateItem(TokenIds(tuple(range(100, 132))), Sampling(max_tokens=16, temperature=0, ignore_eos=True))
    long = GenerateItem(TokenIds(tuple(range(100, 132))), Sampling(max_tokens=400, temperature=0, ignore_eos=True))
    with policy_server(folder, max_batch_rows=1, interactive_rows=0) as server, PolicyClient(ChannelConfig(address=server.address)) as policy:
        policy.generate([item])
        stream = policy.generate_stream([long] * 8, timeout_seconds=600)
        next(stream)
        before = server.metric("accord_policy_requests_begun_total")
        expired = asyncio.run(_expire(server.address, item, calls))
        computed = server.metric("accord_policy_requests_begun_total") - before
        own = sum(event.sample is not None for event in stream)
        begun_by_stream = own - 1
    figures.add("calls whose deadline passed in the queue", "calls", [expired])
    figures.add("of these never computed", "percent", [100 * (1 - max(0, computed - begun_by_stream) / max(1, expired))], ">= 99.5")


async def _expire(address: str, item: GenerateItem, calls: int) -> int:
    async with AsyncPolicyClient(ChannelConfig(address=address, attempts=1)) as policy:

        async def call(number: int) -> bool:
            try:
                await policy.generate([item], timeout_seconds=0.05 + 0.001 * (number % 400))
            except DeadlineExceededError:
                return True
            except ResourceExhaustedError:
                return False
            return False

        found = []
        for start in range(0, calls, 100):
            found += await asyncio.gather(*(call(number) for number in range(start, min(start + 100, calls))))
        return sum(found)


def _percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def policy_server(folder: str, **config: Any) -> ServerProcess:
    """A policy server with the embedded model in a process of its own."""
    return ServerProcess("accord.policy", {"artefacts": f"{folder}/artefacts", "threads": THREADS, **config}, Path(folder))


def _resident() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def _memory(folder: str, answer: Any) -> None:
    served = engine(load_base_model("embedded", threads=THREADS), folder, prefix_cache_bytes=0, max_batch_tokens=32 * 512)
    through(served, [request(range(100, 132), 4)])()
    before = _resident()
    through(served, [request(range(100 + row, 100 + row + 480), 32) for row in range(32)])()
    per_token = served._model.shape.bytes_per_token
    answer.put((_resident() - before, 32 * 512 * per_token))
    served.stop(10)


def memory(figures: Figures, folder: str) -> None:
    """Resident memory of full slots, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=_memory, args=(folder, answer))
    process.start()
    grown, arithmetic = answer.get(timeout=600)
    process.join(60)
    figures.add("32 slots of 512 tokens: keys and values by arithmetic", "MiB", [arithmetic / 2**20])
    figures.add("32 slots of 512 tokens: resident memory over the weights", "MiB", [grown / 2**20])
    figures.add("32 slots of 512 tokens: measured memory over arithmetic", "times", [grown / arithmetic], "0.8 to 1.2")


def main() -> None:
    """Measures what is asked for."""
    parser = options_of(__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, of {', '.join(PARTS)}")
    options = parser.parse_args()
    parts = set(options.only.split(","))
    if unknown := parts - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    figures = Figures("generation")
    ceilings(figures)
    with tempfile.TemporaryDirectory() as folder:
        if parts & {"mixed", "alone"}:
            mixed(figures, folder, options.rounds, options.requests, alone="alone" in parts)
        if "shared" in parts:
            shared(figures, folder, options.rounds)
        if "judge" in parts:
            judge(figures, folder, options.rounds)
        if "floor" in parts:
            floor(figures, options.rounds)
        if "memory" in parts:
            memory(figures, folder)
        if "wire" in parts:
            wire(figures, folder, options.rounds)
        if "overload" in parts:
            overload(figures, folder, duration=60)
        if "deadlines" in parts:
            deadlines(figures, folder)
    figures.write(options.json)


if __name__ == "__main__":
    main()
