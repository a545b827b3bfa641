"""The card of a data set in which everything was planted; streaming; files that are whole or not there."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.data.test_formats import written
from tests.unit.data.test_human_formats import axis

from accord.data.agreement import wilson_interval
from accord.data.card import make_card
from accord.data.card_text import markdown, sections
from accord.data.ratings import FIRST
from accord.data.readers import PairStream, read_pairs
from accord.data.records import PreferencePair
from accord.data.writers import PairFile, write_pairs
from accord.errors import InvalidArgumentError
from accord.text.chat import Message
from accord.text.tasks import Task

PAIR = PreferencePair("p", Task.CONVERSATION, (Message("user", "How tall?"),), "30 m", "blue", group="g")


def row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "pair_id": f"p{number}", "task": "conversation", "prompt": [{"role": "user", "content": f"Question number {number}?"}],
        "chosen": [{"role": "assistant", "content": f"a long answer {number}"}], "rejected": [{"role": "assistant", "content": f"short {number}"}],
        "preference": 1.0, "human_preference": 1.0, "group": "", "split": "train", "metadata": {}, **more,
    }  # fmt: skip


def turn(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_everything_that_was_planted_is_on_the_card(tmp_path: Path) -> None:
    rows = [row(number) for number in range(80)]
    rows += [row(number, chosen=turn(f"ok {number}"), rejected=turn(f"a much longer answer {number}")) for number in range(80, 100)]
    rows += [row(100, preference=0.5), row(101, preference=0.25, human_preference=None), row(102, chosen=turn("same"), rejected=turn("same"))]
    rows += [
        row(103, split="test", task="summarization", rating_gap=2.0),
        row(104, chosen=turn("mail a@b.org or c@d.org")),
        row(105, chosen=turn("damnit")),
    ]
    rows += [row(200, prompt=row(1)["prompt"], chosen=row(1)["chosen"], rejected=row(1)["rejected"])]
    rows += [row(201, prompt=row(2)["prompt"], chosen=turn("SHORT 2"), rejected=turn("A long answer 2!"))]
    rows += [row(300), row(300), row(301, chosen=turn("")), row(302, preference=7), row(303, prompt=[{"role": "user", "content": "x" * 40_000}])]
    rows += [row(400, metadata={"annotator": name, "confidence": "3"}) | {"pair_id": f"a{name}"} for name in ("anna", "ben")]
    source = written(tmp_path, rows)
    card = make_card(PairStream(source, split="all"), source)
    assert (card.seen, card.rows, card.prompts) == (len(rows), len(rows) - 3, len(rows) - 3 - 3)
    assert card.rejected == {"occurs twice": 1, "chosen content is empty": 1, "preference is not in [0, 1]": 1}
    assert card.splits == {"train": card.rows - 1, "test": 1}
    assert card.tasks == {"conversation": card.rows - 1, "summarization": 1}
    assert card.labels == {"chosen": card.rows - 3, "rejected": 1, "tie": 2, "soft": 1}
    assert (card.human_labels, card.rated_rows, card.identical_responses, card.long_rows) == (card.rows - 1, 1, 1, 1)
    assert (card.exact_duplicates, card.near_duplicates, card.contradicting_duplicates) == (1, 1, 1)
    assert card.longer_is_better is not None
    assert card.longer_is_better.n == card.rows - 2
    assert card.longer_is_better.value == pytest.approx((card.rows - 2 - 20 - 1 - 1 - 1) / (card.rows - 2))  # 20 planted, 101, 105 and 201
    assert (card.personal_data["email"].count, card.personal_data["email"].rows, card.personal_rows) == (2, 1, 1)
    assert (card.profanity.count, card.profanity.rows) == (1, 1)
    assert card.metadata == {"annotator": 2, "confidence": 2}
    assert card.agreement is not None
    assert (card.agreement.annotators, card.agreement.pairs) == (2, 1)
    assert card.prompt_characters is not None
    assert (card.prompt_characters.median, card.prompt_characters.most) == (19, 40_000)
    words = " ".join(card.notes)
    for part in (
        "longer response is the better one",
        "2 rows repeat",
        "1 of them have another label",
        "1 rows hold what looks like personal data",
        "over 32000",
    ):
        assert part in words, part


def test_pairs_of_one_prompt_are_no_proof_that_the_longer_one_is_better(tmp_path: Path) -> None:
    """27 pairs each of two prompts, in all of which the longer response is better: as rows that would be proof, as prompts it is none."""
    rows = [row(number, prompt=row(number // 27)["prompt"]) for number in range(54)]
    many = [row(number) for number in range(54)]
    for source_rows, told in ((rows, False), (many, True)):
        source = written(tmp_path, source_rows)
        card = make_card(PairStream(source), source)
        assert card.longer_is_better is not None
        assert (card.longer_is_better.value, card.longer_is_better.n) == (1.0, 54)
        assert any("can learn length" in note for note in card.notes) is told
        prompts = 54 if told else 2
        assert card.longer_is_better.low == pytest.approx(wilson_interval(prompts, prompts)[0])


def test_the_first_rating_of_a_prompt_is_in_use(tmp_path: Path) -> None:
    source = written(tmp_path, [axis("w1", "one", 3), axis("w1", "two", 7)])
    card = make_card(PairStream(source, split="all"), source)
    assert (card.rows, card.rejected) == (1, {FIRST: 1})
    assert not any("could not be used" in note for note in card.notes)


def test_labels_without_a_name_may_be_a_models(tmp_path: Path) -> None:
    """TRL's form has no place for who labelled: labels of a judge, written so, come back as people's."""
    judged = replace(PAIR, human_preference=None, metadata={"judge": "m"})
    write_pairs(tmp_path / "trl.jsonl", [judged], "trl")
    write_pairs(tmp_path / "accord.jsonl", [judged])
    rows = {name: make_card(PairStream(str(tmp_path / f"{name}.jsonl")), name) for name in ("trl", "accord")}
    assert (rows["trl"].human_labels, rows["accord"].human_labels) == (1, 0)
    assert any("No row says who labelled it" in note for note in rows["trl"].notes)
    assert not any("No row says who labelled it" in note for note in rows["accord"].notes)
    named = written(tmp_path, [row(1, metadata={"annotator": "anna"})])
    assert not any("No row says who labelled it" in note for note in make_card(PairStream(named), named).notes)


def test_the_digest_of_a_split_is_the_one_that_a_run_records(tmp_path: Path) -> None:
    """A run reads with `read_pairs` and puts the report's digest into the manifest of what it publishes."""
    source = written(tmp_path, [row(number, split="test" if number % 3 == 0 else "train") for number in range(30)] + [row(1, split="test")])
    card = make_card(PairStream(source, split="all"), source)
    for split in ("train", "test"):
        report = read_pairs(source, split=split).report
        assert card.digests[split] == report.digest
        assert card.splits[split] == report.rows
    stream = PairStream("sample:conversation", split="test")
    assert tuple(stream) == read_pairs("sample:conversation", split="test").rows
    assert stream.report == read_pairs("sample:conversation", split="test").report


