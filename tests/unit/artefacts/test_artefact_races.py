"""Publishers in other processes: at the same moment, and killed half way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from accord.artefacts import ArtefactStore, remote

PUBLISH = """
import os, sys, time
from pathlib import Path
from accord.artefacts import ArtefactStore
root, folder, who, start = sys.argv[1:]
store = ArtefactStore(root)
while time.time() < float(start):
    pass
for step in range(20):
    Path(folder, "adapter_config.json").write_text(f'{{"who": "{who}", "step": {step}}}')
    print(store.publish("x", Path(folder), kind="policy", run=f"runs/{who}", step=step))
"""

DIE = """
import os, signal, sys
from pathlib import Path
import accord.artefacts.local as local
from accord.artefacts import ArtefactStore
root, folder, moment = sys.argv[1:]
def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "before_manifest":
    local._write = die
else:
    local._rename_new = die
ArtefactStore(root).publish("x", Path(folder), kind="policy")
"""


def _folder(path: Path) -> Path:
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(b"0" * 100_000)
    (path / "adapter_config.json").write_text("{}")
    return path


def test_what_another_process_has_put_into_the_cache_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a run that are on one machine fetch its parent at once; who comes late must not remove what another reads by now."""
    ArtefactStore(str(tmp_path / "store")).publish("x", _folder(tmp_path / "x"), kind="policy", run="runs/r", step=1)
    slow, fast = (ArtefactStore(f"local://{tmp_path / 'store'}", cache=tmp_path / "cache") for _ in range(2))
    check, found = remote.check_listing, list[Any]()

    def while_it_downloads(*arguments: Any) -> None:
        monkeypatch.setattr(remote, "check_listing", check)
        found.append(fast.fetch("adapters/x/versions/1"))
        found.append(found[0].stat().st_ino)
        check(*arguments)

    monkeypatch.setattr(remote, "check_listing", while_it_downloads)
    folder = slow.fetch("adapters/x/versions/1")
    assert [folder, folder.stat().st_ino] == found
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_two_processes_publish_at_once(tmp_path: Path) -> None:
    root, start = str(tmp_path / "store"), str(time.time() + 0.6)
    publishers = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISH, root, str(_folder(tmp_path / who)), who, start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for who in ("a", "b")
    ]
    outputs = [publisher.communicate(timeout=60) for publisher in publishers]
    assert [publisher.returncode for publisher in publishers] == [0, 0], outputs
    names = [line for output, _ in outputs for line in output.split()]
    store = ArtefactStore(root)
    assert sorted(names, key=lambda name: int(name.rsplit("/", 1)[1])) == [f"adapters/x/versions/{number}" for number in range(1, 41)]
    assert {manifest.run for manifest in store.list()} == {"runs/a", "runs/b"}
    for manifest in store.list():
        who = manifest.run.removeprefix("runs/")
        content = (store.fetch(manifest.name) / "adapter_config.json").read_text()
        assert content == f'{{"who": "{who}", "step": {manifest.step}}}'
    assert os.listdir(tmp_path / "store" / ".staging") == []


@pytest.mark.parametrize("moment", ["before_manifest", "before_rename"])
def test_a_killed_publisher_leaves_nothing_to_see(tmp_path: Path, moment: str) -> None:
    root, folder = str(tmp_path / "store"), _folder(tmp_path / "f")
    done = subprocess.run([sys.executable, "-c", DIE, root, str(folder), moment], capture_output=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(os.listdir(tmp_path / "store" / ".staging")) == 1  # it did get that far
    store = ArtefactStore(root)
    assert store.list() == []
    assert store.latest("x") is None
    assert store.publish("x", folder, kind="policy") == "adapters/x/versions/1"


def test_leavings_of_killed_publishers_are_swept_after_a_day(tmp_path: Path) -> None:
    store = ArtefactStore(str(tmp_path / "store"))
    staging = tmp_path / "store" / ".staging"
    for name in ("old", "young"):
        (staging / name).mkdir(parents=True)
        (staging / name / "x").write_text("x")
    os.utime(staging / "old", (0, 0))
    store.publish("x", _folder(tmp_path / "f"), kind="policy")
    assert os.listdir(staging) == ["young"]


def test_threads_publish_behind_a_url_at_once(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    names: list[str] = []

    def publish(who: int) -> None:
        folder = _folder(tmp_path / str(who))
        store = ArtefactStore(url, cache=tmp_path / "cache")
        for step in range(5):
            (folder / "adapter_config.json").write_text(f'{{"who": {who}, "step": {step}}}')
            names.append(store.publish("x", folder, kind="policy", run=f"runs/{who}", step=step))

    threads = [threading.Thread(target=publish, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(names) == len(set(names)) == 20
    store = ArtefactStore(url, cache=tmp_path / "cache")
    for manifest in store.list():
        who = manifest.run.removeprefix("runs/")
        assert (store.fetch(manifest.name) / "adapter_config.json").read_text() == f'{{"who": {who}, "step": {manifest.step}}}'
    assert {manifest.name for manifest in store.list()} == set(names)
