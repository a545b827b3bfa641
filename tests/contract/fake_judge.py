"""A PolicyService for feedback servers under test: the opinions of `tests.unit.feedback.fakes`, over a real wire, in a thread of the tests.

It counts what it answered, takes its time where it is asked to, and can be held in the middle.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import grpc
from tests.unit.feedback.fakes import FakePolicy, text_of

from accord.api.common.v1 import common_pb2
from accord.api.policy.v1 import policy_pb2 as pb
from accord.api.policy.v1 import policy_pb2_grpc as rpc
from accord.client.messages import ModelDigests, digests_from_proto, digests_to_proto, prompt_from_proto, response_from_proto
from accord.client.policy import GenerateItem, LogprobsItem, Sampling
from accord.errors import AccordError
from accord.rpc.status import item_status, to_status

SLOW = "take your time"
SLOW_SECONDS = 3.0
T = TypeVar("T")


class FakeJudge(rpc.PolicyServiceServicer, rpc.PolicyAdminServiceServicer):
    """A judge that listens on a free port of the loopback.

    Attributes:
        answered: what each answered item asked, in order.
        written: prompt and seed of each text that was generated, in order.
        cancelled: calls whose caller left before they were answered.
        finished: calls that were answered.
        waiting: calls that take their time, or are held, now.
    """

    def __init__(self, policy: FakePolicy | None = None, *, listen: str = "127.0.0.1:0", latency_seconds: float = 0.0) -> None:
        self.policy = policy or FakePolicy()
        self.latency_seconds = latency_seconds
        self.answered: list[str] = []
        self.written: list[tuple[str, int | None]] = []
        self.calls = 0
        self.cancelled = 0
        self.finished = 0
        self.waiting = 0
        self._go = threading.Event()
        self._go.set()
        self._hold_after = 0
        self._admitted = 0
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(32), options=[("grpc.so_reuseport", 0)])
        rpc.add_PolicyServiceServicer_to_server(self, self._server)
        rpc.add_PolicyAdminServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(listen)
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        """Stops at once."""
        self._go.set()
        self._server.stop(None).wait(5)

    def hold_after(self, items: int) -> None:
        """Answers until so many items are in `answered`, then lets every call wait until `release`."""
        self._hold_after, self._admitted = items, len(self.answered)
        self._go.clear()

    def release(self) -> None:
        """Lets calls go on."""
        self._go.set()

    def GetModelInfo(self, request: Any, context: Any) -> pb.GetModelInfoResponse:
        info = self._run(context, lambda: self.policy.model_info(timeout_seconds=None))
        return pb.GetModelInfoResponse(base_model=info.base_model, digests=digests_to_proto(info.digests), context_tokens=info.context_tokens)

    def LoadAdapter(self, request: Any, context: Any) -> pb.LoadAdapterResponse:
        name, digest = self._run(context, lambda: self.policy.adapter_version(request.name, timeout_seconds=1))
        return pb.LoadAdapterResponse(adapter=pb.AdapterInfo(name=name, digest=digest))

    def Generate(self, request: Any, context: Any) -> pb.GenerateResponse:
        items = [GenerateItem(prompt_from_proto(item.prompt), _sampling(item.sampling)) for item in request.items]
        self._arrive(context, [text_of(item.prompt) for item in items])
        found = self._run(
            context, lambda: self.policy.generate(items, adapter=request.adapter, expected_digests=_expected(request), timeout_seconds=None)
        )
        reply = pb.GenerateResponse(digests=digests_to_proto(found.digests))
        for result in found.results:
            wire = reply.items.add(prompt_token_ids=common_pb2.TokenIds(ids=result.prompt_token_ids))
            if result.error is not None:
                wire.status.CopyFrom(item_status(result.error))
            for sample in result.samples:
                wire.samples.add(text=sample.text, token_ids=common_pb2.TokenIds(ids=sample.token_ids), finish_reason=pb.FINISH_REASON_EOS)
        with self._lock:
            self.written += [(text_of(item.prompt), item.sampling.seed) for item in items]
            self.finished += 1
        return reply

    def ComputeLogprobs(self, request: Any, context: Any) -> pb.ComputeLogprobsResponse:
        items = [
            LogprobsItem(prompt_from_proto(item.prompt), tuple(response_from_proto(response) for response in item.responses))
            for item in request.items
        ]
        asked = [f"{text_of(item.prompt)} | {' | '.join(map(str, item.responses))}" for item in items]
        self._arrive(context, asked)
        found = self._run(
            context,
            lambda: self.policy.compute_logprobs(items, adapter=request.adapter, expected_digests=_expected(request), timeout_seconds=None),
        )
        reply = pb.ComputeLogprobsResponse(digests=digests_to_proto(found.digests))
        for result in found.results:
            wire = reply.items.add(prompt_token_ids=common_pb2.TokenIds(ids=result.prompt_token_ids))
            if result.error is not None:
                wire.status.CopyFrom(item_status(result.error))
            for response in result.responses:
                wire.responses.add(
                    token_ids=common_pb2.TokenIds(ids=response.token_ids),
                    logprobs=response.logprobs,
                    sequence_logprob=response.sequence_logprob,
                )
        with self._lock:
            self.answered += asked
            self.finished += 1
        return reply

    def _arrive(self, context: Any, texts: list[str]) -> None:
        """Takes its time, or is held; a caller that leaves meanwhile is counted."""
        patience = SLOW_SECONDS if any(SLOW in text for text in texts) else self.latency_seconds
        give_up = time.monotonic() + patience
        with self._lock:
            self.calls += 1
            self.waiting += 1
        try:
            while time.monotonic() < give_up or self._held(len(texts)):
                if not context.is_active():
                    with self._lock:
                        self.cancelled += 1
                    context.abort(grpc.StatusCode.CANCELLED, "the caller left")
                time.sleep(0.01)
        finally:
            with self._lock:
                self.waiting -= 1

    def _held(self, items: int) -> bool:
        with self._lock:
            if not self._go.is_set() and self._admitted + items > self._hold_after:
                return True
            self._admitted += items
            return False

    def _run(self, context: Any, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            return asyncio.run(call())
        except AccordError as error:
            context.abort_with_status(to_status(error))
            raise


@cache
def shared_judge() -> FakeJudge:
    """One unbiased judge for all tests that leave it as it is; it ends with the tests' process."""
    return FakeJudge()


def _sampling(wire: pb.SamplingParams) -> Sampling:
    return Sampling(max_tokens=wire.max_tokens, seed=wire.seed if wire.HasField("seed") else None)


def _expected(request: Any) -> ModelDigests | None:
    return digests_from_proto(request.expected_digests) if request.HasField("expected_digests") else None
