"""labels: list, export, reaggregate and diff over a real ledger behind a service; and lineage, from a policy on to each label."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.unit.cli.conftest import Accord
from tests.unit.cli.fakes import add_feedback, refuse, serving
from tests.unit.cli.test_cli_local import publish

from accord.api.feedback.v1 import feedback_pb2 as pb
from accord.api.feedback.v1 import feedback_pb2_grpc as rpc
from accord.artefacts.store import ArtefactStore
from accord.client.feedback import LabelPairItem
from accord.client.messages import ModelDigests
from accord.data.readers import read_pairs
from accord.errors import NotFoundError
from accord.feedback.convert_ledger import label_record_to_proto, read_label_query
from accord.feedback.ledger import Ledger
from accord.feedback.paging import Paging
from accord.feedback.records import Answer, HumanLabel, JudgeIdentity, LabelEntry, LabelUse, Origin, Question
from accord.text.chat import Message
from accord.text.tasks import Task

SMALL, LARGE = (JudgeIdentity(name, ModelDigests(name, "t", "c")) for name in ("small", "large"))
JOB, DATA_DIGEST = "labelJobs/x", "e" * 64


class LedgerService(rpc.FeedbackServiceServicer):
    """The listings of a ledger, two items a page whatever is asked for, and one job."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.calls = 0

    def ListLabels(self, request: pb.ListLabelsRequest, context: Any) -> pb.ListLabelsResponse:
        self.calls += 1
        paging = Paging((), 2, request.page_token)
        found = self.ledger.list_labels(read_label_query(request), after=paging.after or 0, limit=3)
        labels, token = paging.page([(place, label_record_to_proto(record)) for place, record in found])
        return pb.ListLabelsResponse(labels=labels, next_page_token=token)

    def ListLabelJobs(self, request: pb.ListLabelJobsRequest, context: Any) -> pb.ListLabelJobsResponse:
        return pb.ListLabelJobsResponse(jobs=[self._job()] if request.dataset_digest == DATA_DIGEST else [])

    def GetLabelJob(self, request: pb.GetLabelJobRequest, context: Any) -> pb.GetLabelJobResponse:
        if request.name != JOB:
            refuse(context, NotFoundError(f"there is no label job {request.name!r}", field="name"))
        return pb.GetLabelJobResponse(job=self._job())

    def _job(self) -> pb.LabelJob:
        return pb.LabelJob(name=JOB, state=pb.LABEL_JOB_STATE_SUCCEEDED, source_uri="sample:conversation", rows_digest=DATA_DIGEST)


def add_label(
    ledger: Ledger, judge: JudgeIdentity, number: int, orders: tuple[float | None, float], *, job: str = "", pair_id: str = "", kind: Any = "verdict"
) -> None:
    """A label by both orders: P(A better) as each says it."""
    prompt, name = (Message("user", f"question {number}"),), pair_id or f"p{number}"
    pair = LabelPairItem(Task.CONVERSATION, prompt, f"answer {number}", f"reply {number} at length", name)
    ab = Question(kind, Task.CONVERSATION, pair.messages, pair.response_a, pair.response_b, None, judge)
    ba = replace(ab, first=pair.response_b, second=pair.response_a)
    first, second = orders
    reason = "" if first is not None else "unusable"
    ledger.append_judgements([
        (ab, Answer(first, abstention_reason=reason, prompt_tokens=100), Origin(job=job)), (ba, Answer(1 - second, prompt_tokens=100), Origin(job=job)),
    ])  # fmt: skip
    preference = None if first is None else (first + second) / 2
    outcome = "abstain" if preference is None else "a" if preference > 0.5 else "b"
    uses = (LabelUse(ab.key, True, False), LabelUse(ba.key, False, False))
    ledger.append_labels([
        LabelEntry(pair, kind, "conversation/detailed/1", "f" * 64, judge.name, judge.digest, '{"tie_margin": 0.0}', preference, outcome,  # type: ignore[arg-type]
                   reason, uses, Origin("req", job))
    ])  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """The small judge likes what is first (a job of five pairs), the large one does not."""
    opened = Ledger(tmp_path / "ledger.sqlite")
    for number, orders in enumerate([(0.9, 0.2), (0.9, 0.8), (0.6, 0.1), (0.7, 0.2), (None, 0.5)]):
        add_label(opened, SMALL, number, orders, job=JOB)
    for number, p in enumerate([0.1, 0.9, 0.2, 0.3]):
        add_label(opened, LARGE, number, (p, p))
    opened.record_human_label(HumanLabel("h", "p0", Task.CONVERSATION, (Message("user", "question 0"),), "answer 0", "reply 0 at length", "b", "ann"))
    yield opened
    opened.close()


