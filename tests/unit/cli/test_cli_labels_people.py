"""labels people: what people said, how far they agree, and their labels as data that can be read again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import Accord
from tests.unit.cli.fakes import add_feedback, serving
from tests.unit.cli.test_cli_labels import LedgerService, lines

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.client.feedback import Outcome
from accord.data.annotations import Annotations
from accord.data.merging import MeanLabels
from accord.data.readers import read_pairs
from accord.feedback.convert_ledger import human_record_to_proto
from accord.feedback.ledger import Ledger
from accord.feedback.paging import Paging
from accord.feedback.records import HumanLabel
from accord.text.chat import Message
from accord.text.tasks import Task

SAID: dict[str, list[Outcome]] = {"anna": ["a", "a", "b", "tie"], "ben": ["a", "b", "b", "tie"], "cleo": ["b", "b", "a", "a"]}


class PeoplesService(LedgerService):
    """Lists labels by people too, two a page."""

    def ListHumanLabels(self, request: pb.ListHumanLabelsRequest, context: Any) -> pb.ListHumanLabelsResponse:
        paging = Paging((), 2, request.page_token)
        found = self.ledger.list_human_labels(content_key=request.content_key, annotator_id=request.annotator_id, after=paging.after or 0, limit=3)
        labels, token = paging.page([(place, human_record_to_proto(record)) for place, record in found])
        return pb.ListHumanLabelsResponse(labels=labels, next_page_token=token)


def said(person: str, number: int, outcome: Outcome) -> HumanLabel:
    """Ben was shown the pair the other way round."""
    responses = (f"answer {number}", f"reply {number}")
    if person == "ben":
        responses, outcome = responses[::-1], {"a": "b", "b": "a"}.get(outcome, outcome)  # type: ignore[assignment]
    prompt = (Message("user", f"question {number}"),)
    return HumanLabel(f"{person}-{number}", f"p{number}", Task.SUMMARIZATION, prompt, *responses, outcome, person, "clearer", 2.5)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for person, outcomes in SAID.items():
        for number, outcome in enumerate(outcomes):
            ledger.record_human_label(said(person, number, outcome))
    with serving(add_feedback(PeoplesService(ledger))) as found:  # type: ignore[arg-type]
        yield found
    ledger.close()


def test_how_far_they_agree(accord: Accord, address: str) -> None:
    result = accord("labels", "people", "--feedback", address)
    assert (result.exit_code, lines(result.stdout)[-1]) == (0, "12 labels by people")
    rows = lines(result.stdout)
    assert "cleo 4 0.125 8" in rows  # of eight comparisons she agrees in one: with Ben on the second pair
    assert "anna 4 0.375 8" in rows
    assert "ben 4 0.500 8" in rows
    assert any(row.startswith("equal labels 0.333") for row in rows)
    alone = json.loads(accord("labels", "people", "--annotator", "anna", "--json", "--feedback", address).stdout)
    assert (alone["labels"], alone["agreement"]["pairs"], alone["file"]) == (4, 0, None)


@pytest.mark.parametrize("name", ["people.jsonl", "people.jsonl.gz", "people.parquet"])
def test_their_labels_are_data(accord: Accord, address: str, name: str) -> None:
    result = accord("labels", "people", name, "--feedback", address)
    assert (result.exit_code, result.stderr) == (0, "")
    found = read_pairs(name, strict=True)
    assert found.report.digest
    assert len(found.rows) == 12
    first = next(row for row in found.rows if (row.metadata["annotator"], row.metadata["pair"]) == ("ben", "p1"))
    assert (first.chosen, first.rejected, first.preference, first.human_preference) == ("reply 1", "answer 1", 1.0, 1.0)
    assert (first.metadata["reason"], first.metadata["seconds"], first.task) == ("clearer", "2.5", Task.SUMMARIZATION)
    assert len({row.group for row in found.rows}) == 4
    annotations = Annotations()
    for row in found.rows:
        annotations.add(row)
    assert sum(annotations.table().values()) == 4  # three people on each pair, whichever response each was shown first
    merged = MeanLabels(found.rows)
    means = [mean.human_preference for row in found.rows if (mean := merged.merged(row)) is not None]
    assert means == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2 / 3])


def test_nobody_said_anything(accord: Accord, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "empty.sqlite")
    with serving(add_feedback(PeoplesService(ledger))) as found:  # type: ignore[arg-type]
        result = accord("labels", "people", "--feedback", found)
    ledger.close()
    assert (result.exit_code, lines(result.stdout)[-1]) == (1, "0 labels by people")
