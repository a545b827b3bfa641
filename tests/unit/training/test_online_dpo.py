"""Online DPO with services of this process that behave: the policy's own samples, a judge with a known taste, and faults on demand."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import GradientKeeper, LocalSource, dying_in, make_context, metrics_of, planted_pairs, shake, write_rows

from accord.client.feedback import Judge, Label, LabelPairItem, LabelResult
from accord.client.policy import GenerateItem, Sample, StreamEvent
from accord.errors import (
    AccordError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    UnavailableError,
)
from accord.models.packing import group_logprobs
from accord.rundir import Endpoints
from accord.training import online_dpo, sampled_pairs, sampler
from accord.training.__main__ import build
from accord.training.context import RunContext
from accord.training.examples import EncodedPrompt, batch_at
from accord.training.loop import train
from accord.training.rollout_files import read_rows
from accord.training.sampled_pairs import SAME_RESPONSES, SampledPair, pair_of
from accord.training.sampler import Draw
from accord.training.stopping import OtherPolicyError

NOWHERE = Endpoints(policy="127.0.0.1:1", feedback="127.0.0.1:2")
RUBRIC = "conversation/detailed/1"


class FakePolicy:
    """Samples from the context's own policy; `same` prompts get one response twice, `shift` is added to all logprobs but those of `right` prompts.

    With `awaits`, the last answer is withheld until that has happened, for a moment at most; `awaited` says whether it did.
    """

    def __init__(self) -> None:
        self.context: RunContext | None = None
        self.same, self.right, self.shift = set[tuple[int, ...]](), set[tuple[int, ...]](), 0.0
        self.awaits: threading.Event | None = None
        self.awaited: bool | None = None
        self.asked: list[tuple[list[GenerateItem], str]] = []

    def model_info(self) -> Any:
        assert self.context is not None
        return SimpleNamespace(digests=self.context.base.digests)

    def generate_stream(self, items: Sequence[GenerateItem], *, adapter: str, timeout_seconds: float) -> Iterator[StreamEvent]:
        assert self.context is not None
        self.asked.append((list(items), adapter))
        ids = [tuple(item.prompt.ids) for item in items]  # type: ignore[union-attr]
        seeds = tuple(1 if prompt in self.same else item.sampling.seed or 0 for item, prompt in zip(items, ids, strict=True))
        draw = Draw(items[0].sampling.max_tokens or 0, items[0].sampling.temperature or 0.0, seeds)
        found = LocalSource(self.context, lambda _: 0.0).collect([EncodedPrompt("", prompt) for prompt in ids], draw, adapter)
        for index in reversed(range(len(items))):
            if index == 0 and self.awaits is not None:
                self.awaited = self.awaits.wait(5.0)
            each = found[index]
            logprobs = tuple(value + (0.0 if ids[index] in self.right else self.shift) for value in each.sampler_logprobs)
            text = self.context.base.encoder.decode(each.response_ids)
            seed = items[index].sampling.seed or 0
            yield StreamEvent(index, 0, sample=Sample(0, text, each.response_ids, logprobs, "eos" if each.ended else "length", seed))

    def close(self) -> None: ...


class FakeFeedback:
    """P(A better) = sigmoid(taste(A) - taste(B)). `answers` overrule by prompt; `die_after` answers it is gone once."""

    def __init__(self) -> None:
        self.asked: list[LabelPairItem] = []
        self.judges: list[Judge] = []
        self.answers: dict[str, AccordError | float | None] = {}
        self.die_after: int | None = None
        self.lose = False
        self.reached = threading.Event()

    def list_rubrics(self) -> Any:
        return (SimpleNamespace(id=RUBRIC),)

    def label_stream(self, pairs: Iterable[LabelPairItem], judge: Judge, *, timeout_seconds: float) -> Iterator[LabelResult]:
        self.judges.append(judge)
        for number, pair in enumerate(pairs):
            if self.die_after == number:
                self.die_after = None
                raise UnavailableError("gone")
            self.asked.append(pair)
            self.reached.set()
            answer = self.answers.get(pair.messages[-1].content, taste(pair.response_a) - taste(pair.response_b))
            if self.lose:
                continue
            if isinstance(answer, AccordError):
                yield LabelResult(pair.pair_id, answer, None)
                continue
            preference = None if answer is None else 1 / (1 + math.exp(-answer))
            reason = "names no response" if answer is None else ""
            outcome: Any = "abstain" if preference is None else "a"
            yield LabelResult(pair.pair_id, None, Label(pair.pair_id, preference, outcome, reason, (), "verdict", RUBRIC, "r" * 64, "fake", "j" * 64))

    def close(self) -> None: ...


def taste(text: str) -> float:
    """Four times the share of ASCII, which half of the tiny model's tokens are, and a little by letter, so that there are few ties."""
    return sum(4.0 * (ord(letter) < 128) + 0.02 * (ord(letter) % 16) for letter in text) / max(1, len(text))


