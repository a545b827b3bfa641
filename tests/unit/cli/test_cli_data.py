"""accord data: what is shown and written, what ends with which code, and labels of people that are recorded once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.unit.cli.conftest import Accord
from tests.unit.cli.fakes import FakeFeedback, add_feedback, refuse, serving

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.cli import data
from accord.data.readers import read_pairs
from accord.errors import AlreadyExistsError, InvalidArgumentError, UnavailableError

COMMANDS = [name for name, *_ in data.COMMANDS]


class Ledger(FakeFeedback):
    """Keeps labels by request id, refuses another label under the same id, a reason of one word, and everything after `room` labels."""

    def __init__(self, room: int = 10**9) -> None:
        super().__init__()
        self.labels: dict[str, pb.RecordHumanLabelRequest] = {}
        self.calls = 0
        self.room = room

    def RecordHumanLabel(self, request: pb.RecordHumanLabelRequest, context: Any) -> pb.RecordHumanLabelResponse:
        self.calls += 1
        if request.reason == "bad":
            refuse(context, InvalidArgumentError("the reason is bad", field="reason"))
        known = self.labels.get(request.request_id)
        if known is not None and known != request:
            refuse(context, AlreadyExistsError("used with another label", field="request_id"))
        if known is None and len(self.labels) >= self.room:
            refuse(context, UnavailableError("the service is stopping"))
        self.labels[request.request_id] = request
        return pb.RecordHumanLabelResponse(ledger_key=request.request_id)


Start = Callable[[FakeFeedback], str]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda feedback: stack.enter_context(serving(add_feedback(feedback)))


def comparison(number: int, *, better: int = 0, worker: str = "w1", **more: Any) -> dict[str, Any]:
    texts = [f"the first summary of {number}", f"the second one of {number}"]
    return {
        "info": {"id": f"t{number}", "post": f"Something happened to me on day {number}, and then nothing.", "title": "Day"}, "split": "train",
        "summaries": [{"text": text} for text in texts], "choice": better, "worker": worker, **more,
    }  # fmt: skip


def put(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_of_each_command(accord: Accord, name: str) -> None:
    result = accord("data", name, "--help")
    assert result.exit_code == 0
    assert f"accord data {name}" in result.stdout.partition("Example")[2]
    assert "--json" in result.stdout
    assert f" {name} " in accord("data", "--help").stdout
    assert " data " in accord("--help").stdout


def test_inspect_shows_and_writes_the_card(accord: Accord, tmp_path: Path) -> None:
    rows = [comparison(number, better=number % 2, worker=worker) for number in range(10) for worker in ("w1", "w2")]
    source = put(tmp_path, [*rows, {"broken": 1}])
    result = accord("data", "inspect", source, "--card", "out/card.md")
    assert result.exit_code == 0
    for part in ("not used: info is missing", "Krippendorff's alpha", "the longer one is better", read_pairs(source).report.digest, "annotator"):
        assert part in result.stdout, part
    assert (tmp_path / "out" / "card.md").read_text().startswith("# Data card: rows.jsonl")
    found = json.loads(accord("data", "inspect", source, "--json", "--card", "card.json").stdout)
    assert found == json.loads((tmp_path / "card.json").read_text())
    assert (found["seen"], found["rows"], found["agreement"]["raw"]["value"]) == (21, 20, 1.0)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("inspect", "rows.csv"), "error: data.uri: 'rows.csv' is neither sample:NAME, nor hub:NAME, nor a file ending in .jsonl, .jsonl.gz, .json, .parquet\n"),
        (("inspect", "none.jsonl"), "error: data.uri: there is no file none.jsonl\n"),
        (("inspect", "sample:conversation", "--card", "card.html"), "error: --card: card.html ends in neither .md nor .json\n"),
        (("split", "sample:conversation", "out", "--shares", "train=1.5"), "error: shares: 'train=1.5' is not NAME=SHARE with a new name and a share in (0, 1]\n"),
        (("split", "sample:conversation", "out", "--by", "pair"), "error: --by: 'pair' is neither prompt nor conversation\n"),
        (("convert", "sample:conversation", "out.csv"), "error: output: out.csv ends in neither .jsonl nor .jsonl.gz\n"),
        (("convert", "sample:conversation", "out.jsonl", "--to", "dpo"), "error: --to: 'dpo' is not one of accord, trl\n"),
        (("inspect", "sample:conversation", "--format", "hhh"), "error: data.format: format 'hhh' is not one of "),
    ],
)  # fmt: skip
def test_what_is_asked_wrongly(accord: Accord, arguments: tuple[str, ...], line: str) -> None:
    result = accord("data", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(line)


@pytest.mark.parametrize("command", [("convert",), ("convert", "--json"), ("dedupe",), ("split",)], ids=" ".join)
def test_without_a_row_nothing_is_written_and_what_was_there_stays(accord: Accord, tmp_path: Path, command: tuple[str, ...]) -> None:
    name, *options = command
    source, output = put(tmp_path, [comparison(1, better=7)]), "out" if name == "split" else "out.jsonl"
    kept = tmp_path / output / "train.jsonl" if name == "split" else tmp_path / output
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("what was there")
    before = sorted(kept.parent.iterdir())
    result = accord("data", name, source, output, *options)
    assert (result.exit_code, result.stdout) == (1, "")
    sentence = f"error: read 0 of 1 rows (1 choice is not 0 or 1): there is no row to write, and {output} is left as it was"
    assert sentence in result.stderr.splitlines()
    assert "next:" not in result.stderr
    assert kept.read_text() == "what was there"
    assert sorted(kept.parent.iterdir()) == before


def test_a_misspelt_label_is_no_label(accord: Accord, start: Start, tmp_path: Path) -> None:
    """It was one of people's, by everybody, and import wrote it where nothing is taken back."""
    turn = [{"role": "assistant", "content": "x"}]
    row = {"pair_id": "p", "task": "conversation", "prompt": "Why?", "chosen": turn, "rejected": turn, "preferance": 0.2, "human_preference": None}
    source, ledger = put(tmp_path, [{**row, "prompt": [{"role": "user", "content": "Why?"}], "annotator": "anna"}]), Ledger()
    for arguments in (("inspect", source), ("import", source, "--feedback", start(ledger))):
        result = accord("data", *arguments)
        assert result.exit_code == 1
        assert "preference is missing: preferance is no field of the format accord" in " ".join(result.stdout.split())
    assert not ledger.labels


