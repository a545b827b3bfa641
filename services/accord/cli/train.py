"""`accord train`."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.connect import command, reach
from accord.cli.failures import FAILED, advice
from accord.cli.following import Followed, follow, show_end
from accord.cli.options import DEFAULT_HOME, Home, Json, TrainerAddress
from accord.cli.output import print_json, print_line, print_table, seconds_text, size_text
from accord.cli.progress import ProgressBar
from accord.cli.recipes import load_train_recipe
from accord.errors import DeadlineExceededError

if TYPE_CHECKING:
    from accord.client.trainer import Run, RunPlan, TrainerClient
    from accord.runspec import RunSpec

_PLAN_SECONDS = 120.0


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file, or one that comes with Accord: sft, reward-model (or reward), dpo, online-dpo, ppo, ppo-rating-judge, grpo, rloo.",
            show_default=False,
        ),
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Sets a field of the recipe, for example lora.rank=8; may be repeated.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait; the run goes on by itself.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what the run would need; exit code 1 where it does not fit.")] = False,
    request_id: Annotated[
        str | None, typer.Option("--request-id", metavar="ID", help="The same id never starts a second run.", show_default="a new one")
    ] = None,
    trainer: TrainerAddress = None,
    home: Home = DEFAULT_HOME,
    timeout: Annotated[float | None, typer.Option("--timeout", metavar="SECONDS", min=1, help="Longest wait for the end; the run goes on.")] = None,
    as_json: Json = False,
) -> None:
    """Starts a training run and follows it to its end.

    Interrupting the command leaves the run alone. Exit code 1 where it does not succeed.

    \b
    Example:
        accord train sft --set steps=5
        accord train reward-model --set parent_adapter=adapters/sft --set steps=10 --detach
        accord train recipe.yaml --plan
    """
    from accord.client.trainer import TrainerClient

    spec = load_train_recipe(recipe, settings or ())
    with reach("trainer", home, trainer, _PLAN_SECONDS) as target, TrainerClient(target) as client:
        if plan:
            _plan(client, spec, as_json=as_json)
            return
        run = _create(client, spec, request_id or uuid.uuid4().hex, home)
        if detach:
            _detached(run, home, as_json=as_json)
            return
        sys.stderr.write(f"{run.name} in {run.directory}\n")
        found = follow(client, run.name, home, timeout_seconds=timeout)
    finish(found, home, as_json=as_json)


def _create(client: TrainerClient, spec: RunSpec, request_id: str, home: Path) -> Run:
    """The run; where the trainer answers too late, which may have created it all the same, the error says how no second one comes of it."""
    what = f"`{command('runs', home)}` shows whether the run was created; the same command with --request-id {request_id} starts no second one"
    with advice(DeadlineExceededError, text=what):
        return client.create_run(spec, request_id)


def finish(found: Followed, home: Path, *, as_json: bool) -> None:
    """Shows how a run ended; exit code 1 where it did not succeed."""
    if as_json:
        print_json(found.run)
        if found.run.state != "succeeded":
            raise typer.Exit(FAILED)
        return
    show_end(found, then=lambda ended: what_next(ended, home))


def what_next(run: Run, home: Path) -> str:
    """A command that uses what a run has published."""
    if run.spec.algorithm == "reward_model":
        return command(f'score "A prompt" "A response" --reward-model {run.adapter_version}', home)
    return command(f'generate "A prompt" --adapter {run.adapter_version}', home)


def _detached(run: Run, home: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(run)
        return
    print_line(run.name)
    sys.stderr.write(f"next: {command(f'watch {run.name}', home)}\n")


def _plan(client: TrainerClient, spec: RunSpec, *, as_json: bool) -> None:
    what = "nothing was created; a plan reads all of the data, for which a run without --plan does not wait"
    with ProgressBar("planning"), advice(DeadlineExceededError, text=what):
        plan = client.plan_run(spec)
    if as_json:
        print_json(plan)
    else:
        _show_plan(plan)
    if not plan.fits:
        raise typer.Exit(FAILED)


def _show_plan(plan: RunPlan) -> None:
    rows = [(item.role, size_text(item.bytes), item.arithmetic) for item in plan.memory]
    print_table(("memory", "size>", "arithmetic"), [*rows, ("all", size_text(plan.peak_memory_bytes), "")])
    print_line(f"{size_text(plan.available_memory_bytes)} are free: it {'fits' if plan.fits else 'does not fit'}; {plan.rows} rows of data")
    if plan.estimated_seconds is not None:
        step = "" if plan.step_seconds is None else f", {plan.step_seconds:.1f} s a step"
        print_line(f"about {seconds_text(plan.estimated_seconds)}{step}")
    for note in plan.notes:
        print_line(f"note: {note}")
    print_line(plan.manifest.rstrip())