class Services:
    """Both, and runs that use them."""

    def __init__(self, root: Path, model: Path) -> None:
        self.root, self.model = root, model
        self.policy, self.feedback = FakePolicy(), FakeFeedback()

    def made(self, *, name: str = "run", online: dict[str, Any] | None = None, **values: Any) -> tuple[RunContext, Any]:
        """A run that is not set up."""
        data = write_rows(self.root / "rows.jsonl", planted_pairs()[:6])
        spec = {"max_response_tokens": 8, "batch_size": 3, **values, "online_dpo": {"data": data, "beta": 0.3, **(online or {})}}
        context = make_context(self.root, self.model, spec, name=name, endpoints=NOWHERE)
        self.policy.context = context
        return context, build(context)

    def ready(self, **more: Any) -> tuple[RunContext, Any]:
        """A run that is set up, its policy shaken."""
        context, algorithm = self.made(**more)
        algorithm.setup()
        shake(context, "policy")
        return context, algorithm


@pytest.fixture
def services(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Services:
    made = Services(tmp_path, tiny_folder)
    monkeypatch.setattr(sampler, "PolicyClient", lambda target, **_: made.policy)
    monkeypatch.setattr(sampled_pairs, "FeedbackClient", lambda target: made.feedback)
    monkeypatch.setattr("accord.training.waiting._FIRST_SECONDS", 0.01)
    return made


def one_step(algorithm: Any, step: int = 0) -> tuple[list[torch.Tensor], dict[str, float]]:
    keeper = GradientKeeper(algorithm.parameters())
    metrics = algorithm.step(step, keeper)
    return (keeper.steps or [[]])[0], metrics


def pairs_of(context: RunContext, step: int = 0) -> list[SampledPair]:
    found = read_rows(context.directory.rollouts / f"{step:08d}.jsonl", pair_of)
    assert found is not None
    return found


def said(context: RunContext) -> str:
    return "\n".join(event.text for event in context.directory.events())


def untimed(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "second" not in name}


def test_two_samples_of_each_prompt_are_labelled_in_both_orders_under_the_current_version(services: Services) -> None:
    context, algorithm = services.ready(online={"judge": "verdict", "rubric": RUBRIC, "judge_adapter": "adapters/j/versions/1", "temperature": 1.1})
    one_step(algorithm)
    ((items, version),) = services.policy.asked
    assert version == "adapters/a-rollout/versions/1"
    assert torch.equal(
        next(iter(context.adapted.state("policy").values())),
        next(iter(_weights(context, version).values())),
    )
    assert {(item.sampling.temperature, item.sampling.max_tokens, item.n) for item in items} == {(1.1, 8, 1)}
    assert len({item.sampling.seed for item in items}) == 6
    assert services.feedback.judges == [Judge("verdict", rubric=RUBRIC, adapter="adapters/j/versions/1", both_orders=True)]
    pairs = pairs_of(context)
    by_prompt = {item.messages[-1].content: item for item in services.feedback.asked}
    assert len(by_prompt) == len(pairs) == 3
    assert len({item.pair_id for item in services.feedback.asked}) == 3
    for place, pair in enumerate(pairs):
        assert pair.prompt_ids == tuple(items[2 * place].prompt.ids) == tuple(items[2 * place + 1].prompt.ids)  # type: ignore[union-attr]
        assert (pair.first.seed, pair.second.seed) == (items[2 * place].sampling.seed, items[2 * place + 1].sampling.seed)
        prompt = algorithm._texts[pair.id].messages
        texts = [context.base.encoder.decode(response.token_ids) for response in pair.responses]
        asked = by_prompt[prompt[-1].content]
        assert [asked.response_a, asked.response_b] == texts
        assert pair.preference == pytest.approx(1 / (1 + math.exp(taste(texts[1]) - taste(texts[0]))))
        assert (pair.judge, pair.judge_kind, pair.rubric) == ("fake", "verdict", RUBRIC)
    assert algorithm.publication()["facts"]["judge_digest"] == "j" * 64


def test_pairs_are_labelled_while_others_are_still_being_sampled(services: Services) -> None:
    context, algorithm = services.ready()
    services.policy.awaits = services.feedback.reached
    one_step(algorithm)
    assert services.policy.awaited, "the feedback service was asked nothing before the policy service's last answer"
    assert all(pair.preference is not None for pair in pairs_of(context))


def _weights(context: RunContext, version: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(sorted(load_file(context.store.fetch(version) / "adapter_model.safetensors").items()))


@pytest.mark.parametrize("soft", [True, False])
def test_the_step_is_dpo_on_the_pairs_of_the_file(services: Services, soft: bool) -> None:
    """Loss and gradient against the formula on logprobs of the whole batch in one pass."""
    context, algorithm = services.ready(online={"soft_labels": soft})
    found, metrics = one_step(algorithm)
    pairs = pairs_of(context)
    groups = [(pair.prompt_ids, (pair.first.token_ids, pair.second.token_ids)) for pair in pairs]
    rows = group_logprobs(context.adapted, groups, adapter="policy")
    with torch.no_grad():
        reference = group_logprobs(context.adapted, groups, adapter=None)
    margins = torch.stack([
        0.3 * (one[0].sum() - one[1].sum() - other[0].sum() + other[1].sum()) for one, other in zip(rows, reference, strict=True)
    ])  # fmt: skip
    p = torch.tensor([pair.preference if soft else float((pair.preference or 0) > 0.5) for pair in pairs])
    assert max(abs(float(each) - 0.5) for each in p) > 0.1
    loss = (p * torch.log1p(torch.exp(-margins)) + (1 - p) * torch.log1p(torch.exp(margins))).mean()
    assert metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-4)
    expected = torch.autograd.grad(loss, GradientKeeper(algorithm.parameters()).parameters)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-6)
    assert max(float(each.abs().max()) for each in found) > 1e-3
    ratios = [
        sum(float((a.sum() - b.sum()).detach()) for a, b in zip(one, other, strict=True)) / 2 for one, other in zip(rows, reference, strict=True)
    ]
    assert metrics["kl"] == pytest.approx(sum(ratios) / 3, rel=1e-3)
    assert metrics["pairs"] == 3
    assert metrics["sampler_gap_max"] < 1e-3
    assert metrics["eos_rate"] == sum(each.ended for pair in pairs for each in pair.responses) / 6


