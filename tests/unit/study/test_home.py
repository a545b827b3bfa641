"""A study's home stays where it is: what it holds names files by path."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from accord.errors import FailedPreconditionError
from accord.study import runner
from accord.study.home import check_home, keep_home
from accord.study.recipe import load_recipe
from accord.study.runner import Reporter, plan_study, run_study
from accord.study.steps import StepStore

REPORTER = cast(Reporter, SimpleNamespace(message=lambda _text: None))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a result."""
    folder = tmp_path / "first"
    keep_home(folder)
    StepStore(folder).write("t/sft", "k", {}, 1.0)
    return folder


@pytest.mark.parametrize("change", [shutil.move, shutil.copytree])
def test_a_home_that_was_moved_or_copied_is_not_gone_on_with(home: Path, change: Callable[[Path, Path], Any]) -> None:
    there = home.with_name("second")
    change(home, there)
    for check in (check_home, keep_home):
        with pytest.raises(
            FailedPreconditionError, match=f"second was moved or copied from {home}, .*; move it back, or give another --home"
        ) as error:
            check(there)
        assert error.value.field == "home"
    shutil.rmtree(home, ignore_errors=True)
    there.rename(home)
    keep_home(home)


def test_a_home_may_be_named_in_any_way(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home.parent)
    link = home.with_name("link")
    link.symlink_to(home)
    for name in (home, Path("first"), Path("first/../first"), link):
        check_home(name)
        keep_home(name)
    moved = home.rename(home.with_name("second"))  # and what names files in the old folder finds them where a link leads on
    home.symlink_to(moved)
    keep_home(moved)


def test_a_home_of_before_there_were_notes_gets_one_and_a_check_writes_nothing(home: Path) -> None:
    note = home / "study" / "home"
    note.unlink()
    check_home(home)
    assert not note.exists()
    keep_home(home)
    assert note.read_text() == f"{home}\n"


def test_a_home_in_which_nothing_is_done_may_be_moved(home: Path) -> None:
    (home / "study" / "steps" / "k.json").unlink()
    moved = home.rename(home.with_name("second"))
    keep_home(moved)
    assert (moved / "study" / "home").read_text() == f"{moved}\n"


def test_a_study_says_so_before_anything_is_planned_or_started(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is to be read or started")

    for name in ("data_facts", "started"):
        monkeypatch.setattr(runner, name, unwanted)
    moved = home.rename(home.with_name("second"))
    with pytest.raises(FailedPreconditionError, match="was moved or copied from"):
        plan_study(load_recipe("quick"), moved)
    with pytest.raises(FailedPreconditionError, match="was moved or copied from"):
        run_study(load_recipe("quick"), moved, REPORTER)


def test_a_study_notes_where_it_is_and_a_plan_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise InterruptedError

    monkeypatch.setattr(runner, "data_facts", stop)
    with pytest.raises(InterruptedError):
        plan_study(load_recipe("quick"), tmp_path / "home")
    assert not (tmp_path / "home" / "study" / "home").exists()
    with pytest.raises(InterruptedError):
        run_study(load_recipe("quick"), tmp_path / "home", REPORTER)
    assert (tmp_path / "home" / "study" / "home").read_text() == f"{tmp_path / 'home'}\n"
