"""The pairs of a label job that samples them itself: kept in a file before any is judged, so that a kill samples only what is missing.

What does not belong here: sampling (`accord.feedback.candidates`).
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from accord.client.feedback import LabelJobSpec
from accord.data.records import PreferencePair, Prompt
from accord.errors import DataLossError, UnavailableError
from accord.feedback.candidates import Candidate


class CandidateFile:
    """What a job has sampled, one JSON line a prompt, on disk when `append` returns. Its methods may be called from any thread.

    Args:
        path: the file; it need not be there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = threading.Lock()

    def read(self) -> dict[str, Candidate]:
        """All candidates by prompt id. A last line that a kill cut short is taken off the file.

        Raises:
            DataLossError: a line before the last is damaged; names it.
        """
        if not self._path.exists():
            return {}
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self._path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        found = {}
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                candidate = Candidate(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise DataLossError(f"{self._path} line {number} is no candidate: {error}; move it away to sample anew", field="jobs") from error
            found[candidate.prompt_id] = candidate
        return found

    def append(self, candidates: Sequence[Candidate]) -> None:
        """Makes candidates durable, all of them or none.

        Raises:
            UnavailableError: they cannot be written now.
        """
        lines = b"".join(json.dumps(asdict(candidate)).encode() + b"\n" for candidate in candidates)
        try:
            with self._writing, self._path.open("ab", buffering=0) as file:
                end = file.tell()
                try:
                    while lines:
                        lines = lines[file.write(lines) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(end)  # half a line would stand before what is written once there is room
                    raise
        except OSError as error:
            raise UnavailableError(f"candidates cannot be written to {self._path.parent}: {error.strerror}", retry_after_seconds=1.0) from error


async def fill(
    file: CandidateFile, prompts: Sequence[Prompt], sample: Callable[[list[Prompt]], Awaitable[list[Candidate]]], say: Callable[[int], None], *,
    batch: int, concurrency: int,
) -> dict[str, Candidate]:  # fmt: skip
    """Candidates for all prompts: those of the file, and the rest sampled in batches, several at once; `say` takes how many there are.

    What `sample` returns is in the file by then.
    """
    found = await asyncio.to_thread(file.read)
    missing = iter([prompt for prompt in prompts if prompt.prompt_id not in found])

    async def work() -> None:
        while part := list(islice(missing, batch)):
            candidates = await sample(part)
            found.update({candidate.prompt_id: candidate for candidate in candidates})
            say(len(found))

    workers = [asyncio.create_task(work()) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return found


def candidate_pairs(
    prompts: Sequence[Prompt], candidates: Mapping[str, Candidate], spec: LabelJobSpec, source: Mapping[str, str]
) -> tuple[tuple[PreferencePair, ...], dict[str, int]]:
    """Pairs in the order of the prompts, candidate a as `chosen` until a judge says more, and prompts without a pair counted by reason."""
    refused = Counter(candidates[prompt.prompt_id].refused for prompt in prompts if candidates[prompt.prompt_id].refused)
    options = {} if spec.candidates is None else asdict(spec.candidates)
    lineage = {f"candidates_{name}": str(value) for name, value in {**options, **source}.items() if value != ""}
    pairs = [_pair(prompt, candidates[prompt.prompt_id], lineage) for prompt in prompts if not candidates[prompt.prompt_id].refused]
    return tuple(pairs), {f"prompt {reason}": count for reason, count in refused.items()}


def _pair(prompt: Prompt, candidate: Candidate, lineage: Mapping[str, str]) -> PreferencePair:
    scores = {"score_a": candidate.score_a, "score_b": candidate.score_b}
    facts = {**prompt.metadata, **lineage, **{f"candidate_{name}": repr(score) for name, score in scores.items() if score is not None}}
    return PreferencePair(
        prompt.prompt_id, prompt.task, prompt.messages, candidate.a, candidate.b, 0.5, prompt.prompt_id, None, prompt.reference, prompt.split, facts
    )
