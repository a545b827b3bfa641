"""Two studies in one home: the second one is refused before it can stop the first one's services."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import NoReturn

import pytest

from accord.errors import FailedPreconditionError
from accord.study import runner
from accord.study.lock import held
from accord.study.recipe import load_recipe
from accord.study.runner import plan_study, run_study


class Told:
    """Keeps what a study reports."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_a_second_study_is_refused_with_the_first_one_s_process_and_a_plan_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path] = []

    def second(_recipe: object, home: Path, *_: object, **__: object) -> NoReturn:
        begun.append(home)
        raise InterruptedError

    monkeypatch.setattr(runner, "started", second)
    recipe, told = load_recipe("quick"), Told()
    (tmp_path / "study").mkdir()
    with held(tmp_path, tmp_path / "study", told.message):
        with pytest.raises(FailedPreconditionError, match=rf"process {os.getpid()} on \S+ runs a study in {tmp_path}; wait for its end") as error:
            run_study(recipe, tmp_path, told)  # type: ignore[arg-type]
        assert error.value.field == "home"
        assert plan_study(recipe, tmp_path).steps
        with pytest.raises(InterruptedError):  # one in another home is let in
            run_study(recipe, tmp_path / "other", told)  # type: ignore[arg-type]
    for _ in range(2):  # and one after the first, also where that was broken off
        with pytest.raises(InterruptedError):
            run_study(recipe, tmp_path, told)  # type: ignore[arg-type]
    assert begun == [tmp_path / "other", tmp_path, tmp_path]
    assert not told.messages


def test_a_file_system_without_locks_is_said_and_the_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    told = Told()
    with held(tmp_path, tmp_path, told.message):
        pass
    assert told.messages == [f"note: {tmp_path} cannot be locked (No locks available): nothing keeps a second study away from it"]
