"""Following a run to its end: its events, over breaks of the connection, as a view on a terminal or as lines.

What does not belong here: commands (`train`, `watch`, `resume` beside this file), which say what to follow.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer

from accord.cli.connect import command
from accord.cli.failures import FAILED
from accord.cli.metrics import held_out_line, in_a_line, ordered
from accord.cli.output import harmless, print_json, print_line, print_table, seconds_text
from accord.cli.progress import ProgressBar
from accord.cli.screen import Screen, print_curves, print_frontier
from accord.errors import AccordError, DeadlineExceededError, UnavailableError

if TYPE_CHECKING:
    from rich.live import Live

    from accord.client.trainer import Run, RunEvent, TrainerClient

_STREAM_SECONDS = 3000.0
_PAUSE_SECONDS = 0.5
_PATIENCE = 5
_LOG_LINES, _LOG_SECONDS = 20, 30.0


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


@dataclass(frozen=True, slots=True)
class Followed:
    """A run as it was last seen, its curves, the alarms that it gave, and the end of its log where it failed."""

    run: Run
    screen: Screen
    log: tuple[str, ...] = ()


def follow(client: TrainerClient, name: str, home: Path, *, events_as_json: bool = False, timeout_seconds: float | None = None) -> Followed:
    """Shows a run on stderr (or each event as a line of JSON on stdout) until it has ended; returns what was seen.

    Interrupting the command leaves the run alone, and says so, with the commands that reach it in this workspace.
    """
    final: Run | None = None
    screen = Screen(name)
    try:
        with RunView(screen) as view:
            for event in run_events(client, name, timeout_seconds=timeout_seconds):
                final = event.run or final
                view.show(event)
                if events_as_json:
                    print_json({key: value for key, value in _event_fields(event).items() if value is not None}, indent=None)
    except KeyboardInterrupt:
        again, end = command(f"watch {name}", home), command(f"cancel {name}", home)
        sys.stderr.write(f"{name} goes on; `{again}` shows it again, `{end}` stops it\n")
        raise
    if final is None:
        raise UnavailableError(f"the trainer said nothing about {name}")
    return Followed(final, screen, _end_of_log(client, name) if final.state == "failed" else ())


def _end_of_log(client: TrainerClient, name: str) -> tuple[str, ...]:
    """The last lines that a run has printed, which may be on a volume that only the trainer sees; none where there is no log to be had."""
    try:
        text = client.read_run_file(name, "log.txt", timeout_seconds=_LOG_SECONDS).decode(errors="replace")
    except AccordError:
        return ()  # why the run failed is in its message
    return tuple(harmless(line) for line in text.splitlines()[-_LOG_LINES:])


class RunView(contextlib.AbstractContextManager["RunView"]):
    """What a person sees of a run while it goes on: the screen on a terminal, gone at the end; lines elsewhere, with each message and alarm."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._live: Live | None = None
        self._lines: ProgressBar | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(get_renderable=lambda: self._screen, console=Console(file=sys.stderr), transient=True, refresh_per_second=2)
            self._live.start()
        else:
            self._lines = ProgressBar(self._screen.name)
            self._lines.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        if self._lines is not None:
            self._lines.__exit__(kind, error, trace)

    def show(self, event: RunEvent) -> None:
        """Takes note of an event."""
        self._screen.take(event)
        if self._lines is None:
            return
        if event.message:
            self._lines.note(event.message)
        else:
            screen = self._screen
            waiting = f", waiting for {screen.waiting_on}" if screen.waiting_on else ""
            state = f"{screen.state}{f', {screen.phase}' if screen.phase else ''}{waiting}"
            text = "  ".join(part for part in (state, in_a_line(screen.curves.latest())) if part)
            self._lines.set(screen.step, total=screen.total or None, text=text)


def show_end(found: Followed, *, then: Callable[[Run], str]) -> None:
    """Prints how a run ended; ends the command with exit code 1 where it did not succeed."""
    run, curves = found.run, found.screen.curves
    started = run.start_time or run.create_time
    took = run.end_time - started if run.end_time is not None and started is not None else None
    print_line(f"{run.name} {run.state} after {run.step} of {run.total_steps} steps, {seconds_text(took)}")
    if curves.values:
        print_curves(curves)
        print_frontier(found.screen)
    elif run.metrics:
        print_table(("metric", "value>"), ordered(run.metrics))
    for alarm in found.screen.alarms.values():
        print_line(f"alarm at step {alarm.step}{f', {alarm.count} times' if alarm.count > 1 else ''}: {alarm.text}")
    if run.state != "succeeded":
        sys.stderr.writelines(f"| {line}\n" for line in found.log)
        sys.stderr.write(f"{run.message or 'no reason is known'}; its log: {run.directory}/log.txt\n")
        raise typer.Exit(FAILED)
    if run.step < run.total_steps and run.message:
        print_line(run.message)
    if said := held_out_line(run.metrics):
        print_line(said)
    if run.adapter_version:
        print_line(f"published {run.adapter_version}")
        sys.stderr.write(f"next: {then(run)}\n")


def _event_fields(event: RunEvent) -> dict[str, object]:
    kind = "run" if event.run else "metrics" if event.metrics is not None else "message" if event.message else "heartbeat"
    return {
        "event": kind, "time": event.time, "step": event.step if kind == "metrics" else None, "run": event.run, "metrics": event.metrics,
        "message": event.message or None, "idle_seconds": event.idle_seconds, "resume_token": event.resume_token,
    }  # fmt: skip
