"""Progress on stderr: a bar on a terminal, a line now and then elsewhere.

What does not belong here: results (`accord.cli.output`).
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from accord.cli.output import harmless

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress

_LINE_SECONDS = 5.0
_NEWS_SECONDS = 1.0
_FIRST_SECONDS = 2.0


class ProgressBar(contextlib.AbstractContextManager["ProgressBar"]):
    """How far something is, while the block runs.

    On a terminal: a bar with the time it took so far, gone at the end. Elsewhere: a line every five
    seconds, or after a second where the text is new, and none in the first two seconds, so that quick commands are silent.

    Args:
        title: what goes on.
        total: how much there is to do; None where it is not known.
    """

    def __init__(self, title: str, total: float | None = None) -> None:
        self._title = title
        self._total = total
        self._done = 0.0
        self._text = self._said_text = ""
        self._started = self._said = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._live: Live | None = None
        self._bar: Progress | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._said = self._started + _FIRST_SECONDS - _LINE_SECONDS
        if sys.stderr.isatty():
            self._bar = _make_bar()
            self._bar.add_task(self._title, total=self._total, text="", count=self._count())
            self._live = _make_live(self._bar)
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._tick, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        if self._live is not None:
            self._live.stop()
        if self._thread is not None:
            self._thread.join()

    def set(
        self,
        done: float | None = None,
        *,
        total: float | None = None,
        text: str | None = None,
    ) -> None:
        """Takes note of how much is done, of how much there is, and of what goes on now."""
        with self._lock:
            self._done = self._done if done is None else done
            self._total = self._total if total is None else total
            self._text = self._text if text is None else harmless(text)
        if self._bar is not None:
            task = self._bar.tasks[0].id
            self._bar.update(task, completed=self._done, total=self._total, text=self._text, count=self._count())

    def note(self, line: str) -> None:
        """Writes a line that stays, at once."""
        if self._live is not None:
            self._live.console.print(harmless(line), markup=False, highlight=False, soft_wrap=True)
            return
        with self._lock:
            self._said = time.monotonic()
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def _tick(self) -> None:
        """Says now and then how it goes, where there is no bar."""
        while not self._over.wait(0.2):
            pause = _LINE_SECONDS if self._text == self._said_text else _NEWS_SECONDS
            now = time.monotonic()
            if now - self._started >= _FIRST_SECONDS and now - self._said >= pause:
                self._said_text = self._text
                self.note(self._line())

    def _line(self) -> str:
        count = f" {self._count()}" if self._total is not None else ""
        text = f": {self._text}" if self._text else ""
        return f"{self._title}{count}{text} ({time.monotonic() - self._started:.0f} s)"

    def _count(self) -> str:
        return "" if self._total is None else f"{self._done:g}/{self._total:g}"


def _make_bar() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )


def _make_live(bar: Progress) -> Live:
    from rich.console import Console
    from rich.live import Live

    return Live(bar, console=Console(file=sys.stderr), transient=True)
