"""`accord study`."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from accord.cli.connect import endpoints_file, endpoints_of
from accord.cli.failures import advice
from accord.cli.options import FeedbackAddress, Json, PolicyAddress, RewardAddress, TrainerAddress
from accord.cli.output import print_json, print_line, print_table, seconds_text
from accord.cli.progress import ProgressBar
from accord.errors import InvalidArgumentError, UnavailableError

if TYPE_CHECKING:
    from accord.client.endpoints import ServiceEndpoints
    from accord.study.runner import StudyPlan

_WINS = (("win_vs_sft", "wins vs SFT"), ("win_vs_reference", "wins vs reference"), ("kl", "KL to SFT"), ("response_tokens", "tokens"))
_ADVICE = "see `helm get notes RELEASE` for how to forward ports; called again, the study goes on where it stopped"


class Target(StrEnum):
    """Whose services a study calls."""

    LOCAL = "local"
    CLUSTER = "cluster"


def study(
    recipe: Annotated[str, typer.Option("--recipe", metavar="NAME|FILE", help="quick, dialogue, full, larger-judge or a YAML file.")] = "quick",
    home: Annotated[Path, typer.Option("--home", metavar="FOLDER", help="The workspace; results and report go there.")] = Path("study"),
    target: Annotated[
        Target,
        typer.Option("--target", help="local: the workspace's own services; cluster: services that run elsewhere (--endpoints)."),
    ] = Target.LOCAL,
    policy: PolicyAddress = None,
    reward: RewardAddress = None,
    feedback: FeedbackAddress = None,
    trainer: TrainerAddress = None,
    shared_folder: Annotated[
        str | None,
        typer.Option(
            "--shared-folder",
            metavar="PATH",
            show_default=False,
            help="With --target cluster: a folder for labels that feedback service and runs see at this path; default: the endpoints file's.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Instead of the recipe's.", show_default=False)] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would run and for how long.")] = False,
    keep_services: Annotated[bool, typer.Option("--keep-services", help="Leave the services running that this command started.")] = False,
    as_json: Json = False,
) -> None:
    """Compares human with AI feedback and PPO with DPO on summarization and conversation: labels, reward models, policies, a table and a report.

    It can be interrupted at any time: called again, it goes on where it stopped.

    \b
    Example:
        accord study --recipe quick --home demo
        accord study --recipe full --home study --plan
        accord study --recipe quick --home there --target cluster --endpoints endpoints.yaml
    """
    from accord.study.recipe import load_recipe
    from accord.study.runner import plan_study, run_study

    given = {"policy": policy, "reward": reward, "feedback": feedback, "trainer": trainer, "shared_folder": shared_folder}
    endpoints = _endpoints(target, {name: value for name, value in given.items() if value is not None}, keep_services=keep_services)
    wanted = load_recipe(recipe, seed=seed)
    planned = plan_study(wanted, home, endpoints=endpoints)
    if plan:
        print_json(planned) if as_json else _show_plan(planned)
        return
    left = [step for step in planned.steps if not step.done]
    sys.stderr.write(f"study {wanted.name}: {len(left)} of {len(planned.steps)} steps to do, about {seconds_text(planned.seconds)}; in {home}\n")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the services which this command started are stopped then, too
    with contextlib.nullcontext() if endpoints is None else advice(UnavailableError, text=_ADVICE), ProgressBar("study", len(planned.steps)) as bar:
        result = run_study(wanted, home, _Told(bar), endpoints=endpoints, keep_services=keep_services)
    if as_json:
        print_json({"results": result.results, "results_path": result.results_path, "report_path": result.report_path})
        return
    for task in result.results["tasks"]:
        _show_task(task)
    print_line(f"values with 95 % intervals, the curves and examples: {result.report_path}")
    print_line(f"every number: {result.results_path}")
    print_line(f"done in {seconds_text(result.seconds)}; {result.reused} of {len(planned.steps)} steps were there already")


def _endpoints(target: Target, given: Mapping[str, str], *, keep_services: bool) -> ServiceEndpoints | None:
    """Where the services are; None where the study starts its own.

    Raises:
        InvalidArgumentError: options of one target go with the other, or the endpoints file cannot be used.
    """
    if target is Target.LOCAL:
        for name in given:
            option = f"--{name.replace('_', '-')}"
            raise InvalidArgumentError(f"{option} goes with --target cluster; with --target local the study starts its own services", field=option)
        if endpoints_file() is not None:
            sys.stderr.write(f"note: {endpoints_file()} is for --target cluster; this study starts its own services\n")
        return None
    if keep_services:
        raise InvalidArgumentError("--keep-services goes with --target local; services of a cluster are not the study's", field="--keep-services")
    return endpoints_of(given)


class _Told:
    """Shows how a study goes on. Implements `accord.study.runner.Reporter`."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self._title = ""
        self._done = 0
        self._end: float | None = None
        self._known = 0

    def message(self, text: str) -> None:
        """A line that stays."""
        self._bar.note(text)

    def step(self, title: str, number: int, total: int, *, known: bool) -> None:
        """The next step."""
        self._done, self._title = number - 1, title
        self._known += known
        if not known:
            if self._known:
                self._bar.note(f"{self._known} steps were there already")
                self._known = 0
            self._bar.note(f"[{number}/{total}] {title}")
        self._show(0.0, "")

    def progress(self, fraction: float, text: str) -> None:
        """How far it is."""
        self._show(fraction, text)

    def remaining(self, seconds: float) -> None:
        """When it should be over."""
        self._end = time.monotonic() + seconds

    def _show(self, fraction: float, text: str) -> None:
        left = "" if self._end is None else f"; about {seconds_text(max(0.0, self._end - time.monotonic()))} left"
        detail = f": {text}" if text else ""
        self._bar.set(round(self._done + min(1.0, max(0.0, fraction)), 2), text=f"{self._title}{detail}{left}")


