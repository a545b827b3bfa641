"""Admission of calls: starting, full, draining."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
import pytest

from accord.errors import DeadlineExceededError, ResourceExhaustedError, UnavailableError
from accord.rpc.admission import Admission
from accord.rpc.calls import Method


def method(*, exempt: bool = False, long_lived: bool = False) -> Method:
    return Method("/a.B/C", grpc.unary_unary_rpc_method_handler(lambda request, context: request), exempt=exempt, long_lived=long_lived)


CALL, HEALTH, WATCH = method(), method(exempt=True), method(long_lived=True)


async def test_calls_are_refused_before_the_start_and_during_the_drain_but_health_is_answered() -> None:
    admission = Admission(2)
    with pytest.raises(UnavailableError, match="starting") as caught, admission.admit(CALL):
        pass
    assert caught.value.retry_after_seconds == 1.0
    admission.open()
    with admission.admit(CALL):
        pass
    admission.refuse("the service is draining")
    with pytest.raises(UnavailableError, match="draining"), admission.admit(WATCH):
        pass
    with admission.admit(HEALTH):
        pass


async def test_the_limit_counts_calls_and_long_lived_streams_and_frees_their_places() -> None:
    admission = Admission(2)
    admission.open()
    with contextlib.ExitStack() as calls:
        calls.enter_context(admission.admit(CALL))
        calls.enter_context(admission.admit(WATCH))
        calls.enter_context(admission.admit(HEALTH))
        with pytest.raises(ResourceExhaustedError, match="2 calls are in progress; this server takes 2 at once"), admission.admit(CALL):
            pass
    with admission.admit(CALL), admission.admit(CALL):
        assert admission.in_progress == 2


async def test_idle_waits_for_calls_but_not_for_long_lived_streams() -> None:
    admission = Admission(5)
    admission.open()
    with admission.admit(WATCH), admission.admit(HEALTH):
        await asyncio.wait_for(admission.idle(), 0.1)
        with admission.admit(CALL), pytest.raises(TimeoutError):
            await asyncio.wait_for(admission.idle(), 0.1)
        await asyncio.wait_for(admission.idle(), 0.1)


async def test_a_limit_ends_the_work_with_the_reason() -> None:
    admission = Admission(5)
    admission.open()
    with admission.admit(CALL) as slot:
        with pytest.raises(DeadlineExceededError):
            async with slot.limit(0.01):
                await asyncio.sleep(5)
        with pytest.raises(TimeoutError):
            async with slot.limit(5):
                raise TimeoutError("the work's own")
    with admission.admit(WATCH) as slot:
        asyncio.get_running_loop().call_later(0.01, admission.end_long_lived)
        with pytest.raises(UnavailableError, match="stopping"):
            async with slot.limit(None):
                await asyncio.sleep(5)


async def test_a_drain_does_not_end_ordinary_calls() -> None:
    admission = Admission(5)
    admission.open()
    with admission.admit(CALL) as slot:
        asyncio.get_running_loop().call_later(0.01, admission.end_long_lived)
        async with slot.limit(5):
            await asyncio.sleep(0.05)
