"""One suite for the policy server whatever computes behind it: its own engine, a vLLM, a TGI (doubles in processes of their own)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.contract import tiny
from tests.contract.doubles.process import Double
from tests.contract.entries import POLICY, POLICY_SERVICE, policy_config
from tests.contract.harness import ServerProcess, eventually

from accord.client.policy import GenerateItem, LogprobsItem, PolicyClient, Sample, Sampling
from accord.errors import DeadlineExceededError, FailedPreconditionError, InvalidArgumentError, NotFoundError, OutOfRangeError, UnavailableError
from accord.rpc.channels import ChannelConfig, open_channel

BACKENDS = ("transformers", "vllm", "tgi")
FIRST, SECOND, _ = (f"adapters/{name}/versions/1" for name in tiny.POLICIES)
GREEDY = Sampling(temperature=0, max_tokens=24)
DRAWN = Sampling(temperature=1.0, max_tokens=16, seed=7)
PROMPTS = ("a", "What is a byte?", "ünïcödé 🌊", "tell me " * 9)


class Backend:
    """A server, its client, and the double behind it where there is one."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind = kind
        self.double: Double | None = None
        config = policy_config(folder)
        if kind != "transformers":
            adapters = [f"--adapter=first={tiny.store().fetch(FIRST)}", f"--adapter=second={tiny.store().fetch(SECOND)}"] if kind == "tgi" else []
            self.double = Double(kind, ["--model", str(tiny.model_folder()), *adapters], folder)
            names = {"adapters": {FIRST: "first", SECOND: "second"}} if kind == "tgi" else {}
            config |= {"backend": kind, "remote": {"url": self.double.url, "start_seconds": 5, "probe_seconds": 0.3, **names}}
        self.server = ServerProcess(POLICY.module, config, folder)

    def one(self, client: PolicyClient, text: str, sampling: Sampling = GREEDY, *, adapter: str = "", n: int = 1) -> tuple[Sample, ...]:
        (result,) = client.generate([GenerateItem(tiny.user(text), sampling, n)], adapter=adapter, timeout_seconds=30).results
        assert result.error is None, result.error
        return result.samples


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    made = Backend(request.param, tmp_path_factory.mktemp(request.param))
    with made.server:
        yield made
    if made.double is not None:
        made.double.kill()


@pytest.fixture(scope="module")
def client(backend: Backend) -> Iterator[PolicyClient]:
    with PolicyClient(ChannelConfig(address=backend.server.address, attempts=1)) as opened:
        yield opened


@pytest.mark.parametrize("adapter", ["", FIRST])
def test_greedy_is_what_transformers_generates(backend: Backend, client: PolicyClient, adapter: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny.model_folder())
    if adapter:
        model = PeftModel.from_pretrained(model, str(tiny.store().fetch(adapter)))
    tokenizer = AutoTokenizer.from_pretrained(tiny.model_folder())
    for text in PROMPTS:
        turns = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.inference_mode():
            expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, eos_token_id=2, pad_token_id=0)
        (sample,) = backend.one(client, text, adapter=adapter)
        assert sample.token_ids == tuple(expected[0, ids.shape[1] :].tolist())


def test_a_seed_gives_the_same_alone_and_among_others(backend: Backend, client: PolicyClient) -> None:
    alone = backend.one(client, PROMPTS[1], DRAWN, n=3)
    items = [GenerateItem(tiny.user(text), DRAWN, 3) for text in PROMPTS]
    among = client.generate(items, timeout_seconds=60).results[1].samples
    assert [sample.token_ids for sample in among] == [sample.token_ids for sample in alone]
    assert len({sample.token_ids for sample in alone}) == 3


