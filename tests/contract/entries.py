"""The services under the contract suite. Add a service by appending one `ServiceEntry`."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from tests.contract.echo_proto import SERVICE, EchoReply, EchoRequest
from tests.contract.fake_judge import SLOW, shared_judge
from tests.contract.harness import RpcCase, ServiceEntry

from accord.api.common.v1 import common_pb2
from accord.api.feedback.v1 import feedback_pb2


def _echo_config(_: Path) -> dict[str, Any]:
    return {"warm_seconds": 0.5}


ECHO = ServiceEntry(
    name="echo",
    module="tests.contract.echo_server",
    config=_echo_config,
    services=(SERVICE,),
    quick=RpcCase(f"/{SERVICE}/Echo", lambda text: EchoRequest(prompts=[text]), EchoReply),
    slow=RpcCase(f"/{SERVICE}/Echo", lambda text: EchoRequest(prompts=[text], steps=200), EchoReply),
    empty=RpcCase(f"/{SERVICE}/Echo", lambda _: EchoRequest(), EchoReply, field="prompts"),
    compute_metric="accord_echo_steps_total",
    full_config=lambda folder: {**_echo_config(folder), "queue_items": 1},
)

FEEDBACK_SERVICE = "accord.api.feedback.v1.FeedbackService"


def feedback_config(folder: Path) -> dict[str, Any]:
    """A feedback server over the shared fake judge."""
    return {"policy": shared_judge().address, "ledger": str(folder / "ledger.sqlite"), "jobs": str(folder / "jobs")}


def _pair(text: str, response_b: str) -> feedback_pb2.Pair:
    turn = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content=text)
    return feedback_pb2.Pair(
        task=feedback_pb2.TASK_CONVERSATION,
        prompt=common_pb2.ChatMessages(messages=[turn]),
        response_a=text,
        response_b=response_b,
    )


def _slow_pair(text: str) -> feedback_pb2.LabelPairRequest:
    """A pair that the judge takes its time over, another one each time, so that the ledger has no answer."""
    return feedback_pb2.LabelPairRequest(pair=_pair(text, f"{SLOW} {uuid.uuid4()}"))


FEEDBACK = ServiceEntry(
    name="feedback",
    module="accord.feedback",
    config=feedback_config,
    services=(FEEDBACK_SERVICE,),
    quick=RpcCase(
        f"/{FEEDBACK_SERVICE}/LabelPair",
        lambda text: feedback_pb2.LabelPairRequest(pair=_pair(text, "another response")),
        feedback_pb2.LabelPairResponse,
    ),
    slow=RpcCase(f"/{FEEDBACK_SERVICE}/LabelPair", _slow_pair, feedback_pb2.LabelPairResponse),
    empty=RpcCase(f"/{FEEDBACK_SERVICE}/LabelPairs", lambda _: feedback_pb2.LabelPairsRequest(), feedback_pb2.LabelPairsResponse, field="pairs"),
    compute_metric="accord_feedback_judge_calls_total",
    full_config=lambda folder: {**feedback_config(folder), "max_queue_pairs": 1},
    quick_start=True,
)

ENTRIES: list[ServiceEntry] = [ECHO, FEEDBACK]
