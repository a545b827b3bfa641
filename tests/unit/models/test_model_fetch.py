"""The init container's program: the folder on stdout, a link that follows it, one line where it cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from accord.models import fetch
from accord.models.testing import tiny_model_folder


def test_the_folder_is_printed_and_linked_relative_to_the_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_model_folder(tmp_path / "volume" / "tiny")
    link = tmp_path / "volume" / "base"
    link.symlink_to("gone")  # of an earlier model
    assert fetch.main([str(folder), "--link", str(link)]) == 0
    assert capsys.readouterr().out.strip() == str(folder)
    assert str(link.readlink()) == "tiny"
    moved = tmp_path / "mounted-elsewhere"
    (tmp_path / "volume").rename(moved)
    assert (moved / "base" / "config.json").is_file()


def test_a_model_that_is_not_there_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch.main([str(tmp_path / "nothing"), "--link", str(tmp_path / "base")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "base").exists()
    (tmp_path / "empty").mkdir()
    assert fetch.main([str(tmp_path / "empty")]) == 2
    assert "has no config.json" in capsys.readouterr().err
