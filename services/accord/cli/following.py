"""Following a run to its end: its events, over breaks of the connection, as a view on a terminal or as lines.

What does not belong here: commands (`train`, `watch`, `resume` beside this file), which say what to follow.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import typer

from accord.cli.failures import FAILED
from accord.cli.metrics import in_a_line, ordered
from accord.cli.output import print_json, print_line, print_table, seconds_text
from accord.cli.progress import ProgressBar
from accord.errors import DeadlineExceededError, UnavailableError

if TYPE_CHECKING:
    from accord.client.trainer import Run, RunEvent, TrainerClient

_STREAM_SECONDS = 3000.0
_PAUSE_SECONDS = 0.5
_PATIENCE = 5


def run_name(given: str) -> str:
    """The full name of a run that was given with or without ``runs/``."""
    return given if given.startswith("runs/") else f"runs/{given}"


def run_events(client: TrainerClient, name: str, *, timeout_seconds: float | None = None) -> Iterator[RunEvent]:
    """A run's events until it has ended, in order and each once, whatever breaks in between.

    A stream has a deadline, a trainer may be started again: the next stream goes on behind the last event. The state lines of a run that
    has ended carry its end already; only the last message, which has no phase, is the end.

    Raises:
        DeadlineExceededError: the run has not ended in time.
        UnavailableError: the trainer stays away.
        NotFoundError: there is no such run.
    """
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    token, fruitless = "", 0
    while True:
        left = _STREAM_SECONDS if deadline is None else min(_STREAM_SECONDS, deadline - time.monotonic())
        if left <= 0:
            raise DeadlineExceededError(f"{name} has not ended within {timeout_seconds:g} s; it goes on")
        before = token
        try:
            for event in client.watch_run(name, resume_token=token, timeout_seconds=left):
                token = event.resume_token or token
                yield event
                if event.run is not None and event.run.ended and not event.run.phase:
                    return
        except DeadlineExceededError:
            continue
        fruitless = fruitless + 1 if token == before else 0
        if fruitless > _PATIENCE:
            raise UnavailableError(f"the trainer ended the stream of {name} {fruitless} times without anything new")
        time.sleep(_PAUSE_SECONDS if fruitless else 0.0)


def follow(client: TrainerClient, name: str, *, events_as_json: bool = False, timeout_seconds: float | None = None) -> Run:
    """Shows a run on stderr (or each event as a line of JSON on stdout) until it has ended; returns it.

    Interrupting the command leaves the run alone, and says so.
    """
    final: Run | None = None
    try:
        with ProgressBar(name) as bar:
            view = RunView(bar)
            for event in run_events(client, name, timeout_seconds=timeout_seconds):
                final = event.run or final
                view.show(event)
                if events_as_json:
                    print_json({key: value for key, value in _event_fields(event).items() if value is not None}, indent=None)
    except KeyboardInterrupt:
        sys.stderr.write(f"{name} goes on; `accord watch {name}` shows it again, `accord cancel {name}` stops it\n")
        raise
    if final is None:
        raise UnavailableError(f"the trainer said nothing about {name}")
    return final


class RunView:
    """What a person sees of a run while it goes on: state, phase and what is waited for, steps, metrics; messages and alarms stay."""

    def __init__(self, bar: ProgressBar) -> None:
        self._bar = bar
        self._state = ""
        self._metrics: dict[str, float] = {}
        self._seen: set[str] = set()

    def show(self, event: RunEvent) -> None:
        """Takes note of an event."""
        if event.message:
            self._bar.note(event.message)
        elif event.metrics is not None:
            self._metrics |= event.metrics
            self._bar.set(event.step, text=self._text(), table=ordered(self._metrics))
        elif event.run is not None:
            run = event.run
            waiting = f", waiting for {run.waiting_on}" if run.waiting_on else ""
            self._state = f"{run.state}{f', {run.phase}' if run.phase else ''}{waiting}"
            self._bar.set(max(run.step, 0), total=run.total_steps or None, text=self._text())

    def _text(self) -> str:
        return "  ".join(part for part in (self._state, in_a_line(self._metrics)) if part)


def show_end(run: Run, *, then: Callable[[Run], str]) -> None:
    """Prints how a run ended; ends the command with exit code 1 where it did not succeed."""
    started = run.start_time or run.create_time
    took = run.end_time - started if run.end_time is not None and started is not None else None
    print_line(f"{run.name} {run.state} after {run.step} of {run.total_steps} steps, {seconds_text(took)}")
    if run.metrics:
        print_table(("metric", "value>"), ordered(run.metrics))
    if run.state != "succeeded":
        sys.stderr.write(f"{run.message or 'no reason is known'}; its log: {run.directory}/log.txt\n")
        raise typer.Exit(FAILED)
    if run.adapter_version:
        print_line(f"published {run.adapter_version}")
        sys.stderr.write(f"next: {then(run)}\n")


def _event_fields(event: RunEvent) -> dict[str, object]:
    kind = "run" if event.run else "metrics" if event.metrics is not None else "message" if event.message else "heartbeat"
    return {
        "event": kind, "time": event.time, "step": event.step if kind == "metrics" else None, "run": event.run, "metrics": event.metrics,
        "message": event.message or None, "idle_seconds": event.idle_seconds, "resume_token": event.resume_token,
    }  # fmt: skip
