"""`accord label`."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.cards import show_cards, show_label
from accord.cli.connect import command, reach
from accord.cli.failures import FAILED, advice
from accord.cli.labelling import JobPace, absolute_output, absolute_source, create_job, job_states, read_candidates, request_id_of
from accord.cli.options import DEFAULT_HOME, FeedbackAddress, Home, Json
from accord.cli.output import print_json, print_line, time_text
from accord.cli.progress import ProgressBar
from accord.cli.prompts import conversation
from accord.errors import InvalidArgumentError, NotFoundError
from accord.text.tasks import Task

if TYPE_CHECKING:
    from accord.client.feedback import FeedbackClient, Judge, LabelJob

_CALL_SECONDS = 120.0


def label(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="Pairs: sample:summarization, a file, or hub:NAME. Not with --prompt.", show_default=False)
    ] = "",
    task: Annotated[Task | None, typer.Option("--task", help="What the responses are meant to do.", show_default=False)] = None,
    kind: Annotated[str, typer.Option("--kind", help="likelihood, verdict or rating; default: the service's.")] = "default",
    output: Annotated[
        str,
        typer.Option("--output", metavar="FOLDER", help="For labels.jsonl, card.json and card.html: a folder, or s3://, gs://.", show_default=False),
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=0, help="Most pairs; 0 is all.")] = 0,
    split: Annotated[str, typer.Option("--split", help="Split of the data.")] = "train",
    data_format: Annotated[str, typer.Option("--format", help="Format of the data; default: found out.", show_default=False)] = "",
    rubric: Annotated[str, typer.Option("--rubric", metavar="ID", help="For verdict and rating; default: the task's.", show_default=False)] = "",
    judge_name: Annotated[str, typer.Option("--judge", metavar="NAME", help="A judge of the service's configuration.", show_default=False)] = "",
    adapter: Annotated[str, typer.Option("--adapter", metavar="NAME", help="Adapter of the judge.", show_default=False)] = "",
    rationale: Annotated[bool, typer.Option("--rationale", help="Have the judge give reasons before its verdict.")] = False,
    samples: Annotated[int, typer.Option("--samples", min=1, max=64, help="Self-consistency: rationales sampled for each verdict.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which pairs a limit takes, and which response is A.")] = 0,
    candidates: Annotated[
        str,
        typer.Option(
            "--candidates",
            metavar="KEY=VALUE,...",
            help="Sample the pairs from the data's prompts: adapter_a, adapter_b, temperature_a, temperature_b, best_of, reward_model, max_tokens.",
            show_default=False,
        ),
    ] = "",
    max_cost: Annotated[float, typer.Option("--max-cost", min=0, help="Money that the job may spend; 0 is no limit.")] = 0.0,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=0, help="Judge's tokens that the job may spend; 0 is no limit.")] = 0,
    max_rate: Annotated[float, typer.Option("--max-rate", metavar="N", min=0, help="Most judgements asked for in a second; 0 is no limit.")] = 0.0,
    concurrency: Annotated[int | None, typer.Option("--concurrency", min=1, max=1024, help="Pairs judged at once.", show_default=False)] = None,
    attacks: Annotated[int, typer.Option("--attacks", min=0, max=10000, help="Attacked twins of pairs to judge besides.")] = 0,
    repeats: Annotated[int, typer.Option("--repeats", min=0, max=10000, help="Pairs to judge a second time, to see how often the label stays.")] = 0,
    prompt: Annotated[str, typer.Option("--prompt", help="Label one pair: its prompt (a post, for summarization).", show_default=False)] = "",
    response_a: Annotated[str | None, typer.Option("--a", help="The pair's first response.", show_default=False)] = None,
    response_b: Annotated[str | None, typer.Option("--b", help="The pair's second response.", show_default=False)] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait; the job goes on by itself.")] = False,
    feedback: FeedbackAddress = None,
    home: Home = DEFAULT_HOME,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", min=1, help="Longest wait; the job goes on.")] = None,
    as_json: Json = False,
) -> None:
    """Has a judge label a data set, or one pair.

    Shows, for a data set, how far to trust the labels. The same command again goes on where it stopped, and a judgement that was paid for is never
    bought twice. Interrupting it cancels the job; what was judged is kept. At --max-cost or --max-tokens it ends with what it has, and the same
    command with a higher one goes on.

    \b
    Example:
        accord label sample:summarization --task summarization --kind likelihood --limit 20 --output labels/
        accord label pairs.jsonl --task conversation --kind verdict --max-tokens 2000000 --max-rate 20 --output labels/
        accord label sample:conversation --task conversation --candidates temperature_a=0.3,temperature_b=1.0 --output labels/
        accord label --task conversation --prompt "Name a river." --a "The Danube." --b "No."
    """
    from accord.client.feedback import FeedbackClient, Judge

    if task is None:
        raise InvalidArgumentError(f"say what the responses are meant to do: {' or '.join(Task)}", field="--task")
    judge = Judge(
        kind=kind, rubric=rubric, adapter=adapter, rationale=rationale or None, name=judge_name,  # type: ignore[arg-type]
        consistency_samples=samples if samples > 1 else None,
    )  # fmt: skip
    with reach("feedback", home, feedback, _CALL_SECONDS) as target, FeedbackClient(target) as client:
        if prompt or response_a is not None or response_b is not None:
            _one_pair(client, task, judge, (dataset, prompt, response_a, response_b), timeout, as_json=as_json)
            return
        if not dataset or not output:
            raise InvalidArgumentError("give DATASET and --output, or --prompt, --a and --b", field="DATASET")
        from accord.client.feedback import LabelJobSpec, LabelLimits

        spec = LabelJobSpec(
            "", absolute_source(dataset), task, absolute_output(output), data_format, split, limit, judge, seed,
            limits=LabelLimits(max_cost, max_tokens, max_rate, concurrency), candidates=read_candidates(candidates), attacks=attacks,
            repeats=repeats,
        )  # fmt: skip
        job = create_job(client, spec, request_id_of(spec))
        if job.state == "succeeded":
            _say_it_is_done(job)
        if detach:
            print_json(job) if as_json else print_line(job.name)
            return
        job = _follow(client, job, timeout)
        _end(client, job, home, as_json=as_json)


def _one_pair(
    client: FeedbackClient, task: Task, judge: Judge, given: tuple[str, str, str | None, str | None], timeout: float | None, *, as_json: bool
) -> None:
    from accord.client.feedback import LabelPairItem

    dataset, prompt, response_a, response_b = given
    if dataset or not prompt or response_a is None or response_b is None:
        raise InvalidArgumentError("one pair needs --prompt, --a and --b, and no DATASET", field="--prompt")
    pair = LabelPairItem(task, conversation(prompt, task=task), response_a, response_b, uuid.uuid4().hex)
    with ProgressBar("judging"):
        found = client.label_pair(pair, judge, timeout_seconds=timeout)
    if as_json:
        print_json(found)
    else:
        show_label(found)


def _say_it_is_done(job: LabelJob) -> None:
    """That nothing is judged, and, where another judge or other candidates would be asked by now, that the labels are of the first ones."""
    sys.stderr.write(f"{job.name} has labelled this before (begun {time_text(job.create_time)}); nothing is judged again\n")
    if job.message:
        sys.stderr.write(f"{job.message}: its labels are as they were; another --output has the data labelled as it is now\n")


def _held_out(source: str) -> str:
    """The setting that measures on held-out pairs of where the labelled ones come from, where it is known that there are some, or on none."""
    return f" --set reward_model.eval_data.uri={source}" if source.startswith("sample:") else " --set reward_model.eval_data=null"


def _follow(client: FeedbackClient, job: LabelJob, timeout: float | None) -> LabelJob:
    """Shows a job's progress until it ends; interrupting cancels it."""
    last, pace = job, JobPace()
    try:
        with ProgressBar("labelling", job.total_pairs or None) as bar:
            for now in job_states(client, job, timeout_seconds=timeout):
                last = now
                known = f", {now.cached_judgements} known already" if now.cached_judgements else ""
                waiting = f", {now.message}" if now.message and not now.ended else ""
                cost = f", {now.cost:.4g} spent" if now.cost else ""
                rate = f"{speed}, " if (speed := pace.of(now)) else ""
                text = f"{rate}{now.abstained_pairs} abstained, {now.tokens} tokens{cost}{known}{waiting}"
                bar.set(now.done_pairs, total=now.total_pairs or None, text=text)
    except KeyboardInterrupt:
        client.cancel_label_job(job.name)
        sys.stderr.write(f"{job.name} is cancelled; what was judged is kept: the same command goes on from there\n")
        raise
    return last


def _end(client: FeedbackClient, job: LabelJob, home: Path, *, as_json: bool) -> None:
    with advice(NotFoundError, text="the job has no label"):
        cards = client.label_cards(job=job.name) if job.done_pairs else ()
    if as_json:
        print_json({"job": job, "cards": cards})
    else:
        show_cards(cards)
        for reason, count in job.rejected_rows.items():
            print_line(f"{count} rows were not used: {reason}")
        print_line(f"{job.done_pairs} of {job.total_pairs} pairs labelled, {job.abstained_pairs} abstentions: {job.state}")
    if job.state != "succeeded":
        sys.stderr.write(f"{job.message}\n")
        raise typer.Exit(FAILED)
    if not as_json:
        print_line(f"{job.dataset_uri}\n{job.card_uri}\n{job.card_uri.removesuffix('json')}html")
        recipe = f"train reward-model --set reward_model.data.uri={job.dataset_uri}{_held_out(job.source_uri)}"
        sys.stderr.write(f"next: {command(recipe, home)}\n")