def _show_plan(planned: StudyPlan) -> None:
    rows = [(step.title, step.kind, "done" if step.done else seconds_text(step.seconds)) for step in planned.steps]
    print_table(("step", "kind", "time>"), rows, title=f"{planned.recipe.name}: {planned.recipe.description}")
    left = sum(not step.done for step in planned.steps)
    print_line(f"{left} of {len(planned.steps)} steps to do, about {seconds_text(planned.seconds)} on two cores")
    for note in planned.notes:
        print_line(f"note: {note}")
    if planned.judge_is_unknown:
        name = planned.recipe.judge.name
        print_line(f"nobody knows how long the judge {name} takes: it counts as if it were the policy; judge.seconds_per_pair says it in the recipe")


def _show_task(task: Mapping[str, Any]) -> None:
    from accord.study.published import METRIC_TITLES

    columns = ("arm", *(f"{title}>" for title in METRIC_TITLES.values()))
    rows = [(arm["arm"], *(_value(arm, name) for name in METRIC_TITLES)) for arm in task["arms"]]
    print_table(columns, rows, title=task["task"].capitalize())
    rewards = [name for name in ("score_human", "score_ai") if any(name in arm["metrics"] for arm in task["arms"])]
    held_out = [("win_by_score_held_out", "by held-out RM")] if any("win_by_score_held_out" in arm["metrics"] for arm in task["arms"]) else []
    more = [_WINS[0], *held_out, *_WINS[1:], *((name, name.replace("score_", "RM ")) for name in rewards)]
    rows = [(arm["arm"], *(_value(arm, name, interval=True) for name, _ in more), _training(arm)) for arm in task["arms"]]
    print_table(("arm", *(f"{title}>" for _, title in more), "training>"), rows)


def _value(arm: Mapping[str, Any], name: str, *, interval: bool = False) -> str:
    found = arm["metrics"].get(name)
    if not found or found["value"] is None:
        return "-"
    digits = 2 if interval else 4
    text = f"{found['value']:z.{digits}f}"
    return f"{text} [{found['low']:z.{digits}f}, {found['high']:z.{digits}f}]" if interval and found["low"] is not None else text


def _training(arm: Mapping[str, Any]) -> str:
    cost = arm["training"]
    return "-" if cost is None else seconds_text(cost["seconds"] + cost.get("reward_model_seconds", 0.0))
