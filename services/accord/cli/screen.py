"""What a person looks at while a run goes on: state, progress and time left, curves, where the time goes, alarms, the latest messages.

Pure layout with rich: a picture of what is known. What does not belong here: events (`accord.cli.following`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from accord.cli.curves import KEY_CURVES, Curves, sparkline
from accord.cli.metrics import ordered
from accord.cli.output import console, harmless, number_text, print_table, seconds_text
from accord.study.frontier import frontier

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table
    from rich.text import Text

    from accord.client.trainer import RunEvent

_ALARM = "alarm:"
_ALARMS, _MESSAGES = 3, 3
_PHASE_STYLES: Mapping[str, str] = {"rollout": "cyan", "score": "blue", "train": "green", "evaluate": "magenta", "checkpoint": "yellow"}
_STATE_STYLES: Mapping[str, str] = {"running": "green", "succeeded": "bold green", "failed": "bold red", "cancelled": "yellow"}
_BAR = 30
_QUIET_SECONDS = 15.0


@dataclass
class Alarm:
    """An alarm with the step at which it was last given and how often; numbers in its text change from time to time."""

    step: int
    text: str
    count: int = 1


@dataclass
class Screen:
    """What is known of a run; a rich renderable."""

    name: str
    algorithm: str = ""
    state: str = "queued"
    phase: str = ""
    waiting_on: str = ""
    step: int = 0
    total: int = 0
    quiet_seconds: float = 0.0
    curves: Curves = field(default_factory=Curves)
    checkpoints: set[int] = field(default_factory=set)
    alarms: dict[str, Alarm] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def take(self, event: RunEvent) -> None:
        """Takes note of an event."""
        self.quiet_seconds = event.idle_seconds or 0.0
        if event.message:
            self.note(event.message)
        elif event.metrics is not None:
            self.step = event.step
            self.curves.add(event.step, event.metrics, at=event.time)
        elif event.run is not None:
            run = event.run
            self.algorithm, self.state, self.phase, self.waiting_on = run.spec.algorithm, run.state, run.phase, run.waiting_on
            self.step, self.total = max(run.step, 0), run.total_steps
            self.curves.reward_moves = run.spec.ppo is not None and run.spec.ppo.reward_moves
            if run.state == "checkpointing":
                self.checkpoints.add(run.step)

    def note(self, text: str) -> None:
        """Takes note of a message; an alarm of a kind that is known already replaces that one."""
        if not text.startswith(_ALARM):
            self.messages = [*self.messages, text][-_MESSAGES:]
            return
        words = text.removeprefix(_ALARM).strip()
        kind = " ".join(word for word in words.split() if not any(letter.isdigit() for letter in word))
        known = self.alarms.pop(kind, None)
        self.alarms[kind] = Alarm(self.step, words, known.count + 1 if known else 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The picture, in the width that there is."""
        from rich.text import Text

        blank = Text("")
        for part in (
            self._head(),
            self._progress(options),
            self._waiting(),
            blank,
            *self._curves(options),
            *self._phases(),
            *self._alarms(),
            *self._news(),
        ):
            if part is not None:
                yield part

    def _head(self) -> RenderableType:
        from rich.text import Text

        text = Text.assemble((harmless(self.name), "bold"), "  ", self.algorithm.upper().replace("_", " "), "  ")
        text.append(self.state, _STATE_STYLES.get(self.state, "cyan"))
        if self.phase:
            text.append(f", {harmless(self.phase)}", "cyan")
        if self.quiet_seconds > _QUIET_SECONDS:
            text.append(f"  no sign of it for {seconds_text(self.quiet_seconds)}", "yellow")
        return text

    def _progress(self, options: ConsoleOptions) -> RenderableType:
        from rich.text import Text

        share = min(1.0, self.step / self.total) if self.total else 0.0
        full, empty = ("#", "-") if options.ascii_only else ("█", "░")
        filled = round(share * _BAR)
        text = Text.assemble((full * filled, "green"), (empty * (_BAR - filled), "dim"), f"  step {self.step}")
        if self.total:
            text.append(f" of {self.total}, {share:.0%}")
        seconds = self.curves.seconds_per_step()
        if seconds is not None:
            text.append(f"   {seconds_text(seconds)} a step")
            if self.total > self.step and self.state not in ("succeeded", "failed", "cancelled"):
                text.append(f"   {_about(seconds * (self.total - self.step))} left", "bold")
        return text

    def _waiting(self) -> RenderableType | None:
        from rich.text import Text

        return Text(f"waits for {harmless(self.waiting_on)}", "bold yellow") if self.waiting_on else None

    def _curves(self, options: ConsoleOptions) -> Iterable[RenderableType]:
        names = [name for name in KEY_CURVES if name in self.curves.values]
        if names:
            yield curve_table(self.curves, names, options)

    def _phases(self) -> Iterable[RenderableType]:
        from rich.text import Text

        seconds = self.curves.phase_seconds()
        total = sum(seconds.values())
        if not total:
            return
        text = Text("\ntime  ")
        for phase, spent in seconds.items():
            if spent < 0.005 * total:
                continue
            text.append(f"{phase} {spent / total:.0%}", _PHASE_STYLES[phase])
            text.append("   ")
        yield text

    def _alarms(self) -> Iterable[RenderableType]:
        from rich.text import Text

        if self.alarms or self.messages:
            yield Text("")
        for alarm in list(self.alarms.values())[-_ALARMS:]:
            times = f", {alarm.count} times" if alarm.count > 1 else ""
            yield _bullet("!", f"step {alarm.step}{times}: {alarm.text}", "bold red", "red")

    def _news(self) -> Iterable[RenderableType]:
        for message in self.messages:
            yield _bullet("·", message, "dim", "dim")


