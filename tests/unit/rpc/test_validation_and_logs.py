"""Validation messages name fields and never values; logged exceptions name places and never the caller's text."""

from __future__ import annotations

import json
import logging
import sys

import pytest
from grpc._cython import cygrpc

from accord.api.reward.v1 import reward_pb2
from accord.errors import InvalidArgumentError
from accord.rpc.logs import JsonFormatter, describe_exception, request_id, without_private
from accord.rpc.validation import validate


def score_request(count: int = 1) -> reward_pb2.ScoreRequest:
    request = reward_pb2.ScoreRequest(reward_model=reward_pb2.RewardModelSelector(members=["adapters/a"]))
    for number in range(count):
        item = request.items.add(item_id=f"item-{number}")
        item.prompt.text = "a prompt"
        item.response.text = "a response"
    return request


def problem(request: reward_pb2.ScoreRequest) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        validate(request)
    return caught.value


def test_a_good_request_passes() -> None:
    validate(score_request(3))


def test_an_empty_batch_names_the_field_and_the_rule() -> None:
    error = problem(score_request(0))
    assert error.field == "items"
    assert str(error) == "items: must contain at least 1 item(s)"


def test_a_path_leads_through_lists_and_the_value_stays_away() -> None:
    request = score_request(4)
    request.items[3].item_id = "secret words " * 40
    error = problem(request)
    assert error.field == "items[3].item_id"
    assert "256" in str(error)
    assert "secret" not in str(error)


def test_many_violations_are_counted() -> None:
    request = score_request(9)
    for item in request.items:
        item.ClearField("prompt")
    error = problem(request)
    assert error.field == "items[0].prompt"
    assert str(error).count("prompt") == 5
    assert str(error).endswith("; and 4 more")


@pytest.mark.parametrize("given", ["run-7.step_3:a", "A" * 64])
def test_a_plain_request_id_is_kept(given: str) -> None:
    assert request_id(given) == given


@pytest.mark.parametrize("given", [None, "", "two words", "A" * 65, "line\nbreak", "prompt: tell me", b"\xff\xfe"])
def test_anything_else_gets_a_new_one(given: str | bytes | None) -> None:
    made = request_id(given)
    assert made != given
    assert len(made) == 32
    assert made != request_id(given)


def test_a_message_that_repeats_the_request_is_withheld_and_another_is_kept() -> None:
    private = b"\x0a\x20Please summarise my medical record"
    assert "medical" not in without_private("cannot parse 'my medical record'", private)
    assert without_private("CUDA out of memory", private) == "CUDA out of memory"
    assert without_private("x" * 1000, private) == "x" * 400


def fails() -> None:
    try:
        dict[str, int]()["inner"]
    except KeyError as cause:
        raise ValueError("outer") from cause


def test_an_exception_is_described_with_its_causes_and_frames() -> None:
    with pytest.raises(ValueError, match="outer") as caught:
        fails()
    found = describe_exception(caught.value)
    assert found["error"] == ["ValueError: outer", "KeyError: 'inner'"]
    assert any("test_validation_and_logs.py" in frame and "in fails" in frame for frame in found["traceback"])  # type: ignore[attr-defined]


def line_of(error: BaseException | None, message: str) -> dict[str, object]:
    """What the formatter writes of a record by a logger of gRPC, which has to be one line of JSON."""
    logged = None
    if error is not None:
        try:
            raise error
        except type(error):
            logged = sys.exc_info()
    record = logging.LogRecord("grpc._cython.cygrpc", logging.ERROR, __file__, 1, message, (), logged)
    written = JsonFormatter().format(record)
    assert "\n" not in written
    fields: dict[str, object] = json.loads(written)
    return fields


def test_what_a_library_logs_is_one_line_of_json_whatever_it_holds() -> None:
    line = line_of(ValueError('a "quoted"\nproblem'), 'it said "no"\nand went')
    assert line["level"] == "error"
    assert line["event"] == 'it said "no"\nand went'
    assert line["error"] == ['ValueError: a "quoted"\nproblem']
    assert any("in line_of" in frame for frame in line["traceback"])  # type: ignore[attr-defined]  # a list of frames
    assert line_of(None, "all is well")["event"] == "all is well"


def test_an_answer_to_a_client_that_just_left_is_no_error_of_the_server() -> None:
    line = line_of(cygrpc.ExecuteBatchError("Failed"), "ExecuteBatchError raised in core by servicer method [/a.B/C]")
    assert (line["level"], "traceback" in line) == ("info", False)
    assert "/a.B/C" in str(line["detail"])
