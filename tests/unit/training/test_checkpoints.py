"""Checkpoints: whole or not at all, whatever is killed, cut short, flipped or full."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from accord import checkpoint
from accord.checkpoint import MANIFEST, latest_checkpoint, prune_checkpoints, read_checkpoint, write_checkpoint
from accord.errors import DataLossError, FailedPreconditionError

SPEC = {"adapter": "a", "steps": 12, "dpo": {"data": {"uri": "rows.jsonl"}, "beta": 0.3}}


def write(folder: Path, step: int, text: str = "", *, spec: dict[str, Any] = SPEC) -> Path:
    def fill(target: Path) -> None:
        (target / "adapter").mkdir()
        (target / "adapter" / "weights").write_bytes(f"weights {step} {text}".encode() * 50)
        (target / "optimizer").write_bytes(b"moments" * 50)

    state = {"algorithm": {"value": 0.05}, "metrics": {"loss": 1 / 3, "text": text}}
    return write_checkpoint(folder, step, fill, spec=spec, state=state, publish={"kind": "policy"})


def latest(folder: Path, said: list[str] | None = None) -> Any:
    return latest_checkpoint(folder, spec=SPEC, report=(said if said is not None else []).append)


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert latest(tmp_path / "none") is None
    path = write(tmp_path, 3)
    found = latest(tmp_path)
    assert (found.path, found.step, found.publish) == (path, 3, {"kind": "policy"})
    assert found.state == {"algorithm": {"value": 0.05}, "metrics": {"loss": 1 / 3, "text": ""}}
    write(tmp_path, 12)
    assert latest(tmp_path).step == 12


def test_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 3, "old")
    write(tmp_path, 3, "new")
    assert latest(tmp_path).state["metrics"]["text"] == "new"
    assert steps(tmp_path) == ["00000003"]


def test_another_specification_is_no_damage_but_a_mistake(tmp_path: Path) -> None:
    for other, words in (
        (SPEC | {"seed": 4}, "specification: seed was 4, and now it is the default"),
        (SPEC | {"dpo": {"data": {"uri": "rows.jsonl"}}}, "specification: dpo.beta was the default, and now it is 0.3"),
        ({name: value for name, value in SPEC.items() if name != "steps"}, "specification: steps was the default, and now it is 12"),
        (SPEC | {"dpo": {"beta": 0.3, "data": {"uri": "others.jsonl"}}}, 'dpo.data.uri was "others.jsonl", and now it is "rows.jsonl"'),
    ):
        write(tmp_path, 3, spec=other)
        with pytest.raises(FailedPreconditionError, match=re.escape(words)):
            latest(tmp_path)


def test_where_none_is_whole_it_is_said_that_the_run_begins_anew(tmp_path: Path) -> None:
    for step in (2, 4):
        (write(tmp_path, step) / "optimizer").unlink()
    said: list[str] = []
    assert latest(tmp_path, said) is None
    assert [text.split("; ")[1] for text in said] == ["the one before it is used", "there is none before it: the run begins anew"]


@pytest.mark.parametrize("file", ["adapter/weights", "optimizer", MANIFEST])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone", "longer"])
def test_a_damaged_one_is_passed_over_and_said(tmp_path: Path, file: str, damage: str) -> None:
    write(tmp_path, 2)
    path = write(tmp_path, 4) / file
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes({"cut": bytes(content[:-1]), "flipped": bytes(content), "longer": path.read_bytes() + b"x"}[damage])
    said: list[str] = []
    assert latest(tmp_path, said).step == 2
    assert len(said) == 1
    assert "checkpoint 00000004" in said[0]
    assert "the one before it is used" in said[0]
    with pytest.raises(DataLossError):
        read_checkpoint(tmp_path / "00000004", spec=SPEC)


def test_no_bit_of_a_manifest_can_flip_unseen(tmp_path: Path) -> None:
    """Coefficients and statistics stand in the manifest itself; white space is the only part that may change."""
    path = write(tmp_path, 4) / MANIFEST
    content = path.read_bytes()
    whole = json.loads(content)
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(bytes(flipped))
        try:
            assert read_checkpoint(path.parent, spec=SPEC).state == whole["state"], place
        except (DataLossError, FailedPreconditionError):
            continue


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"files": 3}', b'{"digest": "x", "files": {"a": 1}, "step": "x"}', b"\xff"])
def test_a_manifest_that_is_none(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, 4)
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(DataLossError, match=r"00000004: its manifest cannot be read"):
        read_checkpoint(path, spec=SPEC)


def in_child(body: Callable[[], None], die_at_line: int) -> int:
    """Runs the body in a forked process that dies, without any clean-up, before the n-th line of checkpoint.py or the test's `fill`.

    Returns 9 where it died and 0 where it came to its end.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    remaining = die_at_line

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal remaining
        if frame.f_code.co_filename not in (checkpoint.__file__, __file__):
            return None
        if event == "line":
            remaining -= 1
            if remaining < 0:
                os._exit(9)
        return trace

    try:
        sys.settrace(trace)
        body()
        os._exit(0)
    finally:
        os._exit(1)


def killed_everywhere(folder: Path, prepare: Callable[[Path], None], body: Callable[[Path], None]) -> list[Path]:
    """One folder for each line at which the body can be killed, as the kill left it."""
    left: list[Path] = []
    for line in range(2000):
        place = folder / f"at-{line}"
        prepare(place)
        left.append(place)
        code = in_child(lambda place=place: body(place), line)  # type: ignore[misc]
        if code == 0:
            return left
        assert code == 9
    raise AssertionError("the body has no end")