@pytest.fixture
def service(ledger: Ledger) -> LedgerService:
    return LedgerService(ledger)


@pytest.fixture
def address(service: LedgerService) -> Iterator[str]:
    with serving(add_feedback(service)) as found:  # type: ignore[arg-type]
        yield found


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_labels_are_listed(accord: Accord, address: str, service: LedgerService) -> None:
    result = accord("labels", "list", "--feedback", address)
    assert (result.exit_code, result.stderr) == (0, "")
    (row,) = [line for line in lines(result.stdout) if " p0 " in line and "small" in line]
    assert f"p0 conversation verdict small {SMALL.digest[:8]} conversation/detailed/1 a 0.550 0.00 200 labelJobs/x question 0" in row
    assert lines(result.stdout)[-1] == "9 labels"
    assert service.calls == 5  # two a page
    assert "2 labels, the first that match" in accord("labels", "list", "--limit", "2", "--feedback", address).stdout


def test_each_label_is_a_line_of_json(accord: Accord, address: str) -> None:
    found = [json.loads(line) for line in accord("labels", "list", "--judge", "large", "--json", "--feedback", address).stdout.splitlines()]
    assert [record["label"]["pair_id"] for record in found] == ["p0", "p1", "p2", "p3"]
    assert found[0]["pair"]["response_a"] == "answer 0"
    assert [judgement["probability_a"] for judgement in found[0]["label"]["judgements"]] == [0.1, pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--outcome", "abstain"), ["p4"]),
        (("--pair", "p1"), ["p1", "p1"]),
        (("--job", JOB, "--outcome", "b"), ["p2", "p3"]),
        (("--kind", "rating"), []),
        (("--task", "summarization"), []),
        (("--judge", SMALL.digest), ["p0", "p1", "p2", "p3", "p4"]),
        (("--judge", LARGE.digest[:6]), ["p0", "p1", "p2", "p3"]),
        (("--since", "2100-01-01"), []),
        (("--until", "2100-01-01T10:00", "--pair", "p4"), ["p4"]),
    ],
    ids=str,
)
def test_labels_are_chosen(accord: Accord, address: str, options: tuple[str, ...], expected: list[str]) -> None:
    result = accord("labels", "list", *options, "--json", "--feedback", address)
    assert result.exit_code == 0
    assert [json.loads(line)["label"]["pair_id"] for line in result.stdout.splitlines()] == expected


@pytest.mark.parametrize("command", [("list",), ("list", "--json"), ("export", "x.jsonl"), ("reaggregate",)])
def test_a_judge_that_gave_no_label_is_told_who_did(accord: Accord, address: str, command: tuple[str, ...]) -> None:
    result = accord("labels", *command, "--judge", "larg", "--feedback", address)
    assert result.exit_code == 2
    judges = f"large {LARGE.digest[:12]}, small {SMALL.digest[:12]}"
    assert result.stderr.splitlines()[-1] == f"error: --judge: there is no label by 'larg'; judges of these labels: {judges}"
    assert not Path("x.jsonl").exists()
    assert accord("labels", "list", "--judge", "larg", "--kind", "rating", "--feedback", address).exit_code == 0  # there is none by anybody


HERE, THERE = (
    JudgeIdentity(f"logp at {host}:8471", ModelDigests(), endpoint_digest=digest * 64) for host, digest in (("127.0.0.1", "a"), ("far", "b"))
)


