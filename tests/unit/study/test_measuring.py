"""What a study asks the services about an arm's responses, and what it makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accord.client.feedback import LabelPairItem
from accord.client.feedback_wire import pair_to_proto
from accord.client.policy import GenerateItem
from accord.client.reward import ScoreItem
from accord.errors import InvalidArgumentError, OutOfRangeError, UnavailableError
from accord.evaluation.rows import read_rows
from accord.rpc.validation import validate
from accord.study.actions import StepContext, raise_item
from accord.study.graph import Step
from accord.study.measuring import evaluation_rows, generate, judge, left_out, measure, responses
from accord.study.steps import StepResult

END = 2


@pytest.fixture
def arms(tmp_path: Path) -> dict[str, StepResult]:
    """Two samples of each of two prompts, for SFT and for an arm."""
    rows = [{"prompt_id": p, "messages": [["user", p]], "reference": "gold", "prompt_token_ids": [1, 7]} for p in ("p", "q")]
    found = {}
    for arm in ("sft", "dpo-human"):
        path = tmp_path / f"{arm}.jsonl"
        samples = [
            {**row, "sample": k, "response": f"{arm} {row['prompt_id']} {k}", "token_ids": [5, END], "logprobs": [-0.5, -0.5], "finish_reason": "eos"}
            for row in rows
            for k in (0, 1)
        ]
        path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        found[arm] = StepResult(arm, "k", {"responses": str(path), "adapter_version": arm}, 1.0, 1.0)
    return found


def answers(items: Sequence[GenerateItem], **_: Any) -> Any:
    """A policy's one answer to each prompt, a token a word, with a context of 20 tokens."""
    sample = SimpleNamespace(index=0, text="hi", token_ids=(5, END), logprobs=(-1.0, -1.0), finish_reason="eos")
    lengths = [len(item.prompt[-1].content.split()) for item in items]  # type: ignore[union-attr]
    errors = [OutOfRangeError("the prompt leaves no room", field="items[0].prompt") if length >= 20 else None for length in lengths]
    return SimpleNamespace(
        results=[
            SimpleNamespace(error=error, samples=[sample], prompt_token_ids=(1,) * length) for error, length in zip(errors, lengths, strict=True)
        ]
    )


def generate_step(uri: Path, **params: Any) -> Step:
    asked = {
        "task": "conversation", "arm": "base", "uri": str(uri), "format": "", "limit": 0, "temperature": 0.7, "max_tokens": 9, "seed": 1,
        "adapter_from": None, "samples": 1,
    }  # fmt: skip
    return Step("g", "generate", "", asked | params)


def write_pairs(path: Path, pairs: Sequence[tuple[str, str]], **values: str) -> Path:
    """A file of pairs: of each its prompt and its chosen response."""
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": "no", "split": "test", **values} for prompt, chosen in pairs]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def context_of(tmp_path: Path, services: Any, inputs: Mapping[str, StepResult]) -> StepContext:
    return StepContext(services, inputs, tmp_path, "", "k", lambda *_: None)


def test_samples_of_a_prompt_are_numbered_and_come_one_after_the_other(tmp_path: Path) -> None:
    asked: list[GenerateItem] = []

    def answer(items: Sequence[GenerateItem], **_: Any) -> Any:
        asked.extend(items)
        samples = [SimpleNamespace(index=k, text=f" {k} ", token_ids=(5, k), logprobs=(-1.0, -1.0), finish_reason="length") for k in (1, 0)]
        return SimpleNamespace(results=[SimpleNamespace(error=None, samples=samples, prompt_token_ids=(1,)) for _ in items])

    params = {
        "task": "conversation", "arm": "base", "uri": "sample:conversation", "format": "", "limit": 3, "temperature": 0.7, "max_tokens": 9, "seed": 1,
        "adapter_from": None, "samples": 2,
    }  # fmt: skip
    services = SimpleNamespace(policy=SimpleNamespace(generate=answer))
    found = generate(Step("g", "generate", "", params), context_of(tmp_path, services, {}))
    rows = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert [row["sample"] for row in rows] == [0, 1] * 3
    assert [row["response"] for row in rows] == ["0", "1"] * 3
    assert (found["count"], found["eos_rate"]) == (6, 0)
    assert [item.n for item in asked] == [2] * 3
    assert len({item.sampling.seed for item in asked}) == 3


