"""An artefact store that one process of a run cannot reach: neither parted from the others nor waited for in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.training.ranked import on_ranks
from tests.unit.training.surroundings import make_context, make_ppo, planted_pairs, run_here, write_rows

from accord.artefacts.manifest import Manifest
from accord.artefacts.store import ArtefactStore
from accord.errors import AbortedError, UnavailableError
from accord.rundir import RunDirectory
from accord.training import waiting
from accord.training.__main__ import build
from accord.training.distribution import World
from accord.training.loop import train
from accord.training.stopping import RunStopped

pytestmark = [pytest.mark.training, pytest.mark.timeout(180)]


def _ppo(world: World, root: Path, model: Path, deaf: int) -> str:
    """The version that a run of PPO publishes, whose process `deaf` gets no manifest in its second step at first."""
    values: dict[str, Any] = {"steps": 3, "adapter": "x", "max_response_tokens": 5, "distribution": {"processes": world.size}}
    context, algorithm, _ = make_ppo(root, model, values, {"data": write_rows(root / "rows.jsonl", planted_pairs())}, world=world)
    rollouts, manifest, fails = algorithm._rollouts, ArtefactStore.manifest, [0]

    def second_step(step: int) -> Any:
        fails[0] = 2 * (step == 1 and world.rank == deaf)
        return rollouts(step)

    def failing(store: ArtefactStore, name: str) -> Manifest:
        fails[0] -= 1
        if fails[0] >= 0:
            raise UnavailableError("artefact store s3://b failed: connection reset")
        return manifest(store, name)

    algorithm._rollouts, waiting._FIRST_SECONDS = second_step, 0.01
    ArtefactStore.manifest = failing  # type: ignore[method-assign]
    try:
        return train(context, algorithm).adapter_version
    finally:
        ArtefactStore.manifest = manifest  # type: ignore[method-assign]


@pytest.mark.parametrize("deaf", [0, 1])
def test_a_store_that_one_process_cannot_reach_parts_none_from_the_others(tmp_path: Path, tiny_folder: Path, deaf: int) -> None:
    """An error of one process alone would lead it to a checkpoint, and the others to the next step, where each waits for the other."""
    assert on_ranks(tmp_path, 2, _ppo, tmp_path, tiny_folder, deaf) == ["adapters/x/versions/1"] * 2
    waits = [event for event in RunDirectory(tmp_path / "run").events() if event.waiting_on]
    assert len(waits) == (2 if deaf == 0 else 0), "the first process alone asks"


def _set_up(world: World, root: Path, model: Path, deaf: int, stopped: int) -> str:
    """How a run ends whose process `deaf` never gets its parent's files, while process `stopped` hears SIGTERM."""
    context = make_context(
        root, model, tuning(root, parent_adapter="adapters/x/versions/1", distribution={"processes": 2}), name="tuned", world=world
    )
    context.stop = world._stop
    fetch = ArtefactStore.fetch

    def failing(store: ArtefactStore, name: str) -> Path:
        if world.rank == stopped:
            world._stop.set()
        if world.rank == deaf:
            raise UnavailableError("artefact store s3://b failed: connection reset")
        return fetch(store, name)

    ArtefactStore.fetch = failing  # type: ignore[method-assign]
    try:
        build(context).setup()
    except (RunStopped, UnavailableError, AbortedError) as error:
        return type(error).__name__
    finally:
        ArtefactStore.fetch = fetch  # type: ignore[method-assign]
    return "it went on"


def tuning(root: Path, **more: Any) -> dict[str, Any]:
    return {"steps": 1, "adapter": "x", "sft": {"data": write_rows(root / "rows.jsonl", planted_pairs())}, **more}


@pytest.mark.parametrize("deaf", [0, 1])
def test_a_stop_ends_the_wait_for_a_store_in_all_processes_while_they_are_set_up(tmp_path: Path, tiny_folder: Path, deaf: int) -> None:
    run_here(tmp_path, tiny_folder, tuning(tmp_path), name="parent")
    ends = on_ranks(tmp_path, 2, _set_up, tmp_path, tiny_folder, deaf, deaf)
    assert ends == ["RunStopped"] * 2  # after the run's wait_seconds it were UnavailableError
