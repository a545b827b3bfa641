"""The application as a whole: help, errors in one line, exit codes, and that it stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from tests.unit.cli.conftest import Accord
from typer.testing import CliRunner

from accord import errors
from accord.cli.app import COMMANDS, OneLineErrors, build_app
from accord.cli.failures import advice, exit_code_of, line_of
from accord.cli.output import print_table

PRESENT = [command.name or "" for command in build_app().registered_commands]


def test_every_command_of_the_table_is_there() -> None:
    assert set(PRESENT) | {"study", "report"} == set(COMMANDS)
    assert len(COMMANDS) == 19


@pytest.mark.parametrize("name", PRESENT)
def test_help_shows_an_example_of_the_command(accord: Accord, name: str) -> None:
    result = accord(name, "--help")
    assert result.exit_code == 0
    after = result.stdout.partition("Example")[2]
    assert f"accord {name}" in after
    assert "--json" in result.stdout


def test_no_command_shows_the_help(accord: Accord) -> None:
    result = accord()
    assert result.exit_code == 0
    assert result.stdout == accord("--help").stdout
    assert all(f" {name} " in result.stdout for name in PRESENT)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("genrate", "x"), "error: no such command 'genrate'. Did you mean 'generate'?; see `accord --help`"),
        (("generate",), "error: missing argument 'prompt'; see `accord generate --help`"),
        (("generate", "x", "--nonsense"), "error: no such option: --nonsense (Possible options: --seed); see `accord generate --help`"),
        (
            ("generate", "x", "-n", "0"),
            "error: invalid value for '-n' / '--samples': Input should be greater than or equal to 1; see `accord generate --help`",
        ),
        (("runs", "--timeout", "-1"), "error: invalid value for '--timeout': -1 is not a number of seconds above 0; see `accord runs --help`"),
        (
            ("generate", "x", "--policy", "127.0.0.1:70000"),
            "error: invalid value for '--policy': port 70000 of '127.0.0.1:70000' is not in 1..65535; see `accord generate --help`",
        ),
        (
            ("runs", "--trainer", "localhost"),
            "error: invalid value for '--trainer': 'localhost' is not host:port, for example 127.0.0.1:50051; see `accord runs --help`",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(accord: Accord, arguments: tuple[str, ...], line: str) -> None:
    result = accord(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", line + "\n")


def test_without_services_every_calling_command_says_what_to_do(accord: Accord) -> None:
    calls = [
        ("generate", "x"), ("score", "p", "r", "--reward-model", "adapters/x"), ("compare", "p", "a", "b", "--reward-model", "adapters/x"),
        ("label", "--task", "conversation", "--prompt", "p", "--a", "a", "--b", "b"), ("train", "sft"), ("runs",), ("watch", "r"),
        ("cancel", "r"), ("resume", "r"),
    ]  # fmt: skip
    for call in calls:
        result = accord(*call)
        assert result.exit_code == 2, call
        assert result.stdout == ""
        assert result.stderr.startswith("error: no services run in "), call
        assert result.stderr.count("\n") == 1
        assert "`accord up --home " in result.stderr


def test_nobody_at_the_address(accord: Accord) -> None:
    result = accord("generate", "x", "--policy", "127.0.0.1:9", "--timeout", "5")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith("; check the address, and whether that service runs and wants TLS (--tls-ca)\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", errors.error_classes())
def test_every_error_class_has_a_line_and_a_code(kind: type[errors.AccordError]) -> None:
    wrong = {"INVALID_ARGUMENT", "OUT_OF_RANGE", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "UNIMPLEMENTED"}
    error = kind("it is so.\nand so", field="a.b", retry_after_seconds=3)
    assert exit_code_of(error) == (2 if kind.code in wrong else 1)
    line = line_of(error) or ""
    assert line.startswith("error: a.b: it is so. and so; ")
    assert line.endswith("a retry may help in 3 s")
    assert "\n" not in line


def test_advice_is_added_once_to_the_right_kind() -> None:
    with pytest.raises(errors.NotFoundError) as caught, advice(errors.UnavailableError, text="no"), advice(errors.NotFoundError, text="look"):
        raise errors.NotFoundError("there is no x")
    assert line_of(caught.value) == "error: there is no x; look"


def test_control_characters_of_an_error_do_not_reach_the_terminal() -> None:
    assert line_of(errors.NotFoundError("no \x1b[31mx")) == "error: no \ufffd[31mx"
    assert line_of(OSError(28, "No space left on device", "/w/x")) == "error: No space left on device: /w/x"
    assert line_of(ValueError("a defect")) is None


def test_a_defect_keeps_its_traceback_and_an_interrupt_has_its_code() -> None:
    app = typer.Typer(cls=OneLineErrors, pretty_exceptions_enable=False)
    app.callback()(lambda: None)

    @app.command()
    def defect() -> None:
        raise ZeroDivisionError

    @app.command()
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert isinstance(CliRunner().invoke(app, ["defect"]).exception, ZeroDivisionError)
    assert CliRunner().invoke(app, ["interrupted"]).exit_code == 130


def test_commands_start_without_heavy_packages() -> None:
    code = "import sys; from accord.cli.app import build_app; build_app(); print([m for m in ('torch', 'grpc', 'pydantic', 'numpy', 'rich') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "[]\n"


def test_a_title_is_one_line_whatever_the_width_of_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("kind", "found>"), [("phone", 1)], title="personal data and profanity, in \x1b[31mred")
    assert capsys.readouterr().out.splitlines()[0].strip() == "personal data and profanity, in �[31mred"
