"""Bad input to the policy, reward and trainer servers: the right code, and a message that names the field and says what is allowed."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.contract import tiny
from tests.contract.entries import POLICY, REWARD, TRAINER
from tests.contract.harness import ServerProcess, ServiceEntry

from accord.api.common.v1 import common_pb2
from accord.api.policy.v1 import policy_pb2, policy_pb2_grpc
from accord.api.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from accord.artefacts.store import ArtefactStore
from accord.client.messages import EmptyPrompt, TokenIds
from accord.client.policy import GenerateItem, LogprobsItem, PolicyClient, Sampling
from accord.client.reward import RewardClient, RewardModel, ScoreItem
from accord.client.trainer import TrainerClient
from accord.errors import (
    AccordError,
    DataLossError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from accord.rpc.channels import ChannelConfig
from accord.rpc.status import from_rpc_error
from accord.rpc.stubs import guard_stub
from accord.runspec import RunSpec, parse_spec
from accord.text.chat import Message

MODEL = f"adapters/{tiny.REWARD_MODEL}"
MEGABYTE = "x" * 1_000_000
AT_ONCE_SECONDS = 120.0  # most of it for a server that imports torch on a slow machine; downloads are off, so nothing waits for a network
HUB_NAME = "nobody-has-this/no-such-model"
Shared = Callable[[ServiceEntry], ServerProcess]


@pytest.fixture(scope="module")
def policy(shared_server: Shared) -> Iterator[PolicyClient]:
    with PolicyClient(ChannelConfig(address=shared_server(POLICY).address, attempts=1)) as client:
        yield client


@pytest.fixture(scope="module")
def reward(shared_server: Shared) -> Iterator[RewardClient]:
    with RewardClient(ChannelConfig(address=shared_server(REWARD).address, attempts=1)) as client:
        yield client


@pytest.fixture(scope="module")
def trainer(shared_server: Shared) -> Iterator[TrainerClient]:
    with TrainerClient(ChannelConfig(address=shared_server(TRAINER).address, attempts=1)) as client:
        yield client


def refusal(call: Callable[[], Any]) -> AccordError:
    """What a call is refused with, or else its first item."""
    try:
        reply = call()
    except AccordError as error:
        return error
    error = reply.results[0].error
    assert isinstance(error, AccordError), "it was taken"
    return error


def assert_is(error: AccordError, error_class: type[AccordError], field: str | None, *texts: str) -> None:
    assert type(error) is error_class, repr(error)
    assert error.field == field, repr(error)
    for text in texts:
        assert text in error.message, error.message
    if field:
        assert field in str(error)


def item(text: str = "hello", **sampling: Any) -> GenerateItem:
    return GenerateItem(tiny.user(text), Sampling(**{"max_tokens": 2, **sampling}))


# Prompts and sampling: (what is asked, class, field, what the message says)

GENERATIONS: list[tuple[str, list[GenerateItem], type[AccordError], str, tuple[str, ...]]] = [
    ("empty batch", [], InvalidArgumentError, "items", ("at least 1",)),
    ("too large batch", [item()] * 513, InvalidArgumentError, "items", ("no more than 512",)),
    ("no message", [GenerateItem(())], InvalidArgumentError, "items[0].prompt.messages.messages", ("at least 1",)),
    ("empty message", [item("")], InvalidArgumentError, "items[0].prompt.messages.messages[0].content", ("at least 1",)),
    ("empty text", [GenerateItem("")], InvalidArgumentError, "items[0].prompt.text", ("at least 1",)),
    ("no token ids", [GenerateItem(TokenIds(()))], InvalidArgumentError, "items[0].prompt.token_ids.ids", ("at least one",)),
    ("empty prompt", [GenerateItem(EmptyPrompt())], InvalidArgumentError, "items[0].prompt", ("messages, text or token_ids",)),
    ("NUL", [item("a\x00b")], InvalidArgumentError, "items[0].prompt.messages[0].content", ("NUL", "position 1")),
    ("NUL in text", [GenerateItem("\x00")], InvalidArgumentError, "items[0].prompt.text", ("NUL", "position 0")),
    ("lone surrogate", [item("a\ud800")], InvalidArgumentError, "messages[0].content", ("lone surrogate", "position 1")),
    ("unknown role", [GenerateItem((Message("robot", "hi"),))], InvalidArgumentError, "messages[0].role", ("'robot'", "system, user, assistant")),  # type: ignore[arg-type]
    (
        "ends with a reply",
        [GenerateItem((*tiny.user("hi"), Message("assistant", "ho")))],
        InvalidArgumentError,
        "items[0].prompt.messages",
        ("assistant's turn", "must end with the user's"),
    ),
    ("1 MB prompt", [item(MEGABYTE)], InvalidArgumentError, "items[0].prompt.messages", ("1000000 bytes", "at most 262144")),
    ("1 MB text", [GenerateItem(MEGABYTE)], InvalidArgumentError, "items[0].prompt.text", ("1000000 bytes", "at most 262144")),
    ("over the context", [item("x" * 600)], OutOfRangeError, "items[0].prompt", ("at most 511",)),
    ("ids over the context", [GenerateItem(TokenIds((5,) * 512))], OutOfRangeError, "items[0].prompt", ("512 tokens", "at most 511")),
    ("unknown token", [GenerateItem(TokenIds((259,)))], InvalidArgumentError, "items[0].prompt.token_ids.ids[0]", ("259", "vocabulary of 259")),
    ("negative temperature", [item(temperature=-0.5)], InvalidArgumentError, "items[0].sampling.temperature", ("greater than or equal to 0",)),
    ("NaN temperature", [item(temperature=math.nan)], InvalidArgumentError, "items[0].sampling.temperature", ("finite",)),
    ("infinite temperature", [item(temperature=math.inf)], InvalidArgumentError, "items[0].sampling.temperature", ("less than or equal to 10",)),
    ("hot", [item(temperature=11)], InvalidArgumentError, "items[0].sampling.temperature", ("less than or equal to 10",)),
    ("all but greedy", [item(temperature=1e-30)], InvalidArgumentError, "items[0].sampling.temperature", ("at least 1e-06", "0 where greedy")),
    ("top_p 1.5", [item(top_p=1.5)], InvalidArgumentError, "items[0].sampling.top_p", ("less than or equal to 1",)),
    ("top_p 0", [item(top_p=0)], InvalidArgumentError, "items[0].sampling.top_p", ("greater than 0",)),
    ("top_k", [item(top_k=100_001)], InvalidArgumentError, "items[0].sampling.top_k", ("100000",)),
    ("negative top_k", [item(top_k=-1)], InvalidArgumentError, "items[0].sampling.top_k", ("-1", "from 0 to 4294967295")),
    ("min_p", [item(min_p=-0.1)], InvalidArgumentError, "items[0].sampling.min_p", ("greater than or equal to 0",)),
    ("penalty 0", [item(repetition_penalty=0)], InvalidArgumentError, "items[0].sampling.repetition_penalty", ("greater than 0",)),
    ("penalty 10.5", [item(repetition_penalty=10.5)], InvalidArgumentError, "items[0].sampling.repetition_penalty", ("less than or equal to 10",)),
    ("max_tokens 0", [item(max_tokens=0)], InvalidArgumentError, "items[0].sampling.max_tokens", ("greater than or equal to 1",)),
    ("max_tokens", [item(max_tokens=8193)], InvalidArgumentError, "items[0].sampling.max_tokens", ("less than or equal to 8192",)),
    ("n 0", [replace(item(), n=0)], InvalidArgumentError, "items[0].n", ("greater than or equal to 1",)),
    ("n 129", [replace(item(), n=129)], InvalidArgumentError, "items[0].n", ("less than or equal to 128",)),
    ("n over the server's rows", [replace(item(), n=33)], InvalidArgumentError, "items[0].n", ("n is 33", "at most 32")),
    ("n -1", [replace(item(), n=-1)], InvalidArgumentError, "items[0].n", ("-1", "from 0 to 4294967295")),
    ("seed too large", [item(seed=2**64)], InvalidArgumentError, "items[0].sampling.seed", (str(2**64), f"from 0 to {2**64 - 1}")),
    ("negative seed", [item(seed=-1)], InvalidArgumentError, "items[0].sampling.seed", ("-1", "from 0 to")),
    ("empty stop string", [item(stop=("fine", ""))], InvalidArgumentError, "items[0].sampling.stop[1]", ("at least 1",)),
    ("long stop string", [item(stop=("x" * 257,))], InvalidArgumentError, "items[0].sampling.stop[0]", ("256",)),
    ("many stop strings", [item(stop=("x",) * 17)], InvalidArgumentError, "items[0].sampling.stop", ("16",)),
    ("stop token", [item(stop_token_ids=(2, 999))], InvalidArgumentError, "items[0].sampling.stop_token_ids[1]", ("vocabulary of 259",)),
    ("long item id", [replace(item(), item_id="x" * 257)], InvalidArgumentError, "items[0].item_id", ("256",)),
]


@pytest.mark.parametrize(("items", "error_class", "field", "texts"), [case[1:] for case in GENERATIONS], ids=[case[0] for case in GENERATIONS])
def test_a_bad_generation(
    policy: PolicyClient, items: list[GenerateItem], error_class: type[AccordError], field: str, texts: tuple[str, ...]
) -> None:
    assert_is(refusal(lambda: policy.generate(items)), error_class, field, *texts)
    try:
        streamed = [event.error for event in policy.generate_stream(items)]
    except AccordError as error:
        streamed = [error]
    assert streamed[0] is not None
    assert_is(streamed[0], error_class, field, *texts)


def test_the_largest_numbers_that_are_allowed_are_taken(policy: PolicyClient) -> None:
    sampling = Sampling(
        max_tokens=8192, temperature=10, top_p=1, top_k=100_000, min_p=1, repetition_penalty=10, seed=2**64 - 1, stop=("x" * 256,) * 16
    )
    (result,) = policy.generate([GenerateItem(tiny.user("hello"), sampling)]).results
    assert result.error is None
    assert result.samples[0].seed == 2**64 - 1


@pytest.mark.parametrize(
    ("items", "options", "error_class", "field", "text"),
    [
        ([], {}, InvalidArgumentError, "items", "at least 1"),
        ([LogprobsItem(tiny.user("q"), ())], {}, InvalidArgumentError, "items[0].responses", "at least 1"),
        ([LogprobsItem(tiny.user("q"), ("x",) * 65)], {}, InvalidArgumentError, "items[0].responses", "64"),
        ([LogprobsItem(tiny.user("q"), ("",))], {}, InvalidArgumentError, "items[0].responses[0].text", "at least one"),
        ([LogprobsItem(tiny.user("q"), ("\x00",))], {}, InvalidArgumentError, "items[0].responses[0].text", "NUL"),
        ([LogprobsItem(tiny.user("q"), ("x" * 500,))], {}, OutOfRangeError, "items[0].responses[0]", "at most 512"),
        ([LogprobsItem(tiny.user("q"), (MEGABYTE,))], {}, InvalidArgumentError, "items[0].responses[0].text", "at most 262144"),
        ([LogprobsItem(tiny.user("q"), ("x",))], {"temperature": 0}, InvalidArgumentError, "temperature", "greater than 0"),
        ([LogprobsItem(tiny.user("q"), ("x",))], {"temperature": 1e-30}, InvalidArgumentError, "temperature", "at least 1e-06"),
        ([LogprobsItem(tiny.user("q"), ("x",))], {"temperature": math.nan}, InvalidArgumentError, "temperature", "finite"),
        ([LogprobsItem(tiny.user("q"), ("x",))], {"adapter": "adapters/nobody"}, NotFoundError, "adapter", "adapters/nobody"),
    ],
)
def test_bad_logprobs(
    policy: PolicyClient, items: list[LogprobsItem], options: dict[str, Any], error_class: type[AccordError], field: str, text: str
) -> None:
    assert_is(refusal(lambda: policy.compute_logprobs(items, **options)), error_class, field, text)


@pytest.mark.parametrize(
    ("items", "model", "error_class", "field", "text"),
    [
        ([], MODEL, InvalidArgumentError, "items", "at least 1"),
        ([ScoreItem(tiny.user(""), "x")], MODEL, InvalidArgumentError, "items[0].prompt.messages.messages[0].content", "at least 1"),
        ([ScoreItem(EmptyPrompt(), "x")], MODEL, InvalidArgumentError, "items[0].prompt", "messages, text or token_ids"),
        ([ScoreItem(tiny.user("\x00"), "x")], MODEL, InvalidArgumentError, "items[0].prompt.messages[0].content", "NUL"),
        ([ScoreItem(tiny.user(MEGABYTE), "x")], MODEL, InvalidArgumentError, "items[0].prompt.messages", "at most 262144"),
        ([ScoreItem(tiny.user("x"), MEGABYTE)], MODEL, InvalidArgumentError, "items[0].response.text", "at most 262144"),
        ([ScoreItem(tiny.user("x" * 600), "x")], MODEL, OutOfRangeError, "items[0]", "at most 400"),
        ([ScoreItem(tiny.user("x"), TokenIds((999,)))], MODEL, InvalidArgumentError, "items[0].response.token_ids.ids[0]", "vocabulary of 259"),
        ([ScoreItem(tiny.user("x"), TokenIds(()))], MODEL, InvalidArgumentError, "items[0].response.token_ids.ids", "at least one"),
        ([ScoreItem(tiny.user("x"), "x")], RewardModel(()), InvalidArgumentError, "reward_model.members", "at least 1"),
        ([ScoreItem(tiny.user("x"), "x")], RewardModel((MODEL,) * 17), InvalidArgumentError, "reward_model.members", "16"),
        ([ScoreItem(tiny.user("x"), "x")], RewardModel((MODEL,), -1), InvalidArgumentError, "reward_model.std_coefficient", "equal to 0"),
        ([ScoreItem(tiny.user("x"), "x")], RewardModel((MODEL,), math.nan), InvalidArgumentError, "reward_model.std_coefficient", "finite"),
        ([ScoreItem(tiny.user("x"), "x")], RewardModel((MODEL, "")), InvalidArgumentError, "reward_model.members[1]", "at least 1"),
        ([ScoreItem(tiny.user("x"), "x")], "adapters/nobody", NotFoundError, "reward_model.members[0]", "adapters/nobody"),
        ([ScoreItem(tiny.user("x"), "x")], "adapters/../../etc", InvalidArgumentError, "reward_model.members[0]", "adapters/{adapter}"),
    ],
)
def test_a_bad_score(
    reward: RewardClient, items: list[ScoreItem], model: RewardModel | str, error_class: type[AccordError], field: str, text: str
) -> None:
    assert_is(refusal(lambda: reward.score(items, model)), error_class, field, text)


# Adapters


@pytest.mark.parametrize(
    ("name", "error_class", "text"),
    [
        ("adapters/nobody", NotFoundError, f"adapters/{tiny.POLICIES[0]}"),
        (f"adapters/{tiny.POLICIES[0]}/versions/99", NotFoundError, f"adapters/{tiny.POLICIES[0]}/versions/1"),
        (tiny.POLICIES[0], InvalidArgumentError, "adapters/{adapter}/versions/{n}"),
        ("adapters/../../etc", InvalidArgumentError, "adapters/{adapter}/versions/{n}"),
        ("adapters/../../../etc/passwd", InvalidArgumentError, "adapters/{adapter}/versions/{n}"),
        ("/etc/passwd", InvalidArgumentError, "adapters/{adapter}/versions/{n}"),
        ("file:///etc", InvalidArgumentError, "adapters/{adapter}/versions/{n}"),
        ("adapters/x/versions/../../../../etc", InvalidArgumentError, "adapters/{adapter}/versions/{n}"),
        (f"adapters/{tiny.POLICIES[0]}/versions/01", InvalidArgumentError, "adapters/{adapter}/versions/{n}"),
        ("adapters/" + "x" * 300, InvalidArgumentError, "256"),
    ],
)
def test_an_adapters_name(policy: PolicyClient, name: str, error_class: type[AccordError], text: str) -> None:
    assert_is(refusal(lambda: policy.generate([item()], adapter=name)), error_class, "adapter", text)
    assert_is(refusal(lambda: policy.load_adapter(name)), error_class, "name", text)
    with pytest.raises(error_class) as caught:
        list(policy.generate_stream([item()], adapter=name))
    assert_is(caught.value, error_class, "adapter", text)


class Explosive:
    """What runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


