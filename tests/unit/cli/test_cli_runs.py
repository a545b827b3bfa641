"""train, runs, watch, cancel, resume: over a trainer whose runs are scripted, and whose stream breaks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.unit.cli.conftest import Accord
from tests.unit.cli.fakes import FakeTrainer, add_trainer, serving

from accord.api.trainer.v1 import trainer_pb2 as pb
from accord.cli import following
from accord.cli.recipes import load_train_recipe
from accord.client.trainer import TrainerClient
from accord.errors import DeadlineExceededError

Start = Callable[[FakeTrainer], str]


@pytest.fixture
def start() -> Iterator[Start]:
    """Serves a trainer; returns its address."""
    with ExitStack() as stack:
        yield lambda trainer: stack.enter_context(serving(add_trainer(trainer)))


def test_train_follows_to_the_end(accord: Accord, start: Start) -> None:
    trainer = FakeTrainer()
    result = accord("train", "sft", "--set", "steps=2", "--set", "lora.rank=4", "--request-id", "abcdefgh", "--trainer", start(trainer))
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines() if line.strip()]
    assert lines[0] == "runs/sft-abcdef succeeded after 2 of 2 steps, 1 min 5 s"
    assert lines[1:] == [
        "metric first last best", lines[2], "loss 2.5 1.25 1.25 at 2", "zeta 4 4", "alarm at step 1: mean k1 is -0.700",
        "published adapters/sft/versions/1",
    ]  # fmt: skip
    (known,) = trainer.runs.values()
    assert (known.run.spec.steps, known.run.spec.lora.rank, known.run.spec.adapter) == (2, 4, "sft")
    said = result.stderr.splitlines()
    assert said[0] == "runs/sft-abcdef in /srv/r"
    assert said[1:3] == ["sample:summarization (train): 140 demonstrations", "alarm: mean k1 is -0.700"]
    assert said[-1] == 'next: accord generate "A prompt" --adapter adapters/sft/versions/1'


def test_train_as_json_has_the_run_alone_on_stdout(accord: Accord, start: Start) -> None:
    result = accord("train", "reward-model", "--json", "--set", "steps=2", "--trainer", start(FakeTrainer()))
    run = json.loads(result.stdout)
    assert (run["state"], run["adapter_version"], run["spec"]["reward_model"]["soft_labels"]) == (
        "succeeded",
        "adapters/reward-model/versions/1",
        True,
    )
    assert "alarm" in result.stderr


def test_train_of_a_reward_model_says_how_to_use_it(accord: Accord, start: Start) -> None:
    result = accord("train", "reward-model", "--trainer", start(FakeTrainer()), "--home", "my work")
    assert result.stderr.splitlines()[-1] == (
        'next: accord score "A prompt" "A response" --reward-model adapters/reward-model/versions/1 --home \'my work\''
    )


def test_a_failed_run_is_exit_code_1_with_its_reason(accord: Accord, start: Start) -> None:
    for more in ((), ("--json",)):
        result = accord("train", "sft", "--trainer", start(FakeTrainer(outcome=pb.RUN_STATE_FAILED)), *more)
        assert result.exit_code == 1
    result = accord("train", "sft", "--trainer", start(FakeTrainer(outcome=pb.RUN_STATE_FAILED)))
    assert "failed after" in result.stdout
    assert result.stderr.splitlines()[-1] == "the disk is full; its log: /srv/r/log.txt"
    assert result.stderr.splitlines()[-21:-1] == [f"| line {number} of the log.txt" for number in range(11, 31)]
    assert "| line" not in accord("train", "sft", "--trainer", start(FakeTrainer())).stderr


def test_train_detached(accord: Accord, start: Start) -> None:
    trainer = FakeTrainer()
    address = start(trainer)
    result = accord("train", "sft", "--detach", "--request-id", "abcdefgh", "--trainer", address)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "runs/sft-abcdef\n", "next: accord watch runs/sft-abcdef\n")
    assert trainer.tokens == []
    assert json.loads(accord("train", "sft", "--detach", "--json", "--trainer", address).stdout)["state"] == "queued"


def test_train_plan(accord: Accord, start: Start) -> None:
    trainer = FakeTrainer()
    address = start(trainer)
    result = accord("train", "dpo", "--plan", "--trainer", address)
    assert result.exit_code == 0
    assert "16.00 GiB are free: it fits; 140 rows of data" in result.stdout
    assert "note: measured on no machine" in result.stdout
    assert [line.split()[:4] for line in result.stdout.splitlines() if "one file" in line] == [["base", "weights", "1.00", "GiB"]]
    assert json.loads(accord("train", "dpo", "--plan", "--json", "--trainer", address).stdout)["rows"] == 140
    assert trainer.runs == {}
    result = accord("train", "dpo", "--plan", "--trainer", start(FakeTrainer(fits=False)))
    assert result.exit_code == 1
    assert "does not fit" in result.stdout


def test_a_trainer_that_answers_too_late_is_told_with_what_to_do(accord: Accord, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accord.cli.train._PLAN_SECONDS", 0.3)
    address = start(FakeTrainer(late=True))
    result = accord("train", "sft", "--request-id", "abcdefgh", "--trainer", address, "--home", "w")
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "; `accord runs --home w` shows whether the run was created; the same command with --request-id abcdefgh starts no second one\n"
    )
    result = accord("train", "sft", "--trainer", address)
    (given,) = re.findall(r"--request-id (\S+) starts", result.stderr)
    assert len(given) == 32
    result = accord("train", "sft", "--plan", "--trainer", address)
    assert (result.exit_code, "nothing was created; " in result.stderr, "--timeout" in result.stderr) == (1, True, False)


def test_watch_goes_on_behind_the_last_event_after_a_break(accord: Accord, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accord.client.trainer.time.sleep", lambda _: None)
    trainer = FakeTrainer(breaks=2)
    address = start(trainer)
    accord("train", "sft", "--detach", "--request-id", "abcdefgh", "--trainer", address)
    result = accord("watch", "sft-abcdef", "--json", "--trainer", address)
    assert result.exit_code == 0
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["run", "message", "run", "metrics", "message", "metrics", "run"]
    assert [event["resume_token"] for event in events] == ["1", "2", "3", "4", "5", "6", "7"]
    assert [event["metrics"] for event in events if event["event"] == "metrics"] == [{"loss": 2.5, "zeta": 4.0}, {"loss": 1.25}]
    assert trainer.tokens[0] == ""
    assert len(set(trainer.tokens)) == len(trainer.tokens) > 2


def test_watch_shows_what_a_run_has_printed(accord: Accord, start: Start) -> None:
    address = start(FakeTrainer(endless=True))
    accord("train", "sft", "--detach", "--request-id", "abcdefgh", "--trainer", address)
    result = accord("watch", "sft-abcdef", "--log", "--trainer", address)
    assert (result.exit_code, result.stdout.splitlines()) == (0, [f"line {number} of the log.txt" for number in range(1, 31)])
    assert accord("watch", "sft-nobody", "--log", "--trainer", address).exit_code != 0


def test_watch_of_a_failed_run(accord: Accord, start: Start) -> None:
    address = start(FakeTrainer(outcome=pb.RUN_STATE_CANCELLED))
    accord("train", "sft", "--detach", "--request-id", "abcdefgh", "--trainer", address)
    for more in ((), ("--json",)):
        assert accord("watch", "runs/sft-abcdef", "--trainer", address, *more).exit_code == 1


def test_watch_has_a_timeout(accord: Accord, start: Start) -> None:
    trainer = FakeTrainer(endless=True)
    address = start(trainer)
    accord("train", "sft", "--detach", "--request-id", "abcdefgh", "--trainer", address)
    result = accord("watch", "sft-abcdef", "--timeout", "1", "--trainer", address)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: runs/sft-abcdef has not ended within 1 s; it goes on; give it more time with --timeout"


def test_a_stream_whose_deadline_passes_is_taken_up_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_STREAM_SECONDS", 0.3)
    trainer = FakeTrainer(endless=True)
    with TrainerClient(start(trainer)) as client:
        run = client.create_run(load_train_recipe("sft"), "abcdefgh")
        with pytest.raises(DeadlineExceededError, match="not ended within 1 s"):
            list(following.run_events(client, run.name, timeout_seconds=1))
    assert len(trainer.tokens) >= 3
    assert set(trainer.tokens[1:]) == {"6"}


def test_interrupting_leaves_the_run_alone(accord: Accord, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FakeTrainer()
    address = start(trainer)

    def interrupted(self: object, event: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(following.RunView, "show", interrupted)
    result = accord("train", "sft", "--request-id", "abcdefgh", "--trainer", address)
    assert result.exit_code == 130
    assert "runs/sft-abcdef goes on; `accord watch runs/sft-abcdef` shows it again, `accord cancel runs/sft-abcdef` stops it" in result.stderr
    result = accord("watch", "sft-abcdef", "--trainer", address, "--home", "my work")
    assert (
        "`accord watch runs/sft-abcdef --home 'my work'` shows it again, `accord cancel runs/sft-abcdef --home 'my work'` stops it" in result.stderr
    )
    assert trainer.cancelled == []


def test_runs(accord: Accord, start: Start) -> None:
    address = start(FakeTrainer())
    assert accord("runs", "--trainer", address).stdout == "there are no runs\n"
    accord("train", "sft", "--detach", "--request-id", "abcdefgh", "--trainer", address)
    rows = [line.split() for line in accord("runs", "--trainer", address).stdout.splitlines()]
    assert next(row for row in rows if row and row[0] == "runs/sft-abcdef")[1:4] == ["sft", "succeeded", "20/20"]
    found = json.loads(accord("runs", "--json", "--state", "succeeded", "--trainer", address).stdout)
    assert [run["name"] for run in found] == ["runs/sft-abcdef"]
    assert accord("runs", "--state", "failed", "--trainer", address).stdout == "there are no runs in that state\n"
    result = accord("runs", "--state", "runing", "--trainer", address)
    assert (result.exit_code, result.stderr[:44]) == (2, "error: --state: 'runing' is no state of a ru")


def test_cancel_and_resume(accord: Accord, start: Start) -> None:
    trainer = FakeTrainer()
    address = start(trainer)
    accord("train", "sft", "--detach", "--request-id", "abcdefgh", "--trainer", address)
    assert accord("cancel", "sft-abcdef", "--trainer", address).stdout == "runs/sft-abcdef is cancelling\n"
    assert json.loads(accord("cancel", "sft-abcdef", "--json", "--trainer", address).stdout)["name"] == "runs/sft-abcdef"
    result = accord("resume", "sft-abcdef", "--detach", "--trainer", address)
    assert (result.exit_code, result.stdout) == (0, "runs/sft-abcdef is cancelling\n")
    assert "published adapters/sft/versions/1" in accord("resume", "sft-abcdef", "--trainer", address).stdout
    assert accord("resume", "sft-abcdef", "--detach", "--processes", "2", "--trainer", address).exit_code == 0
    assert trainer.resumed == ["runs/sft-abcdef", "runs/sft-abcdef", "runs/sft-abcdef on 2 processes"]
    assert trainer.cancelled == ["runs/sft-abcdef"] * 2


@pytest.mark.parametrize("name", ["watch", "cancel", "resume"])
def test_an_unknown_run(accord: Accord, start: Start, name: str) -> None:
    result = accord(name, "nothing", "--trainer", start(FakeTrainer()))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: name: there is no run runs/nothing; `accord runs` lists the runs\n"
    result = accord(name, "nothing", "--trainer", start(FakeTrainer()), "--home", "w")
    assert result.stderr.endswith("; `accord runs --home w` lists the runs\n")


def test_recipe_errors(accord: Accord, start: Start, tmp_path: Path) -> None:
    address = start(FakeTrainer())
    (tmp_path / "typo.yaml").write_text("adapter: a\nsteps: 1\nsft: {data: {uri: x}}\nstepz: 1\n")
    (tmp_path / "broken.yaml").write_text("adapter: a\n  steps: [\n")
    for arguments, words in (
        (("typo.yaml",), "error: typo.yaml: stepz: unknown key; did you mean steps?"),
        (("broken.yaml",), "error: broken.yaml is not YAML, line 2: "),
        (
            ("missing.yaml",),
            "error: there is no recipe 'missing.yaml': neither a file, nor one of dpo, grpo, online-dpo, ppo, ppo-rating-judge, reward-model, rloo, sft",
        ),
        (("sft", "--set", "steps"), "error: --set 'steps' is not KEY=VALUE, for example steps=5 or lora.rank=8"),
        (("sft", "--set", "steps.x=1"), "error: --set steps.x: steps holds no fields of its own"),
        (("sft", "--set", "steps=0"), "steps: at least 1 is required"),
        (("sft", "--set", "sft.data.ur=x"), "sft.yaml: sft.data.ur: unknown key; did you mean uri?"),
        (("sft", "--set", "x: y=["), "error: --set x: y: the value is not YAML: '['"),
        (("sft", "--set", "lora.rank=-1"), "lora.rank: input should be greater than or equal to 1, got -1"),
    ):
        result = accord("train", *arguments, "--trainer", address)
        assert (result.exit_code, result.stdout) == (2, ""), arguments
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