def test_the_first_step_starts_from_margins_of_exactly_zero(services: Services) -> None:
    _, algorithm = services.made()
    algorithm.setup()
    _, metrics = one_step(algorithm)
    assert metrics["margin"] == metrics["kl"] == 0
    assert metrics["loss"] == pytest.approx(math.log(2), rel=1e-6)


def test_what_has_no_label_is_left_out_and_counted(services: Services) -> None:
    context, algorithm = services.made(batch_size=6)
    algorithm.setup()
    words = [prompt.messages[-1].content for prompt in algorithm._texts.values()]
    services.feedback.answers = {
        words[0]: None, words[1]: InvalidArgumentError("the text holds a NUL character", field="pair.response_a"), words[2]: 0.0,
    }  # fmt: skip
    services.policy.same = {next(prompt.prompt for prompt in algorithm._prompts if algorithm._texts[prompt.id].messages[-1].content == words[3])}
    _, metrics = one_step(algorithm)
    assert {name: metrics[name] for name in ("pairs", "abstentions", "same_responses", "ties")} == {
        "pairs": 3, "abstentions": 2, "same_responses": 1, "ties": 1,
    }  # fmt: skip
    assert len(services.feedback.asked) == 5, "nobody is asked which of two equal responses is better"
    assert [pair.reason for pair in pairs_of(context) if pair.reason == SAME_RESPONSES] == [SAME_RESPONSES]
    assert "1 of 6 pairs have no label: names no response" in said(context)
    assert "1 of 6 pairs have no label: " in said(context).replace("names no response", "")
    assert "NUL character" in said(context)


def test_without_soft_labels_ties_are_left_out(services: Services) -> None:
    """And the better response is learned, whichever was sampled first."""
    _, algorithm = services.ready(online={"loss": "hinge", "soft_labels": False})
    words = [prompt.messages[-1].content for prompt in algorithm._texts.values()]
    services.feedback.answers = dict.fromkeys(words, -3.0)
    turned = one_step(algorithm)[0]
    pair = pairs_of(algorithm._context)[0]
    assert pair.preference is not None
    (one, *_), two = algorithm._usable([pair]), algorithm._usable([replace(pair, preference=0.5)])
    assert (one.chosen, one.rejected, one.preference) == (pair.second.token_ids, pair.first.token_ids, 1.0)
    assert two == []
    assert max(float(each.abs().max()) for each in turned) > 1e-3