def test_the_card_as_markdown_holds_every_table_and_nothing_breaks_out_of_a_cell(tmp_path: Path) -> None:
    source = written(tmp_path, [row(1, metadata={"odd | key\n": "x"}), row(2, preference="x"), {"nothing": 1}])
    card = make_card(PairStream(source), "a|b")
    page = markdown(card)
    assert page.startswith("# Data card: a\\|b\n")
    assert "| odd \\| key | 1 |" in page
    assert "- rows.jsonl:2: preference is not in [0, 1]" in page
    assert {section.title for section in sections(card)} == {"rows", "splits", "lengths", "labels", "what rows tell of themselves"}
    for title, *_ in sections(card):
        assert f"## {title.capitalize()}" in page


def test_an_empty_data_set_has_a_card(tmp_path: Path) -> None:
    card = make_card(PairStream(written(tmp_path, [])), "x")
    assert (card.rows, card.prompt_characters, card.longer_is_better, card.agreement, card.notes) == (0, None, None, None, ())
    assert markdown(card).startswith("# Data card: x")


def test_a_transcript_of_100000_tokens_is_read_measured_and_written(tmp_path: Path) -> None:
    lead = "".join(f"\n\nHuman: question {n} of many\n\nAssistant: answer {n}, at some length, for anna@mail.example" for n in range(5000))
    source = written(tmp_path, [{"chosen": f"{lead}\n\nHuman: and?\n\nAssistant: yes", "rejected": f"{lead}\n\nHuman: and?\n\nAssistant: no"}])
    card = make_card(PairStream(source), source)
    assert (card.rows, card.long_rows, card.turns) == (1, 1, {10_001: 1})
    assert card.personal_data["email"].count == 5000
    write_pairs(tmp_path / "again.jsonl", PairStream(source))
    assert read_pairs(str(tmp_path / "again.jsonl"), strict=True).rows == read_pairs(source).rows


