"""One step of each algorithm on the tiny model: what a micro-batch, a neighbour or the padding must not change, and what the loss is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import ALONE, WORDS, GradientKeeper, make_context, planted_pairs, shake, write_rows
from torch import Tensor

from accord.errors import InvalidArgumentError
from accord.models.batching import collate
from accord.models.heads import ScalarHead
from accord.models.logprobs import batch_logprobs
from accord.models.packing import group_logprobs
from accord.training.__main__ import build
from accord.training.context import RunContext
from accord.training.critic import Critic
from accord.training.distribution import World
from accord.training.examples import EncodedPair, batch_at
from accord.training.pairs import group_sizes, group_weights
from accord.training.rollout import Rollout
from accord.training.rollout_tensors import RolloutModel, micro_batches


def grouped_rows() -> list[dict[str, Any]]:
    """Soft labels, and three pairs of one prompt beside single ones."""
    rows = []
    for n, word in enumerate(WORDS[:6]):
        prompt = "say it" if n < 3 else f"say {word}"
        rows.append(
            {
                "pair_id": f"p{n}", "task": "conversation", "prompt": [{"role": "user", "content": prompt}], "preference": 0.5 + 0.08 * n,
                "chosen": [{"role": "assistant", "content": word * (1 + n % 3)}], "rejected": [{"role": "assistant", "content": "?" * (2 + n)}],
                "group": "it" if n < 3 else word,
            }
        )  # fmt: skip
    return rows


ALGORITHMS: dict[str, dict[str, Any]] = {
    "sft": {"sft": {}},
    "reward_model": {"reward_model": {"centering_coefficient": 0.01}},
    "dpo": {"dpo": {"beta": 0.3}},
    "dpo with nll": {"dpo": {"beta": 0.3, "nll_coefficient": 0.7}},
    "ipo": {"dpo": {"beta": 0.3, "loss": "ipo"}},
    "cdpo": {"dpo": {"beta": 0.3, "loss": "cdpo", "label_smoothing": 0.1}},
}


def prepared(
    root: Path, model: Path, values: Mapping[str, Any], *, name: str, world: World = ALONE, **more: Any,
) -> tuple[RunContext, Any]:  # fmt: skip
    """An algorithm that is set up, its adapter shaken; `values` name it, without its data."""
    (kind, options), *_ = values.items()
    data = write_rows(root / "rows.jsonl", grouped_rows())
    context = make_context(root, model, {"batch_size": 6, **more, kind: {"data": data, **options}}, name=name, world=world)
    algorithm = build(context)
    algorithm.setup()
    shake(context, context.adapted.names[0])
    return context, algorithm


def gradients(algorithm: Any) -> tuple[list[Tensor], dict[str, float]]:
    keeper = GradientKeeper(algorithm.parameters(), algorithm._context.world)
    metrics = algorithm.step(0, keeper)
    return keeper.steps[0], metrics


@pytest.fixture
def several_pairs_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; a CPU computes pairs one by one."""
    monkeypatch.setattr("accord.training.pairs.pairs_a_pass", lambda context: context.micro_batch_size)


@pytest.mark.usefixtures("several_pairs_a_pass")
@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_the_size_of_a_micro_batch_does_not_change_the_gradient(tmp_path: Path, tiny_folder: Path, name: str) -> None:
    found = []
    for size in (6, 1, 4):
        _, algorithm = prepared(tmp_path, tiny_folder, ALGORITHMS[name], name=f"run-{size}", micro_batch_size=size)
        found.append(gradients(algorithm))
    whole, metrics = found[0]
    largest = max(float(gradient.abs().max()) for gradient in whole)
    assert largest > 1e-3, "a gradient of nothing proves nothing"
    for other, other_metrics in found[1:]:
        for first, second in zip(whole, other, strict=True):
            torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-6 * max(1.0, largest))
        for metric in ("loss", "grad_norm", "tokens"):
            assert other_metrics[metric] == pytest.approx(metrics[metric], rel=1e-5), metric