def test_a_judge_at_an_endpoint_is_known_without_its_host(accord: Accord, address: str, ledger: Ledger) -> None:
    for number in range(3):
        add_label(ledger, HERE, number, (0.8, 0.8))
    found = [json.loads(line) for line in accord("labels", "list", "--judge", "logp", "--json", "--feedback", address).stdout.splitlines()]
    assert [(record["label"]["judge"], record["label"]["pair_id"]) for record in found] == [("logp at 127.0.0.1:8471", f"p{n}") for n in range(3)]
    assert accord("labels", "export", "l.jsonl", "--judge", "logp", "--feedback", address).exit_code == 0
    compared = json.loads(accord("labels", "diff", "logp", "large", "--json", "--feedback", address).stdout)
    assert compared["judges"][0].startswith("logp at 127.0.0.1:8471 ")
    assert compared["comparison"]["pairs"] == 3
    assert accord("labels", "diff", "logp:verdict", "large", "--feedback", address).exit_code == 0


def test_a_name_that_judges_at_several_hosts_have_is_not_guessed(accord: Accord, address: str, ledger: Ledger) -> None:
    for judge in (HERE, THERE):
        add_label(ledger, judge, 0, (0.8, 0.8))
    result = accord("labels", "list", "--judge", "logp", "--feedback", address)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: --judge: 'logp' could be any of logp at 127.0.0.1:8471, logp at far:8471; give one of these, or the beginning of a digest\n"
    )
    whole = accord("labels", "list", "--judge", "logp at far:8471", "--json", "--feedback", address)
    assert [json.loads(line)["label"]["judge"] for line in whole.stdout.splitlines()] == ["logp at far:8471"]
    assert "'logp' is more than one judge: logp at 127.0.0.1:8471" in accord("labels", "diff", "logp", "large", "--feedback", address).stderr


@pytest.mark.parametrize("first", ["the exact one", "the one at a host"])
def test_an_exact_name_is_chosen_before_one_at_a_host(accord: Accord, address: str, ledger: Ledger, first: str) -> None:
    exact = JudgeIdentity("logp", ModelDigests("logp", "t", "c"))
    made = [(exact, 0, (0.9, 0.9)), (exact, 1, (0.9, 0.9)), (HERE, 0, (0.2, 0.2)), (HERE, 1, (0.2, 0.2)), (HERE, 2, (0.2, 0.2))]
    for judge, number, orders in made if first == "the exact one" else reversed(made):
        add_label(ledger, judge, number, orders)

    def named(*command: str) -> list[str]:
        result = accord("labels", *command, "--feedback", address)
        assert result.exit_code == 0, result.stderr
        return [json.loads(line)["label"]["judge"] for line in result.stdout.splitlines()]

    assert named("list", "--judge", "logp", "--json") == ["logp"] * 2
    assert named("list", "--judge", "logp", "--json", "--limit", "1") == ["logp"]
    assert named("list", "--judge", "logp at 127.0.0.1:8471", "--json") == ["logp at 127.0.0.1:8471"] * 3
    assert accord("labels", "export", "l.jsonl", "--judge", "logp", "--feedback", address).exit_code == 0
    assert [json.loads(line)["preference"] for line in Path("l.jsonl").read_text().splitlines()] == [0.9, 0.9]
    for names in (("logp", "logp at 127.0.0.1:8471"), ("logp:verdict", "logp at 127.0.0.1:8471:verdict")):
        result = accord("labels", "diff", *names, "--json", "--feedback", address)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        assert found["judges"][0].startswith(f"logp {exact.digest[:12]}")
        assert found["judges"][1].startswith("logp at 127.0.0.1:8471 ")
        assert (found["comparison"]["pairs"], found["comparison"]["agreement"]["value"]) == (2, 0.0)


@pytest.mark.parametrize("command", [("list", "--judge"), ("diff", "small")])
def test_a_digest_that_is_too_short_says_so(accord: Accord, address: str, command: tuple[str, ...]) -> None:
    result = accord("labels", *command, LARGE.digest[:5], "--feedback", address)
    assert result.exit_code == 2
    assert result.stderr.endswith("; of a digest at least 6 characters are needed\n")


