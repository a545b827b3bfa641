"""The page of a study: one HTML file with everything in it, out of results.json.

What does not belong here: numbers that results.json does not have, and drawing (`accord.study.plots`).
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accord.errors import DataLossError, NotFoundError
from accord.pages.page import render_page
from accord.rundir import write_atomically
from accord.study.findings import abstentions, findings, judge_in_use, judge_is_measured, labelled_by_another, settings_of, title_of
from accord.study.plots import PICTURES
from accord.study.published import METRIC_TITLES, METRICS, TITLE, published

_MORE = {
    "win_vs_sft": "wins vs SFT", "win_vs_sft_length_adjusted": "length-adjusted", "win_vs_reference": "wins vs reference",
    "win_vs_reference_length_adjusted": "length-adjusted", "score_human": "human RM", "score_ai": "AI RM",
    "win_by_score_human": "wins vs SFT by human RM", "win_by_score_ai": "wins vs SFT by AI RM",
    "win_by_score_held_out": "wins vs SFT by held-out RM", "kl": "KL to SFT",
    "response_tokens": "tokens",
}  # fmt: skip

_FEEDBACK = {"human": "Human", "ai": "AI"}
_SIGNS = {"human": "red-brown: human feedback", "ai": "blue: AI feedback", "ppo": "circle: PPO", "dpo": "square: DPO"}


def write_report(home: Path) -> Path:
    """Writes report.html from results.json of a workspace and returns its path.

    Raises:
        NotFoundError: there are no results.
        DataLossError: they cannot be read.
    """
    source = home / "results.json"
    try:
        results = json.loads(source.read_text(encoding="utf-8"))
        page = render(results)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no {source}; run accord study --home {home} first", field="home") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"{source} is not the results of a study: {type(error).__name__}: {error}") from error
    path = home / "report.html"
    write_atomically(path, page)
    return path


def render(results: Mapping[str, Any]) -> str:
    """The page of some results."""
    feedback, algorithms = results["recipe"]["feedback"], results["recipe"]["algorithms"]
    return render_page(
        "accord.study", "report.html", {"figure": _figure, "duration": duration, "interval": _interval, "percent": _percent},
        results=results, recipe=results["recipe"], metrics=METRIC_TITLES, more=_measured(results), published=published, published_title=TITLE,
        abstentions=abstentions, used=_used(results), judge_in_use=judge_in_use(results), judge_is_measured=judge_is_measured(results),
        other_labels=labelled_by_another(results),
        title=f"{' or '.join(_FEEDBACK[name] for name in feedback)} feedback, {' or '.join(name.upper() for name in algorithms)}",
        title_of=title_of, settings_of=settings_of, signs="; ".join(", ".join(_SIGNS[name] for name in names) for names in (feedback, algorithms)),
        beside_paper=any(published(task["task"], arm["arm"]) for task in results["tasks"] for arm in task["arms"]),
        metric_names=METRICS, findings=findings(results), pictures={name: draw(results) for name, draw in PICTURES.items()},
        date=datetime.datetime.fromtimestamp(results["created"], tz=datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        total_seconds=sum(step["seconds"] for step in results["steps"]),
    )  # fmt: skip


def _used(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the tasks used, for people: pairs by feedback, prompts, responses; the least and the most where tasks differ."""
    data = [task.get("data", {}) for task in results["tasks"]]
    return {
        "pairs": {
            feedback: _span(used.get("pairs", {}).get(feedback, {}).get("kept") for used in data) for feedback in results["recipe"]["feedback"]
        },
        "prompts": _span(used.get("prompts") for used in data),
        "responses": _span(used.get("responses") for used in data),
    }


def _span(counts: Iterable[int | None]) -> str:
    known = sorted({count for count in counts if count is not None})
    return f"{known[0]} to {known[-1]}" if len(known) > 1 else str(known[0]) if known else "–"


def _measured(results: Mapping[str, Any]) -> dict[str, str]:
    """Those further metrics that any arm has, with their titles."""
    known = {name for task in results["tasks"] for arm in task["arms"] for name in arm["metrics"]}
    return {name: title for name, title in _MORE.items() if name in known}


def duration(seconds: float) -> str:
    """Seconds for people: `48 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _figure(found: Mapping[str, Any] | None) -> str:
    """A value in three or four digits; a dash where nothing was measured."""
    value = found.get("value") if found else None
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:z.3f}" if abs(value) < 10 else f"{value:z.1f}"


def _interval(found: Mapping[str, Any] | None) -> str:
    if not found or found.get("value") is None or found.get("low") is None:
        return ""
    digits = 2 if abs(found["value"]) < 10 else 0
    return f"{found['low']:z.{digits}f} to {found['high']:z.{digits}f}"


def _percent(share: Mapping[str, Any] | None) -> str:
    return "–" if not share else f"{share['value']:.0%} ({share['low']:.0%} to {share['high']:.0%}, n={share['n']})"
