"""generate, score, compare: what is asked, what is shown, what is JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from tests.unit.cli.conftest import Accord
from tests.unit.cli.fakes import KNOWN_ADAPTER, FakePolicy, FakeReward, add_policy, add_reward, serving


@pytest.fixture
def policy() -> Iterator[str]:
    with serving(add_policy(FakePolicy())) as address:
        yield address


@pytest.fixture
def reward() -> Iterator[str]:
    with serving(add_reward(FakeReward())) as address:
        yield address


def test_generate_passes_everything_on(accord: Accord, policy: str) -> None:
    result = accord(
        "generate", "Say hello", "--adapter", KNOWN_ADAPTER, "-n", "2", "--temperature", "0", "--top-p", "0.5", "--top-k", "3",
        "--max-tokens", "9", "--seed", "0", "--stop", "END", "--stop", "STOP", "--system", "Be brief.", "--policy", policy,
    )  # fmt: skip
    asked = f"{KNOWN_ADAPTER} <Be brief./Say hello> temperature=0 top_p=0.5 top_k=3 max_tokens=9 seed=0 END STOP"
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"[0] {asked} #0\n[1] {asked} #1\n"


def test_generate_leaves_defaults_to_the_service(accord: Accord, policy: str) -> None:
    assert accord("generate", "hi", "--policy", policy).stdout == "base <hi> #0\n"
    assert accord("generate", "hi", "--raw", "--policy", policy).stdout == "base <raw:hi> #0\n"
    assert accord("generate", "-", "--policy", policy, input="from stdin").stdout == "base <from stdin> #0\n"
    post = accord("generate", "A post.", "--task", "summarization", "--policy", policy).stdout
    assert post == "base <Summarize this post in one or two sentences, as its author.\n\nA post.\n\nTL;DR:> #0\n"


def test_generate_as_json(accord: Accord, policy: str) -> None:
    result = accord("generate", "hi", "-n", "2", "--json", "--policy", policy)
    reply = json.loads(result.stdout)
    assert [sample["text"] for sample in reply["results"][0]["samples"]] == ["base <hi> #0", "base <hi> #1"]
    assert reply["results"][0]["samples"][1]["finish_reason"] == "eos"
    assert reply["results"][0]["samples"][0]["logprobs"] == [-0.5]
    assert reply["results"][0]["error"] is None


def test_generate_streams(accord: Accord, policy: str) -> None:
    one = accord("generate", "hi there", "--stream", "--policy", policy)
    assert one.stdout == "base <hi there> #0 \n"
    two = accord("generate", "hi", "--stream", "-n", "2", "--policy", policy)
    assert two.stdout == "[0] base <hi> #0\n[1] base <hi> #1\n"
    events = [json.loads(line) for line in accord("generate", "hi", "--stream", "--json", "--policy", policy).stdout.splitlines()]
    assert "".join(event["text"] for event in events) == "base <hi> #0 "
    assert events[-1]["sample"]["text"] == "base <hi> #0"


def test_generate_says_that_a_response_was_cut(accord: Accord, policy: str) -> None:
    for more in ((), ("--stream",)):
        result = accord("generate", "hi", "--max-tokens", "1", "--policy", policy, *more)
        assert result.stderr == "note: sample 0 stopped after 0 tokens; --max-tokens allows more\n"


@pytest.mark.parametrize("more", [(), ("--stream",)])
def test_generate_with_an_unknown_adapter(accord: Accord, policy: str, more: tuple[str, ...]) -> None:
    result = accord("generate", "hi", "--adapter", "adapters/x/versions/9", "--policy", policy, *more)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"error: adapters/x/versions/9 is not in the artefact store; versions of that adapter: {KNOWN_ADAPTER}; `accord lineage` lists the adapters\n"
    )
    result = accord("generate", "hi", "--adapter", "adapters/x/versions/9", "--policy", policy, "--home", "w", *more)
    assert result.stderr.endswith("; `accord lineage --home w` lists the adapters\n")


def test_the_error_of_an_item_is_the_error_of_the_command(accord: Accord, policy: str) -> None:
    result = accord("generate", "bad", "--policy", policy)
    assert (result.exit_code, result.stderr) == (2, "error: items[0].prompt: the prompt is bad\n")
    result = accord("generate", "  ", "--policy", policy)
    assert (result.exit_code, result.stderr) == (2, "error: prompt is empty; give a text, or - and the text on stdin\n")


def test_what_is_no_text_on_stdin_is_refused(accord: Accord, policy: str) -> None:
    result = accord("generate", "-", "--policy", policy, input=b"caf\xe9 \n")
    assert (result.exit_code, result.stderr) == (2, "error: prompt on stdin is not UTF-8 text: byte 0xe9 at 3\n")


def test_score(accord: Accord, reward: str) -> None:
    result = accord("score", "p", "four", "sixsix", "--reward-model", "adapters/rm/versions/1", "--reward", reward)
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    assert lines[0] == ["adapters/rm/versions/1"]
    assert lines[1] == ["score", "tokens", "response"]
    assert lines[3:] == [["4", "1", "four"], ["6", "1", "sixsix"]]


def test_score_with_an_ensemble_as_json(accord: Accord, reward: str) -> None:
    models = ("--reward-model", "adapters/a/versions/1", "--reward-model", "adapters/b/versions/2")
    reply = json.loads(accord("score", "p", "four", *models, "--json", "--reward", reward).stdout)
    assert reply["results"][0]["score"] == 4.5
    assert reply["results"][0]["member_scores"] == [4.0, 5.0]
    assert reply["reward_model_versions"] == ["adapters/a/versions/1", "adapters/b/versions/2"]
    assert "4 5" in accord("score", "p", "four", *models, "--reward", reward).stdout


def test_compare(accord: Accord, reward: str) -> None:
    result = accord("compare", "p", "longer", "long", "--reward-model", "adapters/rm", "--reward", reward)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "P(A is better) = 0.881"
    swapped = json.loads(accord("compare", "p", "long", "longer", "--reward-model", "adapters/rm", "--json", "--reward", reward).stdout)
    assert swapped["results"][0]["probability_a"] == pytest.approx(0.1192, abs=1e-4)


@pytest.mark.parametrize("command", [("score", "p", "r"), ("compare", "p", "a", "b")])
def test_an_unknown_reward_model(accord: Accord, reward: str, command: tuple[str, ...]) -> None:
    result = accord(*command, "--reward-model", "adapters/unknown", "--reward", reward)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: adapters/unknown is not in the artefact store; `accord lineage` lists the adapters, reward models among them\n"
    result = accord(*command, "--reward-model", "adapters/unknown", "--reward", reward, "--home", "w")
    assert result.stderr.endswith("; `accord lineage --home w` lists the adapters, reward models among them\n")


def test_the_reward_model_must_be_named(accord: Accord) -> None:
    result = accord("score", "p", "r")
    assert (result.exit_code, result.stderr) == (2, "error: missing option '--reward-model'; see `accord score --help`\n")