def test_soft_labels_reach_every_loss(services: Services) -> None:
    """A judge that is all but undecided teaches less than one that is sure: the hinge of P = .52 has .04 of the gradient of P = 1."""
    found = []
    for name, answer in (("sure", 40.0), ("unsure", math.log(0.52 / 0.48))):
        _, algorithm = services.ready(name=name, online={"loss": "hinge", "beta": 1e-2})
        services.feedback.answers = {prompt.messages[-1].content: answer for prompt in algorithm._texts.values()}
        found.append(one_step(algorithm)[0])
    for sure, unsure in zip(*found, strict=True):
        torch.testing.assert_close(unsure, 0.04 * sure, rtol=1e-3, atol=1e-7)
    assert max(float(each.abs().max()) for each in found[0]) > 1e-5


def test_a_step_without_any_label_leaves_the_policy_as_it_is(services: Services) -> None:
    from accord.training.optim import Optimizer

    context, algorithm = services.ready()
    services.feedback.answers = dict.fromkeys((prompt.messages[-1].content for prompt in algorithm._texts.values()), None)
    before = context.adapted.state("policy")
    optimizer = Optimizer(algorithm.parameters(), context.spec.optimizer, learning_rate=0.1, total_steps=3)
    metrics = algorithm.step(0, optimizer)
    assert metrics["pairs"] == 0
    assert "loss" not in metrics
    assert all(torch.equal(tensor, before[name]) for name, tensor in context.adapted.state("policy").items())
    assert "step 1: no pair has a label that can be learned from" in said(context)


def test_pairs_are_on_disk_before_they_are_used_and_used_again_after_a_kill(services: Services) -> None:
    context, algorithm = services.ready()
    path = context.directory.rollouts / "00000000.jsonl"
    seen, accumulate = [], algorithm._loss.accumulate
    algorithm._loss.accumulate = lambda *given: (seen.append(path.exists()), accumulate(*given))[1]
    first, metrics = one_step(algorithm)
    assert seen == [True]
    content, asked = path.read_bytes(), len(services.feedback.asked)
    _, again = services.ready()  # the process died and came back, without a checkpoint
    second, repeated = one_step(again)
    assert len(services.policy.asked) == 1
    assert len(services.feedback.asked) == asked
    assert path.read_bytes() == content
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert untimed(repeated) == untimed(metrics)
    path.write_bytes(content[:-40])
    context, third = services.ready()
    assert all(torch.equal(one, other) for one, other in zip(first, one_step(third)[0], strict=True)), "seeds decide what is sampled"
    assert "rollout file 00000000.jsonl is damaged" in said(context)


def test_a_feedback_service_that_goes_away_is_waited_for_and_asked_only_for_the_rest(services: Services) -> None:
    context, algorithm = services.ready()
    services.feedback.die_after = 2
    found, _ = one_step(algorithm)
    assert len(services.policy.asked) == 1 or not services.policy.asked[1][0], "nothing is sampled twice"
    assert len(services.feedback.asked) == 3, "nothing is labelled twice"
    assert len(services.feedback.judges) == 2
    waits = [event.waiting_on for event in context.directory.events() if event.waiting_on]
    assert waits == ["feedback service at 127.0.0.1:2: UNAVAILABLE: gone"]
    undisturbed = one_step(services.ready(name="undisturbed")[1])[0]
    assert all(torch.equal(one, other) for one, other in zip(found, undisturbed, strict=True))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"lose": True}, InternalError, "left 3 of 3 pairs without an answer"),
        ({"answers": InvalidArgumentError("rubric judges summarization", field="judge.rubric")}, InvalidArgumentError, "judges summarization"),
    ],
)
def test_what_a_feedback_service_must_not_do_ends_the_run(services: Services, change: dict[str, Any], error: type[Exception], words: str) -> None:
    context, algorithm = services.ready()
    for name, value in change.items():
        answers = dict.fromkeys((prompt.messages[-1].content for prompt in algorithm._texts.values()), value)
        setattr(services.feedback, name, answers if name == "answers" else value)
    with pytest.raises(error, match=words):
        one_step(algorithm)
    assert not context.directory.rollouts.exists()


def test_a_sampler_that_computes_another_policy_is_refused(services: Services) -> None:
    context, algorithm = services.ready()
    services.policy.shift = 0.5
    with pytest.raises(FailedPreconditionError, match=r"differ by up to 0\.5 nats a token") as caught:
        one_step(algorithm)
    assert caught.value.field == "endpoints.policy"
    assert [path.name for path in context.directory.rollouts.iterdir()] == ["00000000.refused"], "a resumed run samples them anew"


