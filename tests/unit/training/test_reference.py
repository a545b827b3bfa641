"""Reference logprobs on disk: who pays for them, what damage does, what runs that share the folder may do to each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.surroundings import GradientKeeper, make_context, planted_pairs, run_here, shake, write_rows

from accord.models.packing import group_logprobs
from accord.training.__main__ import build
from accord.training.context import RunContext, RunStopped
from accord.training.examples import EncodedPair
from accord.training.reference import FOLDER, LogprobCache, pair_key, space_of

ALWAYS: dict[str, Any] = {"batch_size": 5, "steps": 9, "micro_batch_size": 2}


def set_up(
    root: Path, model: Path, *, name: str, rows: int = 6, dpo: dict[str, Any] | None = None, **values: Any
) -> tuple[RunContext, Any, list[str]]:
    """A DPO run that is set up, and the keys of the pairs that it computed the reference of, in order."""
    data = write_rows(root / f"rows-{rows}.jsonl", planted_pairs()[:rows])
    context = make_context(root, model, {**ALWAYS, **values, "dpo": {"data": data, **(dpo or {})}}, name=name)
    algorithm: Any = build(context)
    computed: list[str] = []
    sums = algorithm._loss.sums

    def counted(pairs: Sequence[EncodedPair], adapter: str | None) -> Any:
        computed.extend(pair_key(pair) for pair in pairs)
        return sums(pairs, adapter)

    algorithm._loss.sums = counted
    algorithm.setup()
    return context, algorithm, computed


def said(context: RunContext) -> list[str]:
    return [event.text for event in context.directory.events() if "reference logprobs" in event.text]


def files(root: Path) -> list[Path]:
    return sorted((root / FOLDER).glob("*/*.jsonl"))


def first_step(algorithm: Any) -> tuple[list[torch.Tensor], dict[str, float]]:
    keeper = GradientKeeper(algorithm.parameters())
    metrics = algorithm.step(0, keeper)
    return keeper.steps[0], metrics


def test_each_pair_is_paid_for_once_by_all_runs(tmp_path: Path, tiny_folder: Path) -> None:
    """Another seed, batch size, beta and two more rows: only those are computed."""
    context, _, first = set_up(tmp_path, tiny_folder, name="first")
    assert len(first) == len(set(first)) == 6
    assert said(context) == ["reference logprobs: 0 of 6 pairs were on disk"]
    _, again, second = set_up(tmp_path, tiny_folder, name="second", seed=9, batch_size=3, micro_batch_size=1, dpo={"beta": 0.7})
    assert second == []
    context, _, third = set_up(tmp_path, tiny_folder, name="third", rows=8)
    assert len(third) == 2
    assert said(context) == ["reference logprobs: 6 of 8 pairs were on disk"]
    assert set_up(tmp_path, tiny_folder, name="fourth", rows=8)[2] == []
    algorithm = set_up(tmp_path, tiny_folder, name="fifth", rows=8, steps=1)[1]
    assert len(algorithm._reference._known) == 5, "a run of one step needs no more than its batch"
    del again


def test_what_is_on_disk_is_what_would_be_computed_to_the_bit(tmp_path: Path, tiny_folder: Path) -> None:
    """Whatever batches the writer had: margins of a policy that has not moved are exactly 0, and gradients those of a run that computed them itself."""
    set_up(tmp_path, tiny_folder, name="writer", rows=12, batch_size=11, micro_batch_size=7, seed=4)
    _, reader, computed = set_up(tmp_path, tiny_folder, name="reader")
    assert computed == []
    (tmp_path / "alone").mkdir()
    _, alone, computed = set_up(tmp_path / "alone", tiny_folder, name="alone")
    assert len(computed) == 6
    (one, metrics), (other, expected) = first_step(reader), first_step(alone)
    assert metrics == expected
    assert metrics["margin"] == 0
    assert metrics["chosen_reward"] == metrics["rejected_reward"] == 0
    assert all(torch.equal(first, second) for first, second in zip(one, other, strict=True))


def test_the_numbers_are_the_references_and_not_the_policys(tmp_path: Path, tiny_folder: Path) -> None:
    context, algorithm, _ = set_up(tmp_path, tiny_folder, name="run")
    shake(context, "policy")
    pairs = algorithm._pairs
    chosen, rejected = algorithm._reference.of(pairs)
    with torch.no_grad():
        groups = group_logprobs(context.adapted, [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs], adapter=None)
    torch.testing.assert_close(chosen, torch.stack([group[0].sum() for group in groups]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rejected, torch.stack([group[1].sum() for group in groups]), rtol=1e-5, atol=1e-5)


def test_another_reference_has_numbers_of_its_own(tmp_path: Path, tiny_folder: Path) -> None:
    set_up(tmp_path, tiny_folder, name="bare")
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    parent = run_here(tmp_path, tiny_folder, {"steps": 1, "adapter": "start", "sft": {"data": data}}, name="start")[0].adapter_version
    _, _, computed = set_up(tmp_path, tiny_folder, name="adapted", parent_adapter=parent)
    assert len(computed) == 6
    assert len({path.parent for path in files(tmp_path)}) == 2


def test_threads_and_adapters_are_part_of_the_space(tmp_path: Path, tiny_folder: Path) -> None:
    base = make_context(tmp_path, tiny_folder, {"sft": {"data": {"uri": "sample:conversation"}}}).base
    before = torch.get_num_threads()
    try:
        spaces = {space_of(base, "base"), space_of(base, "other")}
        torch.set_num_threads(before + 1)
        spaces.add(space_of(base, "base"))
    finally:
        torch.set_num_threads(before)
    assert len(spaces) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_found_and_its_pairs_computed_again(tmp_path: Path, tiny_folder: Path, damage: str) -> None:
    _, before, _ = set_up(tmp_path, tiny_folder, name="first")
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[:100]), "empty": b""}[damage])
    context, after, computed = set_up(tmp_path, tiny_folder, name="second")
    assert len(computed) == 6
    assert "damaged: it is removed, and its reference logprobs are computed again" in said(context)[0]
    assert after._reference._known == before._reference._known
    assert files(tmp_path) == [path], "the same numbers again, under the same name"
    assert set_up(tmp_path, tiny_folder, name="third")[2] == []


def test_a_run_that_is_stopped_keeps_what_it_computed(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accord.training.reference._FLUSH_SECONDS", -1.0)
    data = write_rows(tmp_path / "rows-6.jsonl", planted_pairs()[:6])
    context = make_context(tmp_path, tiny_folder, {**ALWAYS, "dpo": {"data": data}}, name="killed")
    algorithm: Any = build(context)
    passes, sums = 0, algorithm._loss.sums

    def dying(pairs: Any, adapter: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 4:
            raise KeyboardInterrupt
        return sums(pairs, adapter)

    algorithm._loss.sums = dying
    with pytest.raises(KeyboardInterrupt):
        algorithm.setup()
    assert len(files(tmp_path)) == 1, "a later file takes the place of an earlier one"
    assert len(set_up(tmp_path, tiny_folder, name="killed")[2]) == 3


def test_a_stop_is_heeded_before_the_next_pass_and_keeps_those_before_it(tmp_path: Path, tiny_folder: Path) -> None:
    """Also what came since it was last put on disk."""
    context = make_context(
        tmp_path, tiny_folder, {**ALWAYS, "dpo": {"data": write_rows(tmp_path / "rows-6.jsonl", planted_pairs()[:6])}}, name="stopped"
    )
    algorithm: Any = build(context)
    passes, sums = [], algorithm._loss.sums

    def stopping(pairs: Any, adapter: Any) -> Any:
        passes.append(adapter)
        if len(passes) == 4:
            context.stop.set()
        return sums(pairs, adapter)

    algorithm._loss.sums = stopping
    with pytest.raises(RunStopped):
        algorithm.setup()
    assert len(passes) == 4
    assert len(set_up(tmp_path, tiny_folder, name="stopped")[2]) == 2


class TestFiles:
    def cache(self, root: Path, lines: list[str], space: str = "s", **more: Any) -> LogprobCache:
        return LogprobCache(root, space, lines.append, **more)

    def test_two_writers_share_a_space(self, tmp_path: Path) -> None:
        one, other = self.cache(tmp_path, []), self.cache(tmp_path, [])
        one.add({"a": (-1.5, -2.0)})
        other.add({"a": (-1.5, -2.0), "b": (-0.1, -3.3)})
        one.add({"a": (-1.5, -2.0), "c": (1 / 3, -1e-30)})
        assert self.cache(tmp_path, []).find({"a", "b", "c", "d"}) == {"a": (-1.5, -2.0), "b": (-0.1, -3.3), "c": (1 / 3, -1e-30)}
        assert self.cache(tmp_path, [], space="other").find({"a"}) == {}
        assert len(list(tmp_path.glob("*/*"))) == 2, "nothing temporary is left"

    def test_numbers_that_are_none_are_not_kept(self, tmp_path: Path) -> None:
        self.cache(tmp_path, []).add({"a": (float("nan"), -1.0), "b": (-1.0, float("-inf"))})
        assert list(tmp_path.glob("*/*")) == []

    def test_the_least_recently_used_files_go_first(self, tmp_path: Path) -> None:
        for age, name in enumerate("abc"):
            self.cache(tmp_path, [], space=name).add({name * 64: (-1.0, -2.0)})
            os.utime(next((tmp_path / name).iterdir()), (1000 + age, 1000 + age))
        self.cache(tmp_path, [], space="a").find({"a" * 64})  # used now
        killed = tmp_path / "a" / ".x.tmp"
        killed.write_text("half")
        os.utime(killed, (1000, 1000))
        size = next((tmp_path / "a").glob("*.jsonl")).stat().st_size
        self.cache(tmp_path, [], space="d", most_bytes=2 * size).add({"d" * 64: (-1.0, -2.0)})
        assert sorted(path.parent.name for path in tmp_path.glob("*/*.jsonl")) == ["a", "d"]
        assert not killed.exists()

    def test_files_that_cannot_be_read_or_removed_end_no_run(self, tmp_path: Path) -> None:
        """As those of another user; folders stand for them here, for root may do anything with files."""
        for path in (tmp_path / "a" / "x.jsonl", tmp_path / "a" / ".y.tmp"):
            path.mkdir(parents=True)
            os.utime(path, (1000, 1000))
        lines: list[str] = []
        self.cache(tmp_path, lines, space="b").add({"b": (-1.0, -2.0)})
        cache = self.cache(tmp_path, lines, space="a", most_bytes=1)
        cache.add({"a": (-1.0, -2.0)})
        assert list((tmp_path / "b").iterdir()) == [], "the others are pruned all the same"
        assert cache.find({"a"}) == {"a": (-1.0, -2.0)}
        (line,) = lines
        assert line.startswith("x.jsonl... in")
        assert "cannot be read: Is a directory; its reference logprobs are computed again" in line

    def test_the_newest_file_stays_however_large(self, tmp_path: Path) -> None:
        self.cache(tmp_path, [], most_bytes=1).add({"a": (-1.0, -2.0)})
        assert self.cache(tmp_path, []).find({"a"}) == {"a": (-1.0, -2.0)}

    def test_a_folder_that_cannot_be_written_costs_time_and_nothing_else(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        lines: list[str] = []
        cache = self.cache(tmp_path / "file", lines)
        cache.add({"a": (-1.0, -2.0)})
        assert "could not be kept" in lines[0]
        assert cache.find({"a"}) == {}
