"""What every benchmark shares: timing, figures with their spread, the machine they were taken on, and the JSON that `run.py` draws.

A figure is the median of its rounds with the lowest and highest. Compared things are measured in turn (A B A B ...), and the ratio is taken within
each round, so that it holds when the machine's speed drifts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity; `reach` says what was asked of it ("" where nothing was)."""

    name: str
    unit: str
    median: float
    low: float
    high: float
    rounds: int
    reach: str = ""


class Figures:
    """Collects figures and prints each as it comes."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._figures: list[Figure] = []
        self._machine = machine()
        print(f"{title}: {self._machine['cpu']}, {self._machine['cores']} cores")

    def add(self, name: str, unit: str, values: Sequence[float], reach: str = "") -> Figure:
        """Adds a figure out of one value a round."""
        figure = Figure(name, unit, statistics.median(values), min(values), max(values), len(values), reach)
        self._figures.append(figure)
        wanted = f"   asked for: {reach}" if reach else ""
        print(f"  {name:86} {figure.median:10.3f} {unit:9} ({figure.low:.3f} to {figure.high:.3f}, {len(values)} rounds){wanted}", flush=True)
        return figure

    def machine_figure(self, name: str, value: float) -> None:
        """Adds a property of the machine measured in this run."""
        self._machine[name] = value
        print(f"  machine: {name} {value:.4g}", flush=True)

    def rate(self, name: str) -> float:
        """A property of the machine measured before."""
        return float(self._machine[name])

    def write(self, path: Path | None) -> None:
        """Writes the JSON, where a file is asked for."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"title": self._title, "machine": self._machine, "figures": [asdict(figure) for figure in self._figures]}
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, Any]:
    """What the figures were taken on; no names or paths of it."""
    cpu = platform.machine()
    with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "system": platform.system()}


def options_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None, help="where to write the figures")
    return parser


def seconds(work: Callable[[], object]) -> float:
    """Seconds that the work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(rounds: int, **works: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each work in each round, one after the other within a round; the first round of each is preceded by none that counts."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name, work in works.items():
            found[name].append(seconds(work))
            print(f"    round {number + 1} of {rounds}: {name} {found[name][-1]:.2f} s", flush=True)
    return found


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above / below, round by round."""
    return [one / other for one, other in zip(above, below, strict=True)]