def test_logprobs_sampled_and_given_are_those_of_transformers(backend: Backend, client: PolicyClient) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.model_folder()), str(tiny.store().fetch(SECOND)))

    def expected(prompt: tuple[int, ...], response: tuple[int, ...]) -> object:
        with torch.inference_mode():
            logprobs = model(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(dim=-1)
        return pytest.approx(logprobs[len(prompt) - 1 : -1].gather(1, torch.tensor(response)[:, None])[:, 0].tolist(), abs=1e-4)

    (result,) = client.generate([GenerateItem(tiny.user(PROMPTS[1]), DRAWN)], adapter=SECOND).results
    (sample,) = result.samples
    assert sample.logprobs == expected(result.prompt_token_ids, sample.token_ids)
    (given,) = client.compute_logprobs([LogprobsItem(tiny.user(PROMPTS[1]), ("yes", "no, never"))], adapter=SECOND).results
    for response in given.responses:
        assert response.logprobs == expected(given.prompt_token_ids, response.token_ids)


def test_a_stream_adds_up_to_the_whole(backend: Backend, client: PolicyClient) -> None:
    (whole,) = backend.one(client, PROMPTS[3])
    events = list(client.generate_stream([GenerateItem(tiny.user(PROMPTS[3]), GREEDY)], timeout_seconds=30))
    assert [event.sample.token_ids for event in events if event.sample is not None] == [whole.token_ids]
    assert "".join(event.text for event in events) == whole.text
    assert sum((event.token_ids for event in events), ()) == whole.token_ids


def test_a_stop_string_ends_a_response_before_it(backend: Backend, client: PolicyClient) -> None:
    (whole,) = backend.one(client, PROMPTS[1])
    stop = next(character for character in whole.text[3:] if character.isascii() and character.isprintable())
    (sample,) = backend.one(client, PROMPTS[1], Sampling(temperature=0, max_tokens=24, stop=(stop,)))
    assert sample.text == whole.text[: whole.text.index(stop)]
    assert sample.finish_reason == "stop"


def test_bad_input_has_the_same_codes_and_fields(backend: Backend, client: PolicyClient) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        client.generate([GenerateItem(tiny.user("q"), Sampling(top_p=1.5))])
    assert caught.value.field == "items[0].sampling.top_p"
    with pytest.raises(NotFoundError) as missing:
        client.generate([GenerateItem(tiny.user("q"))], adapter="adapters/nobody")
    assert missing.value.field == "adapter"
    (result,) = client.generate([GenerateItem(tiny.user("x" * 600))]).results
    assert isinstance(result.error, OutOfRangeError)
    other = "f" * 64
    version = tiny.publish(tiny.store(), f"other-base-{backend.kind}", seed=3, base_model_digest=other)
    with pytest.raises(FailedPreconditionError) as wrong:
        client.generate([GenerateItem(tiny.user("q"))], adapter=version)
    assert wrong.value.field == "adapter"
    with pytest.raises(FailedPreconditionError, match="is of kind reward") as reward:
        client.generate([GenerateItem(tiny.user("q"))], adapter=f"adapters/{tiny.REWARD_MODEL}")
    assert reward.value.field == "adapter"
    if backend.kind != "tgi":  # TGI holds what it was started with, and that is the reason it gives
        assert other in wrong.value.message
        assert client.model_info().digests.base_model in wrong.value.message


def test_what_is_served_says_what_computes_and_agrees_on_the_digests(backend: Backend, client: PolicyClient) -> None:
    info = client.model_info()
    assert info.backend == backend.kind
    assert info.vocabulary_size == 259
    assert 500 < info.context_tokens <= 512
    assert info.digests == client.generate([GenerateItem(tiny.user("q"), GREEDY)]).digests


def test_a_deadline_ends_a_call_in_time(backend: Backend, client: PolicyClient) -> None:
    if backend.double is not None:
        backend.double.set(step_seconds=0.05)
    else:
        client.pause("keep")
    began = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        client.generate([GenerateItem(tiny.user("q"), Sampling(temperature=0, max_tokens=200, stop=("\x01",)))], timeout_seconds=0.4)
    assert time.monotonic() - began < 3
    if backend.double is not None:
        backend.double.set()
    else:
        client.resume()
    assert backend.one(client, "q")


def test_health_tells_the_truth_about_the_server_behind(backend: Backend, client: PolicyClient) -> None:
    """The last test: the server behind is gone after it."""
    if backend.double is None:
        pytest.skip("nothing is behind this backend")
    assert backend.one(client, "q")
    backend.double.kill()
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1"):
        client.generate([GenerateItem(tiny.user("q"), GREEDY)], timeout_seconds=10)
    with open_channel(ChannelConfig(address=backend.server.address, attempts=1)) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        asked = health_pb2.HealthCheckRequest(service=POLICY_SERVICE)
        eventually(lambda: check(asked, timeout=5).status == health_pb2.HealthCheckResponse.NOT_SERVING, timeout_seconds=10)