def damaged(name: str, change: Callable[[Path], None]) -> str:
    """A version of the shared store whose folder something has changed since it was published."""
    version = tiny.publish(tiny.store(), name, seed=41)
    change(tiny.store().fetch(version))
    return version


def flip_a_byte(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def cut_short(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def lose_the_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def cut_the_manifest_short(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-10])


def link_the_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    outside = folder.parents[3] / f"outside-{folder.parents[1].name}"
    shutil.move(path, outside)
    path.symlink_to(outside)


def link_the_version(folder: Path) -> None:
    outside = folder.parents[3] / f"outside-{folder.parents[1].name}"
    shutil.move(folder, outside)
    folder.symlink_to(outside)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (flip_a_byte, "adapter_model.safetensors has sha256"),
        (cut_short, "adapter_model.safetensors has sha256"),
        (lose_the_weights, "adapter_model.safetensors"),
        (cut_the_manifest_short, "manifest"),
        (link_the_weights, "is a link"),
        (link_the_version, "is a link"),
    ],
)
def test_a_damaged_adapter_is_data_loss_and_the_server_goes_on(policy: PolicyClient, change: Callable[[Path], None], text: str) -> None:
    version = damaged(f"damaged-by-{change.__name__.replace('_', '-')}", change)
    assert_is(refusal(lambda: policy.generate([item()], adapter=version)), DataLossError, "adapter", text)
    assert_is(refusal(lambda: policy.load_adapter(version)), DataLossError, "name", text)
    assert version not in [info.name for info in policy.list_adapters()]
    assert policy.generate([item()], adapter=f"adapters/{tiny.POLICIES[0]}").results[0].samples


