"""`accord generate`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.connect import local_command, reach
from accord.cli.failures import advice
from accord.cli.options import DEFAULT_HOME, Home, Json, PolicyAddress, Timeout
from accord.cli.output import print_json, print_line, print_text
from accord.cli.progress import ProgressBar
from accord.cli.prompts import PromptTask, PromptText, System, conversation, read_text
from accord.errors import NotFoundError
from accord.text.tasks import Task

if TYPE_CHECKING:
    from accord.client.policy import Sample, StreamEvent


def generate(
    prompt: PromptText,
    adapter: Annotated[
        str, typer.Option("--adapter", metavar="NAME", help="adapters/x/versions/1, or adapters/x for its newest.", show_default=False)
    ] = "",
    samples: Annotated[int, typer.Option("-n", "--samples", min=1, help="Responses to sample.")] = 1,
    temperature: Annotated[float | None, typer.Option("--temperature", help="0 is greedy.", show_default="1")] = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Longest response.", show_default="128")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Nucleus.", show_default="1")] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Only the k likeliest tokens; 0 is all.", show_default="0")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="The same seed gives the same text.", show_default="by the server")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="Ends a response; may be repeated.")] = None,
    system: System = "",
    task: PromptTask = Task.CONVERSATION,
    raw: Annotated[bool, typer.Option("--raw", help="Give the text to the model as it is, without chat template.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Show text as it is decoded; with --json, one event a line.")] = False,
    policy: PolicyAddress = None,
    home: Home = DEFAULT_HOME,
    timeout: Timeout = 120.0,
    as_json: Json = False,
) -> None:
    """Answers a prompt, with the bare base model or an adapter.

    \b
    Example:
        accord generate "Say hello" --adapter adapters/x/versions/1 -n 2 --temperature 0 --stream
        cat post.txt | accord generate - --task summarization --json
    """
    from accord.client.policy import GenerateItem, PolicyClient, Sampling

    form = read_text(prompt, "prompt") if raw else conversation(prompt, system=system, task=task)
    sampling = Sampling(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, stop=tuple(stop or ()), seed=seed
    )  # fmt: skip
    items = [GenerateItem(form, sampling, samples)]
    listing = f"`{local_command('lineage', home)}` lists the adapters"
    with reach("policy", home, policy, timeout) as target, PolicyClient(target) as client, advice(NotFoundError, text=listing):
        if stream:
            _show_stream(client.generate_stream(items, adapter=adapter, timeout_seconds=timeout), samples, as_json=as_json)
            return
        with ProgressBar("generating"):
            reply = client.generate(items, adapter=adapter, timeout_seconds=timeout)
        result = reply.results[0]
        if result.error is not None:
            raise result.error
    if as_json:
        print_json(reply)
        return
    for sample in result.samples:
        print_line(_headed(sample, samples))
        _note_length(sample)


def _show_stream(events: Iterable[StreamEvent], samples: int, *, as_json: bool) -> None:
    """Text of one sample as it comes; several samples each when it is complete."""
    for event in events:
        if event.error is not None:
            raise event.error
        if as_json:
            print_json(event, indent=None)
        elif samples == 1 and event.text:
            print_text(event.text)
        elif event.sample is not None:
            print_line(_headed(event.sample, samples) if samples > 1 else "")
            _note_length(event.sample)


def _headed(sample: Sample, samples: int) -> str:
    return sample.text if samples == 1 else f"[{sample.index}] {sample.text}"


def _note_length(sample: Sample) -> None:
    if sample.finish_reason == "length":
        sys.stderr.write(f"note: sample {sample.index} stopped after {len(sample.token_ids)} tokens; --max-tokens allows more\n")