@pytest.mark.parametrize("name", ["dpo", "reward_model"])
def test_how_pairs_are_grouped_by_length_does_not_change_loss_or_gradient(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In float64, where what is left is not rounding: pairs of very different lengths in any order and any groups, against one pair at a time."""
    groupings = [[[0, 1, 2, 3], [4, 5]], [[5, 0, 4], [1, 3, 2]], [[3], [1, 5, 0, 4, 2]], [[0, 1, 2, 3, 4, 5]]]
    context, algorithm = prepared(tmp_path, tiny_folder, ALGORITHMS[name], name="run")
    context.base.model.double()
    if name == "reward_model":
        algorithm._head.double()
    alone, metrics = gradients(algorithm)
    for groups in groupings:

        def grouped(pairs: Sequence[EncodedPair], size: int, groups: list[list[int]] = groups) -> list[list[EncodedPair]]:
            return [[pairs[index] for index in group] for group in groups]

        monkeypatch.setattr("accord.training.pairs.micro_batches_of_pairs", grouped)
        found, other = gradients(algorithm)
        assert other["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
        for first, second in zip(alone, found, strict=True):
            torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("several_pairs_a_pass")
@pytest.mark.parametrize("name", ["dpo", "reward_model"])
def test_no_hidden_state_but_those_that_predict_a_response_is_looked_at(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every other position, prompts and padding, holds NaN behind the last layer: neither loss nor gradient notices."""
    context, algorithm = prepared(tmp_path, tiny_folder, ALGORITHMS[name], name="run", micro_batch_size=3)
    expected, metrics = gradients(algorithm)
    hidden, poisoned, projected = context.adapted.hidden, [], []

    def poisoning(input_ids: Tensor, attention_mask: Tensor, **more: Any) -> Tensor:
        states = hidden(input_ids, attention_mask, **more)
        keep = looked_at(input_ids, context, scores=name == "reward_model")
        poisoned.append(int((~keep).sum()))
        return torch.where(keep[..., None], states, torch.full_like(states, math.nan))

    monkeypatch.setattr(context.adapted, "hidden", poisoning)
    handle = context.base.model.get_output_embeddings().register_forward_hook(lambda _, given, out: projected.append(out.shape[0]))
    found, other = gradients(algorithm)
    handle.remove()
    assert other == metrics
    assert all(torch.equal(first, second) for first, second in zip(expected, found, strict=True))
    assert min(poisoned) > 0
    batch = batch_at(algorithm._pairs, 0, 6, context.spec.seed)
    assert sum(projected) == (0 if name == "reward_model" else sum(len(pair.chosen) + len(pair.rejected) for pair in batch))


def looked_at(input_ids: Tensor, context: RunContext, *, scores: bool) -> Tensor:
    """Where a row of prompt, chosen and rejected may be read, from the tokens alone: the planted responses are known, and end with the end of a turn."""
    keep = torch.zeros_like(input_ids, dtype=torch.bool)
    end = context.base.encoder.end_of_turn_id
    for row, ids in enumerate(input_ids.tolist()):
        ends = [place for place, token in enumerate(ids) if token == end][-2:]
        start = next(place for place in range(ends[0], 0, -1) if ids[:place] in prompts_of(context))
        if scores:
            keep[row, ends] = True
        else:
            keep[row, start - 1 : ends[1]] = True
            keep[row, ends[0]] = False
    return keep


def prompts_of(context: RunContext) -> list[list[int]]:
    from accord.text.chat import Message

    words = {row["prompt"][0]["content"] for row in grouped_rows()}
    return [context.base.encoder.encode_prompt((Message("user", word),)) for word in words]


def rated_rows() -> list[dict[str, Any]]:
    """Gaps with and against the label, none, and a label that prefers the rejected response."""
    gaps: tuple[float | None, ...] = (2.0, 0.5, None, -1.0, 3.0, -2.0)
    rows = [{**row, "rating_gap": gap} for row, gap in zip(grouped_rows(), gaps, strict=True)]
    return [*rows[:5], {**rows[5], "preference": 0.1}]


RATED = {"rating_margin": 0.4, "rating_weights": True}


def expected_rated_losses(pairs: Sequence[EncodedPair], differences: Sequence[float]) -> list[float]:
    """Weight times loss of each pair, written out: softplus(m - d) and softplus(m + d) by the label, gaps in the label's direction."""
    gaps = {"p0": 0.0, "p1": 0.5, "p3": 0.0, "p4": 3.0, "p5": 2.0}  # p0 is a tie
    mean = sum(gaps.values()) / 5
    losses = []
    for pair, d in zip(pairs, differences, strict=True):
        gap = gaps.get(pair.id)
        m, weight, p = 0.4 * (gap or 0.0), 1.0 if gap is None else gap / mean, pair.preference
        losses.append(weight * (p * math.log1p(math.exp(m - d)) + (1 - p) * math.log1p(math.exp(m + d))))
    return losses


@pytest.mark.parametrize("kind", ["dpo", "reward_model"])
def test_ratings_count_as_margins_and_weights(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    """Loss and gradient of a run against the formula on its own differences, and finite differences along the gradient."""
    data = write_rows(tmp_path / "rows.jsonl", rated_rows())
    options = {"beta": 0.3} if kind == "dpo" else {}
    context = make_context(tmp_path, tiny_folder, {"batch_size": 6, kind: {"data": data, **RATED, **options}})
    algorithm: Any = build(context)
    algorithm.setup()
    shake(context, context.adapted.names[0])
    pairs = batch_at(algorithm._pairs, 0, 6, context.spec.seed)
    shares = group_weights(pairs, group_sizes(pairs)) if kind == "reward_model" else [1 / 6] * 6

    def loss() -> float:
        with torch.no_grad():
            if kind == "dpo":
                chosen, rejected = (
                    0.3 * (mine - theirs) for mine, theirs in zip(algorithm._loss.sums(pairs, "policy"), algorithm._reference.of(pairs), strict=True)
                )
            else:
                chosen, rejected = algorithm._scores(pairs)
        losses = expected_rated_losses(pairs, (chosen - rejected).double().tolist())
        return sum(each * share for share, each in zip(shares, losses, strict=True))

    before = loss()
    found, metrics = gradients(algorithm)
    assert metrics["loss"] == pytest.approx(before, rel=1e-4)
    parameters = GradientKeeper(algorithm.parameters()).parameters
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in found))
    assert norm > 1e-2
    ends = []
    for move in (1e-2, -2e-2):
        with torch.no_grad():
            for parameter, gradient in zip(parameters, found, strict=True):
                parameter.add_(gradient, alpha=move / norm)
        ends.append(loss())
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(norm, rel=2e-2), "the directional derivative along the gradient is its norm"