def test_pickled_weights_are_never_read(policy: PolicyClient, tmp_path: Path) -> None:
    """Neither beside the others, nor in their place under the right digest, nor published at all."""
    marker = tmp_path / "pickle-has-run"
    bomb = pickle.dumps(Explosive(marker))

    def put_beside(folder: Path) -> None:
        (folder / "adapter_model.bin").write_bytes(bomb)

    version = damaged("with-pickle-beside", put_beside)
    assert_is(refusal(lambda: policy.generate([item()], adapter=version)), DataLossError, "adapter", "adapter_model.bin")

    folder = tmp_path / "in-disguise"
    shutil.copytree(tiny.store().fetch(f"adapters/{tiny.POLICIES[0]}/versions/1"), folder, ignore=shutil.ignore_patterns("manifest.json"))
    (folder / "adapter_model.safetensors").write_bytes(bomb)
    digests = policy.model_info().digests
    version = tiny.store().publish("pickle-in-disguise", folder, kind="policy", base_model_digest=digests.base_model)
    assert_is(refusal(lambda: policy.generate([item()], adapter=version)), DataLossError, "adapter", "cannot be read")

    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidArgumentError, match=r"adapter_model\.bin"):
        tiny.store().publish("plain-pickle", folder, kind="policy", base_model_digest=digests.base_model)

    manifest = json.loads((tiny.store().fetch(f"adapters/{tiny.POLICIES[0]}/versions/1") / "manifest.json").read_text())
    named = Path(tiny.store().uri) / "adapters" / "names-a-pickle" / "versions" / "1"
    shutil.copytree(folder, named)
    entry = manifest["files"].pop("adapter_model.safetensors")
    manifest |= {"name": "adapters/names-a-pickle/versions/1", "files": {**manifest["files"], "adapter_model.bin": entry}}
    (named / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, separators=(",", ":")) + "\n")
    assert_is(refusal(lambda: policy.generate([item()], adapter="adapters/names-a-pickle/versions/1")), DataLossError, "adapter", "adapter_model.bin")
    assert not marker.exists()
    assert pickle.loads(bomb) is None
    assert marker.exists(), "the bomb was no bomb"


