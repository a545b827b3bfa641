"""Several processes on gloo: the gradients of one, the same curve, one checkpoint that any number resumes, errors that reach all."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training import test_group_steps, test_ppo_steps
from tests.unit.training.ranked import on_ranks
from tests.unit.training.surroundings import make_context, metrics_of, other_prompts, planted_pairs, write_rows
from tests.unit.training.test_algorithms import ALGORITHMS, gradients, prepared
from torch import nn

from accord.errors import AbortedError, AccordError, InternalError, InvalidArgumentError, UnavailableError
from accord.rundir import RunDirectory
from accord.training import distribution
from accord.training.__main__ import build
from accord.training.context import RunStopped
from accord.training.distribution import World
from accord.training.loop import train
from accord.training.place import Place, place_in_environment
from accord.training.stopping import StopSignal
from accord.training.waiting import ServiceAwayError

pytestmark = [pytest.mark.training, pytest.mark.timeout(180)]
SPREAD = [(2, "ddp"), (3, "ddp"), (2, "fsdp")]


def _first_step(world: World, root: Path, model: Path, name: str, strategy: str) -> Any:
    distribution = {"processes": world.size, "strategy": strategy} if world.size > 1 else {}
    context, algorithm = prepared(
        root, model, ALGORITHMS[name], name=f"run-{world.size}", batch_size=5, micro_batch_size=2, distribution=distribution, world=world
    )  # fmt: skip
    held = sum((each.to_local() if hasattr(each, "to_local") else each).numel() for each in context.base.model.parameters() if not each.requires_grad)
    return gradients(algorithm), held, torch.get_rng_state()


@pytest.mark.parametrize(("size", "strategy"), SPREAD, ids=str)
@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo"])
def test_any_number_of_processes_gives_the_gradients_of_one(tmp_path: Path, tiny_folder: Path, name: str, size: int, strategy: str) -> None:
    """Five rows in parts of two: one process has a part less, and some parts are smaller."""
    (whole, metrics), weights, before = _first_step(World(), tmp_path, tiny_folder, name, "ddp")
    largest = max(float(gradient.abs().max()) for gradient in whole)
    assert largest > 1e-3
    found = on_ranks(tmp_path, size, _first_step, tmp_path, tiny_folder, name, strategy, strategy=strategy)
    for (part, part_metrics), _, state in found:
        assert all(torch.equal(one, other) for one, other in zip(part, found[0][0][0], strict=True)), "the same bits in each process"
        for first, second in zip(whole, part, strict=True):
            torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-6 * max(1.0, largest))
        assert part_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
        assert torch.equal(state, found[0][2]), "nothing draws from the global generator"
    held = [numbers for _, numbers, _ in found]
    if strategy == "fsdp":
        assert max(held) < 0.7 * weights, "weights are spread; the tied head has a share of its own"
    else:
        assert held == [weights] * size
    assert before.shape == found[0][2].shape


ROLLOUTS: dict[str, dict[str, Any]] = {
    "ppo": {"epochs": 2, "minibatch_size": 3, "kl_coef": 0.2, "normalize_scores": True, "ptx_coefficient": 0.5, "target_kl": 0.5},
    "grpo": {"epochs": 2, "minibatch_size": 5, "kl_coef": 0.2, "loss_normalization": "tokens"},
    "rloo": {"epochs": 1, "kl_coef": 0.2},
}


def _rollout_step(world: World, root: Path, model: Path, kind: str, strategy: str) -> Any:
    common: dict[str, Any] = {"name": f"run-{world.size}-{strategy}", "world": world, "micro_batch_size": 2}
    if world.size > 1:
        common["distribution"] = {"processes": world.size, "strategy": strategy}
    if kind == "ppo":
        part = {**ROLLOUTS[kind], "ptx_data": {"uri": str(root / "text.jsonl")}}
        context, algorithm, source = test_ppo_steps.ready(root, model, part, batch_size=5, **common)
    else:
        context, algorithm, source = test_group_steps.ready(root, model, kind, ROLLOUTS[kind], **common)
    return *test_ppo_steps.one_step(algorithm), len(source.calls), context.directory.path


@pytest.mark.parametrize(
    ("kind", "size", "strategy"), [("ppo", 3, "ddp"), *((kind, 2, strategy) for kind in ROLLOUTS for strategy in ("ddp", "fsdp"))], ids=str
)
def test_rollouts_on_any_number_of_processes_give_the_gradients_of_one(
    tmp_path: Path, tiny_folder: Path, kind: str, size: int, strategy: str
) -> None:  # fmt: skip
    """Uneven minibatches, several epochs, critic and pretraining term; whitening and groups over the whole batch. The first process samples for all."""
    write_rows(tmp_path / "text.jsonl", [{"text": "a word and more " + "x" * n} for n in range(6)])
    steps, metrics, calls, folder = _rollout_step(World(), tmp_path, tiny_folder, kind, "ddp")
    assert (len(steps), calls) == ({"ppo": 4, "grpo": 4, "rloo": 1}[kind], 1)
    other = tmp_path / f"run-{size}-{strategy}" / "rollouts"
    other.mkdir(parents=True)
    if strategy == "fsdp":  # this test's stand-in for the services computes with the run's own model, which takes all processes
        (other / "00000000.jsonl").write_bytes((folder / "rollouts" / "00000000.jsonl").read_bytes())
    found = on_ranks(tmp_path, size, _rollout_step, tmp_path, tiny_folder, kind, strategy, strategy=strategy)
    assert [calls for _, _, calls, _ in found] == [int(strategy == "ddp"), *[0] * (size - 1)]
    timings = {name for name in metrics if "second" in name}
    for part_steps, part_metrics, _, _ in found:
        assert len(part_steps) == len(steps)
        for whole, part in zip(steps, part_steps, strict=True):
            largest = max(float(gradient.abs().max()) for gradient in whole)
            assert largest > 1e-3
            for one, gradient in zip(whole, part, strict=True):
                torch.testing.assert_close(gradient, one, rtol=1e-5, atol=1e-6 * max(1.0, largest))
        assert {name: value for name, value in part_metrics.items() if name not in timings} == pytest.approx(
            {name: value for name, value in metrics.items() if name not in timings}, rel=1e-4, abs=1e-5
        )


def _spec(root: Path, kind: str, **values: Any) -> dict[str, Any]:
    data = write_rows(root / "rows.jsonl", planted_pairs())
    return {
        "steps": 6, "batch_size": 5, "micro_batch_size": 2, "checkpoint_every_steps": 2, "eval_every_steps": 3, **values,
        kind: {"data": data, "eval_data": {**other_prompts(root), "limit": 5}},
    }  # fmt: skip


def _run(world: World, root: Path, model: Path, spec: Mapping[str, Any], name: str, stop_after: int) -> Any:
    context = make_context(root, model, spec, name=name, world=world)
    return _train(context, build(context), stop_after)


def _train(context: Any, algorithm: Any, stop_after: int) -> Any:
    """The version that it publishes, or "stopped": after so many steps, of which one process alone hears."""
    if stop_after and context.world.rank == context.world.size - 1:
        step = algorithm.step

        def stopping(at: int, optimizer: Any) -> dict[str, float]:
            metrics: dict[str, float] = step(at, optimizer)
            if at + 1 == stop_after:
                context.stop.set()
            return metrics

        algorithm.step = stopping
    try:
        return train(context, algorithm).adapter_version
    except RunStopped:
        return "stopped"


def curve(root: Path, name: str) -> dict[str, list[float]]:
    events = list(RunDirectory(root / name).events())
    return {metric: metrics_of(events, metric) for metric in ("loss", "grad_norm", "eval_loss", "eval_margin")}


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_run_stopped_with_two_processes_goes_on_with_one_and_with_two(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    """With two again to the bits of an undisturbed run; with one, or sharded, to rounding, and a message says so."""
    spec = _spec(tmp_path, kind)
    two, fsdp = ({"distribution": {"processes": 2, "strategy": strategy}} for strategy in ("ddp", "fsdp"))
    assert (
        on_ranks(tmp_path, 2, _run, tmp_path, tiny_folder, {**spec, **two, "adapter": "straight"}, "straight", 0)
        == ["adapters/straight/versions/1"] * 2
    )
    alone = make_context(tmp_path, tiny_folder, {**spec, "adapter": "alone"}, name="alone")
    train(alone, build(alone))
    expected = curve(tmp_path, "straight")
    for metric, values in curve(tmp_path, "alone").items():
        assert values == pytest.approx(expected[metric], rel=1e-5, abs=1e-6), metric
    for name, more, size in (("same", two, 2), ("one", {}, 1), ("sharded", fsdp, 2)):
        values = {**spec, "adapter": name}
        assert on_ranks(tmp_path, 2, _run, tmp_path, tiny_folder, {**values, **two}, name, 3) == ["stopped"] * 2
        assert (tmp_path / name / "checkpoints" / "00000003" / "manifest.json").exists()
        if size == 1:
            context = make_context(tmp_path, tiny_folder, {**values, **more}, name=name)
            train(context, build(context))
        else:
            strategy = more["distribution"]["strategy"]
            on_ranks(tmp_path, 2, _run, tmp_path, tiny_folder, {**values, **more}, name, 0, strategy=str(strategy))
        for metric, numbers in curve(tmp_path, name).items():
            assert numbers == pytest.approx(expected[metric], rel=1e-5, abs=1e-6), (name, metric)
        files = [tmp_path / run / "checkpoints" / "00000006" / "adapter" / "adapter_model.safetensors" for run in (name, "straight")]
        if name == "same":
            assert files[0].read_bytes() == files[1].read_bytes()
        told = [event.text for event in RunDirectory(tmp_path / name).events() if "the checkpoint is of 2 processes, and 1 go on" in event.text]
        assert len(told) == (1 if size == 1 else 0)


def _ppo(world: World, root: Path, model: Path, name: str, stop_after: int) -> Any:
    values: dict[str, Any] = {"steps": 4, "batch_size": 5, "micro_batch_size": 2, "checkpoint_every_steps": 10, "adapter": name, "seed": 3}
    spread = {"distribution": {"processes": world.size}} if world.size > 1 else {}
    part = {
        **ROLLOUTS["ppo"],
        "data": write_rows(root / "rows.jsonl", planted_pairs()),
        "ptx_data": {"uri": str(root / "text.jsonl")},
        "temperature": 1.0,
    }
    context, algorithm, _ = test_ppo_steps.make_ppo(root, model, {**values, **spread}, part, name=name, world=world)
    return _train(context, algorithm, stop_after)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)], ids=str)
def test_ppo_stopped_goes_on_with_another_number_of_processes(tmp_path: Path, tiny_folder: Path, before: int, after: int) -> None:
    """Rollouts, critic, moments and pretraining term: the curve of one undisturbed process, to rounding."""
    write_rows(tmp_path / "text.jsonl", [{"text": "a word and more " + "x" * n} for n in range(6)])

    def go(size: int, name: str, stop_after: int) -> list[Any]:
        if size == 1:
            return [_ppo(World(), tmp_path, tiny_folder, name, stop_after)]
        return on_ranks(tmp_path, size, _ppo, tmp_path, tiny_folder, name, stop_after)

    assert go(1, "straight", 0) == ["adapters/straight/versions/1"]
    assert go(before, "moved", 2) == ["stopped"] * before
    assert go(after, "moved", 0) == ["adapters/moved/versions/1"] * after
    events = {name: list(RunDirectory(tmp_path / name).events()) for name in ("straight", "moved")}
    told = [event.text for event in events["moved"] if f"the checkpoint is of {before} processes, and {after} go on" in event.text]
    assert len(told) == 1
    for metric in ("reward_mean", "score_mean", "kl", "policy_loss", "value_loss", "ptx_loss", "explained_variance", "grad_norm"):
        expected = metrics_of(events["straight"], metric)
        assert len(expected) == 4, metric
        assert metrics_of(events["moved"], metric) == pytest.approx(expected, rel=1e-4, abs=1e-5), metric


def _errors(world: World) -> list[str]:
    """What each process sees of a first one that fails, and of values that differ."""
    found = []

    def act(error: BaseException) -> None:
        raise error

    away = ServiceAwayError("policy service gave no answer")  # what waiting raises at its end
    for error in (RunStopped(), UnavailableError("reward service is away"), away, InvalidArgumentError("no such adapter", field="parent_adapter")):
        try:
            world.from_first(lambda error=error: act(error))  # type: ignore[misc]
        except (RunStopped, UnavailableError, InvalidArgumentError, AbortedError) as seen:
            found.append(f"{type(seen).__name__}: {seen}")
    assert world.from_first(lambda: {"value": [1.5, world.rank]}) == {"value": [1.5, 0]}
    assert world.gather({"rank": world.rank, "text": "x" * world.rank}) == [{"rank": 0, "text": ""}, {"rank": 1, "text": "x"}]
    assert world.agree(world.rank == 1) is True
    assert world.agree(False) is False
    world.check_same("zeros", [torch.zeros(3)])
    try:
        world.check_same("weights", [torch.full((3,), float(world.rank))])
    except InternalError as seen:
        found.append(str(seen))
    return found


def test_what_happens_in_the_first_process_happens_in_all(tmp_path: Path) -> None:
    first, second = on_ranks(tmp_path, 2, _errors)
    assert first[:4] == [
        "RunStopped: ", "UnavailableError: reward service is away", "ServiceAwayError: policy service gave no answer",
        "InvalidArgumentError: parent_adapter: no such adapter",
    ]  # fmt: skip
    assert second[:4] == [
        "RunStopped: ", "UnavailableError: process 0 of 2: reward service is away", "UnavailableError: process 0 of 2: policy service gave no answer",
        "AbortedError: process 0 of 2: parent_adapter: no such adapter",
    ]  # fmt: skip
    assert first[4] == second[4]
    assert "weights must be the same in all 2 processes" in first[4]


def _stopped_beside(world: World, name: str) -> float:
    """How long process 0 works on where process 1 alone is asked to stop after half a second; both must end by that."""
    began = time.monotonic()

    def work() -> str:
        while time.monotonic() < began + 60.0:
            world._stop.check()
            time.sleep(0.02)
        return "deaf"

    if world.rank == 1:
        threading.Timer(0.5, world._stop.set).start()
    call = world.from_first if name == "from_first" else world.each
    distribution._BEAT_SECONDS = 0.2
    with pytest.raises(RunStopped):
        call(work)
    return time.monotonic() - began


@pytest.mark.parametrize("call", ["from_first", "each"])
def test_a_stop_that_one_process_hears_ends_what_the_others_wait_for(tmp_path: Path, call: str) -> None:
    """A node that is drained tells its own processes alone, and kills them after a while."""
    assert max(on_ranks(tmp_path, 2, _stopped_beside, call)) < 50.0


@pytest.mark.parametrize("where", ["a file", "an address"])
def test_a_stop_is_heard_while_the_others_have_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    place = Place(1, 2, 1, 2, str(tmp_path / "meeting") if where == "a file" else "", joined=True)
    world = World(place)
    threading.Timer(0.5, world._stop.set).start()
    with pytest.raises(RunStopped):
        world.join(place)


def test_processes_that_do_not_come_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "SILENCE_SECONDS", 0.5)
    place = Place(0, 2, 0, 2, str(tmp_path / "meeting"), joined=True)
    with pytest.raises(UnavailableError, match="the 2 processes of the run did not find each other"):
        World(place).join(place)


def _each(world: World) -> list[Any]:
    """What each process gets of calls that it makes for itself, where one of them fails or hears a stop; and whether they still understand each other."""
    found: list[Any] = []

    def wait(ends: dict[int, BaseException], lasts: float) -> str:
        time.sleep(lasts * (world.rank in ends))
        if world.rank in ends:
            raise ends[world.rank]
        return f"of {world.rank}"

    def hear() -> str:
        world._stop.set()
        world._stop.check()
        return "deaf"

    away, wrong = UnavailableError("store is away"), InvalidArgumentError("no such file")
    for ends in ({}, {0: RunStopped()}, {1: RunStopped()}, {1: away}, {0: away}, {1: wrong}, {0: wrong, 1: RunStopped()}, {0: RunStopped(), 1: away}):
        try:
            found.append(world.each(lambda ends=ends: wait(ends, 0.3)))  # type: ignore[misc]
        except (RunStopped, AccordError) as seen:
            found.append(f"{type(seen).__name__}: {seen}")
        assert world.gather(len(found)) == [len(found)] * 2
    try:
        found.append(world.each(hear if world.rank else lambda: "deaf"))
    except RunStopped:
        found.append("heard")
    world._stop.check()  # it is held again
    return [*found, world.gather(world.rank)]


def test_what_happens_in_one_process_that_reads_for_itself_happens_in_all(tmp_path: Path) -> None:
    first, second = on_ranks(tmp_path, 2, _each)
    stopped, away = "RunStopped: ", "UnavailableError: store is away"
    assert first == [
        "of 0", stopped, stopped, "UnavailableError: process 1 of 2: store is away", away, "AbortedError: process 1 of 2: no such file", stopped, stopped,
        "heard", [0, 1],
    ]  # fmt: skip
    assert second == [
        "of 1", stopped, stopped, away, "UnavailableError: process 0 of 2: store is away", "InvalidArgumentError: no such file", stopped, stopped,
        "heard", [0, 1],
    ]  # fmt: skip


def _slow_batch(world: World, rendezvous: str, beat_seconds: float) -> Any:
    """What each process gets of a batch that takes longer than the others wait without a word; or its error."""
    world.leave()
    distribution.SILENCE_SECONDS, distribution._BEAT_SECONDS = 3.0, beat_seconds
    place = Place(world.rank, world.size, world.rank, world.size, rendezvous, joined=True)
    other = World(place)
    other.join(place)

    def samples() -> list[int]:
        found = []
        for number in range(11):
            time.sleep(0.5)
            found.append(number)
        return found

    try:
        return other.from_first(samples), other.gather(other.rank)
    except AbortedError as error:
        return str(error)


def test_a_batch_may_take_longer_than_a_silence(tmp_path: Path) -> None:
    whole = on_ranks(tmp_path, 2, _slow_batch, str(tmp_path / "beating"), 0.2)
    assert whole == [(list(range(11)), [0, 1])] * 2
    mute = on_ranks(tmp_path, 2, _slow_batch, str(tmp_path / "mute"), 100.0)
    assert "another process of the run ended, or was silent for too long" in mute[1]


def _away(world: World, root: Path, model: Path, spec: Mapping[str, Any], error: AccordError) -> str:
    context = make_context(root, model, spec, name=error.code.lower(), world=world)
    algorithm = build(context)
    step = algorithm.step

    def waiting(at: int, optimizer: Any) -> dict[str, float]:
        def ask() -> None:
            if at == 3:
                raise error

        world.from_first(ask)
        return step(at, optimizer)

    algorithm.step = waiting  # type: ignore[method-assign]
    try:
        train(context, algorithm)
    except AccordError as seen:
        return str(seen)
    return "it went on"


@pytest.mark.parametrize("error", [ServiceAwayError("no answer for 600 s"), InternalError("a defect", metadata={"service": "reward service"})])
def test_two_processes_whose_service_stays_away_or_breaks_checkpoint_too(tmp_path: Path, tiny_folder: Path, error: AccordError) -> None:
    spec = _spec(tmp_path, "sft", distribution={"processes": 2}, checkpoint_every_steps=0)
    said = on_ranks(tmp_path, 2, _away, tmp_path, tiny_folder, spec, error)
    assert [text.removeprefix("process 0 of 2: ") for text in said] == [str(error)] * 2
    assert [path.name for path in (tmp_path / error.code.lower() / "checkpoints").iterdir()] == ["00000003"]


def _gone(world: World) -> str:
    world.gather(world.rank)  # both have joined
    if world.rank == 1:
        return ""
    try:
        world.sum(torch.ones(4))
    except AbortedError as error:
        return str(error)
    return "nothing was noticed"


def test_a_process_that_is_gone_is_an_error_at_once(tmp_path: Path) -> None:
    assert "another process of the run ended" in on_ranks(tmp_path, 2, _gone)[0]


def _without(world: World) -> list[Any]:
    """Gradients of three parameters: of both, of the second process alone, of none."""
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(()))]
    parameters[0].grad = torch.full((2, 3), 1.0 + world.rank)
    if world.rank == 1:
        parameters[1].grad = torch.arange(4.0)
    world.reduce_gradients(parameters)
    return [None if each.grad is None else each.grad.tolist() for each in parameters]


def test_gradients_add_up_and_none_stays_none(tmp_path: Path) -> None:
    assert on_ranks(tmp_path, 2, _without) == [[[[3.0] * 3] * 2, [0.0, 1.0, 2.0, 3.0], None]] * 2


def test_parts_are_shared_out_and_lockstep_repeats_count_nothing() -> None:
    parts = ["a", "b", "c", "d", "e"]
    assert [list(World(Place(rank, 2)).share(parts)) for rank in range(2)] == [["a", "c", "e"], ["b", "d"]]
    world = World(Place(1, 2), lockstep=True)
    weight = nn.Parameter(torch.zeros(()))
    counted = []
    for part in world.share(parts):
        counted.append((part, world.counts))
        world.backward(weight * 2)
    assert counted == [("b", True), ("d", True), ("a", False)]
    assert weight.grad == 4
    assert world.counts
    assert list(World(Place(1, 2), lockstep=True).share(parts[:4])) == ["b", "d"]


def test_a_stop_is_held_while_others_must_agree() -> None:
    stop = StopSignal()
    World(Place(0, 2), stop)
    stop.set()
    stop.check()
    World(Place(), stop)
    with pytest.raises(RunStopped):
        stop.check()


def test_torchrun_says_which_process_this_is() -> None:
    environment = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert place_in_environment(environment) == Place(3, 4, 1, 2, joined=True)
    assert place_in_environment({"WORLD_SIZE": "4"}) is None
    for change, words in (
        ({"RANK": "4"}, "RANK 4 must be below WORLD_SIZE 4"), ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number of at least 1, not '0'"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK must be a whole number"), ({"MASTER_PORT": ""}, "without MASTER_ADDR and MASTER_PORT"),
    ):  # fmt: skip
        with pytest.raises(InvalidArgumentError, match=words):
            place_in_environment({**environment, **change})
    assert "RANK" not in os.environ


def _joined_by_environment(world: World, port: int) -> int:
    """A second world, found at MASTER_ADDR, after the one that the test made is left."""
    world.leave()
    os.environ |= {"RANK": str(world.rank), "WORLD_SIZE": str(world.size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    place = place_in_environment()
    assert place is not None
    other = World(place)
    other.join(place)
    return int(other.sum(torch.tensor(world.rank + 1)))


def test_processes_find_each_other_at_the_master_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert on_ranks(tmp_path, 2, _joined_by_environment, port) == [3, 3]
