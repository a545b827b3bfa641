"""A label job's data: pairs in, as a judge is asked about them, and labelled pairs out.

What does not belong here: asking (`accord.feedback.job_run`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from statistics import fmean

from accord.client.feedback import LabelPairItem
from accord.data.files import shown
from accord.data.readers import read_pairs, read_prompts
from accord.data.records import CHOSEN_CANDIDATE, LABEL_JOB, Dataset, PreferencePair, Prompt, RecordT, digest_of, turned_facts
from accord.data.writers import write_pairs
from accord.errors import InvalidArgumentError
from accord.feedback.card_page import render_cards
from accord.feedback.cards import make_cards
from accord.feedback.job_files import JobRecord
from accord.feedback.job_output import output_folder
from accord.feedback.ledger import Ledger
from accord.feedback.records import ADDED, LabelFacts, is_added
from accord.rundir import write_atomically

LABELS_FILE, CARD_FILE, CARD_PAGE = "labels.jsonl", "card.json", "card.html"
_SHOWN_SPLITS = 5
_OF_A_LABEL = ("rubric", "rubric_digest")
"""What an earlier label of the pair may say of itself and a new one may not."""


def read_job_pairs(record: JobRecord) -> tuple[tuple[PreferencePair, ...], dict[str, int], str]:
    """The pairs of a job in the data set's order, rows left out by reason, and the digest of what was read.

    Rows of another task are left out and counted. A limit takes the rows that `read_pairs` would take with this seed, among those of the task.

    Raises:
        InvalidArgumentError: no row can be labelled; says what the rows are.
        AccordError: as `read_pairs`.
    """
    spec = record.spec
    found = read_pairs(record.data_uri, format=spec.dataset_format, split=spec.split or "train", seed=spec.seed, task=spec.task)
    return _of_the_job(record, found, [(pair.pair_id, pair) for pair in found.rows if pair.task == spec.task])


def read_job_prompts(record: JobRecord) -> tuple[tuple[Prompt, ...], dict[str, int], str]:
    """The prompts of a job that samples its pairs, each once. As `read_job_pairs`."""
    spec = record.spec
    found = read_prompts(record.data_uri, format=spec.dataset_format, split=spec.split or "train", seed=spec.seed, task=spec.task)
    return _of_the_job(record, found, [(prompt.prompt_id, prompt) for prompt in found.rows if prompt.task == spec.task])


def _of_the_job(record: JobRecord, found: Dataset[RecordT], rows: list[tuple[str, RecordT]]) -> tuple[tuple[RecordT, ...], dict[str, int], str]:
    """The rows of the job's task that may be labelled, the rest counted, within the job's limit.

    A label is known by its pair's id, so that of rows of several splits with one id the first alone is labelled.
    """
    spec, rejected = record.spec, dict(found.report.rejected)
    if len(rows) < len(found.rows):
        rejected[f"of another task than {spec.task.value}"] = len(found.rows) - len(rows)
    added = sum(is_added(name) for name, _ in rows)
    if added:
        rejected[f"id begins with {ADDED}, as those of pairs that jobs add"] = added
        rows = [(name, row) for name, row in rows if not is_added(name)]
    once: dict[str, RecordT] = {}
    for name, row in rows:
        once.setdefault(name, row)
    if len(once) < len(rows):
        rejected["id occurs in another split"] = len(rows) - len(once)
        rows = list(once.items())
    if not rows:
        left_out = {f"of other splits than {spec.split}{_how_to_take(found.report.splits)}": found.report.other_splits, **rejected}
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count) or "it is empty"
        raise InvalidArgumentError(f"nothing in {shown(record.data_uri)} can be labelled: {reasons}", field="dataset_uri")
    if spec.limit and spec.limit < len(rows):
        kept = {name for name, _ in sorted(rows, key=lambda named: _hash(spec.seed, named[0]))[: spec.limit]}
        rows = [(name, row) for name, row in rows if name in kept]
    return tuple(row for _, row in rows), rejected, found.report.digest


def _how_to_take(splits: Mapping[str, int]) -> str:
    """Which splits there are, and the option that takes one."""
    names = sorted(splits, key=lambda name: -splits[name])
    there = ", ".join(f"{splits[name]} of {name}" for name in names[:_SHOWN_SPLITS]) + (", ..." if len(names) > _SHOWN_SPLITS else "")
    return f" ({there}; --split {names[0]} takes those, --split all every one)" if names else ""


def chosen_is_a(seed: int, pair_id: str) -> bool:
    """Whether a data set's chosen response is shown as A: half of them, by seed."""
    return _hash(seed, f"a {pair_id}")[0] % 2 == 0