# What is no message, no enum value, no number


def send(untyped_channel: grpc.Channel, method: str, raw: bytes) -> None:
    channel: Any = untyped_channel
    if method.endswith(("GenerateStream", "WatchRun")):
        list(channel.unary_stream(method)(raw, timeout=10))
    else:
        channel.unary_unary(method)(raw, timeout=10)


def test_frames_that_are_no_messages(shared_server: Shared) -> None:
    methods: list[tuple[ServiceEntry, str]] = [
        (POLICY, "/accord.api.policy.v1.PolicyService/Generate"),
        (POLICY, "/accord.api.policy.v1.PolicyService/GenerateStream"),
        (POLICY, "/accord.api.policy.v1.PolicyService/ComputeLogprobs"),
        (POLICY, "/accord.api.policy.v1.PolicyAdminService/PauseGeneration"),
        (REWARD, "/accord.api.reward.v1.RewardService/Score"),
        (REWARD, "/accord.api.reward.v1.RewardService/Compare"),
        (TRAINER, "/accord.api.trainer.v1.TrainerService/CreateRun"),
        (TRAINER, "/accord.api.trainer.v1.TrainerService/WatchRun"),
    ]
    for entry, method in methods:
        with shared_server(entry).channel() as channel:
            for raw in (b"\xff\xff\xff\xff", b"\x0a\x7f"):  # no tag; a length without its bytes
                with pytest.raises(grpc.RpcError) as caught:
                    send(channel, method, raw)
                assert_is(from_rpc_error(caught.value), InvalidArgumentError, None, f"{len(raw)} bytes are not a message")


