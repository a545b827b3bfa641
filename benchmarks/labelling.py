"""How fast pairs are labelled, and what the ledger adds, through real servers.

    python benchmarks/labelling.py [--rounds 5] [--pairs 8] [--only cache,ledger,resume] [--rubrics ID,ID,...] [--json FILE]

cache      verdicts by the embedded model over the embedded sample, both orders, under rubrics with and without worked examples: the policy service
           with its prefix cache against one without
ledger     what a judgement costs beside the judge: the ledger's transactions alone, and a whole job whose judge answers at once
resume     a server that is killed in the middle of a job: seconds from its next start to the next question; and a second job, all of it known

Useful judgements are those with a verdict. Each round of `cache` labels pairs that no round before has shown under that rubric, so that only what
prompts share is found in the cache: the rubric's beginning, and of the second order also the conversation. Both systems get the same pairs, one after
the other. How many tokens prompts had and how many of them were computed is counted by the services, and their ratio is printed beside that of the
times: it is what a cache can give.
"""

from __future__ import annotations

import itertools
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accord.client.feedback import FeedbackClient, Judge, LabelJob, LabelJobSpec
from accord.client.messages import ModelDigests
from accord.data.readers import read_pairs
from accord.data.records import PreferencePair
from accord.data.writers import write_pairs
from accord.feedback.ledger import Ledger
from accord.feedback.records import Answer, JudgeIdentity, Origin, Question
from accord.prompts import Rubric, default_rubric, load_rubric
from accord.rpc.channels import ChannelConfig
from accord.text.chat import Message
from accord.text.tasks import Task
from figures import Figures, options_of, ratios, seconds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.contract.fake_judge import FakeJudge
from tests.contract.harness import ServerProcess, eventually

THREADS, SCRIPTED_PAIRS, BATCH = 2, 1000, 8
PARTS = ("cache", "ledger", "resume")
TASK = Task.CONVERSATION
RUBRICS = ("conversation/detailed/1", "summarization/detailed/1", "conversation/helpful-detailed-few-shot/1", "summarization/detailed-few-shot/1")


def main() -> None:
    """Measures and prints."""
    parser = options_of(__doc__)
    parser.add_argument("--pairs", type=int, default=8, help="pairs of a round of `cache`")
    parser.add_argument("--rubrics", default=",".join(RUBRICS), help="rubrics of `cache`")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts to measure, of {', '.join(PARTS)}")
    options = parser.parse_args()
    figures = Figures("labelling")
    parts = set(options.only.split(","))
    if unknown := parts - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "cache" in parts:
            for rubric in options.rubrics.split(","):
                cache(figures, folder / rubric.replace("/", "-"), load_rubric(rubric, kind="verdict"), options.rounds, options.pairs)
        if "ledger" in parts:
            ledger(figures, folder, options.rounds)
        if "resume" in parts:
            resume(figures, folder, options.rounds)
    figures.write(options.json)


def cache(figures: Figures, folder: Path, rubric: Rubric, rounds: int, count: int) -> None:
    """Useful judgements a second of whole label jobs under a rubric, with the policy's prefix cache and without."""
    folder.mkdir()
    sample = read_pairs(f"sample:{rubric.task}").rows
    if len(sample) < (rounds + 1) * count:
        raise SystemExit(f"the sample has {len(sample)} pairs; {rounds} rounds of {count} and one before them need more: lower --pairs or --rounds")
    slices = (sample[start : start + count] for start in itertools.count(0, count))
    rates: dict[str, list[float]] = {"cache": [], "none": []}
    shares: list[float] = []
    with ExitStack() as stack:
        policies = {name: stack.enter_context(_policy(folder, **fields)) for name, fields in (("cache", {}), ("none", {"prefix_cache_bytes": 0}))}
        for number in range(rounds + 1):
            rows = next(slices)
            for name, policy in policies.items():
                before = _prompt_tokens(policy)
                job, took = labelled(folder, policy.address, rows, f"{name}-{number}", rubric.id)
                found, computed = (after - earlier for after, earlier in zip(_prompt_tokens(policy), before, strict=True))
                useful = 2 * (job.done_pairs - job.abstained_pairs)
                print(
                    f"    round {number} of {rounds}: {name} {useful} judgements, {found:.0f} tokens found, {computed:.0f} computed, {took:.2f} s",
                    flush=True,
                )
                if number:  # the first round warms both up, and puts the rubric into the cache
                    rates[name].append(useful / took)
                    shares += [(found + computed) / computed] if name == "cache" else []
    figures.add(f"verdicts of the embedded model, {rubric.id}, prefix cache", "useful/s", rates["cache"])
    figures.add("the same without a prefix cache", "useful/s", rates["none"])
    figures.add("labelling through the prefix cache over independent prompts", "times", ratios(rates["cache"], rates["none"]), ">= 2")
    figures.add("tokens of prompts over those that the cache left to compute", "times", shares)


def _prompt_tokens(policy: ServerProcess) -> tuple[float, float]:
    """Tokens of prompts so far that the prefix cache had, and those that it had not."""
    return policy.metric("accord_policy_prefix_tokens_total", found="yes"), policy.metric("accord_policy_prefix_tokens_total", found="no")