def test_a_pair_is_found_by_its_content(accord: Accord, address: str) -> None:
    first = json.loads(accord("labels", "list", "--limit", "1", "--json", "--feedback", address).stdout)
    found = accord("labels", "list", "--pair", first["content_key"], "--json", "--feedback", address).stdout.splitlines()
    assert [json.loads(line)["label"]["judge"] for line in found] == ["small", "large"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("list", "--outcome", "c"), "error: --outcome: 'c' is not one of a, b, tie, abstain\n"),
        (("list", "--kind", "guess"), "error: --kind: 'guess' is not one of likelihood, verdict, rating\n"),
        (("list", "--since", "yesterday"), "error: --since: 'yesterday' is no time such as 2026-11-25 or 2026-11-25T14:00\n"),
        (("export", "x.csv"), "error: output: x.csv ends in neither .jsonl nor .jsonl.gz\n"),
        (("reaggregate", "--orders", "last"), "error: --orders: 'last' is not one of both, first\n"),
        (("reaggregate", "--tie-margin", "0.5"), "error: tie_margin: a tie margin of 0.5 is not in [0, 0.5)\n"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(accord: Accord, address: str, arguments: tuple[str, ...], line: str) -> None:
    result = accord("labels", *arguments, "--feedback", address)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", line)


@pytest.mark.parametrize("name", ["l.jsonl", "l.parquet"])
def test_labels_become_data(accord: Accord, address: str, tmp_path: Path, name: str) -> None:
    result = accord("labels", "export", name, "--job", JOB, "--feedback", address)
    assert result.exit_code == 0
    assert lines(result.stdout)[0] == "1 labels left out: abstentions"
    assert lines(result.stdout)[1].startswith("4 rows, sha256 ")
    rows = read_pairs(str(tmp_path / name), strict=True).rows
    assert [(row.pair_id, row.chosen[:5], row.preference) for row in rows] == [
        ("p0", "answe", pytest.approx(0.55)), ("p1", "answe", pytest.approx(0.85)), ("p2", "reply", pytest.approx(0.65)),
        ("p3", "reply", pytest.approx(0.55)),
    ]  # fmt: skip
    assert rows[0].human_preference == 0.0
    assert all(row.metadata["judge_digest"] == SMALL.digest and row.metadata["label_job"] == JOB for row in rows)


def test_pairs_that_measure_a_judge_are_listed_and_in_nothing_else(accord: Accord, address: str, ledger: Ledger, tmp_path: Path) -> None:
    for judge in (SMALL, LARGE):
        add_label(ledger, judge, 9, (0.9, 0.9), job=JOB if judge is SMALL else "", pair_id="accord-repeat:p0")
    assert "accord-repeat:p0" in accord("labels", "list", "--feedback", address).stdout
    accord("labels", "export", "l.jsonl", "--job", JOB, "--feedback", address)
    assert len(read_pairs(str(tmp_path / "l.jsonl")).rows) == 4
    assert json.loads(accord("labels", "reaggregate", "--json", "--feedback", address).stdout)["labels"] == 9
    assert json.loads(accord("labels", "diff", "small", "large", "--json", "--feedback", address).stdout)["comparison"]["pairs"] == 4
    _, reward, _ = store_with(tmp_path, data_digest=DATA_DIGEST)
    assert json.loads(accord("lineage", reward, "--json", "--feedback", address).stdout)[0]["label_jobs"][0]["count"] == 5


@pytest.mark.parametrize("name", ["l.jsonl", "l.parquet"])
def test_an_export_of_nothing_fails_and_leaves_what_was_there(accord: Accord, address: str, tmp_path: Path, name: str) -> None:
    assert accord("labels", "export", name, "--feedback", address).exit_code == 0
    before = (tmp_path / name).read_bytes()
    result = accord("labels", "export", name, "--outcome", "abstain", "--feedback", address)
    assert (result.exit_code, lines(result.stdout)[-1]) == (1, f"there is no row to write: {name} is left as it was")
    found = json.loads(accord("labels", "export", name, "--kind", "rating", "--json", "--feedback", address).stdout)
    assert found["rows"] == 0
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


@pytest.mark.parametrize("command", [("list",), ("list", "--json"), ("export", "x.jsonl"), ("reaggregate", "--output", "x.jsonl")])
@pytest.mark.parametrize(
    ("option", "problem"),
    [
        (("--job", "labelJobs/none"), f"--job: there is no label of a job 'labelJobs/none'; jobs with labels: {JOB}"),
        (("--rubric", "x/y/1"), "--rubric: there is no label under a rubric 'x/y/1'; rubrics with labels: conversation/detailed/1"),
    ],
    ids=["job", "rubric"],
)
def test_a_job_or_rubric_without_labels_is_told_which_have_some(
    accord: Accord, address: str, tmp_path: Path, command: tuple[str, ...], option: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "x.jsonl").write_text("what was there")
    result = accord("labels", *command, *option, "--feedback", address)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"error: {problem}"
    assert (tmp_path / "x.jsonl").read_text() == "what was there"
    assert accord("labels", "list", "--job", JOB, "--kind", "rating", "--feedback", address).exit_code == 0


@pytest.mark.parametrize("command", [("export", "x.jsonl"), ("reaggregate", "--output", "x.jsonl")])
def test_labels_of_two_judges_of_one_name_are_not_mixed(
    accord: Accord, address: str, ledger: Ledger, tmp_path: Path, command: tuple[str, ...]
) -> None:
    other = replace(SMALL, digests=ModelDigests("other", "t", "c"))
    add_label(ledger, other, 0, (0.9, 0.9))
    result = accord("labels", *command, "--judge", "small", "--feedback", address)
    assert result.exit_code == 2
    names = ", ".join(sorted(f"small {judge.digest[:12]}" for judge in (SMALL, other)))
    assert result.stderr.splitlines()[-1] == f"error: --judge: 'small' is more than one judge: {names}"
    assert not (tmp_path / "x.jsonl").exists()
    assert accord("labels", *command, "--judge", other.digest[:12], "--feedback", address).exit_code == 0


def test_other_rules_ask_no_judge(accord: Accord, address: str, tmp_path: Path) -> None:
    result = accord("labels", "reaggregate", "--orders", "first", "--job", JOB, "--output", "first.jsonl", "--feedback", address)
    assert result.exit_code == 0
    assert "2 of 5 labels say something else; preferences move by 0.225 on average" in lines(result.stdout)
    rows = {row.pair_id: row for row in read_pairs(str(tmp_path / "first.jsonl"), strict=True).rows}
    assert {pair_id: (row.chosen[:5], row.preference) for pair_id, row in rows.items()} == {
        "p0": ("answe", 0.9), "p1": ("answe", 0.9), "p2": ("answe", 0.6), "p3": ("answe", 0.7),
    }  # fmt: skip
    assert all(json.loads(row.metadata["judge_options"])["reaggregated"] == {"orders": "first"} for row in rows.values())
    found = json.loads(accord("labels", "reaggregate", "--tie-margin", "0.1", "--json", "--feedback", address).stdout)
    assert (found["labels"], found["changed"], found["unchangeable"], found["written"]) == (9, 2, 0, None)
    assert {"before": "b", "after": "tie", "labels": 1} in found["moves"]
    unchanged = json.loads(accord("labels", "reaggregate", "--json", "--feedback", address).stdout)
    assert (unchanged["changed"], unchanged["mean_move"]) == (0, pytest.approx(0, abs=1e-12))
    assert accord("labels", "reaggregate", "--kind", "rating", "--feedback", address).exit_code == 1


def test_two_judges_beside_each_other(accord: Accord, address: str) -> None:
    result = accord("labels", "diff", "small", LARGE.digest[:10], "--feedback", address)
    assert (result.exit_code, result.stderr) == (0, "")
    rows = lines(result.stdout)
    assert rows[:2] == [f"first: small {SMALL.digest[:12]}", f"second: large {LARGE.digest[:12]}"]
    assert any(row.startswith("agree 0.75 0.30 to 0.95 4") for row in rows)
    assert any(row.startswith("the first agrees with people 0.00") and row.endswith(" 1") for row in rows)
    assert any(row.startswith("the second agrees with people 1.00") for row in rows)
    assert "4 pairs, 0 on which one of them abstains; their preferences are 0.200 apart on average" in rows
    (worst,) = [row for row in rows if row.startswith("p0 ")]
    assert worst == "p0 0.550 0.100 question 0 answer 0 reply 0 at length"
    found = json.loads(accord("labels", "diff", "small", "large", "--worst", "0", "--json", "--feedback", address).stdout)
    assert found["comparison"]["kappa"]["value"] == pytest.approx(0.5)
    assert found["comparison"]["differences"] == []


@pytest.mark.parametrize(
    ("judges", "problem"),
    [
        (("small", "nobody"), "there is no label by 'nobody'; judges of these labels: large "),
        (("small", SMALL.digest[:8]), "both names are the same judge: small "),
    ],
)
def test_judges_that_cannot_be_compared(accord: Accord, address: str, judges: tuple[str, str], problem: str) -> None:
    result = accord("labels", "diff", *judges, "--feedback", address)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: JUDGE: {problem}")


def test_one_judge_is_compared_in_two_ways(accord: Accord, address: str, ledger: Ledger) -> None:
    for number, p in enumerate([0.1, 0.9]):
        add_label(ledger, replace(SMALL, base_model="small at host:8080"), number, (p, p), kind="rating")
    add_label(ledger, replace(SMALL, base_model="small at host:8080"), 0, (0.9, 0.9))
    result = accord("labels", "diff", "small at host:8080:verdict", "small at host:8080:rating", "--feedback", address)
    assert result.exit_code == 0, result.stderr
    rows = lines(result.stdout)
    assert rows[0] == f"first: small at host:8080 {SMALL.digest[:12]}, verdict"
    assert any(row.startswith("1 pairs, 0 on which") for row in rows)
    assert "p0 0.900 0.100 question 0 answer 0 reply 0 at length" in rows


def test_a_name_that_two_judges_have_is_refused(accord: Accord, address: str, ledger: Ledger) -> None:
    add_label(ledger, replace(SMALL, digests=ModelDigests("other", "t", "c")), 0, (0.9, 0.9))
    result = accord("labels", "diff", "small", "large", "--feedback", address)
    assert result.exit_code == 2
    assert "'small' is more than one judge: small " in result.stderr


def test_without_services_it_says_what_to_do(accord: Accord) -> None:
    for call in (("list",), ("export", "x.jsonl"), ("reaggregate",), ("diff", "a", "b")):
        result = accord("labels", *call)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("error: no services run in ")


def store_with(tmp_path: Path, **facts: Any) -> tuple[str, ...]:
    """A reward model whose data came from the job, and a policy trained with it on other prompts."""
    store = ArtefactStore(str(tmp_path / ".accord" / "artefacts"))
    sft = publish(store, tmp_path, "sft", "policy")
    files = tmp_path / "rm"
    files.mkdir()
    (files / "adapter_config.json").write_text("{}")
    reward = store.publish("rm", files, kind="reward", parents=[sft], run="runs/rm-1", step=3, base_model_digest="b" * 64, **facts)
    return sft, reward, publish(store, tmp_path, "ppo", "policy", sft, reward)


@pytest.mark.parametrize("facts", [{"data_digest": DATA_DIGEST}, {"data_digest": "0" * 64, "facts": {"label_jobs": [JOB]}}], ids=["digest", "rows"])
def test_lineage_goes_on_to_the_labels(accord: Accord, address: str, tmp_path: Path, facts: dict[str, Any]) -> None:
    sft, reward, ppo = store_with(tmp_path, **facts)
    result = accord("lineage", ppo, "--feedback", address)
    assert (result.exit_code, result.stderr) == (0, "")
    text = [line.strip(" │├└─") for line in result.stdout.splitlines()]
    assert text.count("labelJobs/x (succeeded), of sample:conversation: 5 labels (2 a, 2 b, 1 abstain)") == 1
    assert f"verdict by small {SMALL.digest[:12]}, conversation/detailed/1 {'f' * 12}: 5 labels" in text
    found = {manifest["name"]: manifest for manifest in json.loads(accord("lineage", ppo, "--json", "--feedback", address).stdout)}
    assert (found[sft]["label_jobs"], found[ppo]["label_jobs"]) == ([], [])
    (job,) = found[reward]["label_jobs"]
    assert (job["name"], job["count"], job["outcomes"], job["labels"]) == (JOB, 5, {"a": 2, "b": 2, "abstain": 1}, [])
    assert job["judges"][0]["rubric_digest"] == "f" * 64


def test_lineage_goes_on_to_what_online_dpo_had_labelled(accord: Accord, address: str, ledger: Ledger, tmp_path: Path) -> None:
    """Its labels are under no job: pairs named after the run are its own, the last label of each."""
    for place, (run, preference) in enumerate([("runs/on-1", 0.9), ("runs/on-10", 0.2), ("runs/on-1", 0.1)]):
        add_label(ledger, SMALL, 10 + place, (preference, preference), job="", pair_id=f"{run}/{place}")
    add_label(ledger, SMALL, 12, (0.8, 0.8), job="", pair_id="runs/on-1/2")
    store = ArtefactStore(str(tmp_path / ".accord" / "artefacts"))
    files = tmp_path / "online"
    files.mkdir()
    (files / "adapter_config.json").write_text("{}")
    for run in ("runs/on-1", "runs/none"):
        store.publish(
            "online", files, kind="policy", run=run, step=3, base_model_digest="b" * 64, facts={"algorithm": "online_dpo"}, data_digest="0" * 64
        )
    text = accord("lineage", "adapters/online/versions/1", "--feedback", address).stdout
    assert "its own samples, labelled as it learned: 2 labels (2 a)" in text
    assert f"verdict by small {SMALL.digest[:12]}" in text
    (manifest,) = json.loads(accord("lineage", "adapters/online/versions/1", "--labels", "--json", "--feedback", address).stdout)
    (found,) = manifest["label_jobs"]
    assert (found["name"], found["job"], found["count"]) == ("runs/on-1", None, 2)
    assert [record["label"]["pair_id"] for record in found["labels"]] == ["runs/on-1/0", "runs/on-1/2"]
    assert "0 labels (this feedback service has none)" in accord("lineage", "adapters/online/versions/2", "--feedback", address).stdout


def test_lineage_lists_each_label(accord: Accord, address: str, tmp_path: Path) -> None:
    _, reward, ppo = store_with(tmp_path, data_digest=DATA_DIGEST)
    rows = lines(accord("lineage", ppo, "--labels", "--feedback", address).stdout)
    assert [row.split()[:3] for row in rows if row.startswith("p") and row[1].isdigit()] == [
        ["p0", "a", "0.550"], ["p1", "a", "0.850"], ["p2", "b", "0.350"], ["p3", "b", "0.450"], ["p4", "abstain", SMALL.digest[:12]],
    ]  # fmt: skip
    found = json.loads(accord("lineage", reward, "--labels", "--json", "--feedback", address).stdout)
    assert len(found[0]["label_jobs"][0]["labels"]) == 5


def test_a_job_that_the_service_does_not_know_is_said(accord: Accord, address: str, tmp_path: Path) -> None:
    _, reward, _ = store_with(tmp_path, data_digest="0" * 64, facts={"label_jobs": ["labelJobs/gone"]})
    assert "labelJobs/gone, which this feedback service does not know" in accord("lineage", reward, "--feedback", address).stdout


def test_lineage_without_a_service_shows_the_adapters_and_says_what_is_missing(accord: Accord, tmp_path: Path) -> None:
    _, reward, _ = store_with(tmp_path, data_digest=DATA_DIGEST)
    started = time.monotonic()
    result = accord("lineage", reward)
    assert result.exit_code == 0
    assert result.stdout.startswith(reward)
    assert result.stderr.startswith("labels behind the data are not shown: no services run in ")
    assert json.loads(accord("lineage", reward, "--json").stdout)[0]["label_jobs"] is None
    asked = accord("lineage", reward, "--labels")
    assert (asked.exit_code, asked.stdout) == (2, "")
    assert time.monotonic() - started < 30
