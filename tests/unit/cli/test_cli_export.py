"""accord export: the process it starts, its errors in the command's words, its end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import Accord

from accord.cli import export as command


def stand_in(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Lets the command start this script instead of `python -m accord.export`; its arguments are in `sys.argv`."""
    monkeypatch.setattr("accord.launch.processes.module_command", lambda module: (sys.executable, "-c", f"import json, sys, time\n{script}"))


def line(**said: Any) -> str:
    return f"print({json.dumps(json.dumps(said))}, flush=True)\n"


FACTS = {
    "version": "adapters/x/versions/1", "folder": "/out", "size_bytes": 3 * 2**20, "checked": ["it is well"], "form": "model", "score_offset": None,
}  # fmt: skip


def test_it_hands_everything_over_and_shows_what_was_found(accord: Accord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, f"open('arguments', 'w').write(json.dumps(sys.argv[1:]))\n{line(text='merging', fraction=0.5)}{line(done=FACTS)}")
    result = accord(
        "export", "adapters/x", "out", "--dtype", "bfloat16", "--max-shard-mib", "10", "--push", "a/b", "--force", "--artefacts", "/store",
        "--base-model", "org/model",
    )  # fmt: skip
    assert result.exit_code == 0
    assert result.stdout == "adapters/x/versions/1 is in /out, 3 MiB\n- it is well\n"
    assert result.stderr == "next: accord up --base-model /out --home another\n"
    assert json.loads((tmp_path / "arguments").read_text()) == [
        "adapters/x", str(tmp_path / "out"), "--artefacts", "/store", "--base-model", "org/model", "--dtype", "bfloat16", "--form", "model",
        "--max-shard-bytes", str(10 * 2**20), "--push", "a/b", "--force",
    ]  # fmt: skip
    assert json.loads(accord("export", "adapters/x", "out", "--json").stdout) == FACTS


@pytest.mark.parametrize(("code", "exit_code", "advice"), [("NOT_FOUND", 2, "; `accord lineage` lists the adapters"), ("INTERNAL", 1, "")])
def test_errors_are_those_of_the_process(accord: Accord, monkeypatch: pytest.MonkeyPatch, code: str, exit_code: int, advice: str) -> None:
    stand_in(monkeypatch, line(error={"code": code, "message": "there is no x", "field": None}))
    result = accord("export", "adapters/x", "out")
    assert result.exit_code == exit_code
    assert result.stderr.startswith(f"error: there is no x{advice}")
    result = accord("export", "adapters/x", "out", "--home", "w", "--artefacts", "s3://b/a")
    assert result.stderr.startswith(f"error: there is no x{advice.replace('lineage', 'lineage --home w --artefacts s3://b/a')}")


def test_a_process_that_dies_is_told_with_its_last_words(accord: Accord, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "sys.exit('out of memory')")
    result = accord("export", "adapters/x", "out")
    assert result.exit_code == 1
    assert "ended with code 1: out of memory" in result.stderr


def test_an_interrupted_command_ends_its_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The process gets SIGTERM, so that it can remove what it has half written."""
    mark = tmp_path / "cleaned"
    script = (
        "import signal, sys, time, pathlib\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(mark)!r}).touch(), sys.exit(0)))\n"
        + line(text="merging", fraction=0.5).replace("print", "import json; print") + "time.sleep(60)\n"
    )  # fmt: skip

    class Bar:
        def set(self, *_: object, **__: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        command._run([sys.executable, "-c", script], Bar())  # type: ignore[arg-type]
    assert mark.exists()


@pytest.mark.parametrize("arguments", [(), ("adapters/x",), ("adapters/x", "out", "--dtype", "int8"), ("adapters/x", "out", "--max-shard-mib", "0")])
def test_a_wrong_command_line_starts_nothing(accord: Accord, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]) -> None:
    stand_in(monkeypatch, "open('started', 'w')")
    assert accord("export", *arguments).exit_code == 2
    assert not Path("started").exists()


def test_the_real_process_refuses_an_adapter_that_is_not_there(accord: Accord, tmp_path: Path) -> None:
    result = accord("export", "adapters/nobody", "out", "--artefacts", str(tmp_path / "store"))
    assert result.exit_code == 2
    assert "adapters/nobody is not in the artefact store" in result.stderr
    assert not (tmp_path / "out").exists()
