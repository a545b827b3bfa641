"""lineage, doctor, status, down, version, and what is written where."""

from __future__ import annotations

import io
import json
import math
import re
import time
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Accord

from accord.artefacts.store import ArtefactStore
from accord.cli import output, progress
from accord.cli.metrics import in_a_line, ordered
from accord.cli.progress import ProgressBar
from accord.errors import NotFoundError
from accord.workspace import Workspace
from accord.workspace import doctor as doctoring
from accord.workspace.doctor import Check


def publish(store: ArtefactStore, folder: Path, adapter: str, kind: str, *parents: str) -> str:
    files = folder / adapter
    files.mkdir()
    (files / "adapter_config.json").write_text(json.dumps({"of": adapter}))
    return store.publish(
        adapter, files, kind=kind, parents=parents, run=f"runs/{adapter}-1", data_digest="d" * 64, base_model_digest="b" * 64, step=7
    )


def test_lineage_walks_to_the_base_model(accord: Accord, tmp_path: Path) -> None:
    store = ArtefactStore(str(tmp_path / ".accord" / "artefacts"))
    sft = publish(store, tmp_path, "sft", "policy")
    reward = publish(store, tmp_path, "rm", "reward_model", sft)
    ppo = publish(store, tmp_path, "ppo", "policy", sft, reward)
    lines = accord("lineage", "adapters/ppo").stdout.splitlines()
    assert lines[0] == "adapters/ppo/versions/1 (policy)"
    assert any("runs/ppo-1, step 7" in line for line in lines)
    assert any("data dddddddddddd" in line for line in lines)
    assert sum("adapters/sft/versions/1" in line for line in lines) == 2
    assert sum("base model bbbbbbbbbbbb" in line for line in lines) == 2
    found = json.loads(accord("lineage", ppo, "--json").stdout)
    assert [manifest["name"] for manifest in found] == [ppo, sft, reward]
    assert found[2]["parents"] == [sft]
    assert found[0]["digest"] == store.manifest(ppo).digest
    listed = accord("lineage").stdout
    assert all(name in listed for name in (sft, reward, ppo))
    assert accord("lineage", ppo, "--home", "elsewhere", "--artefacts", str(tmp_path / ".accord" / "artefacts")).exit_code == 0


def test_lineage_of_nothing(accord: Accord, tmp_path: Path) -> None:
    assert accord("lineage").stdout.startswith("there are no adapters in ")
    result = accord("lineage", "adapters/nothing")
    assert result.exit_code == 2
    assert result.stderr.endswith("; `accord lineage` lists the adapters\n")
    result = accord("lineage", "adapters/nothing", "--home", "w", "--artefacts", "my store")
    assert result.stderr.endswith("; `accord lineage --home w --artefacts 'my store'` lists the adapters\n")
    assert accord("lineage", "--home", "w").stdout.endswith("; `accord train sft --home w` makes one\n")
    result = accord("lineage", "nothing")
    assert (result.exit_code, result.stderr.startswith("error: 'nothing' is not an adapter name")) == (2, True)


def test_doctor(accord: Accord, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Check("memory", "ok", "8.0 GiB free"), Check("cores", "warning", "one core", "be patient")]
    monkeypatch.setattr(doctoring, "check", lambda home, base_model: tuple(found))
    result = accord("doctor")
    assert result.exit_code == 0
    assert "warning: cores: be patient" in result.stdout
    assert result.stdout.endswith("nothing stands in the way\n")
    asked = list[str]()
    monkeypatch.setattr(doctoring, "check", lambda home, base_model: (asked.append(base_model), tuple(found))[1])
    for more in ((), ("--base-model", "org/model")):
        accord("doctor", *more)
    assert asked == ["", "org/model"], "what the workspace had, unless another is given"
    found.append(Check("disk", "problem", "no room", "free some"))
    result = accord("doctor")
    assert result.exit_code == 1
    assert "problem: disk: free some\n1 problem\n" in result.stdout
    result = accord("doctor", "--json")
    assert (result.exit_code, json.loads(result.stdout)["problems"]) == (1, 1)


def test_a_damaged_workspace_has_one_advice(accord: Accord, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "services.json").write_text("{")
    result = accord("status", "--home", "w")
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: {tmp_path / 'w' / 'services.json'} is damaged (JSONDecodeError); stop the workspace's processes by hand, then remove the file\n",
    )


def test_status_and_down_where_nothing_runs(accord: Accord, tmp_path: Path) -> None:
    result = accord("status")
    assert result.exit_code == 1
    assert result.stdout.count("stopped") == 4
    assert result.stderr == "accord up starts what does not run\n"
    found = json.loads(accord("status", "--json", "--home", "w").stdout)
    assert (found["serving"], found["home"], [service["health"] for service in found["services"]]) == (False, str(tmp_path / "w"), ["stopped"] * 4)
    assert accord("down").stdout == f"no services ran in {tmp_path / '.accord'}\n"
    assert json.loads(accord("down", "--json").stdout)["stopped"] == []
    assert not (tmp_path / ".accord").exists()