def test_a_stream_holds_ids_and_not_texts(tmp_path: Path) -> None:
    source = tmp_path / "many.jsonl"
    with source.open("w") as file:
        for number in range(4000):
            file.write(json.dumps(row(number, chosen=turn(f"{number} " + "word " * 1000))) + "\n")
    size = source.stat().st_size
    tracemalloc.start()
    write_pairs(tmp_path / "out.jsonl.gz", PairStream(str(source)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 20e6
    assert peak < 4e6


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "pairs.jsonl"

    def breaks() -> Any:
        yield PAIR
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        write_pairs(target, breaks())
    assert list(target.parent.iterdir()) == []
    write_pairs(target, [PAIR])
    before = target.read_bytes()
    with pytest.raises(RuntimeError):
        write_pairs(target, breaks())
    assert target.read_bytes() == before
    with pytest.raises(InvalidArgumentError, match=r"neither \.jsonl nor \.jsonl\.gz"):
        PairFile(tmp_path / "pairs.parquet")


def test_packed_files_are_equal_for_equal_pairs_and_their_digest_is_that_of_the_file(tmp_path: Path) -> None:
    import hashlib

    pairs = read_pairs("sample:conversation").rows
    digests = [write_pairs(tmp_path / name, pairs) for name in ("a.jsonl.gz", "b.jsonl.gz")]
    content = (tmp_path / "a.jsonl.gz").read_bytes()
    assert digests == [hashlib.sha256(content).hexdigest()] * 2
    write_pairs(tmp_path / "c.jsonl", pairs)
    assert gzip.decompress(content) == (tmp_path / "c.jsonl").read_bytes()
    assert read_pairs(str(tmp_path / "a.jsonl.gz"), strict=True).rows == pairs


def test_the_form_of_trl_has_its_columns_alone_and_no_tie(tmp_path: Path) -> None:
    rows = [PAIR, replace(PAIR, pair_id="q", preference=0.2, rating_gap=-3.0), replace(PAIR, pair_id="r", preference=0.5)]
    with PairFile(tmp_path / "trl.jsonl", "trl") as file:
        for each in rows:
            file.add(each)
    assert (file.rows, file.left_out) == (2, 1)
    found = [json.loads(line) for line in (tmp_path / "trl.jsonl").read_text().splitlines()]
    assert [set(each) for each in found] == [{"prompt", "chosen", "rejected"}, {"prompt", "chosen", "rejected", "margin"}]
    assert (found[1]["chosen"][0]["content"], found[1]["margin"]) == ("blue", 3.0)
    again = read_pairs(str(tmp_path / "trl.jsonl"), strict=True).rows
    assert [(each.chosen, each.preference, each.rating_gap) for each in again] == [("30 m", 1.0, None), ("blue", 1.0, 3.0)]
