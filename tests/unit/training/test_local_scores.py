"""Scores on a run's own base model: ensembles, what is no reward model, and where they cannot be had."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from tests.unit.training.surroundings import make_context, planted_pairs, run_here, write_rows

from accord.client.messages import TokenIds
from accord.client.reward import RewardModel, ScoreItem
from accord.errors import FailedPreconditionError, InvalidArgumentError
from accord.runspec import parse_spec
from accord.training.local_scores import LocalScores

ITEMS = [ScoreItem(TokenIds((1, 10, 11)), TokenIds((20 + number, 2)), str(number)) for number in range(3)]


def spec(data: dict[str, Any], **ppo: Any) -> dict[str, Any]:
    return {"steps": 2, "batch_size": 2, "adapter": "p", "ppo": {"data": data, "reward_model": "adapters/rm/versions/1", **ppo}}


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    return write_rows(tmp_path / "rows.jsonl", planted_pairs())


def test_an_ensembles_score_is_the_mean_less_the_spread_of_its_members(tmp_path: Path, tiny_folder: Path, data: dict[str, Any]) -> None:
    common = {"steps": 2, "optimizer": {"learning_rate": 5e-3}, "adapter": "rm"}
    members = tuple(
        run_here(tmp_path, tiny_folder, {**common, "seed": seed, "reward_model": {"data": data}}, name=f"rm-{seed}")[0].adapter_version
        for seed in (1, 2, 3)
    )
    scores = LocalScores(make_context(tmp_path, tiny_folder, spec(data)))
    found = list(scores.score_groups([ITEMS[:2], ITEMS[2:]], RewardModel(members, std_coefficient=0.5)))
    alone = [[result.score for result in scores.score_groups([ITEMS[:2], ITEMS[2:]], RewardModel((member,)))] for member in members]
    for index, result in enumerate(found):
        each = [column[index] for column in alone]
        assert result.item_id == str(index)
        assert list(result.member_scores) == each
        assert result.score == pytest.approx(statistics.mean(each) - 0.5 * statistics.pstdev(each))
    assert len({result.score for result in found}) == 3


def test_a_policy_is_no_reward_model(tmp_path: Path, tiny_folder: Path, data: dict[str, Any]) -> None:
    common = {"steps": 1, "adapter": "start", "sft": {"data": data}}
    version = run_here(tmp_path, tiny_folder, common, name="start")[0].adapter_version
    with pytest.raises(FailedPreconditionError, match="is of kind policy; a reward model is needed"):
        LocalScores(make_context(tmp_path, tiny_folder, spec(data))).digests_of(version)


def test_where_the_model_is_busy_or_spread_a_service_is_needed(tmp_path: Path, tiny_folder: Path, data: dict[str, Any]) -> None:
    alone = make_context(tmp_path, tiny_folder, spec(data))
    for values in (spec(data, max_staleness=1), *(spec(data) | {"distribution": {"processes": count, "strategy": "fsdp"}} for count in (1, 2))):
        alone.run = alone.run.model_copy(update={"spec": parse_spec(values)})
        with pytest.raises(InvalidArgumentError) as caught:
            LocalScores(alone)
        assert caught.value.field == "endpoints.reward"
