"""The ledger listed: every filter against a plain loop, pages that neither lose nor repeat, tokens that belong to one question."""

from __future__ import annotations

import base64
import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tests.unit.feedback.ledger_v1 import make_version_1
from tests.unit.feedback.test_migration import judgement, label

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.client.feedback import LabelPairItem
from accord.client.ledger import HumanLabelRecord, LabelQuery, LabelRecord, query_to_proto, record_from_proto
from accord.client.messages import ModelDigests
from accord.errors import InvalidArgumentError
from accord.feedback.convert_ledger import label_record_to_proto, read_label_query
from accord.feedback.label_rows import human_row
from accord.feedback.ledger import Ledger
from accord.feedback.paging import Paging
from accord.feedback.records import Answer, HumanLabel, JudgeIdentity, LabelEntry, LabelUse, Origin, Question, content_key
from accord.text.chat import Message
from accord.text.tasks import Task

PROMPT = (Message("user", "q"),)
JUDGE = JudgeIdentity("m", ModelDigests("base", "tokens", "template"))
EVERYTHING = LabelQuery()


def entry(number: int) -> LabelEntry:
    """A label whose every facet goes through its values at a pace of its own, with A and B in either order of their text."""
    task = list(Task)[number % 2]
    pair = LabelPairItem(task, PROMPT, f"{'ab'[number // 2 % 2]} {number // 4}", f"{'ba'[number // 2 % 2]} {number // 4}", f"p{number % 5}")
    return LabelEntry(
        pair, ("verdict", "likelihood")[number // 3 % 2], f"r{number % 3}", "rd", "m", f"jd{number % 4}", "{}", 0.75, ("a", "tie")[number // 5 % 2],  # type: ignore[arg-type]
        "", (), Origin(f"req-{number}", f"labelJobs/{number}" if number % 6 == 0 else ""), 0.5 if number % 7 == 0 else None, number % 8 == 0,
    )  # fmt: skip


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    for number in range(40):
        ledger.append_labels([entry(number)])
        if number == 19:
            time.sleep(0.01)
    return ledger


def everything(ledger: Ledger, query: LabelQuery = EVERYTHING, *, limit: int = 1000) -> list[LabelRecord]:
    found: list[tuple[int, LabelRecord]] = []
    while page := ledger.list_labels(query, after=found[-1][0] if found else 0, limit=limit):
        found += page
    assert [place for place, _ in found] == sorted({place for place, _ in found})
    return [record for _, record in found]


CHOICES: list[tuple[LabelQuery, Callable[[LabelRecord], bool]]] = [
    (LabelQuery(job="labelJobs/6"), lambda record: record.job == "labelJobs/6"),
    (LabelQuery(kind="likelihood"), lambda record: record.label.kind == "likelihood"),
    (LabelQuery(task=Task.CONVERSATION), lambda record: record.pair is not None and record.pair.task == Task.CONVERSATION),
    (LabelQuery(judge_digest="jd2"), lambda record: record.label.judge_digest == "jd2"),
    (LabelQuery(rubric="r1"), lambda record: record.label.rubric == "r1"),
    (LabelQuery(outcome="tie"), lambda record: record.label.outcome == "tie"),
    (LabelQuery(pair_id="p3"), lambda record: record.label.pair_id == "p3"),
    (LabelQuery(pair_id_prefix="p1"), lambda record: record.label.pair_id.startswith("p1")),
]


@pytest.mark.parametrize("chosen", [*itertools.combinations(range(len(CHOICES)), 1), *itertools.combinations(range(len(CHOICES)), 2)], ids=str)
def test_filters_find_what_a_loop_finds(filled: Ledger, chosen: tuple[int, ...]) -> None:
    default = asdict(EVERYTHING)
    wanted = {name: value for place in chosen for name, value in asdict(CHOICES[place][0]).items() if value != default[name]}
    expected = [record for record in everything(filled) if all(CHOICES[place][1](record) for place in chosen)]
    assert everything(filled, LabelQuery(**wanted), limit=2) == expected
    assert len(chosen) > 1 or 0 < len(expected) < 40


def test_labels_are_found_by_content_and_by_time(filled: Ledger) -> None:
    records = everything(filled)
    key = content_key(Task.SUMMARIZATION, PROMPT, "b 3", "a 3")
    found = everything(filled, LabelQuery(content_key=key))
    assert found == [record for record in records if record.content_key == key]
    assert {(record.pair.response_a, record.pair.response_b) for record in found if record.pair} == {("a 3", "b 3"), ("b 3", "a 3")}
    middle = records[20].create_time
    assert everything(filled, LabelQuery(made_after=middle)) == [record for record in records if record.create_time >= middle]
    assert everything(filled, LabelQuery(made_before=middle)) == [record for record in records if record.create_time < middle]
    assert len(everything(filled, LabelQuery(made_before=middle))) >= 20


def test_a_record_has_the_pair_as_it_was_asked_and_the_whole_provenance(ledger: Ledger) -> None:
    question = Question("verdict", Task.CONVERSATION, PROMPT, "zebra", "ant", None, JUDGE)
    turned = replace(question, first="ant", second="zebra")
    first = Answer(0.8, -0.5, -2.0, (), "because", "first", "", 100, 5, 0.25, 0, 1.5)
    ledger.append_judgements(
        [(question, first, Origin("r")), (turned, Answer(None, parsed="unusable: x", abstention_reason="x", sample=1), Origin("r"))]
    )
    pair = LabelPairItem(Task.CONVERSATION, PROMPT, "zebra", "ant", "p")
    uses = (LabelUse(question.key, True, False), LabelUse(turned.key, False, True))
    ledger.append_labels([LabelEntry(pair, "verdict", "r", "rd", "m", "d", '{"x": 1}', None, "abstain", "x", uses, Origin("req"), 0.5, True)])
    ledger.record_human_label(HumanLabel("h", "p", Task.CONVERSATION, PROMPT, "ant", "zebra", "b", "ann"))
    (record,) = everything(ledger)
    assert record.pair == replace(pair, human_preference=1.0)
    assert (record.request_id, record.options, record.label.agreement, record.label.escalated) == ("req", '{"x": 1}', 0.5, True)
    one, two = record.label.judgements
    assert (one.probability_a, one.evidence_a, one.parsed, one.cost, one.latency_seconds, one.judge, one.judge_digest) == (
        0.8, -0.5, "a", 0.25, 1.5, "m", JUDGE.digest,
    )  # fmt: skip
    assert (two.a_first, two.probability_a, two.cached, two.sample, two.abstention_reason) == (False, None, True, 1, "x")
    assert record_from_proto(label_record_to_proto(record)) == replace(record, create_time=pytest.approx(record.create_time, abs=1e-6))


def test_a_label_of_version_1_without_text_has_no_pair(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite"
    make_version_1(path, [judgement("k", "x", "y")], [label("p1", "x", "y"), label("p2", "u", "v")], [(1, 0, "k", 1, 0)])
    ledger = Ledger(path)
    found = everything(ledger)
    ledger.close()
    assert [record.pair is None for record in found] == [False, True]
    assert found[0].label.judgements[0].latency_seconds is None
    assert not label_record_to_proto(found[1]).HasField("pair")


def test_a_query_goes_over_the_wire() -> None:
    query = LabelQuery("j", "verdict", Task.CONVERSATION, "d", "r", "abstain", "c", "p", 1.5, 2.25)
    assert read_label_query(query_to_proto(query)) == query
    assert read_label_query(pb.ListLabelsRequest()) == LabelQuery()


def test_labels_by_people_are_listed_by_pair_and_person(ledger: Ledger) -> None:
    for number in range(6):
        ledger.record_human_label(
            HumanLabel(f"h{number}", "p", Task.CONVERSATION, PROMPT, f"a{number % 2}", "b", "a", f"ann{number % 3}", "why", 2.5, "7")
        )
    records: list[HumanLabelRecord] = []
    place = 0
    while page := ledger.list_human_labels(content_key="", annotator_id="", after=place, limit=4):
        place, records = page[-1][0], [*records, *(record for _, record in page)]
    assert [record.pair.response_a for record in records] == ["a0", "a1"] * 3
    assert (records[0].reason, records[0].duration_seconds, records[0].outcome, records[0].confidence) == ("why", 2.5, "a", "7")
    assert human_row(records[0]).metadata["confidence"] == "7", "as data it is where readers look for it"
    by_ann = ledger.list_human_labels(content_key="", annotator_id="ann1", after=0, limit=9)
    assert [record for _, record in by_ann] == [records[1], records[4]]
    key = records[4].content_key
    both = ledger.list_human_labels(content_key=key, annotator_id="ann1", after=0, limit=9)
    assert [record for _, record in both] == [records[4]]


def page_of(count: int, paging: Paging, text: str = "x") -> tuple[list[pb.LabelRecord], str]:
    found = [(place, pb.LabelRecord(content_key=f"{place}", options=text)) for place in range((paging.after or 0) + 1, count + 1)]
    return paging.page(found[: paging.size + 1])


@pytest.mark.parametrize("count", [0, 1, 3, 4, 6, 7])
def test_pages_neither_lose_nor_repeat(count: int) -> None:
    token, seen, pages = "", [], 0
    while True:
        page, token = page_of(count, Paging(["q"], 3, token))
        seen += [int(record.content_key) for record in page]
        pages += 1
        if not token:
            break
    assert seen == list(range(1, count + 1))
    assert pages == max(1, -(-count // 3))


def test_a_page_of_long_texts_ends_early_and_goes_on() -> None:
    first, token = page_of(5, Paging(["q"], 4, ""), "x" * 3 * 2**20)
    assert [record.content_key for record in first] == ["1", "2"]
    second, _ = page_of(5, Paging(["q"], 4, token), "x" * 30 * 2**20)
    assert [record.content_key for record in second] == ["3"]


@pytest.mark.parametrize(
    "token",
    ["x", "é", "v1", base64.urlsafe_b64encode(b"v1:abc:1").decode(), base64.urlsafe_b64encode(b"\xff\xfe").decode(), "AAAA", "v1:q:1", " "],
)
def test_a_token_of_nobody_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgumentError, match="not one that this service gave") as caught:
        Paging(["q"], 3, token)
    assert caught.value.field == "page_token"


def test_a_token_goes_on_with_its_own_question_alone() -> None:
    _, token = page_of(5, Paging(["labels", {"job": "x"}], 3, ""))
    assert Paging(["labels", {"job": "x"}], 100, token).after == 3  # another size is the same question
    for other in (["labels", {"job": "y"}], ["human labels", {"job": "x"}]):
        with pytest.raises(InvalidArgumentError):
            Paging(other, 3, token)
    asked = base64.urlsafe_b64decode(token).decode().split(":")[1]
    for place in ("-1", "1.5", "²", str(2**63), ""):
        with pytest.raises(InvalidArgumentError):
            Paging(["labels", {"job": "x"}], 3, base64.urlsafe_b64encode(f"v1:{asked}:{place}".encode()).decode())