def test_a_judge_compares_samples_of_the_same_number_and_a_reward_model_all_of_a_prompt(tmp_path: Path, arms: dict[str, StepResult]) -> None:
    def label_pairs(pairs: Sequence[LabelPairItem], *_: Any, **__: Any) -> Any:
        for pair in pairs:
            if pair.response_b != "gold":
                assert pair.response_b == pair.response_a.replace("dpo-human", "sft")
        return [
            SimpleNamespace(error=None, label=SimpleNamespace(preference=0.9 if pair.response_a.endswith("0") else 0.2, judge="m", judge_digest="d"))
            for pair in pairs
        ]  # the first samples win

    services = SimpleNamespace(feedback=SimpleNamespace(label_pairs=label_pairs))
    params = {"task": "conversation", "arms": list(arms), "judge": {"kind": "likelihood", "tie_margin": 0.0}}
    judged = judge(Step("j", "judge", "", params, tuple(arms)), context_of(tmp_path, services, arms))
    assert [row["win_vs_sft"] for row in judged["values"]["dpo-human"]["q"]] == [1.0, 0.0]
    assert judged["judged_by"] == {"d": "m"}
    assert "win_vs_sft" not in judged["values"]["sft"]["q"][0]
    scores = {"sft": [{"score_human": 1.0}, {"score_human": 2.0}], "dpo-human": [{"score_human": 2.0}, {"score_human": 0.0}]}
    inputs = arms | {"conversation/judge": StepResult("j", "k", judged, 1.0, 1.0)}
    inputs |= {
        f"conversation/measure-{arm}": StepResult(arm, "k", {"values": {"p": values, "q": values}}, 1.0, 1.0) for arm, values in scores.items()
    }
    rows = [json.loads(line) for line in evaluation_rows({"conversation": {arm: arm for arm in arms}}, inputs).splitlines()]
    assert [(row["arm"], row["prompt_id"], row["sample"]) for row in rows[4:]] == [("dpo-human", p, k) for p in ("p", "q") for k in (0, 1)]
    assert [row["values"]["win_by_score_human"] for row in rows[4:]] == [0.75, 0.0] * 2
    assert [row["values"]["win_vs_sft"] for row in rows[4:]] == [1.0, 0.0] * 2


def test_a_comparison_has_a_name_that_the_feedback_service_takes_however_long_the_prompt_s_is(tmp_path: Path) -> None:
    """The evaluation takes ids of 256 characters; ids that leave room for what is compared stand in the name as they are."""
    ids = ["p", "q" * 239, "q" * 240, "é" * 256]
    rows = [
        {"prompt_id": name, "sample": 0, "messages": [["user", "hi"]], "reference": "gold", "response": "so", "prompt_token_ids": [1]} for name in ids
    ]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arms = {arm: StepResult(arm, "k", {"responses": str(tmp_path / "responses.jsonl")}, 1.0, 1.0) for arm in ("sft", "dpo-human")}
    names: list[str] = []

    def label_pairs(pairs: Sequence[LabelPairItem], *_: Any, **__: Any) -> Any:
        for pair in pairs:
            validate(pair_to_proto(pair))
        names.extend(pair.pair_id for pair in pairs if pair.pair_id.endswith("dpo-human:sft"))
        return [SimpleNamespace(error=None, label=SimpleNamespace(preference=0.9, judge="j", judge_digest="d")) for _ in pairs]

    params = {"task": "conversation", "arms": list(arms), "judge": {"kind": "likelihood", "tie_margin": 0.0}}
    services = SimpleNamespace(feedback=SimpleNamespace(label_pairs=label_pairs))
    found = judge(Step("j", "judge", "", params, tuple(arms)), context_of(tmp_path, services, arms))
    assert list(found["values"]["sft"]) == ids
    assert names[:2] == ["p:0:dpo-human:sft", f"{'q' * 239}:0:dpo-human:sft"]
    assert len(set(names)) == len(ids)


