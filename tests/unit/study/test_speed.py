"""Plans: how long steps take, by this machine's speed and by that of a judge elsewhere."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from accord.study import runner
from accord.study.graph import Graph, Step, build_graph
from accord.study.recipe import StudyRecipe, load_recipe
from accord.study.runner import _Runner, data_facts, plan_study, run_study
from accord.study.speed import Speed
from accord.study.steps import StepResult, StepStore

TRAIN = Step("t", "train", "train", {}, tokens=60_000)
LABEL = Step("l", "label", "label", {}, tokens=1000, asked_pairs=100)
JUDGE = dataclasses.replace(LABEL, name="j", kind="judge", asked_pairs=50)


def done(step: Step, seconds: float) -> tuple[Step, StepResult]:
    return step, StepResult(step.name, "k", {}, seconds, 0.0)


def test_what_was_done_says_how_long_the_rest_takes() -> None:
    speed = Speed.of([done(TRAIN, 67.0), done(LABEL, 1001.0)], None)
    assert (speed.tokens_per_second, speed.seconds_per_pair) == (1000.0, 10.0)  # seven seconds and one second are for starting
    assert speed.seconds(JUDGE) == 500.5
    assert speed.seconds(TRAIN) == 67.0


def test_before_anything_was_done_the_recipe_says_it() -> None:
    assert Speed.of([], 10.0).seconds(LABEL) == 1001.0
    assert Speed.of([done(LABEL, 301.0)], 10.0).seconds_per_pair == 3.0  # and what was measured goes before it
    assert Speed.of([done(LABEL, 2.0)], 10.0).seconds_per_pair == 10.0  # unless the ledger answered
    assert Speed.of([], None).seconds(LABEL) == 1.0 + 1000 / 500


def test_a_step_that_an_earlier_call_began_says_nothing_but_what_its_run_knows() -> None:
    """What was found finished after an interruption took the last call no time at all."""
    run = StepResult("t", "k", {"seconds": 120.0}, 2.0, 0.0)
    assert Speed.of([(TRAIN, run)], None).tokens_per_second == 500.0
    assert Speed.of([(TRAIN, dataclasses.replace(run, seconds=9000.0, resumed=True))], None).tokens_per_second == 500.0
    assert Speed.of([done(TRAIN, 67.0), (TRAIN, StepResult("t", "k", {}, 2.0, 0.0, resumed=True))], None).tokens_per_second == 1000.0
    halves = [done(LABEL, 1001.0), (JUDGE, StepResult("j", "k", {}, 31.0, 0.0, resumed=True))]
    assert Speed.of(halves, None).seconds_per_pair == 10.0


class Interrupted(_Runner):
    """Its steps take half a second of an invented clock; the first call is interrupted in the middle of one."""

    calls = 0

    def _do(self, step: Step, key: str) -> dict[str, Any]:
        type(self).calls += 1
        CLOCK.now += 0.5
        if self.calls == 1:
            raise KeyboardInterrupt
        return {"seconds": 40.0} if step.kind == "train" else {}


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.mark.parametrize(("step", "seconds"), [(dataclasses.replace(LABEL, asked_pairs=0), 1.0), (TRAIN, 40.0)])
def test_a_steps_time_is_that_of_all_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: Step, seconds: float) -> None:
    monkeypatch.setattr("accord.study.runner.time", CLOCK)
    monkeypatch.setattr(Interrupted, "calls", 0)
    graph, store = Graph((step,), {step.name: "key"}), StepStore(tmp_path)
    quiet: Any = SimpleNamespace(step=lambda *_, **__: None, remaining=lambda _: None, progress=lambda *_: None)
    clients: Any = None
    with pytest.raises(KeyboardInterrupt):
        Interrupted(load_recipe("quick"), graph, store, clients, quiet, "").run()
    assert store.read(step.name, "key") is None
    Interrupted(load_recipe("quick"), graph, store, clients, quiet, "").run()
    found = StepStore(tmp_path).read(step.name, "key")
    assert found is not None
    assert (found.seconds, found.resumed) == (pytest.approx(seconds), True)
    assert [path.name for path in (tmp_path / "study" / "steps").iterdir()] == ["key.json"]


def changed(**judge: object) -> StudyRecipe:
    values = load_recipe("larger-judge").model_dump()
    return StudyRecipe.model_validate({**values, "judge": {**values["judge"], **judge}})


def test_a_slow_judge_is_in_the_plan_and_in_no_key(tmp_path: Path) -> None:
    known, unknown = changed(seconds_per_pair=10), changed(seconds_per_pair=None)
    assert build_graph(known, {}).keys == build_graph(unknown, {}).keys
    planned, guessed = plan_study(known, tmp_path), plan_study(unknown, tmp_path)
    assert (planned.judge_is_unknown, guessed.judge_is_unknown) == (False, True)
    asked = known.ai_pairs + known.evaluation.judge_check_pairs + (2 * 6 - 1) * known.evaluation.prompts  # base and SFT besides four arms
    others = sum(step.seconds for step in guessed.steps if step.kind not in ("label", "judge"))
    slow = [step for step in planned.steps if (step.kind in ("label", "judge") and "larger" in step.title) or step.kind == "judge"]
    assert sum(step.seconds for step in slow) == pytest.approx(10 * asked, abs=10)
    assert planned.seconds > others + 10 * asked
    assert not plan_study(load_recipe("quick"), tmp_path).judge_is_unknown


@pytest.mark.parametrize(("noted", "base_model", "left"), [("embedded", "embedded", 0), ("embedded", "/models/other", 1), (None, "/models/other", 0)])
def test_a_plan_for_another_base_model_takes_nothing_for_done(tmp_path: Path, noted: str | None, base_model: str, left: int) -> None:
    """Files of before the model's name was kept say nothing of it, and count as ever."""
    recipe, store = load_recipe("quick"), StepStore(tmp_path)
    digests = {"base_model": "a", "tokenizer": "b", "chat_template": "c"}
    (store.folder / "digests.json").write_text(json.dumps(digests | ({"recipe_base_model": noted} if noted else {})))
    graph = build_graph(recipe, digests | data_facts(recipe)[0])
    for step in graph.steps:
        store.write(step.name, graph.keys[step.name], {}, 40.0)
    planned = plan_study(StudyRecipe.model_validate(recipe.model_dump() | {"base_model": base_model}), tmp_path)
    assert sum(not step.done for step in planned.steps) == left * len(graph.steps)
    assert (planned.seconds > 0) == bool(left)


def test_data_by_a_relative_path_is_read_where_the_command_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By services and runs, too, each of which works in a folder of its own."""
    rows = [{"prompt": f"{split} {n}", "chosen": "a b", "rejected": "c", "split": split} for split in ("train", "test") for n in range(2)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    task = {"task": "conversation", "uri": "pairs.jsonl", "test_uri": "./pairs.jsonl"}
    recipe = StudyRecipe.model_validate(load_recipe("quick").model_dump() | {"tasks": [task]})
    planned = plan_study(recipe, tmp_path / "home").recipe
    assert [planned.tasks[0].uri, planned.tasks[0].test_uri] == [str(tmp_path / "pairs.jsonl")] * 2
    assert planned.with_absolute_paths == planned
    assert load_recipe("quick").with_absolute_paths == load_recipe("quick")
    taken: list[StudyRecipe] = []

    def stop(recipe: StudyRecipe, *_: object, **__: object) -> NoReturn:
        taken.append(recipe)
        raise InterruptedError

    monkeypatch.setattr(runner, "started", stop)
    with pytest.raises(InterruptedError):
        run_study(recipe, tmp_path / "home", runner.Reporter)  # type: ignore[arg-type]
    assert taken == [planned]