@pytest.mark.parametrize("kind", ["dpo", "reward_model"])
def test_ratings_that_no_pair_has_end_a_run(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    data = write_rows(tmp_path / "rows.jsonl", grouped_rows())
    algorithm = build(make_context(tmp_path, tiny_folder, {kind: {"data": data, "rating_margin": 0.5}}))
    with pytest.raises(InvalidArgumentError, match="none of the 6 pairs") as caught:
        algorithm.setup()
    assert caught.value.field == f"{kind}.rating_margin"


def nll(context: RunContext, prompt: tuple[int, ...], response: tuple[int, ...], adapter: str | None) -> float:
    """Minus the response's logprob, one token at a time through the whole model, nothing shared with the code under test."""
    total = 0.0
    for place in range(len(response)):
        ids = torch.tensor([[*prompt, *response[:place]]])
        with torch.no_grad(), context.adapted.use(adapter):
            logits = context.adapted.module(input_ids=ids).logits[0, -1].double()
        total -= float(torch.log_softmax(logits, -1)[response[place]])
    return total


def test_the_sft_loss_is_the_mean_over_response_tokens(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm = prepared(tmp_path, tiny_folder, ALGORITHMS["sft"], name="run")
    rows = batch_at(algorithm._rows, 0, 6, context.spec.seed)
    expected = sum(nll(context, row.prompt, row.response, "policy") for row in rows) / sum(len(row.response) for row in rows)
    assert all(row.response[-1] == context.base.encoder.end_of_turn_id for row in rows)
    _, metrics = gradients(algorithm)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "coefficient"), [("dpo", 0.0), ("dpo with nll", 0.7)])
