"""SIGKILL at chosen moments of a run, one after the other on the same run: what is published has the bits of a run that nobody killed.

A run is forked and dies, without any clean-up, before the n-th line that it executes of a function: inside a save, between the rollouts and
their use, inside a publication, in the middle of a line of events. Runs killed from outside, through real services, are in tests/e2e.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.unit.training.surroundings import TIMINGS, VersionSource, even_share, make_context, make_ppo, other_prompts, planted_pairs, write_rows

from accord.artefacts.store import ArtefactStore
from accord.rundir import RunDirectory
from accord.training.__main__ import build
from accord.training.loop import train

pytestmark = pytest.mark.training

STEPS = 8
DIED = 9
# Function, and before which of its lines, counted over all its calls in an attempt. Each attempt starts from what the last one left.
SAMPLING = [
    ("write_rollouts", 1),
    ("write_atomically", 3),
    ("write_atomically", 6),
    ("Critic.values", 2),
    ("LocalShelf.put", 3),
    ("LocalShelf.put", 6),
    ("_rename_new", 3),
]
SAVING = [
    ("Optimizer.apply", 3),
    ("write_checkpoint", 5),
    ("write_checkpoint", 13),
    ("_write_synced", 2),
    ("_put", 3),
    ("prune_checkpoints", 1),
    ("prune_checkpoints", 4),
    ("RunDirectory.append_event", 30),
]
AHEAD = [
    ("Ahead.begin", 1),
    ("_Sampling.run", 1),
    ("write_rollouts", 5),
    ("Ahead.remember", 2),
    ("Optimizer.apply", 12),
    ("Ahead.save", 2),
    ("write_checkpoint", 5),
    ("_put", 3),
    ("prune_checkpoints", 4),
    ("RolloutAlgorithm._sampled", 3),
    ("LocalShelf.remove", 8),
]
REMOVING = [("LocalShelf.remove", 4), ("LocalShelf.remove", 8)]
PUBLISHING = [("ArtefactStore.publish", 3), ("LocalShelf._stage", 6), ("_rename_new", 1), ("_rename_new", 3)]
MOMENTS = {"ppo": [*SAMPLING, *SAVING, *REMOVING], "ahead": AHEAD}


def dying(function: str, line: int) -> Callable[[FrameType, str, object], Any]:
    """A trace function that ends the process before the n-th line of a function of Accord."""
    left = line

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        code = frame.f_code
        if code.co_qualname != function or "accord" not in code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left <= 0:
                os._exit(DIED)
        return trace

    return trace


def attempt(body: Callable[[], object], kill: tuple[str, int] | None) -> int:
    """Runs the body in a forked process: 0 where it came to its end, 9 where it was killed."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        if kill is not None:
            threading.settrace(dying(*kill))
            sys.settrace(dying(*kill))
        body()
        code = 0
    finally:
        os._exit(code)


class Kind:
    """One kind of run over a folder; `once` trains to the end, or to its death."""

    def __init__(self, root: Path, model: Path, kind: str) -> None:
        self._root, self._model, self._kind = root, model, kind
        self._data = write_rows(root / "rows.jsonl", planted_pairs())
        self._values = {
            "steps": STEPS,
            "checkpoint_every_steps": 1,
            "checkpoints_kept": 2,
            "eval_every_steps": 2,
            "optimizer": {"learning_rate": 1e-3},
        }

    def once(self, name: str) -> None:
        values = {**self._values, "adapter": name}
        if self._kind in MOMENTS:
            ppo: dict[str, Any] = {
                "data": self._data,
                "epochs": 2,
                "minibatch_size": 2,
                "normalize_scores": True,
                "kl_controller": "adaptive",
                "kl_target": 0.01,
            }
            ppo |= {"eval_data": {**self._data, "limit": 2}, "max_staleness": int(self._kind == "ahead")}
            context, algorithm, _ = make_ppo(self._root, self._model, {**values, "max_response_tokens": 6}, ppo, name=name)
            algorithm._source = VersionSource(context, even_share)
        else:
            values[self._kind] = {"data": self._data, "eval_data": {**other_prompts(self._root), "limit": 4}}
            context = make_context(self._root, self._model, values, name=name)
            algorithm = build(context)
        train(context, algorithm)

    def files(self, name: str) -> Mapping[str, bytes]:
        """Published weights, and all weights of the last checkpoint."""
        store = ArtefactStore(str(self._root / "artefacts"))
        version = store.latest(name)
        assert version is not None
        assert len([manifest for manifest in store.list(name) if manifest.kind]) == 1, "it is published once"
        folders = {"published": store.fetch(version), "kept": RunDirectory(self._root / name).checkpoints / f"{STEPS:08d}"}
        return {
            f"{place}/{path.relative_to(folder)}": path.read_bytes() for place, folder in folders.items() for path in folder.rglob("*.safetensors")
        }

    def curve(self, name: str) -> dict[int, dict[str, float]]:
        """Metrics by step, timings left out; of a step that was done twice, the later ones."""
        found: dict[int, dict[str, float]] = {}
        for event in RunDirectory(self._root / name).events():
            if event.kind == "metrics":
                found.setdefault(event.step, {}).update({key: value for key, value in event.values.items() if key not in TIMINGS})
        return found


@pytest.mark.parametrize("kind", ["sft", "reward_model", "dpo", *MOMENTS])
def test_killed_again_and_again_it_publishes_the_bits_of_an_undisturbed_run(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    runs = Kind(tmp_path, tiny_folder, kind)
    assert attempt(lambda: runs.once("straight"), None) == 0
    for kill in MOMENTS.get(kind, [*SAVING, *PUBLISHING]):
        assert attempt(lambda: runs.once("killed"), kill) == DIED, f"it did not come to {kill}"
    assert attempt(lambda: runs.once("killed"), None) == 0
    assert runs.curve("killed") == runs.curve("straight")
    assert set(runs.curve("straight")) >= set(range(1, STEPS + 1))
    files = runs.files("killed")
    assert files == runs.files("straight")
    assert len(files) == {"sft": 3, "dpo": 3, "reward_model": 5, "ppo": 5, "ahead": 6}[kind]