def test_killed_at_any_line_of_a_save_the_old_one_or_the_new_one_is_whole(tmp_path: Path) -> None:
    places = killed_everywhere(tmp_path, lambda place: (write(place, 2), None)[1], lambda place: (write(place, 4), None)[1])
    assert len(places) > 40, "the kill reached too few places"
    seen = []
    for place in places:
        said: list[str] = []
        seen.append(latest(place, said).step)
        assert not said, "half a checkpoint must not even look like one"
        write(place, 6)
        prune_checkpoints(place, 2, 6)
        assert steps(place) in (["00000002", "00000006"], ["00000004", "00000006"])
    assert seen == sorted(seen)
    assert set(seen) == {2, 4}


def test_killed_at_any_line_while_one_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    """With one checkpoint kept there is nothing else to go back to."""
    places = killed_everywhere(tmp_path, lambda place: (write(place, 4, "old"), None)[1], lambda place: (write(place, 4, "new"), None)[1])
    seen = []
    for place in places:
        said: list[str] = []
        found = latest(place, said)
        assert found.step == 4
        assert not said
        seen.append(found.state["metrics"]["text"])
        prune_checkpoints(place, 1, 4)
        assert steps(place) == ["00000004"]
        assert latest(place).state["metrics"]["text"] == seen[-1]
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {"old", "new"}


@pytest.mark.parametrize("replaced", [False, True])
def test_a_full_disk_leaves_the_last_one_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool) -> None:
    """ENOSPC at each operating-system call in turn: an OSError, and nothing lost."""
    step = 2 if replaced else 4
    for number in range(1, 200):
        folder = tmp_path / f"{number}"
        write(folder, 2, "old")
        with monkeypatch.context() as patch:
            calls = Full(number)
            for name in ("fsync", "open", "mkdir", "rename"):
                patch.setattr(os, name, calls.around(getattr(os, name)))
            failed = None
            try:
                write(folder, step, "new")
            except OSError as error:
                failed = error.errno
        if failed is None:  # not reached, or the folder was there already, or only what clears up behind the new one failed
            assert latest(folder).state["metrics"]["text"] == "new"
            if not calls.hit:
                assert number > 8, "too few calls were reached"
                return
            continue
        assert failed == errno.ENOSPC
        said: list[str] = []
        text = latest(folder, said).state["metrics"]["text"]
        assert not said
        assert text == "old" or calls.renamed
        assert not [name for name in steps(folder) if name.endswith(f"{os.getpid()}.tmp")]
    raise AssertionError("it never succeeded")


class Full:
    """Calls that work until the n-th, which finds the disk full; the clean-up behind it works again."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.renamed = self.hit = False

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self.hit = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.renamed |= call.__name__ == "rename"
            return call(*arguments, **named)

        return counted


def test_a_device_that_is_really_full(tmp_path: Path) -> None:
    write(tmp_path, 2)

    def fill(folder: Path) -> None:
        (folder / "weights").symlink_to("/dev/full")
        (folder / "weights").write_bytes(b"x" * 100_000)

    with pytest.raises(OSError, match="No space left on device"):
        write_checkpoint(tmp_path, 4, fill, spec=SPEC, state={}, publish={})
    assert latest(tmp_path).step == 2
    assert steps(tmp_path) == ["00000002"]


def test_pruning_keeps_the_newest_up_to_the_step_and_clears_what_was_left(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        write(tmp_path, step)
    (tmp_path / ".00000010.123.tmp").mkdir()
    prune_checkpoints(tmp_path, 2, 8)
    assert steps(tmp_path) == ["00000006", "00000008"]


def test_a_damaged_newer_one_does_not_push_out_the_good_ones(tmp_path: Path) -> None:
    """After 8 was found damaged the run went on from 4: 6 is worth more than 8."""
    for step in (4, 8):
        write(tmp_path, step)
    (tmp_path / "00000008" / "optimizer").write_bytes(b"")
    assert latest(tmp_path).step == 4
    write(tmp_path, 6)
    prune_checkpoints(tmp_path, 1, 6)
    assert steps(tmp_path) == ["00000006"]
    assert latest(tmp_path).step == 6


def test_a_damaged_one_between_two_good_ones_counts_for_none(tmp_path: Path) -> None:
    """A stop wrote 9, which is damaged; the run went on from 8 to 12, by its schedule."""
    for step in (4, 8, 9, 12):
        write(tmp_path, step)
    (tmp_path / "00000009" / "optimizer").write_bytes(b"")
    prune_checkpoints(tmp_path, 2, 12, behind=8)
    assert steps(tmp_path) == ["00000008", "00000012"]
    write(tmp_path, 16)
    prune_checkpoints(tmp_path, 2, 16, behind=12)
    assert steps(tmp_path) == ["00000012", "00000016"]
    (tmp_path / "00000016" / "optimizer").write_bytes(b"")
    write(tmp_path, 20)
    prune_checkpoints(tmp_path, 2, 20, behind=-1)
    assert steps(tmp_path) == ["00000020"], "none of those before it could be read"


def test_wanted_checkpoints_stay(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        write(tmp_path, step)
    prune_checkpoints(tmp_path, 1, 8, wanted={4, 99})
    assert steps(tmp_path) == ["00000004", "00000008"]
