"""Whole runs in this process: they resume to the same bits, stop where they are asked to, say what went wrong, and learn."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tests.unit.training.surroundings import (
    COMMON,
    TIMINGS,
    WORDS,
    VersionSource,
    even_share,
    make_context,
    make_ppo,
    metrics_of,
    other_prompts,
    planted_pairs,
    run_here,
    write_rows,
)

from accord import checkpoint
from accord.data.readers import read_pairs
from accord.errors import InvalidArgumentError, UnavailableError
from accord.rundir import EXIT_AWAY, EXIT_CONFIGURATION, EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, RunDirectory, RunFile
from accord.runspec import parse_spec
from accord.training import __main__ as entry
from accord.training.__main__ import build
from accord.training.context import EventLog, Heartbeat, RunContext, RunStopped, StopSignal
from accord.training.loop import train

KINDS: dict[str, dict[str, Any]] = {"sft": {}, "reward_model": {}, "dpo": {}}


def published(context: RunContext, version: str) -> dict[str, bytes]:
    """The files of a version."""
    folder = context.store.fetch(version)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def spec_of(root: Path, kind: str, **values: Any) -> dict[str, Any]:
    data = write_rows(root / "rows.jsonl", planted_pairs())
    return {
        "steps": 6,
        "checkpoint_every_steps": 2,
        "eval_every_steps": 2,
        **values,
        kind: {"data": data, "eval_data": {**other_prompts(root), "limit": 4}, **KINDS[kind]},
    }


def after_step(algorithm: Any, number: int, act: Callable[[], None]) -> Any:
    """The algorithm, with something that happens right after step `number` (counted from 0) was computed."""
    step = algorithm.step

    def acting(at: int, optimizer: Any) -> dict[str, float]:
        metrics: dict[str, float] = step(at, optimizer)
        if at == number:
            act()
        return metrics

    algorithm.step = acting
    return algorithm


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_that_dies_between_checkpoints_resumes_to_the_same_bits(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    """Published files and the curve; the step whose checkpoint was lost is done again."""
    spec = spec_of(tmp_path, kind)
    straight = make_context(tmp_path, tiny_folder, spec, name="straight")
    expected = train(straight, build(straight))
    dying = make_context(tmp_path, tiny_folder, {**spec, "adapter": "b"}, name="dying")

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(dying, after_step(build(dying), 4, die))
    again = make_context(tmp_path, tiny_folder, {**spec, "adapter": "b"}, name="dying")
    result = train(again, build(again))
    events = list(again.directory.events())
    assert any(event.text == "resumed after step 4" for event in events)
    assert published(again, result.adapter_version) == published(straight, expected.adapter_version)
    assert {k: v for k, v in result.metrics.items() if k not in TIMINGS} == {k: v for k, v in expected.metrics.items() if k not in TIMINGS}
    one, other = straight.store.manifest(expected.adapter_version), again.store.manifest(result.adapter_version)
    assert {k: v for k, v in one.facts.items() if k != "spec_digest"} == {k: v for k, v in other.facts.items() if k != "spec_digest"}


def test_ppo_resumes_with_its_critic_its_coefficient_and_its_moments(tmp_path: Path, tiny_folder: Path) -> None:
    """With rollouts of this process; whole runs through the services are in tests/e2e."""
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    ppo = {
        "data": data, "epochs": 2, "minibatch_size": 2, "normalize_scores": True, "kl_controller": "adaptive", "kl_target": 0.01, "kl_horizon": 40,
    }  # fmt: skip

    def made(name: str, adapter: str) -> tuple[RunContext, Any]:
        values = {"steps": 5, "checkpoint_every_steps": 2, "adapter": adapter, "optimizer": {"learning_rate": 1e-3}}
        return make_ppo(tmp_path, tiny_folder, values, ppo, name=name)[:2]

    def die() -> None:
        raise KeyboardInterrupt

    straight, algorithm = made("straight", "a")
    expected = train(straight, algorithm)
    dying, algorithm = made("dying", "b")
    with pytest.raises(KeyboardInterrupt):
        train(dying, after_step(algorithm, 3, die))
    again, algorithm = made("dying", "b")
    result = train(again, algorithm)
    assert published(again, result.adapter_version) == published(straight, expected.adapter_version)
    folders = [context.directory.checkpoints / "00000005" for context in (straight, again)]
    for file in ("value/adapter_model.safetensors", "value/head.safetensors", "optimizer.safetensors"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()
    curves = [metrics_of(context.directory.events(), "kl_coef") for context in (straight, again)]
    assert curves[0] == [*curves[1][:3], *curves[1][-2:]]
    assert len(set(curves[0])) == 5


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_stop_is_heeded_after_a_checkpoint_and_resumes_to_the_same_bits(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    spec = spec_of(tmp_path, kind, checkpoint_every_steps=0)
    straight = make_context(tmp_path, tiny_folder, spec, name="straight")
    expected = train(straight, build(straight))
    stopped = make_context(tmp_path, tiny_folder, {**spec, "adapter": "b"}, name="stopped")
    with pytest.raises(RunStopped):
        train(stopped, after_step(build(stopped), 2, stopped.stop.set))
    assert [path.name for path in stopped.directory.checkpoints.iterdir()] == ["00000003"]
    again = make_context(tmp_path, tiny_folder, {**spec, "adapter": "b"}, name="stopped")
    result = train(again, build(again))
    assert published(again, result.adapter_version) == published(straight, expected.adapter_version)


def test_a_stop_inside_a_step_throws_its_half_away(tmp_path: Path, tiny_folder: Path) -> None:
    spec = spec_of(tmp_path, "sft", micro_batch_size=1)
    straight = make_context(tmp_path, tiny_folder, spec, name="straight")
    expected = train(straight, build(straight))
    stopped = make_context(tmp_path, tiny_folder, {**spec, "adapter": "b"}, name="stopped")
    algorithm = build(stopped)
    passes, logprobs = [], algorithm._logprobs  # type: ignore[attr-defined]

    def counted(rows: Any) -> Any:
        passes.append(torch.is_grad_enabled())
        if sum(passes) == 3 * 4 + 2:
            stopped.stop.set()
        return logprobs(rows)

    algorithm._logprobs = counted  # type: ignore[attr-defined]
    with pytest.raises(RunStopped):
        train(stopped, algorithm)
    assert sum(passes) == 14, "the micro-batches behind the stop are not computed"
    assert (stopped.directory.checkpoints / "00000003").is_dir()
    again = make_context(tmp_path, tiny_folder, {**spec, "adapter": "b"}, name="stopped")
    assert published(again, train(again, build(again)).adapter_version) == published(straight, expected.adapter_version)


def test_a_run_killed_before_it_published_publishes_once(tmp_path: Path, tiny_folder: Path) -> None:
    spec = spec_of(tmp_path, "reward_model")
    first = make_context(tmp_path, tiny_folder, spec)
    result = train(first, build(first))
    second = make_context(tmp_path, tiny_folder, spec)
    again = train(second, build(second))
    assert again.adapter_version == result.adapter_version
    assert again.metrics == result.metrics
    assert len(second.store.list("a")) == 1


@pytest.mark.parametrize("error", [RunStopped, UnavailableError("judge is away")])
def test_a_stop_between_a_step_and_its_evaluation_loses_neither(tmp_path: Path, tiny_folder: Path, error: Any) -> None:
    """The weights of the step are in the checkpoint, and the evaluation, on which published facts rest, is made up for."""
    spec = spec_of(tmp_path, "reward_model", checkpoint_every_steps=0, eval_every_steps=0)
    straight = make_context(tmp_path, tiny_folder, spec, name="straight")
    expected = train(straight, build(straight))
    stopped = make_context(tmp_path, tiny_folder, {**spec, "adapter": "b"}, name="stopped")
    algorithm = build(stopped)
    evaluate = algorithm.evaluate

    def broken(*, final: bool) -> dict[str, float]:
        if final:
            raise error
        return evaluate(final=final)

    algorithm.evaluate = broken  # type: ignore[method-assign]
    with pytest.raises((RunStopped, UnavailableError)):
        train(stopped, algorithm)
    assert [path.name for path in stopped.directory.checkpoints.iterdir()] == ["00000006"]
    again = make_context(tmp_path, tiny_folder, {**spec, "adapter": "b"}, name="stopped")
    result = train(again, build(again))
    assert result.metrics["eval_accuracy"] == expected.metrics["eval_accuracy"]
    assert published(again, result.adapter_version) == published(straight, expected.adapter_version)
    facts = again.store.manifest(result.adapter_version).facts
    assert facts["std"] == straight.store.manifest(expected.adapter_version).facts["std"] != 1.0
    held_out = {name: value for name, value in facts.items() if name.startswith("eval_")}
    assert held_out["eval_accuracy"] == facts["held_out_accuracy"] == result.metrics["eval_accuracy"]
    assert sum(row[-1] for row in held_out["eval_reliability"]) == held_out["eval_pairs"]
    assert held_out == {name: straight.store.manifest(expected.adapter_version).facts[name] for name in held_out}
    assert metrics_of(again.directory.events(), "eval_accuracy")[-1] == expected.metrics["eval_accuracy"]


def test_a_service_that_stays_away_costs_no_step(tmp_path: Path, tiny_folder: Path) -> None:
    """RunFile.wait_seconds: the run checkpoints and stops; with no checkpoints asked for, all of it would be lost."""
    spec = spec_of(tmp_path, "sft", checkpoint_every_steps=0)
    context = make_context(tmp_path, tiny_folder, spec)
    algorithm = build(context)
    step = algorithm.step

    def away(at: int, optimizer: Any) -> dict[str, float]:
        if at == 3:
            raise UnavailableError("reward service did not answer for 600 s")
        return step(at, optimizer)

    algorithm.step = away  # type: ignore[method-assign]
    with pytest.raises(UnavailableError):
        train(context, algorithm)
    assert [path.name for path in context.directory.checkpoints.iterdir()] == ["00000003"]


def test_a_damaged_checkpoint_is_passed_over_with_a_message(tmp_path: Path, tiny_folder: Path) -> None:
    spec = spec_of(tmp_path, "dpo", checkpoints_kept=3)
    first = make_context(tmp_path, tiny_folder, spec)
    result = train(first, build(first))
    weights = first.directory.checkpoints / "00000006" / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 16
    weights.write_bytes(bytes(content))
    second = make_context(tmp_path, tiny_folder, spec)
    assert train(second, build(second)).adapter_version == result.adapter_version
    said = [event.text for event in second.directory.events() if event.text]
    assert any("checkpoint 00000006: adapter/adapter_model.safetensors does not match its digest; the one before it is used" in text for text in said)
    assert "resumed after step 4" in said


def test_a_damaged_checkpoint_does_not_push_out_the_one_that_the_run_went_on_from(tmp_path: Path, tiny_folder: Path) -> None:
    """A stop after step 3 wrote one outside the schedule."""
    spec = spec_of(tmp_path, "sft", checkpoints_kept=2)
    first = make_context(tmp_path, tiny_folder, spec)
    with pytest.raises(RunStopped):
        train(first, after_step(build(first), 2, first.stop.set))
    folder = first.directory.checkpoints
    assert sorted(path.name for path in folder.iterdir()) == ["00000002", "00000003"]
    (folder / "00000003" / "optimizer.safetensors").write_bytes(b"")
    second = make_context(tmp_path, tiny_folder, spec)
    seen: list[str] = []
    train(second, after_step(build(second), 4, lambda: seen.extend(path.name for path in folder.iterdir())))
    assert sorted(seen) == ["00000002", "00000004"], "in the step after the next checkpoint"


def test_every_file_of_a_checkpoint_of_ppo_is_checked(tmp_path: Path, tiny_folder: Path) -> None:
    """Cut short, one bit flipped, empty, gone: each is seen and said, the one before is used, and the bits at the end are the same."""
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())

    def made() -> tuple[RunContext, Any]:
        values = {"steps": 3, "checkpoint_every_steps": 1, "max_response_tokens": 4}
        context, algorithm, _ = make_ppo(tmp_path, tiny_folder, values, {"data": data, "epochs": 1, "max_staleness": 1})
        algorithm._source = VersionSource(context, even_share)
        return context, algorithm

    context, algorithm = made()
    train(context, algorithm)
    newest = context.directory.checkpoints / "00000003"
    whole = {path: path.read_bytes() for path in sorted(newest.rglob("*")) if path.is_file()}
    names = {str(path.relative_to(newest)) for path in whole}
    folders = ("adapter", "behaviour", "value")
    assert names == {"manifest.json", "optimizer.safetensors", "value/head.safetensors"} | {
        f"{folder}/{file}" for folder in folders for file in ("adapter_config.json", "adapter_model.safetensors")
    }
    for path, content in whole.items():
        flipped = bytes([*content[: len(content) // 2], content[len(content) // 2] ^ 1, *content[len(content) // 2 + 1 :]])
        for damaged in (content[:-1], flipped, b"", None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            said: list[str] = []
            found = checkpoint.latest_checkpoint(context.directory.checkpoints, spec=context.spec.learning_values, report=said.append)
            assert found is not None
            assert found.step == 2
            assert len(said) == 1
            assert said[0].startswith("checkpoint 00000003: ")
            path.write_bytes(content)
    (newest / "behaviour" / "adapter_model.safetensors").write_bytes(b"")
    context, algorithm = made()
    train(context, algorithm)
    assert {path: path.read_bytes() for path in whole if path.suffix == ".safetensors"} == {
        path: content for path, content in whole.items() if path.suffix == ".safetensors"
    }


def main(context: RunContext) -> tuple[int, Any]:
    """The run as its process runs it; exit code and result."""
    code = entry.main(["--config", str(context.directory.path / "run.yaml")])
    return code, context.directory.result()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signal handlers and torch's global switch stay as the test process had them."""
    monkeypatch.setattr(StopSignal, "install", lambda self: None)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda mode: None)


