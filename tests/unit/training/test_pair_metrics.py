"""What runs on pairs report: of the response that the label prefers over the other, in whichever order data or a sampler has put them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from tests.unit.training.surroundings import make_context, shake, write_rows
from tests.unit.training.test_algorithms import gradients, grouped_rows

from accord.training.__main__ import build


def asked_otherwise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same pairs behind other prompts: held out of the run that learns from `rows`."""
    return [{**row, "prompt": [{**turn, "content": f"tell {turn['content']}"} for turn in row["prompt"]]} for row in rows]


@pytest.mark.parametrize("kind", ["dpo", "reward_model"])
def test_pairs_written_the_other_way_round_with_their_labels_report_the_same(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    """One pair in two is turned, as a judge's labels are that say how likely the first of two samples is the better one."""
    rows = grouped_rows()
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"], "preference": 1 - row["preference"]} for row in rows]
    found: list[Any] = []
    for name, data in (("there", rows), ("back", turned), ("mixed", [pair[n % 2] for n, pair in enumerate(zip(rows, turned, strict=True))])):
        uri = write_rows(tmp_path / f"{name}.jsonl", data[1:])  # the first is a tie, of which there is no better response
        eval_rows = write_rows(tmp_path / f"{name}-eval.jsonl", asked_otherwise(data[1:]))
        context = make_context(tmp_path, tiny_folder, {"batch_size": 5, kind: {"data": uri, "eval_data": eval_rows}}, name=name)
        algorithm: Any = build(context)
        algorithm.setup()
        shake(context, context.adapted.names[0])
        if kind == "reward_model":
            with torch.no_grad():
                algorithm._head.weight.normal_(generator=torch.Generator().manual_seed(1))
        held_out = {metric: value for metric, value in algorithm.evaluate(final=False).items() if metric != "eval_calibration_error"}
        found.append((*gradients(algorithm), held_out))
    whole, metrics, evaluated = found[0]
    assert abs(metrics["margin"]) > 1e-2
    assert metrics["accuracy"] in (0.2, 0.4, 0.6, 0.8), "some right and some wrong"
    for gradient, other, held_out in found[1:]:
        assert other == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        assert held_out == pytest.approx(evaluated, rel=1e-4, abs=1e-5)
        for first, second in zip(whole, gradient, strict=True):
            torch.testing.assert_close(second, first, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dpo", "reward_model"])
def test_held_out_pairs_of_one_prompt_say_nothing_of_another(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    rows = [{**row, "preference": 1.0, "group": "one"} for row in grouped_rows()]
    data, held = write_rows(tmp_path / "rows.jsonl", rows), write_rows(tmp_path / "held.jsonl", asked_otherwise(rows))
    context = make_context(tmp_path, tiny_folder, {"batch_size": 6, kind: {"data": data, "eval_data": held}})
    algorithm: Any = build(context)
    algorithm.setup()
    shake(context, context.adapted.names[0])
    found = algorithm.evaluate(final=False)
    assert (found["eval_accuracy_low"], found["eval_accuracy_high"], found["eval_pairs"]) == (0.0, 1.0, len(rows))


def test_a_tie_has_no_accuracy(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [{**row, "preference": 0.5} for row in grouped_rows()]
    context = make_context(tmp_path, tiny_folder, {"batch_size": 6, "dpo": {"data": write_rows(tmp_path / "rows.jsonl", rows)}})
    algorithm: Any = build(context)
    algorithm.setup()
    shake(context, "policy")
    assert gradients(algorithm)[1]["accuracy"] == 0.5


@pytest.mark.parametrize("kind", ["dpo", "sft"])
def test_a_signature_in_a_url_is_in_no_message_of_a_run(tmp_path: Path, tiny_folder: Path, kind: str) -> None:
    """Messages are shown to whoever watches a run; a signed URL lets its reader in."""
    with fsspec.filesystem("memory").open("/signed/rows.jsonl?signature=s3cr3t", "wb") as file:
        file.write("".join(json.dumps(row) + "\n" for row in grouped_rows()).encode())
    data = {"uri": "memory://signed/rows.jsonl?signature=s3cr3t"}
    context = make_context(tmp_path, tiny_folder, {"batch_size": 2, kind: {"data": data}})
    build(context).setup()
    said = "".join(file.read_text() for file in tmp_path.rglob("events*") if file.is_file())
    assert "memory://signed/rows.jsonl (train)" in said
    assert "s3cr3t" not in said