def ledger(figures: Figures, folder: Path, rounds: int) -> None:
    """Milliseconds a judgement: transactions alone, and everything beside the judge."""
    alone, looked_up, whole = [], [], []
    for number in range(rounds):
        opened = Ledger(folder / f"alone-{number}.sqlite")
        questions = [_question(place) for place in range(SCRIPTED_PAIRS)]
        batches = [questions[start : start + BATCH] for start in range(0, SCRIPTED_PAIRS, BATCH)]
        answer, origin = Answer(0.7, -0.4, -1.1, prompt_tokens=900, response_tokens=2), Origin("benchmark", "labelJobs/benchmark")
        writes = [[(question, answer, origin) for question in batch] for batch in batches]
        alone.append(1000 * seconds(lambda: [opened.append_judgements(rows) for rows in writes]) / SCRIPTED_PAIRS)  # noqa: B023
        looked_up.append(1000 * seconds(lambda: [opened.find([each.key for each in batch]) for batch in batches]) / SCRIPTED_PAIRS)  # noqa: B023
        opened.close()
        judge = FakeJudge()
        try:
            job, took = labelled(folder, judge.address, scripted(), f"whole-{number}")
            whole.append(1000 * took / (2 * job.done_pairs))
        finally:
            judge.stop()
    figures.add(f"the ledger alone: {BATCH} judgements made durable at once", "ms each", alone)
    figures.add(f"the ledger alone: {BATCH} judgements looked up at once", "ms each", looked_up)
    figures.add(f"a job of {SCRIPTED_PAIRS} pairs, both orders, whose judge answers at once", "ms each", whole)


def resume(figures: Figures, folder: Path, rounds: int) -> None:
    """A kill in the middle of a job, the next start, and a second job over the same pairs."""
    starts, waits, known = [], [], []
    for number in range(rounds):
        judge, place = FakeJudge(), folder / f"resume-{number}"
        place.mkdir()
        spec = _spec(place, scripted(), "job-1")
        try:
            with _feedback(place, judge.address) as server, _client(server) as feedback:
                feedback.create_label_job(spec)
                eventually(lambda: len(judge.answered) >= SCRIPTED_PAIRS, timeout_seconds=120)  # noqa: B023
                server.signal(signal.SIGKILL)
                server.wait(10)
            eventually(lambda: judge.waiting == 0)  # noqa: B023
            before, began = len(judge.answered), time.perf_counter()
            with _feedback(place, judge.address) as server, _client(server) as feedback:
                starts.append(time.perf_counter() - began)
                eventually(lambda: len(judge.answered) > before, timeout_seconds=60)  # noqa: B023
                waits.append(time.perf_counter() - began)
                _ended(feedback, "labelJobs/job-1")
                second = _spec(place, scripted(), "job-2")
                began = time.perf_counter()
                feedback.create_label_job(second)
                job = _ended(feedback, "labelJobs/job-2")
                known.append(job.done_pairs / (time.perf_counter() - began))
                assert job.tokens == 0, "a second job bought what was known"
        finally:
            judge.stop()
    figures.add(f"a server killed in a job of {SCRIPTED_PAIRS} pairs: from its next start to SERVING", "s", starts)
    figures.add("from its next start to the next question", "s", waits)
    figures.add("a second job over the same pairs, all known", "pairs/s", known)


def labelled(folder: Path, policy: str, rows: tuple[PreferencePair, ...], name: str, rubric: str = "") -> tuple[LabelJob, float]:
    """A whole job in a ledger of its own, and its seconds from creation to output."""
    place = folder / name
    place.mkdir()
    with _feedback(place, policy) as server, _client(server) as feedback:
        began = time.perf_counter()
        job = feedback.create_label_job(_spec(place, rows, "job", rubric))
        job = _ended(feedback, job.name)
        return job, time.perf_counter() - began


def scripted() -> tuple[PreferencePair, ...]:
    """Pairs of a few words for a judge that answers at once."""
    return tuple(
        PreferencePair(f"p{n:05}", TASK, (Message("user", f"question {n}"),), f"good answer {n}", f"another one, {n}", 1.0, f"g{n}")
        for n in range(SCRIPTED_PAIRS)
    )


def _question(place: int) -> Question:
    judge = JudgeIdentity("benchmark", ModelDigests("b" * 64, "t" * 64, "c" * 64))
    return Question(
        "verdict", TASK, (Message("user", f"question {place}"),), "one answer " * 30, "other " * 30, default_rubric(TASK, "verdict"), judge
    )


def _spec(place: Path, rows: tuple[PreferencePair, ...], name: str, rubric: str = "") -> LabelJobSpec:
    write_pairs(place / f"{name}.jsonl", rows)
    return LabelJobSpec(name, str(place / f"{name}.jsonl"), rows[0].task, str(place / f"{name}-out"), judge=Judge("verdict", rubric=rubric))


def _ended(feedback: FeedbackClient, name: str) -> LabelJob:
    job = list(feedback.watch_label_job(name, timeout_seconds=1800))[-1]
    if job.state != "succeeded":
        raise SystemExit(f"{name} has {job.state}: {job.message}")
    return job


def _client(server: ServerProcess) -> FeedbackClient:
    return FeedbackClient(ChannelConfig(address=server.address, attempts=1))


def _feedback(place: Path, policy: str) -> ServerProcess:
    config = {"policy": policy, "ledger": str(place / "ledger.sqlite"), "jobs": str(place / "jobs"), "batch_pairs": BATCH}
    return ServerProcess("accord.feedback", config, place)


def _policy(folder: Path, **fields: Any) -> ServerProcess:
    return ServerProcess("accord.policy", {"base_model": "embedded", "artefacts": str(folder / "artefacts"), "threads": THREADS, **fields}, folder)


if __name__ == "__main__":
    main()