def test_down_says_how_to_stop_the_runs_that_go_on_there(accord: Accord, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workspace, "running_runs", lambda self: ("runs/a", "runs/b"))
    for more, command in (((), "accord down --stop-runs"), (("--home", "my work"), "accord down --stop-runs --home 'my work'")):
        assert accord("down", *more).stderr == f"runs that go on: runs/a, runs/b; `{command}` stops them\n"


def test_up_with_a_missing_model(accord: Accord) -> None:
    result = accord("up", "--base-model", "./nothing")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: base_model: there is no model folder ./nothing; give a folder, a hub id, or embedded\n"


def test_version(accord: Accord) -> None:
    found = json.loads(accord("version", "--json").stdout)
    assert found["accord"] == "0.1.0"
    assert {"python", "grpcio", "torch"} <= set(found)
    assert f"grpcio {found['grpcio']}\n" in accord("version").stdout


def test_json_has_no_nan_and_no_secrets_of_python(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"a": math.nan, "b": [math.inf, 1.5], "path": Path("/x"), "error": NotFoundError("gone", field="f"), 3: (True, None)})
    assert json.loads(capsys.readouterr().out) == {
        "a": None, "b": [None, 1.5], "path": "/x", "error": {"code": "NOT_FOUND", "message": "gone", "field": "f"}, "3": [True, None],
    }  # fmt: skip
    with pytest.raises(TypeError, match="object has no JSON form"):
        output.print_json(object())


def test_a_table_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("name", "value>"), [("x" * 150, 3), ("[bold]\x1b[31m", 4)])
    lines = capsys.readouterr().out.splitlines()
    assert any("x" * 150 in line for line in lines)
    assert any("[bold]\ufffd[31m" in line for line in lines)


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, ""), (4.24, "4.2 s"), (59.96, "60.0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (3599.7, "1 h 0 min")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert output.seconds_text(seconds) == text


def test_numbers_and_sizes() -> None:
    assert [output.number_text(value) for value in (3.0, -2.0, 0.123456, 12345.678, math.nan, math.inf)] == [
        "3",
        "-2",
        "0.1235",
        "1.235e+04",
        "nan",
        "inf",
    ]
    assert [output.size_text(value) for value in (2**20 * 5, 2**30 * 1.5)] == ["5 MiB", "1.50 GiB"]


def test_metrics_in_order() -> None:
    assert [name for name, _ in ordered({"zeta": 1, "seconds": 2, "loss": 3, "alpha": 4})] == ["loss", "seconds", "alpha", "zeta"]
    assert in_a_line({f"m{number}": number for number in range(9)}) == "m0 0  m1 1  m2 2  m3 3  m4 4  m5 5"


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "_FIRST_SECONDS", 0.4)
    monkeypatch.setattr(progress, "_NEWS_SECONDS", 0.1)
    monkeypatch.setattr(progress, "_LINE_SECONDS", 60.0)
    with ProgressBar("quick", 2) as bar:
        bar.set(1, text="half")
    assert capsys.readouterr().err == ""
    with ProgressBar("slow", 2) as bar:
        bar.set(1, text="half")
        bar.note("alarm: [red] look")
        give_up = time.monotonic() + 5
        while bar._said_text != "half":
            assert time.monotonic() < give_up
            time.sleep(0.02)
        time.sleep(0.5)
    assert re.fullmatch(r"alarm: \[red\] look\nslow 1/2: half \(\d s\)\n", capsys.readouterr().err)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with ProgressBar("runs/[x]") as bar:
        bar.set(3, total=7, text="running, train")
        bar.note("alarm: [red] \x1b]0;look\x07")
    shown = terminal.getvalue()
    assert "runs/[x]" in shown
    assert "3/7" in shown
    assert "running, train" in shown
    assert "alarm: [red] \ufffd]0;look\ufffd" in shown


def test_a_run_on_a_terminal_is_the_screen_and_elsewhere_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from accord.cli import following
    from accord.cli.screen import Screen
    from accord.client.trainer import RunEvent

    terminal = Terminal()
    monkeypatch.setattr(following.sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with following.RunView(Screen("runs/[x]", state="running", total=9)) as view:
        view.show(RunEvent("", 1.0, step=3, metrics={"loss": 2.5}))
        view.show(RunEvent("", 2.0, message="alarm: [red] \x1b]0;look\x07"))
    shown = terminal.getvalue()
    for words in ("runs/[x]", "step 3 of 9, 33%", "loss", "2.5", "[red] \ufffd]0;look\ufffd"):
        assert words in shown
    plain = io.StringIO()
    monkeypatch.setattr(following.sys, "stderr", plain)
    with following.RunView(Screen("runs/x")) as view:
        view.show(RunEvent("", 2.0, message="alarm: look"))
    assert plain.getvalue() == "alarm: look\n"