@pytest.mark.parametrize("place", [0, 1])
def test_a_logprob_that_is_no_number_stops_the_run_in_words_in_whichever_response(
    services: Services, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:  # fmt: skip
    """The sampler's are numbers, which `Sampler` sees to; this process's policy may give none. The loss of the other response is fine."""
    context, algorithm = services.ready()
    computed = online_dpo.response_logprobs

    def broken(*arguments: Any, **more: Any) -> list[torch.Tensor]:
        rows = list(computed(*arguments, **more))
        rows[place] = torch.full_like(rows[place], math.nan)
        return rows

    monkeypatch.setattr(online_dpo, "response_logprobs", broken)
    before = context.adapted.state("policy")
    with pytest.raises(OtherPolicyError, match=r"differ by up to nan nats a token; 0\.05 are allowed"):
        one_step(algorithm)
    assert all(torch.equal(tensor, before[name]) for name, tensor in context.adapted.state("policy").items())
    assert "alarm: logprobs of the policy service and of this run differ by up to nan" in said(context)
    assert "the run stops before it learns from them, and samples them anew when it is resumed" in said(context)


def test_another_pair_is_compared_at_each_step(services: Services) -> None:
    """Of several replicas one may compute another policy, and it is not always asked first."""
    _, algorithm = services.ready()
    first, *_ = batch_at(algorithm._prompts, 1, 3, 0)
    services.policy.shift, services.policy.right = 0.5, {first.prompt}
    with pytest.raises(FailedPreconditionError, match=r"differ by up to 0\.5 nats a token"):
        one_step(algorithm, 1)


@pytest.mark.parametrize("missing", ["policy", "feedback"])
def test_a_run_without_an_address_is_refused(services: Services, missing: str) -> None:
    data = write_rows(services.root / "rows.jsonl", planted_pairs())
    endpoints = NOWHERE.model_copy(update={missing: ""})
    context = make_context(services.root, services.model, {"online_dpo": {"data": data}}, endpoints=endpoints)
    with pytest.raises(InvalidArgumentError, match=f"online_dpo needs the {missing} service") as caught:
        build(context)
    assert caught.value.field == f"endpoints.{missing}"


def test_a_rubric_that_the_service_does_not_have_is_refused_before_anything_is_sampled(services: Services) -> None:
    _, algorithm = services.made(online={"rubric": "conversation/none/9", "judge": "verdict"})
    with pytest.raises(InvalidArgumentError, match=f"it has {RUBRIC}") as caught:
        algorithm.setup()
    assert caught.value.field == "online_dpo.rubric"


def test_a_run_that_dies_resumes_to_the_same_bits(services: Services) -> None:
    """With steps between the checkpoint and the death, and held-out pairs."""

    def made(name: str, adapter: str) -> tuple[RunContext, Any]:
        held_out = write_rows(services.root / "eval.jsonl", planted_pairs(("ab", "cd", "ef")))
        values = {"steps": 4, "checkpoint_every_steps": 2, "adapter": adapter, "optimizer": {"learning_rate": 1e-2}}
        return services.made(name=name, online={"eval_data": held_out}, **values)

    straight, algorithm = made("straight", "a")
    expected = train(straight, algorithm)
    dead, algorithm = made("dying", "b")
    with pytest.raises(KeyboardInterrupt):
        train(dead, dying_in(algorithm, 2))
    again, algorithm = made("dying", "b")
    result = train(again, algorithm)
    assert "resumed after step 2" in said(again)
    files = [
        {path.name: path.read_bytes() for path in context.store.fetch(version).iterdir() if path.name != "manifest.json"}
        for context, version in ((straight, expected.adapter_version), (again, result.adapter_version))
    ]
    assert files[0] == files[1]
    assert untimed(dict(result.metrics)) == untimed(dict(expected.metrics))
    assert result.metrics["eval_pairs"] == 3
    facts = [context.store.manifest(found.adapter_version).facts for context, found in ((straight, expected), (again, result))]
    assert {**facts[0], "spec_digest": ""} == {**facts[1], "spec_digest": ""}
    assert facts[0]["judge"] == "fake"


def test_the_policy_learns_the_judges_taste(services: Services) -> None:
    context, algorithm = services.made(steps=12, batch_size=12, online={"beta": 0.05, "soft_labels": False}, optimizer={"learning_rate": 5e-2})
    train(context, algorithm)
    scores = []
    for step in range(12):
        texts = [context.base.encoder.decode(each.token_ids) for pair in pairs_of(context, step) for each in pair.responses]
        scores.append(sum(map(taste, texts)) / len(texts))
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.5, scores
    assert metrics_of(context.directory.events(), "kl")[-1] > 0