@pytest.mark.usefixtures("quiet")
class TestProcess:
    """Exit codes and results of `python -m accord.training`."""

    def test_done(self, tmp_path: Path, tiny_folder: Path) -> None:
        code, result = main(make_context(tmp_path, tiny_folder, spec_of(tmp_path, "sft")))
        assert (code, result.exit_code, result.step, result.adapter_version) == (EXIT_DONE, 0, 6, "adapters/a/versions/1")
        assert result.metrics["loss"] > 0

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"parent_adapter": "adapters/none"}, "none"),
            ({"lora": {"rank": 4, "target_modules": ["w_proj"]}}, "w_proj"),
            ({"max_prompt_tokens": 5}, "12 with a prompt over max_prompt_tokens 5; nothing is left of sft.data"),
            ({"sft": {"data": {"uri": "missing.jsonl"}}}, "there is no file missing.jsonl"),
            ({"sft": {"data": {"uri": "hub:nobody/nothing"}}}, "not in the local hub cache"),
        ],
    )
    def test_a_mistake_of_configuration_is_said_in_a_sentence(self, tmp_path: Path, tiny_folder: Path, values: dict[str, Any], words: str) -> None:
        code, result = main(make_context(tmp_path, tiny_folder, {**spec_of(tmp_path, "sft"), **values}))
        assert (code, result.exit_code) == (EXIT_CONFIGURATION, EXIT_CONFIGURATION)
        assert words in result.message

    def test_weights_are_not_spread_over_one_process(self, tmp_path: Path) -> None:
        """How many nodes there are is known here first: the specification's processes are those of one. Nothing is loaded before it is said."""
        directory, spec = RunDirectory(tmp_path / "run"), {**COMMON, **spec_of(tmp_path, "sft"), "distribution": {"strategy": "fsdp"}}
        run = RunFile(name="runs/run", artefacts=str(tmp_path / "artefacts"), base_model=str(tmp_path / "no-model"), threads=1, spec=parse_spec(spec))
        directory.write_run_file(run)
        assert entry.main(["--config", str(directory.path / "run.yaml")]) == EXIT_CONFIGURATION
        result = directory.result()
        assert result is not None
        assert result.message == (
            "distribution.strategy fsdp spreads weights over the processes of a run, and this one is alone: give it distribution.processes of at "
            "least 2, or several nodes"
        )

    @pytest.mark.parametrize("kind", list(KINDS))
    def test_held_out_data_of_which_no_row_fits_is_a_mistake_too(self, tmp_path: Path, tiny_folder: Path, kind: str) -> None:
        """A guard or a manifest would otherwise count on figures that never come."""
        spec = spec_of(tmp_path, kind)
        spec[kind]["eval_data"] = write_rows(tmp_path / "long.jsonl", [{"prompt": "x" * 2000, "chosen": "a", "rejected": "b"}])
        code, result = main(make_context(tmp_path, tiny_folder, spec))
        assert (code, result.exit_code) == (EXIT_CONFIGURATION, EXIT_CONFIGURATION)
        assert f"nothing is left of {kind}.eval_data" in result.message

    def test_a_run_directory_of_another_specification_is_refused(self, tmp_path: Path, tiny_folder: Path) -> None:
        context = make_context(tmp_path, tiny_folder, spec_of(tmp_path, "sft"))
        assert main(context)[0] == EXIT_DONE
        code, result = main(make_context(tmp_path, tiny_folder, spec_of(tmp_path, "sft", seed=1)))
        assert code == EXIT_CONFIGURATION
        assert "another specification" in result.message

    def test_a_full_disk(self, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The run says so, and goes on from its last checkpoint when there is room again."""
        context = make_context(tmp_path, tiny_folder, spec_of(tmp_path, "sft"))
        write = checkpoint._write_synced

        def full(path: Path, content: bytes) -> None:
            if "00000004" in str(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            write(path, content)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_write_synced", full)
            code, result = main(context)
        assert code == EXIT_FAILED
        assert "No space left on device" in result.message
        assert [path.name for path in context.directory.checkpoints.iterdir()] == ["00000002"]
        context.directory.clear_result()
        assert main(context)[0] == EXIT_DONE
        straight = make_context(tmp_path, tiny_folder, {**spec_of(tmp_path, "sft"), "adapter": "b"}, name="straight")
        assert published(context, "adapters/a/versions/1") == published(straight, train(straight, build(straight)).adapter_version)

    def test_weights_that_cannot_be_written_are_an_error_of_the_disk(
        self, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from safetensors import SafetensorError

        def full(*_: Any, **__: Any) -> None:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr("accord.training.loop.save_file", full)
        code, result = main(make_context(tmp_path, tiny_folder, spec_of(tmp_path, "sft")))
        assert code == EXIT_FAILED
        assert result.message.startswith("OSError: weights cannot be written")

    def test_a_defect_is_in_the_result_too(
        self, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError("a tensor of the wrong shape")

        monkeypatch.setattr("accord.training.sft.batch_logprobs", broken)
        code, result = main(make_context(tmp_path, tiny_folder, spec_of(tmp_path, "sft")))
        assert code == EXIT_FAILED
        assert result.message == "a defect: RuntimeError: a tensor of the wrong shape"
        assert "Traceback" in capfd.readouterr().err

    def test_stopped(self, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(StopSignal, "install", lambda self: self.set())
        code, result = main(make_context(tmp_path, tiny_folder, spec_of(tmp_path, "sft")))
        assert (code, result.exit_code) == (EXIT_STOPPED, EXIT_STOPPED)
        assert "stopped on request before its first step" in result.message

    def test_stopped_before_there_is_anything_to_keep(self, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stopped(*_: Any) -> None:
            raise RunStopped

        monkeypatch.setattr("accord.training.sft.SupervisedFineTuning.setup", stopped)
        code, result = main(make_context(tmp_path, tiny_folder, spec_of(tmp_path, "sft")))
        assert (code, result.step) == (EXIT_STOPPED, 0)
        assert result.message == "stopped on request before its first step; it begins anew when it is resumed"

    def test_a_service_that_stays_away_has_a_code_of_its_own(self, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def away(*_: Any) -> None:
            raise UnavailableError("reward service at x gave no answer")

        monkeypatch.setattr("accord.training.sft.SupervisedFineTuning.step", away)
        context = make_context(tmp_path, tiny_folder, spec_of(tmp_path, "sft"))
        code, result = main(context)
        assert (code, result.exit_code) == (EXIT_AWAY, 4)
        assert "reward service at x gave no answer; started again it goes on from its last checkpoint" in result.message
        assert [path.name for path in context.directory.checkpoints.iterdir()] == ["00000000"]

    def test_broken_run_files(self, tmp_path: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        assert entry.main(["--config", str(tmp_path / "none.yaml")]) == EXIT_CONFIGURATION
        assert entry.main([]) == EXIT_CONFIGURATION
        context = make_context(tmp_path, tiny_folder, spec_of(tmp_path, "sft"))
        path = context.directory.path / "run.yaml"
        values = yaml.safe_load(path.read_text())
        values["spec"]["sft"]["dataa"] = 1
        path.write_text(yaml.safe_dump(values))
        assert entry.main(["--config", str(path)]) == EXIT_CONFIGURATION
        said = capfd.readouterr().err
        assert "none.yaml" in said
        assert "usage" in said
        assert "dataa" in said


def test_heartbeats_come_while_the_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accord.training.context._HEARTBEAT_SECONDS", 0.02)
    directory = RunDirectory(tmp_path)
    events = EventLog(directory)
    with Heartbeat(events):
        while len(list(directory.events())) < 3:
            pass
    count = len(list(directory.events()))
    assert {event.kind for event in directory.events()} == {"heartbeat"}
    assert len(list(directory.events())) == count


# Learning. Held-out rows are made of other words than those that are trained on.


def noisy_words(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choice("bcdfgklmnprstvz") + generator.choice("aeiou") for _ in range(3)) for _ in range(count)]


def polite(words: Sequence[str]) -> list[dict[str, Any]]:
    """A planted preference: of two responses of the same length about the same word, the one without capitals is better."""
    return [{"prompt": f"say {word}", "chosen": f"ok {word}", "rejected": f"NO {word.upper()}"} for word in words]


def test_a_reward_model_learns_what_is_planted(tmp_path: Path, tiny_folder: Path) -> None:
    """Above 60 % on held-out pairs, from about half, where taking the longer response is worth nothing."""
    data, held = write_rows(tmp_path / "train.jsonl", polite(noisy_words(1, 40))), write_rows(tmp_path / "held.jsonl", polite(noisy_words(2, 24)))
    _, events = run_here(
        tmp_path, tiny_folder,
        {"steps": 25, "batch_size": 8, "optimizer": {"learning_rate": 5e-3}, "reward_model": {"data": data, "eval_data": held}},
    )  # fmt: skip
    accuracy = metrics_of(events, "eval_accuracy")
    assert metrics_of(events, "eval_length_baseline")[-1] == 0.5
    assert accuracy[-1] > 0.9
    assert metrics_of(events, "eval_accuracy_low")[-1] > 0.6
    assert metrics_of(events, "loss")[-1] < metrics_of(events, "loss")[0]


def test_held_out_pairs_whose_prompt_is_trained_on_are_not_measured_on(tmp_path: Path, tiny_folder: Path) -> None:
    rows = planted_pairs()
    data, held = write_rows(tmp_path / "train.jsonl", rows[:8]), write_rows(tmp_path / "held.jsonl", rows[5:])
    context = make_context(tmp_path, tiny_folder, {"steps": 1, "reward_model": {"data": data, "eval_data": held}})
    result = train(context, build(context))
    facts = context.store.manifest(result.adapter_version).facts
    assert (facts["eval_pairs"], facts["eval_pairs_left_out"]) == (len(rows) - 8, 3)
    assert (facts["eval_data_uri"], facts["eval_data_split"]) == (held["uri"], "train")
    assert facts["eval_data_digest"] == read_pairs(held["uri"]).report.digest
    said = f"3 of {len(rows) - 5} pairs of {held['uri']} (train) have a prompt that is trained on, and are not measured on"
    assert said in [event.text for event in context.directory.events()]


def test_nothing_held_out_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    """Rows that name no split are in each of them: the same file was trained on, and held out."""
    data = write_rows(tmp_path / "rows.jsonl", planted_pairs())
    context = make_context(tmp_path, tiny_folder, {"steps": 1, "reward_model": {"data": data, "eval_data": {**data, "split": "test"}}})
    with pytest.raises(InvalidArgumentError, match=r"all 12 pairs of .*rows\.jsonl \(test\) have a prompt that is trained on: .* no split") as error:
        build(context).setup()
    assert error.value.field == "reward_model.eval_data"


def test_dpo_raises_the_margin_on_held_out_pairs(tmp_path: Path, tiny_folder: Path) -> None:
    data, held = write_rows(tmp_path / "train.jsonl", polite(noisy_words(1, 40))), write_rows(tmp_path / "held.jsonl", polite(noisy_words(2, 24)))
    _, events = run_here(
        tmp_path, tiny_folder,
        {"steps": 15, "batch_size": 8, "optimizer": {"learning_rate": 2e-3}, "dpo": {"data": data, "eval_data": held}},
    )  # fmt: skip
    margins = metrics_of(events, "eval_margin")
    assert margins[0] == pytest.approx(0, abs=1e-3)
    assert margins[-1] > 0.3
    assert metrics_of(events, "eval_accuracy")[-1] > 0.9


def test_sft_makes_held_out_responses_likelier(tmp_path: Path, tiny_folder: Path) -> None:
    data, held = write_rows(tmp_path / "train.jsonl", polite(noisy_words(1, 40))), write_rows(tmp_path / "held.jsonl", polite(noisy_words(2, 24)))
    _, events = run_here(
        tmp_path, tiny_folder,
        {"steps": 15, "batch_size": 8, "optimizer": {"learning_rate": 5e-3}, "sft": {"data": data, "eval_data": held}},
    )  # fmt: skip
    losses = metrics_of(events, "eval_loss")
    assert losses[-1] < losses[0] - 1.0


def low_share(response: Sequence[int]) -> float:
    """A planted score: how much of a response is tokens with ids below 67, a quarter of them, from 0 to 4."""
    return 4.0 * sum(token < 67 for token in response) / len(response)


def test_ppo_raises_the_reward_and_keeps_the_divergence_bounded(tmp_path: Path, tiny_folder: Path) -> None:
    """The mean score rises over its start; with a strong penalty the policy stays near its reference instead."""
    found = {}
    for name, kl_coef in (("free", 0.02), ("held", 5.0)):
        data = write_rows(tmp_path / "rows.jsonl", planted_pairs(WORDS))
        context, algorithm, _ = make_ppo(
            tmp_path, tiny_folder, {"steps": 15, "batch_size": 32, "max_response_tokens": 6, "optimizer": {"learning_rate": 2e-2}},
            {"data": data, "eval_data": data, "kl_coef": kl_coef, "temperature": 1.0, "epochs": 2, "missing_eos_penalty": 0.0, "value_from_reward_model": False},
            name=name, score=low_share,
        )  # fmt: skip
        train(context, algorithm)
        found[name] = list(context.directory.events())
    scores, held = (metrics_of(found[name], "score_mean") for name in ("free", "held"))
    assert sum(scores[-5:]) / 5 > sum(scores[:3]) / 3 + 0.3
    assert sum(held[-5:]) / 5 < sum(scores[-5:]) / 5 - 0.3
    assert metrics_of(found["free"], "eval_score")[-1] > metrics_of(found["free"], "eval_score")[0]
    assert 1 < metrics_of(found["free"], "kl_k3")[-1] < 15
    assert metrics_of(found["held"], "kl_k3")[-1] < 0.4 * metrics_of(found["free"], "kl_k3")[-1]
    assert max(metrics_of(found["free"], "sampler_approx_kl")) < 1e-6
    assert max(abs(ratio - 1) for ratio in metrics_of(found["free"], "first_ratio_mean")) < 1e-5