def test_inspect_names_columns_that_nobody_read(accord: Accord, tmp_path: Path) -> None:
    result = accord("data", "inspect", put(tmp_path, [comparison(1, colour="red", workr="w2")]))
    assert "columns that were not read" in result.stdout
    assert "colour" in result.stdout
    assert "note: The column workr was not read, of 1 rows: is it meant to be worker?" in result.stdout


def test_nothing_usable_is_a_failure_that_says_why(accord: Accord, tmp_path: Path) -> None:
    result = accord("data", "inspect", put(tmp_path, [comparison(1, better=7)]))
    assert result.exit_code == 1
    assert "choice is not 0 or 1" in result.stdout
    strict = accord("data", "inspect", "rows.jsonl", "--strict")
    assert (strict.exit_code, strict.stderr) == (2, "error: data.uri: rows.jsonl:1: choice is not 0 or 1\n")


def test_split_keeps_prompts_together_and_says_what_stands_in_both(accord: Accord, tmp_path: Path) -> None:
    source = put(tmp_path, [comparison(number % 60, better=number % 2, worker=f"w{number}") for number in range(180)])
    result = accord("data", "split", source, "out", "--shares", "train=0.8,test=0.2", "--seed", "1", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts == json.loads((tmp_path / "out" / "split.json").read_text())
    parts = {name: read_pairs(f"out/{name}.jsonl", split=name, strict=True) for name in ("train", "test")}
    assert sum(len(part.rows) for part in parts.values()) == 180
    assert not {pair.group for pair in parts["train"].rows} & {pair.group for pair in parts["test"].rows}
    for name, part in parts.items():
        assert facts["splits"][name]["digest"] == part.report.digest
        assert facts["splits"][name]["rows"] == len(part.rows)
    (found,) = facts["contamination"]
    assert (found["split"], found["other"], found["equal_prompts"]) == ("test", "train", 0)
    shown = accord("data", "split", source, "again", "--shares", "train=0.8,test=0.2", "--seed", "1")
    assert (tmp_path / "again" / "test.jsonl").read_bytes() == (tmp_path / "out" / "test.jsonl").read_bytes()
    assert "test in train" in shown.stdout
    assert "--set 'reward_model.eval_data={uri: again/test.jsonl, split: test}'" in shown.stderr
    assert accord("data", "split", source, "whole", "--shares", "all=1").stderr.endswith(" --set reward_model.eval_data=null\n")


@pytest.mark.parametrize("name", ["p60.jsonl", "./p60.jsonl", "link.jsonl", "file://p60.jsonl"])
def test_split_replaces_no_file_that_it_reads(accord: Accord, tmp_path: Path, name: str) -> None:
    put(tmp_path, [comparison(number) for number in range(10)], "p60.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "p60.jsonl")
    before = (tmp_path / "p60.jsonl").read_bytes()
    result = accord("data", "split", name, ".", "--shares", "p60=0.5,b=0.5")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: FOLDER: p60.jsonl would take the place of what is read, {name}; give another place\n")
    assert (tmp_path / "p60.jsonl").read_bytes() == before
    assert not (tmp_path / "b.jsonl").exists()
    assert accord("data", "split", name, ".", "--shares", "a=0.5,b=0.5").exit_code == 0


@pytest.mark.parametrize("command", [("convert", "--to", "trl"), ("convert", "--merge"), ("dedupe",)], ids=" ".join)
@pytest.mark.parametrize("name", ["in.jsonl", "./in.jsonl", "link.jsonl", "file://in.jsonl", "local://{here}/in.jsonl"])
def test_convert_and_dedupe_replace_no_file_that_they_read(accord: Accord, tmp_path: Path, command: tuple[str, ...], name: str) -> None:
    """One row of two was left, without who gave the label."""
    put(tmp_path, [comparison(1), comparison(1, worker="w2"), comparison(1)], "in.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "in.jsonl")
    before, (what, *options), source = (tmp_path / "in.jsonl").read_bytes(), command, name.format(here=tmp_path)
    result = accord("data", what, source, "in.jsonl", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: OUTPUT: in.jsonl would take the place of what is read, {source}; give another place\n")
    assert (tmp_path / "in.jsonl").read_bytes() == before
    assert accord("data", what, source, "out.jsonl", *options).exit_code == 0


def test_a_card_replaces_no_file_that_it_is_of(accord: Accord, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([comparison(1)]))
    result = accord("data", "inspect", "rows.json", "--card", "rows.json")
    assert (result.exit_code, "error: --card: rows.json would take the place of what is read" in result.stderr) == (2, True)
    assert read_pairs("rows.json").report.rows == 1


def test_split_keeps_pairs_that_share_an_id_in_different_splits_of_the_source(accord: Accord, tmp_path: Path) -> None:
    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    rows = [
        {
            "pair_id": "1", "task": "conversation", "prompt": said("user", f"prompt of {split}"), "chosen": said("assistant", "yes"),
            "rejected": said("assistant", f"no, {split}"), "preference": 1.0, "split": split,
        }
        for split in ("train", "test", "validation")
    ]  # fmt: skip
    found = json.loads(accord("data", "split", put(tmp_path, rows), "parts", "--shares", "all=1", "--json").stdout)
    assert found["splits"]["all"]["rows"] == 3
    kept = read_pairs("parts/all.jsonl", split="all", strict=True).rows
    assert sorted(pair.pair_id for pair in kept) == ["1", "1 of test", "1 of validation"]


def test_split_replaces_no_source_of_its_facts_name(accord: Accord, tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps([comparison(number) for number in range(10)]))
    result = accord("data", "split", "split.json", ".")
    assert (result.exit_code, "split.json would take the place" in result.stderr) == (2, True)


def test_contamination_between_two_files(accord: Accord, tmp_path: Path) -> None:
    put(tmp_path, [comparison(number) for number in range(20)], "train.jsonl")
    put(tmp_path, [comparison(3, worker="other"), comparison(99)], "test.jsonl")
    found = json.loads(accord("data", "contamination", "test.jsonl", "train.jsonl", "--json").stdout)
    assert (found["pairs"], found["equal_prompts"], found["equal_responses"]) == (2, 1, 1)
    assert "have a prompt that stands in train.jsonl" in accord("data", "contamination", "test.jsonl", "train.jsonl").stdout


def test_dedupe_and_convert(accord: Accord, tmp_path: Path) -> None:
    source = put(
        tmp_path, [comparison(1), comparison(1, batch="again"), comparison(1, worker="w2"), comparison(1, better=1, batch="third"), comparison(2)]
    )
    found = json.loads(accord("data", "dedupe", source, "clean.jsonl", "--json").stdout)
    assert (found["rows"], found["left_out"], found["with another label than the first"]) == (3, {"exact duplicates": 2, "near duplicates": 0}, 1)
    assert "2 exact duplicates" in accord("data", "dedupe", source, "clean.jsonl").stdout
    shown = accord("data", "convert", "clean.jsonl", "trl.jsonl.gz", "--to", "trl")
    assert (shown.exit_code, "3 rows, sha256 " in shown.stdout) == (0, True)
    written = [json.loads(line) for line in gzip.decompress((tmp_path / "trl.jsonl.gz").read_bytes()).splitlines()]
    assert [row["chosen"][0]["content"] for row in written] == [pair.chosen for pair in read_pairs("clean.jsonl").rows]


def test_convert_merges_the_labels_of_several_people(accord: Accord, tmp_path: Path) -> None:
    source = put(tmp_path, [comparison(1, better=int(number == 0), worker=f"w{number}") for number in range(4)] + [comparison(2)])
    found = json.loads(accord("data", "convert", source, "merged.jsonl", "--merge", "--json").stdout)
    assert (found["rows"], found["left_out"]) == (2, {"labels of a pair that is there with their mean": 3})
    pairs = read_pairs("merged.jsonl", strict=True).rows
    assert [(pair.chosen, pair.preference, pair.human_preference) for pair in pairs] == [
        ("the first summary of 1", 0.75, 0.75), ("the first summary of 2", 1.0, 1.0),
    ]  # fmt: skip
    assert pairs[0].metadata["labels"] == "4"


def test_import_records_each_label_once_with_who_why_and_how_long(accord: Accord, start: Start, tmp_path: Path) -> None:
    ledger = Ledger()
    address = start(ledger)
    rows = [
        comparison(number, better=number % 2, worker=worker, reason="clear", seconds=12.5, extra={"confidence": 8})
        for number in range(100)
        for worker in ("w1", "w2")
    ]
    source = put(tmp_path, rows)
    result = accord("data", "import", source, "--feedback", address, "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)["labels"]
    assert (found["recorded"], found["annotators"]) == (200, {"w1": 100, "w2": 100})
    assert len(ledger.labels) == 200
    for request in ledger.labels.values():
        better = {pb.OUTCOME_A: request.pair.response_a, pb.OUTCOME_B: request.pair.response_b}[request.outcome]
        number = int(better.rsplit(" ", 1)[1])
        assert better.startswith("the second" if number % 2 else "the first")
        assert (request.reason, request.duration_seconds, request.confidence, request.annotator_id in ("w1", "w2")) == ("clear", 12.5, "8", True)
    shown_first = sum(request.pair.response_a.startswith("the first") for request in ledger.labels.values())
    assert 60 < shown_first < 140  # which response is A says nothing of which is better
    again = accord("data", "import", source, "--feedback", address)
    assert (again.exit_code, len(ledger.labels), ledger.calls) == (0, 200, 400)
    assert "200 labels are in the ledger" in again.stdout


def test_an_import_that_broke_off_goes_on(accord: Accord, start: Start, tmp_path: Path) -> None:
    ledger = Ledger(room=70)
    address = start(ledger)
    source = put(tmp_path, [comparison(number) for number in range(150)])
    broken = accord("data", "import", source, "--feedback", address)
    assert broken.exit_code == 1
    assert "the same command goes on from there" in broken.stderr
    ledger.room = 10**9
    assert accord("data", "import", source, "--feedback", address).exit_code == 0
    assert len(ledger.labels) == 150


def test_what_cannot_be_recorded_is_counted(accord: Accord, start: Start, tmp_path: Path) -> None:
    address = start(Ledger())
    judged = {
        "pair_id": "j", "task": "conversation", "prompt": [{"role": "user", "content": "x"}], "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}], "preference": 0.9, "human_preference": None, "metadata": {"annotator": "w1"},
    }  # fmt: skip
    person = {**judged, "pair_id": "p", "human_preference": 1.0}
    source = put(tmp_path, [judged, person, {**person, "pair_id": "q", "metadata": {"annotator": "w1", "reason": "bad"}}])
    found = json.loads(accord("data", "import", source, "--feedback", address, "--json").stdout)["labels"]
    assert (found["recorded"], found["unlabelled"], found["refused"]) == (1, 1, {"reason": 1})
    put(tmp_path, [{**person, "human_preference": 0.0}], "other.jsonl")
    conflict = accord("data", "import", "other.jsonl", "--feedback", address)
    assert conflict.exit_code == 1
    assert "1 are there with another label by the same person, which stays" in conflict.stdout


def test_a_confidence_too_long_for_the_ledger_costs_no_label(accord: Accord, start: Start, tmp_path: Path) -> None:
    ledger = Ledger()
    address, most = start(ledger), "\u00e9" * 64
    source = put(tmp_path, [comparison(number, confidence=sure) for number, sure in enumerate((most, most + "x", "8"))])
    result = accord("data", "import", source, "--feedback", address)
    assert result.exit_code == 0
    assert "3 labels are in the ledger" in result.stdout
    assert "1 of them are there without how sure the person was, which took over 64 characters" in result.stdout
    assert {request.confidence for request in ledger.labels.values()} == {most, "", "8"}
    found = json.loads(accord("data", "import", source, "--feedback", address, "--json").stdout)["labels"]
    assert (found["recorded"], found["long_confidences"], found["conflicting"]) == (3, 1, 0)
    accord("data", "convert", source, "kept.jsonl")
    assert [pair.metadata["confidence"] for pair in read_pairs("kept.jsonl").rows] == [most, most + "x", "8"]


def test_who_labelled_must_be_known(accord: Accord, start: Start, tmp_path: Path) -> None:
    ledger = Ledger()
    address = start(ledger)
    source = put(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    result = accord("data", "import", source, "--feedback", address)
    assert (result.exit_code, "--annotator: " in result.stderr) == (2, True)
    assert accord("data", "import", source, "--annotator", "anna", "--feedback", address).exit_code == 0
    assert [request.annotator_id for request in ledger.labels.values()] == ["anna"]


def test_a_signature_in_a_url_is_in_no_card_and_no_split(accord: Accord, tmp_path: Path) -> None:
    """Cards and split.json are handed on; a signed URL lets its reader in."""
    with fsspec.filesystem("memory").open("/signed/rows.jsonl?signature=s3cr3t", "wb") as file:
        file.write("".join(json.dumps(comparison(number)) + "\n" for number in range(40)).encode())
    url = "memory://signed/rows.jsonl?signature=s3cr3t"
    said = accord("data", "inspect", url, "--card", "card.md").output
    said += accord("data", "split", url, "parts", "--json").output + accord("data", "contamination", url, url).output
    said += (tmp_path / "card.md").read_text() + (tmp_path / "parts" / "split.json").read_text()
    assert "memory://signed/rows.jsonl" in said
    assert "s3cr3t" not in said