def test_values_that_an_enum_does_not_have(shared_server: Shared) -> None:
    odd_turn: Any = common_pb2.ChatMessage(role=99, content="hi")  # type: ignore[arg-type]
    prompt = common_pb2.Prompt(messages=common_pb2.ChatMessages(messages=[odd_turn]))
    with shared_server(POLICY).channel() as channel:
        admin = guard_stub(policy_pb2_grpc.PolicyAdminServiceStub(channel), 10)
        for mode in (0, 99):
            request = policy_pb2.PauseGenerationRequest(mode=mode)  # type: ignore[arg-type]
            assert_is(refusal(lambda request=request: admin.PauseGeneration(request)), InvalidArgumentError, "mode")
        stub = guard_stub(policy_pb2_grpc.PolicyServiceStub(channel), 10)
        request = policy_pb2.GenerateRequest(items=[policy_pb2.GenerateItem(prompt=prompt)])
        assert_is(refusal(lambda: stub.Generate(request)), InvalidArgumentError, "items[0].prompt.messages.messages[0].role", "defined enum")
        nothing = policy_pb2.GenerateRequest(items=[policy_pb2.GenerateItem()])
        assert_is(refusal(lambda: stub.Generate(nothing)), InvalidArgumentError, "items[0].prompt", "required")
        formless = policy_pb2.GenerateRequest(items=[policy_pb2.GenerateItem(prompt=common_pb2.Prompt())])
        assert_is(refusal(lambda: stub.Generate(formless)), InvalidArgumentError, "items[0].prompt.form", "required")
        page = policy_pb2.ListAdaptersRequest(page_token="zz")
        assert_is(refusal(lambda: admin.ListAdapters(page)), InvalidArgumentError, "page_token", "not one that this service gave")
    with shared_server(TRAINER).channel() as channel:
        runs = guard_stub(trainer_pb2_grpc.TrainerServiceStub(channel), 10)
        listing = trainer_pb2.ListRunsRequest(states=[99])  # type: ignore[list-item]
        assert_is(refusal(lambda: runs.ListRuns(listing)), InvalidArgumentError, "states[0]", "defined enum")
        large = trainer_pb2.ListRunsRequest(page_size=501)
        assert_is(refusal(lambda: runs.ListRuns(large)), InvalidArgumentError, "page_size", "less than or equal to 500")