def test_the_dpo_loss_is_the_formula_on_sums_over_tokens(tmp_path: Path, tiny_folder: Path, name: str, coefficient: float) -> None:
    """Rafailov et al. 2023, eq. 7, and Pang et al. 2024, eq. 1, with soft labels, from logprobs made one token at a time."""
    context, algorithm = prepared(tmp_path, tiny_folder, ALGORITHMS[name], name="run")
    losses, margins = [], []
    for pair in batch_at(algorithm._pairs, 0, 6, context.spec.seed):
        chosen, rejected = (
            nll(context, pair.prompt, response, None) - nll(context, pair.prompt, response, "policy") for response in (pair.chosen, pair.rejected)
        )
        margin = 0.3 * (chosen - rejected)
        margins.append(margin)
        losses.append(pair.preference * math.log1p(math.exp(-margin)) + (1 - pair.preference) * math.log1p(math.exp(margin)))
        for weight, response in ((pair.preference, pair.chosen), (1 - pair.preference, pair.rejected)):
            losses[-1] += coefficient * weight * nll(context, pair.prompt, response, "policy") / len(response)
    _, metrics = gradients(algorithm)
    assert metrics["loss"] == pytest.approx(sum(losses) / 6, rel=1e-4)
    assert metrics["margin"] == pytest.approx(sum(margins) / 6, rel=1e-3)


@pytest.mark.parametrize(("name", "expected"), [("dpo", math.log(2)), ("cdpo", math.log(2)), ("ipo", 1 / (4 * 0.3**2))])
def test_the_first_dpo_step_starts_from_margins_of_exactly_zero(tmp_path: Path, tiny_folder: Path, name: str, expected: float) -> None:
    """REFERENCES.md section 3, at initialisation: the reference's logprobs and the policy's come from passes that are alike."""
    (kind, options), *_ = ALGORITHMS[name].items()
    data = write_rows(tmp_path / "rows.jsonl", grouped_rows())
    context = make_context(tmp_path, tiny_folder, {"batch_size": 5, "micro_batch_size": 2, kind: {"data": data, **options}})
    algorithm = build(context)
    algorithm.setup()
    _, metrics = gradients(algorithm)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["margin"] == 0


