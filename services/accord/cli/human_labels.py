"""Taking people's labels out of a data set into the ledger, so that it can be done again from anywhere.

A label's request id is a digest of the pair, its name and the annotator: what is in the ledger already is answered as it was, and costs nothing.
What does not belong here: what is shown (`accord.cli.data_import`).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from accord.client.feedback import LabelPairItem, Outcome
from accord.data.records import ANNOTATOR, CONFIDENCE, REASON, SECONDS, PreferencePair
from accord.errors import AccordError, AlreadyExistsError, InvalidArgumentError, OutOfRangeError, ResourceExhaustedError

if TYPE_CHECKING:
    from accord.client.feedback import FeedbackClient

_AT_ONCE = 8
_BATCH = 64
_EXAMPLES = 10
CONFIDENCE_CHARACTERS = 64
"""The most that the ledger takes of a confidence (feedback.proto)."""


@dataclass
class Imported:
    """What came of the labels. `recorded` are in the ledger, now or from an earlier import; `annotators` counts them by person.

    `long_confidences` of the recorded ones are without how sure the person was, since the ledger has 64 characters for it. `conflicting` are those
    whose pair the same person labelled otherwise in the ledger, which is never changed; `refused` those that the service does not take, by reason.
    """

    recorded: int = 0
    unlabelled: int = 0
    long_confidences: int = 0
    conflicting: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    annotators: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


def import_human_labels(client: FeedbackClient, pairs: Iterable[PreferencePair], annotator: str) -> Iterator[Imported]:
    """Records the labels of pairs that people labelled and yields how far it is after each batch, the last one whole.

    Args:
        annotator: who labelled the pairs that do not say; empty where all say.

    Raises:
        InvalidArgumentError: a pair does not say who labelled it and `annotator` is empty.
        AccordError: the service cannot be reached; what was recorded stays, and a repeated call goes on.
    """
    done, waiting = Imported(), iter(pairs)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while batch := list(islice(waiting, _BATCH)):
            labelled = [pair for pair in batch if pair.human_preference is not None]
            done.unlabelled += len(batch) - len(labelled)
            people = [_annotator(pair, annotator) for pair in labelled]
            errors = pool.map(partial(_record, client), labelled, people)
            for pair, person, error in zip(labelled, people, errors, strict=True):
                _count(done, pair, person, error)
            yield done
    yield done


def human_label(pair: PreferencePair) -> tuple[LabelPairItem, Outcome]:
    """The pair as a person labelled it: which response is A depends on their texts alone, never on which was chosen."""
    human = pair.human_preference
    a_is_chosen = _digest(pair.chosen) <= _digest(pair.rejected)
    first, second = (pair.chosen, pair.rejected) if a_is_chosen else (pair.rejected, pair.chosen)
    item = LabelPairItem(pair.task, pair.messages, first, second, pair.pair_id)
    if human is None or human == 0.5:
        return item, "tie"
    return item, "a" if (human > 0.5) == a_is_chosen else "b"


def request_id_of(item: LabelPairItem, annotator: str) -> str:
    """The id under which a person's label of a pair is recorded; the label itself is not part of it, so that another one is a conflict.

    The pair's name is: who names two rows differently means two labels. Of rows without ids it is a digest of the row, label and all, so that there
    another label is a second one.
    """
    turns = [[message.role, message.content] for message in item.messages]
    return "import-" + _digest(json.dumps([item.task.value, turns, item.response_a, item.response_b, item.pair_id, annotator]))[:40]


def _record(client: FeedbackClient, pair: PreferencePair, annotator: str) -> AccordError | None:
    """Records one label; an error that is about this label alone is returned."""
    item, outcome = human_label(pair)
    seconds, confidence = pair.metadata.get(SECONDS), "" if _too_long(pair) else pair.metadata.get(CONFIDENCE, "")
    try:
        client.record_human_label(
            request_id_of(item, annotator), item, outcome, annotator, reason=pair.metadata.get(REASON, ""), duration_seconds=_seconds(seconds),
            confidence=confidence,
        )  # fmt: skip
    except (AlreadyExistsError, InvalidArgumentError, OutOfRangeError) as error:
        return error
    except ResourceExhaustedError as error:
        if error.retry_after_seconds is not None:
            raise
        return error  # of gRPC itself: the message is larger than the service takes, and will be the next time
    return None


def _count(done: Imported, pair: PreferencePair, annotator: str, error: AccordError | None) -> None:
    if error is None:
        done.recorded += 1
        done.long_confidences += _too_long(pair)
        done.annotators[annotator] += 1
        return
    if isinstance(error, AlreadyExistsError):
        done.conflicting += 1
    else:
        done.refused[error.field or error.code] += 1
    if len(done.examples) < _EXAMPLES:
        done.examples.append(f"{pair.pair_id}: {error}")


def _too_long(pair: PreferencePair) -> bool:
    """Whether the ledger has no room for how sure the person was, which is no reason to refuse the label."""
    return len(pair.metadata.get(CONFIDENCE, "")) > CONFIDENCE_CHARACTERS


def _annotator(pair: PreferencePair, other: str) -> str:
    found = pair.metadata.get(ANNOTATOR, other)
    if not found:
        raise InvalidArgumentError(f"{pair.pair_id} does not say who labelled it; name the annotator", field="--annotator")
    return found


def _seconds(text: str | None) -> float | None:
    """Seconds as a number; None where they are not said, or are no duration."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