def shown_pair(pair: PreferencePair, seed: int) -> LabelPairItem:
    """The pair as a judge is asked about it."""
    human = pair.human_preference
    if chosen_is_a(seed, pair.pair_id):
        return LabelPairItem(pair.task, pair.messages, pair.chosen, pair.rejected, pair.pair_id, human)
    return LabelPairItem(pair.task, pair.messages, pair.rejected, pair.chosen, pair.pair_id, None if human is None else 1.0 - human)


def labelled_pair(pair: PreferencePair, label: LabelFacts, seed: int, metadata: dict[str, str]) -> PreferencePair | None:
    """The pair as the judge sees it: `chosen` is what it prefers, `preference` its P(chosen better), at least one half; None on abstention.

    A tie has preference 0.5 and keeps A, which the seed chose, in front: the data set's own order must not shine through. Where the judge rated,
    `rating_gap` is the difference of the expected ratings; of other judges a row has none: who rated the data set's responses did not label them.
    Where the two change places, so does what metadata says of them.
    """
    if label.preference is None:
        return None
    item = shown_pair(pair, seed)
    a_wins = label.outcome != "b"
    preference = {"a": label.preference, "b": 1.0 - label.preference}.get(label.outcome, 0.5)
    chosen, rejected = (item.response_a, item.response_b) if a_wins else (item.response_b, item.response_a)
    human, gap = item.human_preference, rating_gap(label)
    if not a_wins:
        human, gap = None if human is None else 1.0 - human, None if gap is None else -gap
    known = {key: value for key, value in pair.metadata.items() if key not in _OF_A_LABEL}
    facts = {**(known if chosen == pair.chosen else turned_facts(known)), **metadata}
    return replace(pair, chosen=chosen, rejected=rejected, preference=preference, human_preference=human, metadata=facts, rating_gap=gap)


def rating_gap(label: LabelFacts) -> float | None:
    """A's expected rating less B's, the mean over the rating judges that were asked; None where the judge was another or was not asked."""
    gaps = [
        (judgement.evidence_first - judgement.evidence_second) * (1 if judgement.a_first else -1)
        for judgement in (label.judgements if label.kind == "rating" else ())
        if judgement.evidence_first is not None and judgement.evidence_second is not None
    ]
    return fmean(gaps) if gaps else None


def write_output(ledger: Ledger, record: JobRecord, pairs: tuple[PreferencePair, ...]) -> dict[str, str]:
    """Writes labels.jsonl, card.html and card.json and returns where they are, as changes of the record; the same labels give the same bytes.

    Raises:
        UnavailableError: the output is a URL that cannot be written now.
    """
    labels = ledger.labels(job=record.name)
    rows = _labelled_rows(ledger, record, pairs, labels)
    with output_folder(record.output) as folder:
        digest = write_pairs(folder / LABELS_FILE, rows)
        cards = make_cards(labels, ledger.pair_texts)
        facts = {"job": record.name, "source": shown(record.data_uri), "dataset_digest": digest, "rows": len(rows)}
        facts |= {"rejected_rows": dict(record.rejected_rows)}
        facts |= {"candidates_from": dict(record.candidates_from)} if record.candidates_from else {}
        write_atomically(folder / CARD_PAGE, render_cards(cards, facts))
        write_atomically(folder / CARD_FILE, json.dumps({**facts, "cards": [asdict(card) for card in cards]}, indent=1, ensure_ascii=False))
    digests = {"dataset_digest": digest, "rows_digest": digest_of(tuple(rows))}
    return {"dataset_uri": f"{record.output}/{LABELS_FILE}", **digests, "card_uri": f"{record.output}/{CARD_FILE}"}


def _labelled_rows(ledger: Ledger, record: JobRecord, pairs: tuple[PreferencePair, ...], labels: Sequence[LabelFacts]) -> list[PreferencePair]:
    """The pairs as the judge sees them, without those that it abstained from, each with where its label comes from."""
    by_id = {label.pair_id: label for label in labels}
    keys = ledger.label_keys(record.name)
    rows = []
    for pair in pairs:
        label = by_id[pair.pair_id]
        origin = {
            LABEL_JOB: record.name, "judge": label.judge, "judge_digest": label.judge_digest, "judge_kind": label.kind,
            "judge_options": label.options, "ledger_keys": ",".join(keys.get(pair.pair_id, ())),
        }  # fmt: skip
        if label.rubric:
            origin |= {"rubric": label.rubric, "rubric_digest": label.rubric_digest}
        row = labelled_pair(pair, label, record.spec.seed, origin)
        if row is not None and record.spec.candidates is not None:  # a sampled pair comes with candidate a in front
            row = replace(row, metadata={**row.metadata, CHOSEN_CANDIDATE: "a" if row.chosen == pair.chosen else "b"})
        if row is not None:
            rows.append(row)
    return rows


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode()).digest()
