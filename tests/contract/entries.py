"""The services under the contract suite. Add a service by appending one `ServiceEntry`."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from tests.contract import tiny
from tests.contract.echo_proto import SERVICE, EchoReply, EchoRequest
from tests.contract.fake_judge import SLOW, shared_judge
from tests.contract.harness import RpcCase, ServiceEntry

from accord.api.common.v1 import common_pb2
from accord.api.feedback.v1 import feedback_pb2
from accord.api.policy.v1 import policy_pb2
from accord.api.reward.v1 import reward_pb2
from accord.api.trainer.v1 import trainer_pb2


def _echo_config(_: Path) -> dict[str, Any]:
    return {"warm_seconds": 0.5}


ECHO = ServiceEntry(
    name="echo",
    module="tests.contract.echo_server",
    config=_echo_config,
    services=(SERVICE,),
    quick=RpcCase(f"/{SERVICE}/Echo", lambda text: EchoRequest(prompts=[text]), EchoReply),
    slow=RpcCase(f"/{SERVICE}/Echo", lambda text: EchoRequest(prompts=[text], steps=400), EchoReply),
    empty=RpcCase(f"/{SERVICE}/Echo", lambda _: EchoRequest(), EchoReply, field="prompts"),
    compute_metric="accord_echo_steps_total",
    full_config=lambda _: {"warm_seconds": 3.0, "queue_items": 1},  # so that it is seen before it serves
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

POLICY_SERVICE = "accord.api.policy.v1.PolicyService"


def policy_config(_: Path) -> dict[str, Any]:
    """A policy server on the tiny model and the shared store, with room for two adapters."""
    return {"base_model": str(tiny.model_folder()), "artefacts": tiny.store().uri, "threads": 1, "max_adapter_bytes": 2 * tiny.policy_bytes()}


def _prompt(text: str) -> common_pb2.Prompt:
    turn = common_pb2.ChatMessage(role=common_pb2.ROLE_USER, content=text)
    return common_pb2.Prompt(messages=common_pb2.ChatMessages(messages=[turn]))


_SLOW_PROMPTS = 4
"""Each fills a batch: the quickest machine seen took .4 s for one, which a deadline of half a second must end."""


def _generate(text: str, *, n: int, max_tokens: int, prompts: int = 1) -> policy_pb2.GenerateRequest:
    sampling = policy_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return policy_pb2.GenerateRequest(items=[policy_pb2.GenerateItem(prompt=_prompt(text), n=n, sampling=sampling)] * prompts)


POLICY = ServiceEntry(
    name="policy",
    module="accord.policy",
    config=policy_config,
    services=(POLICY_SERVICE, "accord.api.policy.v1.PolicyAdminService"),
    quick=RpcCase(f"/{POLICY_SERVICE}/Generate", lambda text: _generate(text, n=1, max_tokens=2), policy_pb2.GenerateResponse),
    slow=RpcCase(
        f"/{POLICY_SERVICE}/Generate", lambda text: _generate(text, n=32, max_tokens=400, prompts=_SLOW_PROMPTS), policy_pb2.GenerateResponse
    ),
    empty=RpcCase(f"/{POLICY_SERVICE}/Generate", lambda _: policy_pb2.GenerateRequest(), policy_pb2.GenerateResponse, field="items"),
    compute_metric="accord_policy_decode_steps_total",
    full_config=lambda folder: {**policy_config(folder), "max_queue_items": _SLOW_PROMPTS},
)

REWARD_SERVICE = "accord.api.reward.v1.RewardService"
_SLOW_SCORES = 400


def reward_config(_: Path) -> dict[str, Any]:
    """A reward server on the tiny model and the shared store, with room for two reward models."""
    return {"base_model": str(tiny.model_folder()), "artefacts": tiny.store().uri, "threads": 1, "max_loaded_models": 2}


def _score(text: str, *, items: int, response: str) -> reward_pb2.ScoreRequest:
    item = reward_pb2.ScoreItem(prompt=_prompt(text), response=common_pb2.Response(text=response))
    return reward_pb2.ScoreRequest(items=[item] * items, reward_model=reward_pb2.RewardModelSelector(members=[f"adapters/{tiny.REWARD_MODEL}"]))


REWARD = ServiceEntry(
    name="reward",
    module="accord.reward",
    config=reward_config,
    services=(REWARD_SERVICE,),
    quick=RpcCase(f"/{REWARD_SERVICE}/Score", lambda text: _score(text, items=1, response="yes"), reward_pb2.ScoreResponse),
    slow=RpcCase(f"/{REWARD_SERVICE}/Score", lambda text: _score(text, items=_SLOW_SCORES, response="x" * 300), reward_pb2.ScoreResponse),
    empty=RpcCase(f"/{REWARD_SERVICE}/Score", lambda text: _score(text, items=0, response=""), reward_pb2.ScoreResponse, field="items"),
    compute_metric="accord_reward_tokens_total",
    full_config=lambda folder: {**reward_config(folder), "max_queue_items": _SLOW_SCORES},
)

TRAINER_SERVICE = "accord.api.trainer.v1.TrainerService"


def trainer_config(folder: Path) -> dict[str, Any]:
    """A trainer with a registry and runs of its own below the folder, on the tiny model and the shared store."""
    return {
        "runs": str(folder / "runs"), "database": f"sqlite:///{folder / 'registry.sqlite'}", "artefacts": tiny.store().uri,
        "base_model": str(tiny.model_folder()), "threads": 1, "poll_seconds": 0.05,
    }  # fmt: skip


def _sft(data: trainer_pb2.DataSpec) -> trainer_pb2.RunSpec:
    return trainer_pb2.RunSpec(adapter="entry", steps=1, sft=trainer_pb2.SftSpec(data=data))


def _new_run(text: str) -> trainer_pb2.CreateRunRequest:
    spec = _sft(trainer_pb2.DataSpec(uri=str(tiny.small_dataset())))
    return trainer_pb2.CreateRunRequest(request_id=text, spec=spec, validate_only=True)


TRAINER = ServiceEntry(
    name="trainer",
    module="accord.trainer",
    config=trainer_config,
    services=(TRAINER_SERVICE,),
    quick=RpcCase(f"/{TRAINER_SERVICE}/CreateRun", _new_run, trainer_pb2.CreateRunResponse),
    slow=RpcCase(
        f"/{TRAINER_SERVICE}/PlanRun",
        lambda text: trainer_pb2.PlanRunRequest(spec=_sft(trainer_pb2.DataSpec(uri=str(tiny.slow_dataset()), split=text))),
        trainer_pb2.PlanRunResponse,
    ),
    quick_start=True,
)

ENTRIES: list[ServiceEntry] = [ECHO, FEEDBACK, POLICY, REWARD, TRAINER]
