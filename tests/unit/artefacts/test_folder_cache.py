"""The cache of what was fetched: bounded, least recently used first, and never what somebody reads."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from accord.artefacts import ArtefactStore
from accord.artefacts.cache import FolderCache


@pytest.fixture
def versions(tmp_path: Path) -> list[str]:
    """Three versions of 1,000 bytes each."""
    store, names = ArtefactStore(str(tmp_path / "store")), []
    for step in range(3):
        folder = tmp_path / f"made-{step}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}".ljust(1000))
        names.append(store.publish("x", folder, kind="policy", step=step))
    return names


def open_store(tmp_path: Path, cache_bytes: int) -> ArtefactStore:
    return ArtefactStore(f"local://{tmp_path / 'store'}", cache=tmp_path / "cache", cache_bytes=cache_bytes)


def cached(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").iterdir()}


def digests(store: ArtefactStore, *names: str) -> set[str]:
    return {store.manifest(name).digest for name in names}


def use(store: ArtefactStore, name: str, at: float) -> None:
    """Fetched, and read no longer; the clock of some file systems is too coarse to tell two uses apart."""
    folder = store.fetch(name)
    os.utime(folder, (at, at))
    store.release(name)


def test_the_least_recently_used_leaves_first(tmp_path: Path, versions: list[str]) -> None:
    store, (first, second, third) = open_store(tmp_path, 2000), versions
    use(store, first, 1.0)
    use(store, second, 2.0)
    use(store, first, 3.0)
    assert cached(tmp_path) == digests(store, first, second)
    use(store, third, 4.0)
    assert cached(tmp_path) == digests(store, first, third)
    assert (store.fetch(second) / "adapter_config.json").read_text() == "{}".ljust(1000)


def test_what_is_read_stays_as_long_as_anybody_here_reads_it(tmp_path: Path, versions: list[str]) -> None:
    store, (first, second, third) = open_store(tmp_path, 0), versions
    assert store.fetch(first) == store.fetch(first)
    store.release(first)
    store.fetch(second)
    assert cached(tmp_path) == digests(store, first, second), "each is larger than the cache, and both are read"
    store.release(first)
    store.release(first)
    store.fetch(third)
    assert cached(tmp_path) == digests(store, second, third)


def test_what_another_process_reads_stays(tmp_path: Path, versions: list[str]) -> None:
    other, store = open_store(tmp_path, 0), open_store(tmp_path, 0)
    folder = other.fetch(versions[0])
    store.fetch(versions[1])
    store.remove(versions[0])
    assert folder.is_dir()
    other.release(versions[0])
    store.fetch(versions[2])
    assert cached(tmp_path) == digests(store, *versions[1:])


def test_a_folder_that_is_removed_while_it_is_opened_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, cache = (FolderCache(tmp_path, 0) for _ in range(2))
    (tmp_path / "key").mkdir()
    real = os.open

    def open_and_lose(path: Path, flags: int) -> int:
        descriptor = real(path, flags)
        monkeypatch.setattr(os, "open", real)
        other.discard("key")
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose)
    assert not cache.hold("key")
    assert os.listdir(tmp_path) == []


def test_downloads_of_the_dead_are_cleared_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path, 0)
    (tmp_path / ".staging-dead").mkdir()
    os.utime(tmp_path / ".staging-dead", (1.0, 1.0))
    with cache.staging() as living:
        cache.trim()
        assert os.listdir(tmp_path) == [living.name]
    assert os.listdir(tmp_path) == []


def test_of_two_that_replace_a_damaged_folder_the_later_one_leaves_the_good_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = (FolderCache(tmp_path, 0) for _ in range(2))
    (tmp_path / "key").mkdir()
    real, came, held = fcntl.flock, threading.Event(), list[int]()

    def lock(descriptor: int, kind: int) -> None:
        if threading.current_thread() is other:
            came.set()  # before it waits for its turn, or after it has put without one
        real(descriptor, kind)

    def intact(folder: Path) -> bool:
        return (folder / "weights").exists()

    def put(cache: FolderCache, look: Callable[[Path], bool]) -> None:
        with cache.staging() as staging:
            (staging / "weights").touch()
            cache.put("key", staging, intact=look)

    def put_and_read() -> None:
        put(fast, intact)
        if fast.hold("key"):
            held.append((tmp_path / "key").stat().st_ino)

    def look_while_the_other_comes(folder: Path) -> bool:
        found = intact(folder)
        if not other.ident:
            other.start()
            assert came.wait(10)
        return found

    other = threading.Thread(target=put_and_read)
    monkeypatch.setattr(fcntl, "flock", lock)
    put(slow, look_while_the_other_comes)
    other.join(10)
    assert held == [(tmp_path / "key").stat().st_ino]
    assert os.listdir(tmp_path) == ["key"]
