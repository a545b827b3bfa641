"""A policy service that computes another policy stops the run, which loses nothing and goes on when the service is mended."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.training.surroundings import VersionSource, even_share, make_ppo, planted_pairs, write_rows

from accord.training.loop import train
from accord.training.rollout import Rollout
from accord.training.stopping import OtherPolicyError

STEPS = 5


def made(root: Path, model: Path, staleness: int, name: str) -> tuple[Any, Any, Any]:
    values = {"steps": STEPS, "adapter": name, "max_response_tokens": 5, "optimizer": {"learning_rate": 1e-3}}
    ppo = {"data": write_rows(root / "rows.jsonl", planted_pairs()), "epochs": 2, "normalize_scores": True, "max_staleness": staleness}
    context, algorithm, _ = make_ppo(root, model, values, ppo, name=name)
    algorithm._source = source = VersionSource(context, even_share)
    return context, algorithm, source


@pytest.mark.parametrize("staleness", [0, 1])
def test_it_checkpoints_stops_and_samples_anew_when_it_is_resumed(tmp_path: Path, tiny_folder: Path, staleness: int) -> None:
    """As after a restart of the service with other weights or another precision; the batch that it sampled then must not stay in the way, nor the
    next one, which it is still sampling then."""
    straight, algorithm, _ = made(tmp_path, tiny_folder, staleness, "straight")
    train(straight, algorithm)
    context, algorithm, source = made(tmp_path, tiny_folder, staleness, "disturbed")
    collect, put_aside = source.collect, threading.Event()

    def wrong(*arguments: Any) -> list[Rollout]:
        before = len(source.versions)
        rollouts = collect(*arguments)
        if before == 3:
            assert put_aside.wait(60)
        return [
            replace(each, sampler_logprobs=tuple(logprob - 0.5 for logprob in each.sampler_logprobs)) if before > 1 else each for each in rollouts
        ]  # fmt: skip

    source.collect = wrong
    with pytest.raises(OtherPolicyError, match=r"differ by up to 0\.5 nats a token"):
        train(context, algorithm)
    put_aside.set()
    if staleness:
        algorithm._ahead._under.join()
        assert len(source.versions) == 4, "the next batch was being sampled"
    assert not (context.directory.rollouts / "00000003.jsonl").exists()
    assert [path.name for path in context.directory.checkpoints.iterdir()] == ["00000002"], "no checkpoint was asked for"
    assert (context.directory.rollouts / "00000002.refused").exists()
    assert not (context.directory.rollouts / "00000002.jsonl").exists()
    again, algorithm, _ = made(tmp_path, tiny_folder, staleness, "disturbed")
    train(again, algorithm)
    folders = [each.directory.checkpoints / f"{STEPS:08d}" for each in (straight, again)]
    for file in ("adapter/adapter_model.safetensors", "value/adapter_model.safetensors", "value/head.safetensors", "optimizer.safetensors"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file