def test_responses_are_scored_with_the_end_of_the_turn_and_their_kl_is_of_what_was_sampled(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": "ended", "prompt_token_ids": [1, 7], "token_ids": [5, END], "logprobs": [-0.5, -0.25], "finish_reason": "eos"},
        {"prompt_id": "cut", "prompt_token_ids": [1, 8], "token_ids": [5, 6], "logprobs": [-0.5, -1.0], "finish_reason": "length"},
        {"prompt_id": "other end", "prompt_token_ids": [1, 7], "token_ids": [5, 9], "logprobs": [-0.5, -0.25], "finish_reason": "eos"},
        {"prompt_id": "no room", "prompt_token_ids": [1, 8, 9], "token_ids": [5, 6], "logprobs": [-0.5, -1.0], "finish_reason": "length"},
    ]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored: list[tuple[int, ...]] = []

    def score(items: Sequence[ScoreItem], model: str, *, timeout_seconds: float) -> Any:
        assert (model, timeout_seconds > 0) == ("adapters/rm/versions/1", True)
        scored.extend(item.response.ids for item in items)  # type: ignore[union-attr]
        return SimpleNamespace(results=[SimpleNamespace(error=None, score=float(len(item.response.ids))) for item in items])  # type: ignore[union-attr]

    def compute_logprobs(items: Sequence[Any], **_: Any) -> Any:
        one = SimpleNamespace(error=None, responses=[SimpleNamespace(sequence_logprob=-2.0)])
        return SimpleNamespace(results=[one for _ in items])

    policy = SimpleNamespace(model_info=lambda **_: SimpleNamespace(eos_token_ids=(END, 9), context_tokens=5), compute_logprobs=compute_logprobs)
    inputs = {
        name: StepResult(name, "k", values, 1.0, 1.0)
        for name, values in (
            ("generated", {"responses": str(tmp_path / "responses.jsonl")}),
            ("sft", {"adapter_version": "adapters/sft/versions/1"}),
            ("rm", {"adapter_version": "adapters/rm/versions/1"}),
        )
    }
    services: Any = SimpleNamespace(policy=policy, reward=SimpleNamespace(score=score))
    params = {"responses_from": "generated", "reference_from": "sft", "reward_models_from": {"human": "rm"}, "temperature": 0.7}
    found = measure(Step("m", "measure", "", params), context_of(tmp_path, services, inputs))
    assert scored == [(5, END), (5, 6, END), (5, END), (5, 6)]
    assert found["values"]["other end"] == found["values"]["ended"]
    assert found["values"]["ended"] == [{"response_tokens": 2.0, "kl": pytest.approx(1.25), "score_human": 2.0}]
    assert found["values"]["cut"] == [{"response_tokens": 2.0, "kl": pytest.approx(0.5), "score_human": 3.0}]