def test_a_message_over_the_limit(policy: PolicyClient) -> None:
    error = refusal(lambda: policy.generate([item(MEGABYTE + "x" * 100_000)]))
    assert type(error) is ResourceExhaustedError
    assert "1048576" in error.message


def test_an_item_that_comes_twice_in_a_stream(reward: RewardClient) -> None:
    twice = [ScoreItem(tiny.user("q"), "x", "one")] * 2
    assert_is(refusal(lambda: list(reward.score_stream(iter(twice), MODEL))), InvalidArgumentError, "item.item_id", "'one' came twice")


# Runs


def spec(**fields: Any) -> RunSpec:
    return parse_spec({"adapter": "bad-input", "steps": 1, "sft": {"data": {"uri": str(tiny.small_dataset())}}, **fields})


def ppo(**fields: Any) -> RunSpec:
    data = {"uri": str(tiny.small_dataset())}
    return parse_spec({"adapter": "bad-input", "steps": 1, "max_prompt_tokens": 200, "ppo": {"data": data, "reward_model": MODEL, **fields}})


def grpo(**fields: Any) -> RunSpec:
    data = {"uri": str(tiny.small_dataset())}
    return parse_spec({"adapter": "bad-input", "steps": 1, "max_prompt_tokens": 200, "grpo": {"data": data, "reward_model": MODEL, **fields}})


def data(uri: str, **fields: Any) -> dict[str, Any]:
    return {"sft": {"data": {"uri": uri, **fields}}}


