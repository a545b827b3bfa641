"""Data of one's own: splits of other names, and rows that cannot be used, which are said before anything is done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from accord.cli.study import _show_plan
from accord.errors import InvalidArgumentError
from accord.study import runner
from accord.study.actions import StepContext, resolved_spec
from accord.study.graph import build_graph
from accord.study.measuring import generate
from accord.study.recipe import StudyRecipe, load_recipe
from accord.study.results import _account
from accord.study.runner import data_facts, plan_study, run_study
from accord.study.steps import StepResult


def tldr(split: str, number: int, **changes: Any) -> dict[str, Any]:
    """A comparison as OpenAI's data has it, whose splits are train, valid1 and valid2."""
    summaries = [{"text": f"good {number}"}, {"text": f"bad {number}"}]
    return {
        "info": {"id": f"{split}{number}", "post": f"{split} {number}", "title": ""},
        "summaries": summaries,
        "choice": 0,
        "split": split,
    } | changes


ROWS = [*(tldr("train", n) for n in range(20)), *(tldr("valid1", n) for n in range(6)), *(tldr("valid2", n) for n in range(4))]


def recipe_of(folder: Path, rows: Sequence[dict[str, Any]], **task: str) -> StudyRecipe:
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    part = {"task": "summarization", "uri": str(folder / "pairs.jsonl"), **task}
    return StudyRecipe.model_validate(load_recipe("quick").model_dump() | {"tasks": [part]})


def test_a_split_that_is_not_there_is_explained_by_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        data_facts(recipe_of(tmp_path, ROWS))
    assert error.value.message == (
        f"tasks[0].uri is {tmp_path}/pairs.jsonl: 2 usable pairs of split test are needed: read 0 of 30 rows (30 of other splits); there are 20 of "
        "train, 10 of validation: test_split takes another split"
    )
    assert error.value.field == "tasks[0].uri"
    with pytest.raises(InvalidArgumentError, match=r"there are 20 of train, 10 of validation: split takes another split"):
        data_facts(recipe_of(tmp_path, ROWS, split="training"))
    with pytest.raises(InvalidArgumentError) as error:
        data_facts(recipe_of(tmp_path, ROWS, test_uri=str(tmp_path / "pairs.jsonl")))
    assert error.value.field == "tasks[0].test_uri"
    facts, _, notes = data_facts(recipe_of(tmp_path, ROWS, test_split="validation"))
    assert (list(facts), notes) == (["data_summarization"], ())


def test_rows_that_cannot_be_used_are_said_in_the_plan_and_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [tldr("train", 100 + n, choice=2) for n in range(1000)]
    mine = recipe_of(tmp_path, [*ROWS[:20], *bad, *(tldr("test", n) for n in range(3))])
    notes = (
        "tasks[0].uri, split train, as pairs, prompts, demonstrations: read 20 of 1023 rows (3 of other splits, 1000 choice is not 0 or 1)",
        "tasks[0].uri, split test, as pairs, prompts, demonstrations: read 3 of 1023 rows (20 of other splits, 1000 choice is not 0 or 1)",
    )
    planned = plan_study(mine, tmp_path / "home")
    assert planned.notes == notes
    _show_plan(planned)
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"note: {note}" in shown for note in notes)
    told: list[str] = []

    def stop(*_: object, **__: object) -> NoReturn:
        raise InterruptedError

    monkeypatch.setattr(runner, "started", stop)
    with pytest.raises(InterruptedError):
        run_study(mine, tmp_path / "home", type("Told", (), {"message": staticmethod(told.append)}))  # type: ignore[arg-type]
    assert told == [f"note: {note}" for note in notes]
    assert not data_facts(load_recipe("quick"))[2]  # nothing of the shipped samples


def test_a_reading_that_rejects_other_rows_has_its_own_sentence(tmp_path: Path) -> None:
    """SFT learns from rows without a pair: that these make none is said of pairs alone."""
    more = [{"info": {"id": f"d{n}", "post": f"post {n}", "title": ""}, "summary": f"sum {n}", "split": "train"} for n in range(2)]
    _, _, notes = data_facts(recipe_of(tmp_path, [*ROWS, *more], test_split="validation"))
    assert notes == ("tasks[0].uri, split train, as pairs: read 20 of 32 rows (10 of other splits, 2 chosen or rejected is missing)",)


def test_every_step_reads_the_splits_that_the_recipe_says(tmp_path: Path) -> None:
    mine = recipe_of(tmp_path, ROWS, split="train_prefs", test_split="validation")
    values = mine.model_dump() | {"evaluation": mine.evaluation.model_dump() | {"held_out_reward_model": True}}
    steps = {step.name.partition("/")[2]: step for step in build_graph(StudyRecipe.model_validate(values), {}).steps}
    assert [steps[name].params["split"] for name in ("labels-ai", "judge-check-verdict")] == ["train_prefs", "validation"]
    assert steps["generate-sft"].params["test_split"] == "validation"
    inputs = {f"summarization/{name}": StepResult(name, "k", {"adapter_version": "a/1", "dataset_uri": "l.jsonl"}, 1.0, 0.0) for name in steps}
    for name in ("sft", "rm-human", "rm-ai", "dpo-human", "dpo-ai", "ppo-human", "rm-held-out"):
        spec = resolved_spec(steps[name], inputs)
        part = getattr(spec, spec.algorithm)
        expected = ("validation", "train_prefs") if name == "rm-held-out" else ("train_prefs", "validation")
        assert part.data.split == expected[0], name  # labels of the judge, too: labelled rows stay in their split
        if spec.algorithm in ("reward_model", "dpo"):
            assert part.eval_data.split == expected[1], name


def test_the_held_out_prompts_are_those_of_the_split(tmp_path: Path) -> None:
    mine = recipe_of(tmp_path, ROWS, test_split="validation")
    step = next(step for step in build_graph(mine, {}).steps if step.kind == "generate")
    asked: list[str] = []

    def answer(items: Sequence[Any], **_: Any) -> NoReturn:
        asked.extend(item.prompt[-1].content for item in items)
        raise InterruptedError

    services: Any = type("Services", (), {"policy": type("Policy", (), {"generate": staticmethod(answer)})})
    with pytest.raises(InterruptedError):
        generate(step, StepContext(services, {}, tmp_path, "", "k", lambda *_: None))
    assert asked
    assert all("valid" in content for content in asked)


def test_recipes_that_say_no_split_keep_their_steps() -> None:
    """The last step's key has all the others' in it."""
    assert build_graph(load_recipe("quick"), {"base_model": "m", "tokenizer": "t"}).keys["evaluate"] == "86f863b1e1e051e5f02f08b0"
    assert build_graph(load_recipe("dialogue"), {"base_model": "m", "tokenizer": "t"}).keys["evaluate"] == "3abf41de9587ce4ee5e191aa"


def test_the_account_of_training_pairs_is_that_of_the_training_split() -> None:
    messages = ["x (validation): read 9 of 9 rows; kept 8 of 9 pairs: 1 too long", "x (a+b): read 5 of 9 rows; kept 4 of 5 pairs: 1 too long"]
    assert _account(messages, "a+b") == {"read": 5, "kept": 4}
    assert _account(messages, "train") == {"read": None, "kept": None}
