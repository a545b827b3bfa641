"""`Workspace.up`, `services`, `status` and `down` over real processes that are no real services."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pytest
import yaml

from accord.errors import DataLossError, DeadlineExceededError, FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from accord.feedback.config import FeedbackConfig
from accord.rpc.channels import wait_ready
from accord.rpc.config import load_config
from accord.workspace import JudgeTable, Workspace
from accord.workspace.configuration import CONFIG_CLASSES
from accord.workspace.layout import SERVICE_NAMES

Behave = Callable[[Mapping[str, str]], None]
Starts = Callable[[], list[str]]


def pids(workspace: Workspace) -> dict[str, int | None]:
    return {status.name: status.pid for status in workspace.status()}


def health(workspace: Workspace) -> dict[str, str]:
    return {status.name: status.health for status in workspace.status()}


def kill(workspace: Workspace, name: str) -> None:
    """kill -9, and wait until it is gone and its port free: an `up` that found the port taken would choose another."""
    found = next(status for status in workspace.status() if status.name == name)
    assert found.pid is not None
    os.kill(found.pid, signal.SIGKILL)
    give_up = time.monotonic() + 10
    while health(workspace)[name] != "stopped":
        assert time.monotonic() < give_up
        time.sleep(0.02)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bind_when_free(probe, int(found.address.rpartition(":")[2]))


def bind_when_free(taker: socket.socket, port: int) -> None:
    """A killed process counts as gone when its first thread is, and its sockets close with its last."""
    give_up = time.monotonic() + 10
    while True:
        try:
            return taker.bind(("127.0.0.1", port))
        except OSError:
            assert time.monotonic() < give_up, f"port {port} is still taken"
            time.sleep(0.02)


def up(workspace: Workspace, home: Path, **options: object) -> list[str]:
    """Starts with the tiny model and one thread; returns what was reported."""
    said: list[str] = []
    workspace.up(base_model=str(home.parent / "model"), report=said.append, **{"timeout_seconds": 60, **options})  # type: ignore[arg-type]
    return said


def test_up_starts_all_in_waves_and_down_stops_them(workspace: Workspace, home: Path, starts: Starts) -> None:
    said = up(workspace, home, threads=1)
    found = workspace.services()
    for name in SERVICE_NAMES:
        wait_ready(getattr(found, name), "", 5)
        assert any(line.startswith(f"{name} serves at {getattr(found, name)}") for line in said)
    assert set(starts()[:2]) == {"policy", "reward"}
    assert starts()[2:] == ["feedback", "trainer"]
    statuses = workspace.status()
    assert {status.health for status in statuses} == {"serving"}
    assert all(status.memory_bytes > 10 * 2**20 and 0 < status.uptime_seconds < 60 for status in statuses)
    assert all(Path(status.log).read_text() for status in statuses)
    assert all(os.getsid(status.pid or 0) == status.pid for status in statuses)
    stopped = workspace.down()
    assert sorted(stopped) == sorted(SERVICE_NAMES)
    assert not any(psutil.pid_exists(status.pid or 0) and psutil.Process(status.pid).status() != "zombie" for status in statuses)
    assert set(health(workspace).values()) == {"stopped"}
    assert all(status.note == "" for status in workspace.status())
    assert workspace.down() == ()


def check_configurations(workspace: Workspace, home: Path) -> None:
    read = {name: yaml.safe_load((home / "config" / f"{name}.yaml").read_text()) for name in SERVICE_NAMES}
    services = workspace.services()
    assert read["trainer"]["endpoints"] == {"policy": services.policy, "reward": services.reward, "feedback": services.feedback}
    assert read["feedback"]["policy"] == services.policy
    assert read["trainer"]["database"] == f"sqlite:///{home}/registry.sqlite"
    assert read["trainer"]["model_folder"] == read["policy"]["base_model"] == str(home.parent / "model")
    assert {read[name]["artefacts"] for name in ("policy", "reward", "trainer")} == {workspace.artefacts}
    assert {read[name]["threads"] for name in ("policy", "reward", "trainer")} == {3}
    assert read["trainer"]["runs"] == str(workspace.runs)
    assert all(values["server"]["reflection"] for values in read.values())
    for name in SERVICE_NAMES:
        load_config(home / "config" / f"{name}.yaml", CONFIG_CLASSES[name])
    assert (home / ".gitignore").read_text() == "*\n"


def test_a_second_up_changes_nothing(workspace: Workspace, home: Path, starts: Starts) -> None:
    up(workspace, home, threads=3)
    check_configurations(workspace, home)
    before, services = pids(workspace), workspace.services()
    assert up(workspace, home) == up(workspace, home, threads=3) == []
    assert pids(workspace) == before
    assert workspace.services() == services
    assert len(starts()) == 4
    check_refusals(workspace, home)
    check_unreachable(workspace)
    assert pids(workspace) == before


def test_judges_that_are_wanted_stand_beside_those_of_the_file(workspace: Workspace, home: Path) -> None:
    """And a feedback service that runs is not given others in silence."""
    larger = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "model": "m", "context_tokens": 512}
    price = {"prompt_per_million": 0.0, "completion_per_million": 0.0}
    table = JudgeTable({"larger": larger}, {"m": price})
    up(workspace, home)
    with pytest.raises(FailedPreconditionError, match="without the judges larger as they are wanted; stop it first: `accord down --home"):
        up(workspace, home, judge_table=table)
    workspace.down()
    path = home / "config" / "feedback.yaml"
    mine = {"kind": "policy", "address": "h:1"}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "judges": {"mine": mine}}))
    up(workspace, home, judge_table=table)
    found = load_config(path, FeedbackConfig)
    assert set(found.judges) == {"mine", "larger"}
    assert up(workspace, home, judge_table=table) == up(workspace, home) == []


def test_only_the_dead_one_comes_back_and_at_its_address(workspace: Workspace, home: Path, starts: Starts) -> None:
    up(workspace, home)
    before, services = pids(workspace), workspace.services()
    kill(workspace, "reward")
    dead = next(status for status in workspace.status() if status.name == "reward")
    assert dead.note.startswith(f"its process {before['reward']} ended by itself: its log gives no reason")
    with pytest.raises(FailedPreconditionError, match=r"^the reward service is not up in .*accord up --home '/"):
        workspace.services()
    assert workspace.address("policy") == services.policy
    said = up(workspace, home)
    assert said[0].startswith("reward had ended by itself")
    assert workspace.services() == services
    after = pids(workspace)
    assert {name for name in SERVICE_NAMES if after[name] != before[name]} == {"reward"}
    assert starts()[4:] == ["reward"]


def test_those_that_know_a_lost_address_are_started_again(workspace: Workspace, home: Path, starts: Starts) -> None:
    up(workspace, home)
    before, services = pids(workspace), workspace.services()
    kill(workspace, "reward")
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bind_when_free(thief, int(services.reward.rpartition(":")[2]))
        thief.listen()
        said = up(workspace, home)
    now = workspace.services()
    assert now.reward != services.reward
    assert now.policy == services.policy
    assert f"trainer is started again: reward has moved to {now.reward}" in said
    trainer = yaml.safe_load((home / "config" / "trainer.yaml").read_text())
    assert trainer["endpoints"]["reward"] == now.reward
    after = pids(workspace)
    assert {name for name in SERVICE_NAMES if after[name] != before[name]} == {"reward", "feedback", "trainer"}


def test_after_down_services_come_back_at_their_addresses_and_may_have_another_model(workspace: Workspace, home: Path) -> None:
    up(workspace, home, threads=1)
    services = workspace.services()
    workspace.down()
    with pytest.raises(FailedPreconditionError, match="no services run in"):
        workspace.services()
    other = str(home.parent / "other model")
    assert workspace.up(base_model=other, timeout_seconds=60) == services
    assert workspace.base_model == other
    read = yaml.safe_load((home / "config" / "reward.yaml").read_text())
    assert (read["threads"], read["base_model"]) == (1, other)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("dies", "the reward service ended while it started: RuntimeError: the weights are made of cheese; its log: .*reward.log"),
        ("defect", "the reward service ended while it started: ImportError: no module named cheese"),
    ],
)
def test_a_service_that_dies_is_named_with_its_last_words(
    workspace: Workspace, home: Path, behave: Behave, starts: Starts, behaviour: str, words: str
) -> None:
    behave({"reward": behaviour})
    with pytest.raises(UnavailableError, match=words):
        up(workspace, home)
    assert set(health(workspace).values()) == {"stopped"}
    assert "reward" in starts()
    assert set(starts()) <= {"policy", "reward"}, "the second wave began; that policy had time to write itself down is not said"
    behave({})
    up(workspace, home)
    assert set(health(workspace).values()) == {"serving"}


def test_a_failed_up_leaves_what_ran_before(workspace: Workspace, home: Path, behave: Behave) -> None:
    up(workspace, home)
    before = pids(workspace)
    kill(workspace, "trainer")
    behave({"trainer": "dies"})
    with pytest.raises(UnavailableError, match="the trainer service ended"):
        up(workspace, home)
    assert {name: pid for name, pid in pids(workspace).items() if name != "trainer"} == {
        name: pid for name, pid in before.items() if name != "trainer"
    }


def test_an_interrupted_up_leaves_nothing_behind(workspace: Workspace, home: Path) -> None:
    def interrupt(text: str) -> None:
        if text.startswith("starting feedback"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        workspace.up(base_model=str(home.parent / "model"), report=interrupt, timeout_seconds=60)
    assert set(health(workspace).values()) == {"stopped"}
    assert all(status.note == "" for status in workspace.status())


def test_a_service_that_never_serves_costs_the_timeout_and_no_more(workspace: Workspace, home: Path, behave: Behave) -> None:
    behave({"policy": "hangs"})
    started = time.monotonic()
    with pytest.raises(UnavailableError, match=r"the policy service at 127.0.0.1:\d+ was not SERVING in time: starting; its log"):
        up(workspace, home, timeout_seconds=4)
    assert time.monotonic() - started < 25
    assert set(health(workspace).values()) == {"stopped"}


def test_status_of_a_service_that_starts_and_of_one_at_fault(workspace: Workspace, home: Path, behave: Behave) -> None:
    up(workspace, home)
    kill(workspace, "policy")
    kill(workspace, "reward")
    behave({"policy": "hangs", "reward": "faulty"})
    said: list[str] = []
    thread = threading.Thread(target=lambda: up_in_vain(workspace, home, said))
    thread.start()
    wanted = {("policy", "starting"), ("reward", "not_serving"), ("feedback", "serving")}
    seen: set[tuple[str, str]] = set()
    while thread.is_alive() and not wanted <= seen:
        seen |= set(health(workspace).items())
        time.sleep(0.05)
    assert wanted <= seen
    kill(workspace, "policy")  # so that the `up` ends now
    thread.join()


def up_in_vain(workspace: Workspace, home: Path, said: list[str]) -> None:
    """For half a minute, or until a service that it waits for is killed."""
    with contextlib.suppress(UnavailableError):
        said += up(workspace, home, timeout_seconds=30)


def check_unreachable(workspace: Workspace) -> None:
    pid = pids(workspace)["feedback"]
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        found = next(status for status in workspace.status() if status.name == "feedback")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (found.health, found.pid) == ("unreachable", pid)
    assert found.note.startswith(("DEADLINE_EXCEEDED", "UNAVAILABLE"))


def check_refusals(workspace: Workspace, home: Path) -> None:
    other = str(home.parent / "other model")
    with pytest.raises(FailedPreconditionError) as caught:
        workspace.up(base_model=other, timeout_seconds=30)
    assert caught.value.metadata == {"running": str(home.parent / "model"), "wanted": other}
    assert caught.value.message.startswith(f"policy, reward, feedback, trainer run in {home} with base model ")
    assert "accord down" in str(caught.value)
    with pytest.raises(FailedPreconditionError, match="with 3 threads, not 7"):
        up(workspace, home, threads=7)


def test_a_missing_model_folder_is_said_before_anything_starts(workspace: Workspace, home: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no model folder /no/such/model"):
        workspace.up(base_model="/no/such/model")
    assert not home.exists()


def test_a_home_that_cannot_be_made(home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(FailedPreconditionError, match=r"my 100% work cannot be a workspace: Not a directory"):
        Workspace(home).up(base_model=str(home.parent / "model"))
    with pytest.raises(FailedPreconditionError, match="no services run"):
        Workspace(home).services()
    assert Workspace(home).down() == ()


def test_two_ups_at_once_start_each_service_once(workspace: Workspace, home: Path, starts: Starts) -> None:
    other = Workspace(home, commands=workspace._commands)
    said: list[str] = []
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda w=each: results.append(w.up(base_model=str(home.parent / "model"), report=said.append)))
        for each in (workspace, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(starts()) == 4
    assert results[0] == results[1]
    assert any("is starting or stopping services here; waiting for it" in line for line in said)


def test_waiting_for_the_lock_ends(workspace: Workspace, home: Path, behave: Behave) -> None:
    behave({"policy": "hangs"})
    thread = threading.Thread(target=lambda: up_in_vain(workspace, home, []))
    thread.start()
    while not (home / "addresses" / "policy.json").exists():
        time.sleep(0.05)
    with pytest.raises(DeadlineExceededError, match=f"process {os.getpid()} has been starting or stopping services"):
        Workspace(home).down(timeout_seconds=0.5)
    kill(workspace, "policy")  # so that the `up` ends now
    thread.join()


def test_edited_configuration_is_kept_and_checked(workspace: Workspace, home: Path) -> None:
    up(workspace, home)
    workspace.down()
    path = home / "config" / "policy.yaml"
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "max_batch_rows": 5, "artefacts": "/elsewhere"}))
    up(workspace, home)
    kept = yaml.safe_load(path.read_text())
    assert kept["max_batch_rows"] == 5
    assert kept["artefacts"] == workspace.artefacts
    workspace.down()
    path.write_text(yaml.safe_dump({**kept, "max_bach_rows": 5}))
    with pytest.raises(InvalidArgumentError, match=r"policy\.yaml: max_bach_rows: unknown key; did you mean max_batch_rows"):
        up(workspace, home)
    assert set(health(workspace).values()) == {"stopped"}


def test_a_fixed_port_is_kept_or_refused(workspace: Workspace, home: Path) -> None:
    up(workspace, home)
    workspace.down()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = home / "config" / "trainer.yaml"
    values = yaml.safe_load(path.read_text())
    values["server"]["listen"] = f"127.0.0.1:{port}"
    path.write_text(yaml.safe_dump(values))
    up(workspace, home)
    assert workspace.services().trainer == f"127.0.0.1:{port}"
    workspace.down()
    values["server"]["listen"] = "0.0.0.0:0"
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        taken = f"127.0.0.1:{thief.getsockname()[1]}"
        values["server"]["listen"] = taken
        path.write_text(yaml.safe_dump(values))
        with pytest.raises(FailedPreconditionError, match=f"{taken} is taken by another program; free it, or change server.listen in .*trainer.yaml"):
            up(workspace, home)


def test_sigkill_only_after_the_timeout(workspace: Workspace, home: Path, behave: Behave) -> None:
    behave({"policy": "stubborn"})
    up(workspace, home)
    started = time.monotonic()
    assert "policy" in workspace.down(timeout_seconds=3)
    assert 2.9 < time.monotonic() - started < 20
    assert set(health(workspace).values()) == {"stopped"}


def test_a_reused_pid_is_not_our_service(workspace: Workspace, home: Path) -> None:
    up(workspace, home)
    workspace.down()
    path = home / "services.json"
    values = json.loads(path.read_text())
    values["services"]["policy"]["process"] = {"pid": os.getpid(), "mark": "another boot:1"}
    path.write_text(json.dumps(values))
    assert health(workspace)["policy"] == "stopped"
    assert workspace.down() == ()


def test_a_damaged_state_is_named(workspace: Workspace, home: Path) -> None:
    home.mkdir()
    (home / "services.json").write_text('{"base_model": "x", "threads": 1, "services": {"policy": 3}}')
    with pytest.raises(DataLossError, match=r"services\.json is damaged"):
        workspace.status()
    (home / "services.json").unlink()


def test_runs_outlive_down_unless_asked(workspace: Workspace, home: Path) -> None:
    from accord.launch.local import LocalLauncher

    up(workspace, home)
    folder = workspace.runs / "sft-1"
    folder.mkdir()
    (folder / "run.yaml").write_text("{}")
    launcher = LocalLauncher(("sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done", "run"), threads=1)
    launcher.start(folder, 1)
    try:
        workspace.down()
        assert workspace.running_runs() == ("runs/sft-1",)
        up(workspace, home)
        said: list[str] = []
        workspace.down(stop_runs=True, report=said.append)
        assert workspace.running_runs() == ()
        assert any("waiting for 1 run to checkpoint and stop" in line for line in said)
        assert any("the trainer does not answer" in line for line in said)  # the fake has no such method
        assert launcher.observe(folder).exit_code == 3
    finally:
        launcher.stop(folder, force=True)
