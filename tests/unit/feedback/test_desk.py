"""The desk: one call for many questions, one question for many callers, no question for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.unit.feedback.fakes import Bench

from accord.client.messages import ModelDigests
from accord.errors import InternalError, UnavailableError
from accord.feedback.records import JudgeIdentity, Origin, Question
from accord.prompts import default_rubric
from accord.text.chat import Message
from accord.text.tasks import Task

MakeBench = Callable[..., Bench]
IDENTITY = JudgeIdentity("fake", ModelDigests("base-1", "tokenizer-1", "template-1"))
QUESTION = Question("likelihood", Task.CONVERSATION, (Message("user", "tell me of cats"),), "cats", "dogs", None, IDENTITY)
ORIGIN = Origin("req")


def questions(count: int) -> list[Question]:
    return [replace(QUESTION, first=f"cats {number}") for number in range(count)]


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not check():
            await asyncio.sleep(0.005)


async def test_the_second_call_asks_nobody(make_bench: MakeBench) -> None:
    bench = make_bench()
    first, stored = await bench.desk.answer(QUESTION, ORIGIN)
    again, stored_again = await bench.desk.answer(QUESTION, ORIGIN)
    assert (stored, stored_again) == (False, True)
    assert again == first
    assert len(bench.policy.calls) == 1


async def test_concurrent_callers_of_one_question_ask_once(make_bench: MakeBench) -> None:
    bench = make_bench()
    answers = await asyncio.gather(*(bench.desk.answer(QUESTION, ORIGIN) for _ in range(20)))
    assert len(bench.policy.calls) == 1
    assert len({answer for answer, _ in answers}) == 1
    assert sorted(cached for _, cached in answers) == [False] + [True] * 19


async def test_questions_go_out_in_batches(make_bench: MakeBench) -> None:
    bench = make_bench(batch_pairs=4, concurrency=2)
    await asyncio.gather(*(bench.desk.answer(question, ORIGIN) for question in questions(10)))
    assert sorted(bench.policy.calls, reverse=True) == [2, 2, 2]  # their prompt with its responses, and the responses alone


async def test_each_prompt_is_read_once_for_all_its_responses(make_bench: MakeBench) -> None:
    bench = make_bench(batch_pairs=8, concurrency=1)
    asked = questions(3)
    asked += [replace(question, messages=(Message("user", "another prompt"),)) for question in asked]
    answers = await asyncio.gather(*(bench.desk.answer(question, ORIGIN) for question in asked))
    assert bench.policy.calls == [4]
    alone = make_bench(batch_pairs=1, concurrency=1)
    assert [answer for answer, _ in answers] == [(await alone.desk.answer(question, ORIGIN))[0] for question in asked]


async def test_a_rating_counts_for_four_pairs_of_a_batch(make_bench: MakeBench) -> None:
    bench = make_bench(batch_pairs=8, concurrency=2)
    rubric = default_rubric(Task.CONVERSATION, "rating")
    asked = [replace(question, kind="rating", rubric=rubric) for question in questions(5)]
    await asyncio.gather(*(bench.desk.answer(question, ORIGIN) for question in asked))
    assert sorted(bench.policy.calls, reverse=True) == [4, 4, 2]  # two ratings for each question


async def test_no_more_calls_are_in_flight_than_allowed(make_bench: MakeBench) -> None:
    bench = make_bench(batch_pairs=1, concurrency=3)
    bench.policy.gate = asyncio.Event()
    tasks = [asyncio.create_task(bench.desk.answer(question, ORIGIN)) for question in questions(7)]
    await until(lambda: len(bench.policy.calls) == 3)
    await asyncio.sleep(0.05)
    assert len(bench.policy.calls) == 3
    bench.policy.gate.set()
    await asyncio.gather(*tasks)
    assert len(bench.policy.calls) == 7


async def test_kinds_do_not_share_a_call_and_take_turns(make_bench: MakeBench) -> None:
    bench = make_bench(batch_pairs=2, concurrency=1)
    other = [replace(question, judge=replace(IDENTITY, adapter_version="adapters/j/versions/1", adapter_digest="m1")) for question in questions(2)]
    await asyncio.gather(*(bench.desk.answer(question, ORIGIN) for question in [*questions(6), *other]))
    assert bench.policy.calls == [2, 2, 2, 2]


async def test_an_answer_is_in_the_ledger_before_it_is_given(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench()
    order: list[str] = []
    append = bench.ledger.append_judgements
    monkeypatch.setattr(bench.ledger, "append_judgements", lambda rows: (append(rows), order.append("kept")))
    await bench.desk.answer(QUESTION, ORIGIN)
    order.append("given")
    assert order == ["kept", "given"]
    assert QUESTION.key in bench.ledger.find([QUESTION.key])


async def test_without_a_ledger_there_is_no_answer(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench()

    def full(rows: object) -> None:
        raise UnavailableError("the disk is full")

    monkeypatch.setattr(bench.ledger, "append_judgements", full)
    with pytest.raises(UnavailableError, match="disk is full"):
        await bench.desk.answer(QUESTION, ORIGIN)


async def test_while_the_ledger_takes_nothing_nothing_is_bought_and_what_was_bought_is_kept(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(batch_pairs=1, concurrency=2)
    append, disk_is_full = bench.ledger.append_judgements, True

    def keep(rows: object) -> None:
        if disk_is_full:
            raise UnavailableError("the disk is full")
        append(rows)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.ledger, "append_judgements", keep)
    for _ in range(5):
        results = await asyncio.gather(*(bench.desk.answer(question, ORIGIN) for question in questions(6)), return_exceptions=True)
        assert [type(result) for result in results] == [UnavailableError] * 6
    bought = len(bench.policy.calls)
    assert bought == 2  # the calls that were in flight when the first answer could not be kept
    disk_is_full = False
    answers = await asyncio.gather(*(bench.desk.answer(question, ORIGIN) for question in questions(6)))
    assert len(bench.policy.calls) == 6
    assert sum(cached for _, cached in answers) == bought
    assert len(bench.ledger.find([question.key for question in questions(6)])) == 6


async def test_a_caller_that_leaves_cancels_the_call(make_bench: MakeBench) -> None:
    bench = make_bench(concurrency=1)
    bench.policy.gate = asyncio.Event()
    task = asyncio.create_task(bench.desk.answer(QUESTION, ORIGIN))
    await until(lambda: len(bench.policy.calls) == 1)
    task.cancel()
    await until(lambda: bench.policy.cancelled == 1)
    bench.policy.gate = None
    answer, cached = await bench.desk.answer(QUESTION, ORIGIN)  # the place of the abandoned call is free again
    assert answer.probability_first is not None
    assert not cached


async def test_a_call_goes_on_while_one_of_its_callers_waits(make_bench: MakeBench) -> None:
    bench = make_bench(batch_pairs=8)
    bench.policy.gate = asyncio.Event()
    leaving, staying, joining = [
        asyncio.create_task(bench.desk.answer(question, ORIGIN)) for question in (questions(1)[0], questions(2)[1], questions(1)[0])
    ]
    await until(lambda: len(bench.policy.calls) == 1)
    leaving.cancel()
    await asyncio.sleep(0.02)
    bench.policy.gate.set()
    assert (await joining)[1] is True
    assert (await staying)[1] is False
    assert bench.policy.cancelled == 0
    assert len(bench.ledger.find([question.key for question in questions(2)])) == 2  # what was paid is kept, whoever left


async def test_what_nobody_waits_for_any_more_is_not_asked(make_bench: MakeBench) -> None:
    bench = make_bench(concurrency=1, batch_pairs=1)
    bench.policy.gate = asyncio.Event()
    tasks = [asyncio.create_task(bench.desk.answer(question, ORIGIN)) for question in questions(3)]
    await until(lambda: len(bench.policy.calls) == 1)
    tasks[1].cancel()
    await asyncio.sleep(0.02)
    bench.policy.gate.set()
    await tasks[2]
    assert len(bench.policy.calls) == 2
    assert questions(2)[1].key not in bench.ledger.find([questions(2)[1].key])


async def test_a_caller_that_leaves_after_the_answer_came_does_not_lose_it(make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench()
    import threading

    writing, go_on = threading.Event(), threading.Event()
    append = bench.ledger.append_judgements

    def slow(rows: object) -> None:
        writing.set()
        assert go_on.wait(5)
        append(rows)  # type: ignore[arg-type]

    monkeypatch.setattr(bench.ledger, "append_judgements", slow)
    task = asyncio.create_task(bench.desk.answer(QUESTION, ORIGIN))
    await until(writing.is_set)
    task.cancel()
    await asyncio.sleep(0.02)
    late = asyncio.create_task(bench.desk.answer(QUESTION, ORIGIN))
    await asyncio.sleep(0.02)
    go_on.set()
    assert (await late)[1] is True
    assert len(bench.policy.calls) == 1


async def test_an_error_reaches_every_caller_and_is_not_kept(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.policy.failures = [UnavailableError("gone")]
    results = await asyncio.gather(*(bench.desk.answer(QUESTION, ORIGIN) for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [UnavailableError] * 3
    assert (await bench.desk.answer(QUESTION, ORIGIN))[0].probability_first is not None


async def test_a_defect_is_raised_and_does_not_stop_the_desk(make_bench: MakeBench) -> None:
    bench = make_bench(concurrency=1)

    def broken(prompt: str, text: str) -> float:
        raise ZeroDivisionError

    bench.policy.logprob_of = broken
    with pytest.raises(ZeroDivisionError):
        await bench.desk.answer(QUESTION, ORIGIN)
    bench.policy.logprob_of = None
    await bench.desk.answer(QUESTION, ORIGIN)


async def test_nobody_is_asked_about_an_empty_response(make_bench: MakeBench) -> None:
    bench = make_bench(batch_pairs=8)
    empty = replace(QUESTION, second="")
    (lost, _), (judged, _) = await asyncio.gather(bench.desk.answer(empty, ORIGIN), bench.desk.answer(QUESTION, ORIGIN))
    assert lost.probability_first == 1.0
    assert judged.evidence_first is not None
    assert bench.policy.calls == [2]
    assert empty.key in bench.ledger.find([empty.key])


async def test_closing_tells_those_who_wait(make_bench: MakeBench) -> None:
    bench = make_bench(concurrency=1, batch_pairs=1)
    bench.policy.gate = asyncio.Event()
    tasks = [asyncio.create_task(bench.desk.answer(question, ORIGIN)) for question in questions(3)]
    await until(lambda: len(bench.policy.calls) == 1)
    await bench.desk.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [UnavailableError] * 3
    assert bench.policy.cancelled == 1
    assert not isinstance(results[0], InternalError)


async def test_an_answer_says_how_long_it_took_waiting_included(make_bench: MakeBench) -> None:
    bench = make_bench(concurrency=1, batch_pairs=1)
    bench.policy.gate = asyncio.Event()
    asking = [asyncio.create_task(bench.desk.answer(question, ORIGIN)) for question in questions(2)]
    await asyncio.sleep(0.05)
    bench.policy.gate.set()
    seconds = [answer.latency_seconds for answer, _ in await asyncio.gather(*asking)]
    assert all(found is not None and 0.05 <= found < 5 for found in seconds)
    again, _ = await bench.desk.answer(questions(2)[0], ORIGIN)
    assert again.latency_seconds == seconds[0]  # of the call that was made, not of looking it up