def test_all_pairs_of_a_prompt_are_one_element_of_the_reward_loss(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm = prepared(tmp_path, tiny_folder, {"reward_model": {}}, name="run")
    pairs = batch_at(algorithm._pairs, 0, 6, context.spec.seed)
    chosen, rejected = algorithm._scores(pairs)
    by_group: dict[str, list[float]] = {}
    for pair, difference in zip(pairs, (chosen - rejected).tolist(), strict=True):
        loss = pair.preference * math.log1p(math.exp(-difference)) + (1 - pair.preference) * math.log1p(math.exp(difference))
        by_group.setdefault(pair.group, []).append(loss)
    assert sorted(len(losses) for losses in by_group.values()) == [1, 1, 1, 3]
    expected = sum(sum(losses) / len(losses) for losses in by_group.values()) / 4
    assert gradients(algorithm)[1]["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_scale_of_scores_is_that_of_all_prompts(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seventy pairs of a prompt that scores 1, and behind them in the file as many of one that scores 3."""
    rows = [{**grouped_rows()[0], "pair_id": f"p{n}", "group": "low" if n < 70 else "high"} for n in range(140)]
    algorithm: Any = build(make_context(tmp_path, tiny_folder, {"reward_model": {"data": write_rows(tmp_path / "rows.jsonl", rows)}}))
    algorithm.setup()
    monkeypatch.setattr(algorithm, "_scores", lambda pairs: (torch.tensor([1.0 if pair.group == "low" else 3.0 for pair in pairs]),) * 2)
    assert algorithm.evaluate(final=True) == {"score_mean": 2.0, "score_std": 1.0}
    facts = algorithm.publication()["facts"]
    assert (facts["mean"], facts["std"], facts["statistics_pairs"]) == (2.0, 1.0, 64)


def test_packing_and_padding_do_not_change_scores_or_logprobs(tmp_path: Path, tiny_folder: Path) -> None:
    """Scores of packed pairs, of each response alone, and padded on either side; logprobs alike."""
    context, algorithm = prepared(tmp_path, tiny_folder, {"reward_model": {}}, name="run")
    head: ScalarHead = algorithm._head
    pairs = list(algorithm._pairs)
    with torch.no_grad():
        packed = torch.stack(algorithm._scores(pairs), dim=1).reshape(-1)
        sequences = [(pair.prompt, response) for pair in pairs for response in (pair.chosen, pair.rejected)]
        alone = torch.cat([_scored(context, head, [sequence], "right") for sequence in sequences])
        groups = group_logprobs(context.adapted, [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs], adapter="reward")
        sums = torch.stack([part.sum() for group in groups for part in group])
        for side in ("right", "left"):
            torch.testing.assert_close(_scored(context, head, sequences, side), alone, rtol=1e-5, atol=1e-5)
            batch = collate(sequences, pad_id=context.base.pad_token_id, side=side)
            parts = batch_logprobs(context.adapted, batch, adapter="reward").split([len(response) for _, response in sequences])
            torch.testing.assert_close(torch.stack([part.sum() for part in parts]), sums, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def _scored(context: RunContext, head: ScalarHead, sequences: list[Any], side: Any) -> Tensor:
    batch = collate(sequences, pad_id=context.base.pad_token_id, side=side)
    hidden = context.adapted.hidden(batch.input_ids, batch.attention_mask, adapter="reward", position_ids=batch.position_ids)
    return head.at_last_token(hidden, batch.attention_mask)


def test_a_rollout_has_the_same_numbers_alone_and_among_others(tmp_path: Path, tiny_folder: Path) -> None:
    values = {"seed": 2**64 - 1, "sft": {"data": write_rows(tmp_path / "rows.jsonl", planted_pairs())}}  # the largest seed, for all that is drawn
    context = make_context(tmp_path, tiny_folder, values)
    context.adapted.add("policy", context.spec.lora, seed=context.spec.seed)
    shake(context, "policy")
    model, critic = RolloutModel(context.adapted, ALONE, temperature=0.7), Critic(context)
    critic.start_fresh()
    shake(context, "value")
    critic.head.load_state_dict(ScalarHead(context.base.hidden_size, seed=1).state_dict())
    rollouts = [Rollout(f"r{n}", tuple(range(3, 8 + 3 * n)), tuple(range(40, 44 + 2 * (n % 3))), (0.0,), 0.0, True, 0, "v") for n in range(4)]
    with torch.no_grad():
        logprobs, mask, entropy = model.logprobs_and_entropy(rollouts, "policy")
        values = critic.values(rollouts)
        table = ALONE.rows(*values.shape)
        critic.fill(table, rollouts, [0, 1, 3])
        torch.testing.assert_close(table.whole()[[0, 1, 3]], values[[0, 1, 3]], rtol=1e-5, atol=1e-5)
        assert not table.whole()[2].any()
        for row, rollout in enumerate(rollouts):
            length = len(rollout.response_ids)
            assert mask[row].sum() == length
            one, _, spread = model.logprobs_and_entropy([rollout], "policy")
            torch.testing.assert_close(one[0], logprobs[row, :length], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(spread[0], entropy[row, :length], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(critic.values([rollout])[0], values[row, :length], rtol=1e-5, atol=1e-5)
        cold = RolloutModel(context.adapted, ALONE, temperature=1.0)
        assert not torch.allclose(cold.logprobs(rollouts, "policy")[0], logprobs), "the temperature counts"
        first = _value_before_the_first_token(context, critic.head, rollouts[0])
    torch.testing.assert_close(values[0, 0], first, rtol=1e-5, atol=1e-5)


def _value_before_the_first_token(context: RunContext, head: ScalarHead, rollout: Rollout) -> Tensor:
    """The value of a state is read where the prompt ends, before the token that is judged."""
    ids = torch.tensor([rollout.prompt_ids])
    return head(context.adapted.hidden(ids, torch.ones_like(ids, dtype=torch.bool), adapter="value"))[0, -1]


def test_rows_come_back_in_their_places() -> None:
    table = ALONE.rows(3, 3)
    for rows, values in (([2, 0], torch.tensor([[1.0, 1.0], [2.0, 2.0]])), ([1], torch.tensor([[3.0, 3.0, 3.0]]))):
        table.put(rows, values)
    assert table.whole().tolist() == [[2, 2, 0], [3, 3, 3], [1, 1, 0]]


def test_micro_batches_hold_alike_lengths_and_every_member_once() -> None:
    rollouts = [Rollout("r", (1,) * length, (2,), (0.0,), 0.0, True, 0, "v") for length in (5, 1, 4, 2, 3)]
    assert micro_batches(rollouts, [4, 0, 2, 1], 3) == [[1, 4, 2], [0]]
    assert micro_batches(rollouts, range(5), 2) == [[1, 3], [4, 2], [0]]