def print_curves(curves: Curves) -> None:
    """Writes all curves on stdout, those that a person wants to see first; as bars where that is a terminal."""
    out = console()
    names = [name for name, _ in ordered(curves.latest())]
    out.print(curve_table(curves, names, out.options, bars=out.is_terminal))


def print_frontier(screen: Screen) -> None:
    """Writes reward against KL over the checkpoints of a run with rollouts; nothing for another."""
    points = frontier(screen.curves.by_step(), screen.checkpoints)
    if len(points) < 2:
        return
    rows = [(point.step, _short(point.kl), _short(point.score), "" if point.held_out is None else _short(point.held_out)) for point in points]
    print_table(("step>", "kl>", "score>", "held-out>"), rows, title="reward against KL, of the policy after so many steps on its own rollouts")


def curve_table(curves: Curves, names: Iterable[str], options: ConsoleOptions, *, bars: bool = True) -> Table:
    """Curves with their first, last and best values, as `bars` of the width that there is."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    width = max(8, min(60, options.max_width - 64))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim")
    table.add_column("" if bars else "metric")
    if bars:
        table.add_column("", no_wrap=True)
    for column in ("first", "last", "best"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in names:
        found = curves.extremes(name)
        best = "" if found.best is None else f"{_short(found.best)} at {found.best_step}"
        line = [Text(sparkline(curves.line(name), width, ascii_only=options.ascii_only), "cyan")] if bars else []
        table.add_row(name, *line, _short(found.first), Text(_short(found.last), "bold"), Text(best, "dim"))
    return table


def _about(seconds: float) -> str:
    """A time for people that nobody takes to the second."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(value: float) -> str:
    """A metric in three significant digits."""
    return number_text(float(f"{value:.3g}"))


def _bullet(mark: str, text: str, mark_style: str, style: str) -> Table:
    """A paragraph behind a mark, indented where it folds."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark, mark_style), _folding(harmless(text), style))
    return grid


def _folding(text: str, style: str) -> Text:
    from rich.text import Text

    return Text(text, style, overflow="fold")
