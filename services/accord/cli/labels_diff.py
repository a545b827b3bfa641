"""`accord labels diff`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.labels_options import (
    KINDS,
    Job,
    Kind,
    Rubric,
    Since,
    TaskOption,
    Until,
    is_by,
    is_by_one_placed,
    labels_of_data,
    ledger_at,
    nobody_said,
    query_of,
    shortened,
)
from accord.cli.options import DEFAULT_HOME, FeedbackAddress, Home, Json
from accord.cli.output import print_json, print_line, print_table
from accord.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from accord.client.feedback import LabelPairItem
    from accord.client.label_cards import Kappa, Share
    from accord.client.ledger import LabelRecord
    from accord.feedback.comparing import Comparison, Opinions

_TEXT = 60
_DIGEST = 12
JudgeName = Annotated[str, typer.Argument(metavar="JUDGE[:KIND]", help="A judge's name, or the beginning of its digest; with a kind, that alone.")]


def diff(
    first: JudgeName,
    second: JudgeName,
    job: Job = "",
    kind: Kind = "",
    task: TaskOption = None,
    rubric: Rubric = "",
    since: Since = "",
    until: Until = "",
    worst: Annotated[int, typer.Option("--worst", min=0, help="How many pairs to show on which they differ most.")] = 5,
    feedback: FeedbackAddress = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Compares two judges, or one in two ways, on the pairs that both labelled: how often they agree, beyond chance too, and where they differ.

    Pairs are the same by content, whichever response was A; of several labels of a pair a judge's last one counts. Texts of these labels are held in
    memory.

    \b
    Example:
        accord labels diff embedded:verdict embedded:likelihood
        accord labels diff 4be1c0 91aa07 --task summarization --worst 10
    """
    from accord.feedback.comparing import compare

    query = query_of(job=job, kind=kind, task=task, rubric=rubric, since=since, until=until)
    with ledger_at(home, feedback) as client:
        judges, opinions, pairs = _read(labels_of_data(client, query), (first, second))
    found = compare(opinions[0].found, opinions[1].found, pairs, worst=worst)
    if not found.pairs:
        raise NotFoundError(f"there is no pair that both {judges[0]} and {judges[1]} labelled")
    without_text = sum(opinion.without_text for opinion in opinions)
    if as_json:
        print_json({"judges": judges, "without_text": without_text, "comparison": found})
        return
    _show(found, judges)
    if without_text:
        print_line(f"{without_text} labels are not compared: the ledger has no text of their pairs")


class _Found:
    """Who is found under a name, by digest and kind, and their opinions."""

    def __init__(self) -> None:
        from accord.feedback.comparing import Opinions

        self.judges: dict[tuple[str, str], str] = {}
        self.opinions = Opinions()


class _Wanted:
    """One of the two judges: those of its very name or digest, else those that have the name at some host."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._name, self._kind = _with_kind(text)
        self._named, self._placed = _Found(), _Found()

    def take(self, record: LabelRecord) -> bool:
        """Takes a label that is by it, and says whether it is."""
        into = self._named if is_by(record, self._name) else self._placed if is_by_one_placed(record, self._name) else None
        if into is None or self._kind not in ("", record.label.kind):
            return False
        name = _name_of(record)
        into.judges[record.label.judge_digest, self._kind] = f"{name}, {self._kind}" if self._kind else name
        into.opinions.add(record)
        return True

    @property
    def found(self) -> _Found:
        """Whose opinions count."""
        return self._named if self._named.judges else self._placed


def _read(records: Iterable[LabelRecord], names: tuple[str, str]) -> tuple[list[str], list[Opinions], dict[str, LabelPairItem]]:
    """Takes the labels of both judges; returns who they are, their opinions, and the pairs by content.

    Raises:
        NotFoundError: a judge has no label.
        InvalidArgumentError: several judges are meant by one name, or both names mean the same one.
    """
    wanted = [_Wanted(text) for text in names]
    seen: dict[str, str] = {}
    pairs: dict[str, LabelPairItem] = {}
    for record in records:
        seen[record.label.judge_digest] = _name_of(record)
        taken = [each.take(record) for each in wanted]
        if any(taken) and record.pair is not None:
            pairs[record.content_key] = record.pair
    for each in wanted:
        judges = each.found.judges
        if not judges:
            raise NotFoundError(nobody_said(each.text, seen.values()), field="JUDGE")
        if len(judges) > 1:
            raise InvalidArgumentError(f"{each.text!r} is more than one judge: {', '.join(sorted(judges.values()))}", field="JUDGE")
    first, second = (each.found.judges for each in wanted)
    if first == second:
        advice = "NAME:verdict and NAME:likelihood compare its kinds"
        raise InvalidArgumentError(f"both names are the same judge: {next(iter(first.values()))}; {advice}", field="JUDGE")
    return [next(iter(judges.values())) for judges in (first, second)], [each.found.opinions for each in wanted], pairs


def _name_of(record: LabelRecord) -> str:
    return f"{record.label.judge} {record.label.judge_digest[:_DIGEST]}"


def _with_kind(text: str) -> tuple[str, str]:
    """A judge's name and a kind, empty where none is said; names may have colons of their own."""
    name, _, kind = text.rpartition(":")
    return (name, kind) if name and kind in KINDS else (text, "")


def _show(found: Comparison, judges: list[str]) -> None:
    print_line(f"first: {judges[0]}\nsecond: {judges[1]}")
    rows = [
        ("agree", *_share(found.agreement)), ("Cohen's kappa", *_kappa(found.kappa)),
        ("the first takes the longer one", *_share(found.first_takes_longer)),
        ("the second takes the longer one", *_share(found.second_takes_longer)),
        ("the first agrees with people", *_share(found.first_human_agreement)),
        ("the second agrees with people", *_share(found.second_human_agreement)),
        *((f"agree: {part.name}", *_share(part.agreement)) for part in found.parts),
    ]  # fmt: skip
    print_table(("on the same pairs", "value>", "95 % interval", "n>"), rows)
    distance = "" if found.mean_distance is None else f"; their preferences are {found.mean_distance:.3f} apart on average"
    print_line(f"{found.pairs} pairs, {found.abstained} on which one of them abstains{distance}")
    if found.differences:
        columns = ("pair", "first P(A)>", "second P(A)>", "prompt", "A", "B")
        print_table(columns, [
            (item.pair.pair_id, f"{item.first:.3f}", f"{item.second:.3f}", shortened(item.pair.messages[-1].content, _TEXT),
             shortened(item.pair.response_a, _TEXT), shortened(item.pair.response_b, _TEXT))
            for item in found.differences
        ], title="farthest apart")  # fmt: skip


def _share(share: Share | None) -> tuple[str, str, str]:
    return _estimate(share, "not measured")


def _kappa(kappa: Kappa | None) -> tuple[str, str, str]:
    return _estimate(kappa, "not defined")


def _estimate(found: Share | Kappa | None, otherwise: str) -> tuple[str, str, str]:
    return (otherwise, "", "") if found is None else (f"{found.value:.2f}", f"{found.low:.2f} to {found.high:.2f}", str(found.n))