SPECS: list[tuple[str, Callable[[], RunSpec], type[AccordError], str, tuple[str, ...]]] = [
    ("missing file", lambda: spec(**data("/nowhere/rows.jsonl")), NotFoundError, "spec.sft.data.uri", ("/nowhere/rows.jsonl",)),
    (
        "missing held-out file",
        lambda: spec(sft={"data": {"uri": str(tiny.small_dataset())}, "eval_data": {"uri": "/nowhere/held-out.jsonl"}}),
        NotFoundError, "spec.sft.eval_data.uri", ("/nowhere/held-out.jsonl",),
    ),
    ("missing text", lambda: ppo(ptx_coefficient=1, ptx_data={"uri": "/nowhere/text.jsonl"}), NotFoundError, "spec.ppo.ptx_data.uri", ("text.jsonl",)),
    ("no known file", lambda: spec(**data("/etc/passwd")), InvalidArgumentError, "spec.sft.data.uri", (".jsonl", "hub:NAME")),
    ("unknown sample", lambda: spec(**data("sample:poetry")), NotFoundError, "spec.sft.data.uri", ("sample:summarization",)),
    ("hub without a name", lambda: spec(**data("hub:")), InvalidArgumentError, "spec.sft.data.uri", ("hub:Anthropic/hh-rlhf",)),
    ("unknown parent", lambda: spec(parent_adapter="adapters/nobody"), NotFoundError, "spec.parent_adapter", (tiny.POLICIES[0],)),
    ("parent outside", lambda: spec(parent_adapter="adapters/../../etc"), InvalidArgumentError, "spec.parent_adapter", ("adapters/{adapter}",)),
    (
        "another form than the parent's",
        lambda: spec(parent_adapter=f"adapters/{tiny.POLICIES[0]}", lora={"rank": 8, "alpha": 8}),
        InvalidArgumentError, "spec.lora.rank", (tiny.POLICIES[0], "has 4, not 8"),
    ),
    (
        "the last layer, from a parent on all",
        lambda: spec(parent_adapter=f"adapters/{tiny.POLICIES[0]}", lora={"rank": 4, "last_layers": 1}),
        InvalidArgumentError, "spec.lora.last_layers", ("has 0, not 1",),
    ),
    ("unknown reward model", lambda: ppo(reward_model="adapters/nobody"), NotFoundError, "spec.ppo.reward_model", ("adapters/nobody",)),
    ("another without its reward model", lambda: grpo(reward_model="adapters/nobody"), NotFoundError, "spec.grpo.reward_model", ("adapters/nobody",)),
    (
        "unknown adapter of a judge",
        lambda: grpo(reward_model="", judge_reward={"task": "conversation", "adapter": "adapters/nobody"}),
        NotFoundError, "spec.grpo.judge_reward.adapter", ("adapters/nobody",),
    ),
    (
        "unknown member",
        lambda: grpo(more_reward_models=["adapters/nobody"]),
        NotFoundError, "spec.grpo.more_reward_models[0]", ("adapters/nobody",),
    ),
    (
        "member named twice",
        lambda: ppo(more_reward_models=[MODEL]),
        InvalidArgumentError, "spec.ppo.more_reward_models[0]", ("named twice", MODEL),
    ),
    (
        "prompts that are not there",
        lambda: grpo(data={"uri": "/nowhere/prompts.jsonl"}),
        NotFoundError, "spec.grpo.data.uri", ("/nowhere/prompts.jsonl",),
    ),
    (
        "missing rows to evaluate",
        lambda: parse_spec({"evaluate": {"uri": "/nowhere/answers.jsonl"}}),
        NotFoundError, "spec.evaluate.uri", ("/nowhere/answers.jsonl",),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error_class", "field", "texts"), [case[1:] for case in SPECS], ids=[case[0] for case in SPECS])
def test_a_run_that_could_never_go_well_is_refused_before_it_starts(
    trainer: TrainerClient, make: Callable[[], RunSpec], error_class: type[AccordError], field: str, texts: tuple[str, ...]
) -> None:
    before = [run.name for run in trainer.list_runs()]
    assert_is(refusal(lambda: trainer.plan_run(make())), error_class, field, *texts)
    assert_is(refusal(lambda: trainer.create_run(make(), "bad")), error_class, field, *texts)
    assert [run.name for run in trainer.list_runs()] == before


def wire(**fields: Any) -> trainer_pb2.RunSpec:
    source = trainer_pb2.DataSpec(uri=str(tiny.small_dataset()))
    return trainer_pb2.RunSpec(**{"adapter": "bad-input", "steps": 1, "sft": trainer_pb2.SftSpec(data=source), **fields})


@pytest.mark.parametrize(
    ("make", "field", "texts"),
    [
        (lambda: trainer_pb2.RunSpec(adapter="x", steps=1), "spec.algorithm", ("required",)),
        (lambda: wire(adapter="Not/A name"), "spec.adapter", ("pattern",)),
        (lambda: wire(adapter=""), "spec", ("adapter", "required")),
        (lambda: wire(steps=0), "spec", ("steps", "at least 1")),
        (lambda: wire(steps=10_000_001), "spec.steps", ("10000000",)),
        (lambda: wire(lora=trainer_pb2.LoraSpec(rank=0)), "spec.lora.rank", ("greater than or equal to 1",)),
        (lambda: wire(lora=trainer_pb2.LoraSpec(alpha=-1)), "spec.lora.alpha", ("greater than 0",)),
        (lambda: wire(optimizer=trainer_pb2.OptimizerSpec(learning_rate=math.nan)), "spec.optimizer.learning_rate", ("finite",)),
        (lambda: wire(optimizer=trainer_pb2.OptimizerSpec(schedule="sawtooth")), "spec.optimizer.schedule", ("cosine",)),
        (lambda: wire(sft=trainer_pb2.SftSpec()), "spec.sft.data", ("required",)),
        (lambda: wire(sft=trainer_pb2.SftSpec(data=trainer_pb2.DataSpec())), "spec.sft.data.uri", ("at least 1",)),
        (lambda: wire(sft=None, dpo=_dpo(loss="sigmiod")), "spec.dpo.loss", ("sigmoid",)),
        (lambda: wire(sft=None, dpo=_dpo(label_smoothing=0.1)), "spec.dpo", ("label_smoothing 0.1 needs loss cdpo or robust",)),
        (lambda: wire(sft=None, ppo=_ppo(ptx_coefficient=1)), "spec.ppo", ("ptx_coefficient 1.0 needs ptx_data",)),
        (lambda: wire(sft=None, grpo=_grpo(loss_normalization="mean")), "spec.grpo.loss_normalization", ("constant",)),
        (lambda: wire(sft=None, batch_size=6, grpo=_grpo(group_size=4)), "spec", ("batch_size 6 must be a multiple of group_size 4",)),
        (lambda: wire(sft=None, ppo=_ppo(clip_range=1.5)), "spec.ppo.clip_range", ("less than 1",)),
        (lambda: wire(sft=None, ppo=_ppo(judge_reward=_judge())), "spec.ppo", ("exactly one of reward_model and judge_reward", "not both")),
        (lambda: wire(sft=None, ppo=_ppo(judge_reward=_judge(task="poetry"))), "spec.ppo.judge_reward.task", ("summarization",)),
        (lambda: wire(sft=None, grpo=_grpo(judge_reward=_judge(abstentions="mean"))), "spec.grpo.judge_reward.abstentions", ("lowest",)),
    ],
)
def test_a_specification_that_breaks_a_rule(
    shared_server: Shared, make: Callable[[], trainer_pb2.RunSpec], field: str, texts: tuple[str, ...]
) -> None:
    with shared_server(TRAINER).channel() as channel:
        stub = guard_stub(trainer_pb2_grpc.TrainerServiceStub(channel), 10)
        assert_is(refusal(lambda: stub.PlanRun(trainer_pb2.PlanRunRequest(spec=make()))), InvalidArgumentError, field, *texts)
        request = trainer_pb2.CreateRunRequest(request_id="bad", spec=make())
        assert_is(refusal(lambda: stub.CreateRun(request)), InvalidArgumentError, field, *texts)


def _dpo(**fields: Any) -> trainer_pb2.DpoSpec:
    return trainer_pb2.DpoSpec(data=trainer_pb2.DataSpec(uri=str(tiny.small_dataset())), **fields)


def _ppo(**fields: Any) -> trainer_pb2.PpoSpec:
    return trainer_pb2.PpoSpec(data=trainer_pb2.DataSpec(uri=str(tiny.small_dataset())), reward_model=MODEL, **fields)


def _judge(**fields: Any) -> trainer_pb2.JudgeRewardSpec:
    return trainer_pb2.JudgeRewardSpec(**{"task": "conversation", **fields})


def _grpo(**fields: Any) -> trainer_pb2.GrpoSpec:
    return trainer_pb2.GrpoSpec(data=trainer_pb2.DataSpec(uri=str(tiny.small_dataset())), reward_model=MODEL, **fields)


def test_a_request_id_is_needed_and_short(trainer: TrainerClient) -> None:
    assert_is(refusal(lambda: trainer.create_run(spec(), "")), InvalidArgumentError, "request_id", "at least 1")
    assert_is(refusal(lambda: trainer.create_run(spec(), "x" * 129)), InvalidArgumentError, "request_id", "128")


def test_rows_that_cannot_be_used_stop_a_strict_plan_at_their_line(trainer: TrainerClient, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n{"prompt": "c"}\nnot json\n{"prompt": "d", "response": "e"}\n')
    assert trainer.plan_run(spec(**data(str(path)))).rows == 2
    assert_is(refusal(lambda: trainer.plan_run(spec(**data(str(path), strict=True)))), InvalidArgumentError, "spec.sft.data.uri", "rows.jsonl:2")


def test_what_does_not_fit_into_a_request_is_refused_by_the_client(trainer: TrainerClient) -> None:
    assert_is(refusal(lambda: trainer.plan_run(spec(steps=2**40))), InvalidArgumentError, "spec", str(2**40))
    with pytest.raises(InvalidArgumentError) as caught:
        spec(seed=2**64)
    assert_is(caught.value, InvalidArgumentError, "seed", str(2**64 - 1))


# The hub, without a network


def test_a_data_set_of_the_hub_that_is_not_here_is_said_at_once(trainer: TrainerClient) -> None:
    began = time.monotonic()
    error = refusal(lambda: trainer.plan_run(spec(**data(f"hub:{HUB_NAME}")), timeout_seconds=AT_ONCE_SECONDS))
    assert time.monotonic() - began < AT_ONCE_SECONDS
    assert_is(error, FailedPreconditionError, "spec.sft.data.uri", HUB_NAME, "local hub cache", "ACCORD_ALLOW_DOWNLOAD=1")


@pytest.mark.parametrize(
    ("entry", "model", "texts"),
    [(POLICY, HUB_NAME, ("local hub cache", "hf download")), (REWARD, "/nowhere/model", ("does not exist",))],
    ids=["hub name", "missing folder"],
)
def test_a_model_that_is_not_here_ends_the_server_at_once_with_its_name(
    entry: ServiceEntry, model: str, texts: tuple[str, ...], tmp_path: Path
) -> None:
    began = time.monotonic()
    with ServerProcess(entry.module, {**entry.config(tmp_path), "base_model": model}, tmp_path, wait="nothing") as server:
        assert server.wait(AT_ONCE_SECONDS) == 1
        assert time.monotonic() - began < AT_ONCE_SECONDS
        (failed,) = [line for line in server.log_lines if line["event"] == "failed"]
        assert model in failed["reason"]
        assert all(text in failed["reason"] for text in texts), failed["reason"]
        assert "Traceback" not in server.log


# Configuration (an unknown key is in the suite that every service passes)


@pytest.mark.parametrize(
    ("entry", "values", "text"),
    [
        (POLICY, {"threads": 0}, "threads: input should be greater than or equal to 1, got 0"),
        (POLICY, {"max_batch_rows": "many"}, "max_batch_rows"),
        (REWARD, {"artefacts": ""}, "artefacts"),
        (TRAINER, {"max_running": 0}, "max_running: input should be greater than or equal to 1, got 0"),
        (TRAINER, {"endpoints": {"polcy": "x"}}, "endpoints.polcy: unknown key; did you mean policy?"),
    ],
    ids=lambda value: value.name if isinstance(value, ServiceEntry) else None,
)
def test_a_value_that_is_not_allowed_ends_the_server_with_one_line(entry: ServiceEntry, values: dict[str, Any], text: str, tmp_path: Path) -> None:
    with ServerProcess(entry.module, {**entry.config(tmp_path), **values}, tmp_path, wait="nothing") as server:
        assert server.wait(AT_ONCE_SECONDS) == 2
        assert len(server.log.strip().splitlines()) == 1
        assert text in server.log


def test_a_store_that_is_no_folder_is_said_when_it_is_used(tmp_path: Path) -> None:
    store = ArtefactStore(str(tmp_path / "empty"))
    with pytest.raises(NotFoundError, match="none"):
        store.resolve("adapters/nobody")