def test_a_held_out_prompt_with_several_pairs_is_measured_once_and_evaluation_takes_its_rows(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", [(f"question {n}", f"good {n} {k}") for n in range(4) for k in range(3)])
    services = SimpleNamespace(policy=SimpleNamespace(generate=answers))
    values = generate(generate_step(path), context_of(tmp_path, services, {}))
    assert (values["count"], values["repeated"]) == (4, 8)
    assert left_out(StepResult("g", "k", values, 1.0, 1.0), None)[0].startswith("8 held-out rows repeat a prompt")
    arms = {arm: StepResult(arm, "k", values, 1.0, 1.0) for arm in ("base", "sft")}
    rows = responses(arms["base"])
    assert [row["reference"] for row in rows] == [f"good {n} 0" for n in range(4)]
    own = {row["prompt_id"]: [{"response_tokens": float(place)}] for place, row in enumerate(rows)}
    inputs = arms | {f"conversation/measure-{arm}": StepResult(arm, "k", {"values": own}, 1.0, 1.0) for arm in arms}
    inputs["conversation/judge"] = StepResult("j", "k", {"values": {arm: {name: [{}] for name in own} for arm in arms}}, 1.0, 1.0)
    (tmp_path / "rows.jsonl").write_text(evaluation_rows({"conversation": {arm: arm for arm in arms}}, inputs))
    assert [row.values["response_tokens"] for row in read_rows(str(tmp_path / "rows.jsonl"))] == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r\n"])
def test_texts_keep_what_unicode_calls_a_line_separator(tmp_path: Path, separator: str) -> None:
    """In the prompt, the reference and the response."""
    path = write_pairs(tmp_path / "pairs.jsonl", [(f"question {n}{separator}more", f"good{separator}too") for n in range(2)])

    def answer(items: Sequence[GenerateItem], **_: Any) -> Any:
        sample = SimpleNamespace(index=0, text=f"a{separator}b", token_ids=(5, END), logprobs=(-1.0, -1.0), finish_reason="eos")
        return SimpleNamespace(results=[SimpleNamespace(error=None, samples=[sample], prompt_token_ids=(1,)) for _ in items])

    values = generate(generate_step(path), context_of(tmp_path, SimpleNamespace(policy=SimpleNamespace(generate=answer)), {}))
    arms = {arm: StepResult(arm, "k", values, 1.0, 1.0) for arm in ("base", "sft")}
    rows = responses(arms["base"])
    assert left_out(arms["base"], None) == []
    assert [(row["response"], row["reference"]) for row in rows] == [(f"a{separator}b", f"good{separator}too")] * 2
    assert all(separator in row["messages"][0][1] for row in rows)
    own = {row["prompt_id"]: [{}] for row in rows}
    inputs = arms | {f"conversation/measure-{arm}": StepResult(arm, "k", {"values": own}, 1.0, 1.0) for arm in arms}
    inputs["conversation/judge"] = StepResult("j", "k", {"values": dict.fromkeys(arms, own)}, 1.0, 1.0)
    (tmp_path / "rows.jsonl").write_bytes(evaluation_rows({"conversation": {arm: arm for arm in arms}}, inputs).encode())
    assert [row.response for row in read_rows(str(tmp_path / "rows.jsonl"))] == [f"a{separator}b"] * 4


def test_of_prompts_with_several_pairs_the_limit_takes_prompts(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", [(f"question {n}", f"good {n} {k}") for n in range(6) for k in range(3)])
    values = generate(generate_step(path, limit=5), context_of(tmp_path, SimpleNamespace(policy=SimpleNamespace(generate=answers)), {}))
    assert values["count"] == 5
    assert len({row["prompt_id"] for row in responses(StepResult("g", "k", values, 1.0, 1.0))}) == 5
    once = write_pairs(tmp_path / "once.jsonl", [("one", "good"), ("two", "good")])
    assert "repeated" not in generate(generate_step(once), context_of(tmp_path, SimpleNamespace(policy=SimpleNamespace(generate=answers)), {}))


def test_a_held_out_prompt_that_cannot_be_measured_is_left_out_and_counted(tmp_path: Path) -> None:
    """One is longer than the model's context, one than reward models read; measured and evaluated are the other two, of all arms."""
    prompts = ["one two", "three four", "word " * 12, "word " * 30]
    path = write_pairs(tmp_path / "pairs.jsonl", [(prompt.strip(), "good") for prompt in prompts])
    values = generate(generate_step(path), context_of(tmp_path, SimpleNamespace(policy=SimpleNamespace(generate=answers)), {}))
    assert (values["count"], values["refused"]) == (3, 1)
    generated = StepResult("g", "k", values, 1.0, 1.0)
    notes = left_out(generated, 10)
    assert [note.split(" ")[0] for note in notes] == ["1", "1"]
    assert "the base model's context" in notes[0]
    assert "over 10 tokens" in notes[1]
    assert len(left_out(generated, 12)) == len(left_out(generated, None)) == 1
    with pytest.raises(InvalidArgumentError, match="0 of 3 held-out prompts") as error:
        left_out(generated, 1)
    assert error.value.field == "tasks.test_uri"

    def score(items: Sequence[ScoreItem], *_: Any, **__: Any) -> Any:
        assert all(len(item.prompt.ids) <= 10 for item in items)  # type: ignore[union-attr]
        return SimpleNamespace(results=[SimpleNamespace(error=None, score=1.0) for _ in items])

    one = SimpleNamespace(error=None, responses=[SimpleNamespace(sequence_logprob=-2.0)])
    policy = SimpleNamespace(
        model_info=lambda **_: SimpleNamespace(eos_token_ids=(END,), context_tokens=20),
        compute_logprobs=lambda items, **_: SimpleNamespace(results=[one for _ in items]),
    )
    inputs = {"base": generated, "sft": generated} | {name: StepResult(name, "k", {"adapter_version": name}, 1.0, 1.0) for name in ("parent", "rm")}
    context = context_of(tmp_path, SimpleNamespace(policy=policy, reward=SimpleNamespace(score=score)), inputs)
    context.longest_prompt = 10
    asked = {"responses_from": "base", "reference_from": "parent", "reward_models_from": {"human": "rm"}, "temperature": 0.7}
    measured = StepResult("m", "k", measure(Step("m", "measure", "", asked), context), 1.0, 1.0)
    assert len(measured.values["values"]) == 2
    inputs |= {"conversation/measure-base": measured, "conversation/measure-sft": measured}
    every = {arm: {row["prompt_id"]: [{}] for row in responses(generated)} for arm in ("base", "sft")}
    inputs["conversation/judge"] = StepResult("j", "k", {"values": every}, 1.0, 1.0)
    rows = evaluation_rows({"conversation": {"base": "base", "sft": "sft"}}, inputs, 10).splitlines()
    assert [len(json.loads(row)["values"]) for row in rows] == [4, 4, 3, 3]


def test_where_the_context_holds_fewer_than_two_prompts_the_base_says_so(tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", [("one two", "good"), (("word " * 30).strip(), "good")])
    with pytest.raises(InvalidArgumentError, match="1 of 2 held-out prompts are such that the base model's context holds"):
        generate(generate_step(path), context_of(tmp_path, SimpleNamespace(policy=SimpleNamespace(generate=answers)), {}))


def test_an_items_error_keeps_its_class() -> None:
    with pytest.raises(UnavailableError, match=r"^prompt p: no room now$") as error:
        raise_item(UnavailableError("no room now", retry_after_seconds=3.0), "prompt p")
    assert error.value.retry_after_seconds == 3.0
    raise_item(None, "prompt p")
