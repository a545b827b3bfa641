"""The pictures of a report as SVG text, drawn from results.json.

What does not belong here: the page (`accord.study.report`). Colour is feedback, marker and line style are the algorithm, in all pictures.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accord.study.findings import settings_of, title_of
from accord.study.frontier import frontier

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"human": "#b8552b", "ai": "#2a6f97", None: "#6b6b6b"}
_MARKERS = {"ppo": "o", "dpo": "s", None: "D"}
_LINES: Mapping[str | None, Any] = {"ppo": "-", "dpo": "--", "grpo": "-.", "rloo": (0, (6, 1.5)), "online_dpo": (0, (1, 1)), None: ":"}
_STYLE = {
    "font.family": "sans-serif", "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333", "xtick.color": "#555555", "ytick.color": "#555555", "axes.titlesize": 10.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "svg.fonttype": "none", "svg.hashsalt": "accord", "figure.facecolor": "none", "axes.facecolor": "none",
}  # fmt: skip
_HELD_OUT = "win_by_score_held_out"
_SCORES = {"score_human": True, "score_ai": False}  # by reward models of the arms: whether a point is filled
_WITH_ROLLOUTS = ("ppo", "grpo", "rloo", "online_dpo")
_LOGGED = (
    (("sft",), "loss", "SFT\nloss, nats a token"), (("reward_model",), "loss", "Reward models\nloss"),
    (("dpo", "online_dpo"), "margin", "DPO\nimplicit margin"), (_WITH_ROLLOUTS, "score_mean", "With rollouts\nscore"),
    (_WITH_ROLLOUTS, "kl", "With rollouts\nKL to SFT, nats"),
)  # fmt: skip
_WATCHED = {
    "entropy": "entropy, nats a token", "clip_fraction": "clipped share of tokens", "explained_variance": "explained variance of the critic",
    "response_tokens": "tokens a response", "eos_rate": "share with an end", "tokens_per_second": "tokens a second",
}  # fmt: skip
_SHARES = ("clip_fraction", "eos_rate")
_PHASES = {"seconds_rollout": ("sampling", "#7a9e7e"), "seconds_score": ("scoring", "#d8b365"), "seconds_train": ("learning", "#5a5f8a")}
_PANELS = 4  # beside one another
_LETTERS = 40  # of a line beside a bar
_FEW = 30  # points of a line that are marked one by one
Json = Mapping[str, Any]


def win_rates(results: Json) -> str:
    """Win rate of each arm by the judge, against SFT and against the references: raw (filled) and length-adjusted (hollow); by the held-out
    reward model against SFT, where the study has one. A panel is there where an arm has its wins; empty where none has any."""
    tasks = results["tasks"]
    possible = ((_HELD_OUT, "against SFT, held-out RM"), ("win_vs_sft", "against SFT, judge"), ("win_vs_reference", "against references"))
    against = [(metric, title) for metric, title in possible if any(_known(arm, metric) for task in tasks for arm in task["arms"])]
    if not against:
        return ""
    figure, axes = _figure(len(tasks), len(against), height=2.5)
    for row, task in zip(axes, tasks, strict=True):
        for axis, (metric, title) in zip(row, against, strict=True):
            arms = [arm for arm in task["arms"] if _known(arm, metric)]
            for place, arm in enumerate(reversed(arms)):
                _interval(axis, arm["metrics"][metric], place + 0.13, arm, filled=True)
                _interval(axis, arm["metrics"].get(f"{metric}_length_adjusted"), place - 0.13, arm, filled=False)
            axis.axvline(0.5, color="#bbbbbb", linewidth=0.8, zorder=0)
            axis.set_yticks(range(len(arms)), [arm["arm"] for arm in reversed(arms)])
            if not arms:
                axis.text(0.5, 0, "none to count", ha="center", va="center", fontsize=8, color="#777777", backgroundcolor="white")
            axis.set(xlim=(-0.03, 1.03), ylim=(-0.5, max(1, len(arms)) - 0.5), title=f"{task['task'].capitalize()}, {title}")
    return _svg(figure)


def quality(results: Json) -> str:
    """ROUGE-L, METEOR and BERTScore of each arm with intervals."""
    metrics = (("rouge_l", "ROUGE-L"), ("meteor", "METEOR"), ("bertscore", "BERTScore"))
    figure, axes = _figure(len(results["tasks"]), len(metrics), height=2.3)
    for row, task in zip(axes, results["tasks"], strict=True):
        for axis, (metric, title) in zip(row, metrics, strict=True):
            for place, arm in enumerate(reversed(task["arms"])):
                _interval(axis, arm["metrics"].get(metric), place, arm, filled=True)
            names = [arm["arm"] for arm in reversed(task["arms"])]
            axis.set_yticks(range(len(names)), names)
            axis.set(title=f"{task['task'].capitalize()}: {title}")
    return _svg(figure)


def reward_against_kl(results: Json) -> str:
    """Reward under the human reward model (filled) and the AI one (hollow) against KL to SFT, each with its interval; empty without either."""
    if not any(_known(arm, "kl") and _known(arm, metric) for task in results["tasks"] for arm in task["arms"] for metric in _SCORES):
        return ""
    figure, axes = _figure(1, len(results["tasks"]), height=3.0)
    for axis, task in zip(axes[0], results["tasks"], strict=True):
        for arm in task["arms"]:
            kl = arm["metrics"].get("kl")
            for metric, filled in _SCORES.items():
                score = arm["metrics"].get(metric)
                if _has(kl) and _has(score):
                    _cross(axis, kl, score, arm, filled=filled, named=filled or not _known(arm, "score_human"))
        axis.set(title=task["task"].capitalize(), xlabel="KL to SFT, nats a response", ylabel="reward model's score")
        axis.axvline(0, color="#dddddd", linewidth=0.8, zorder=0)
    _arm_legend(figure, results["tasks"][0]["arms"], hollow=any(_known(arm, "score_ai") for task in results["tasks"] for arm in task["arms"]))
    return _svg(figure)


def frontiers(results: Json) -> str:
    """Score of rollouts against KL to SFT along each run with rollouts, one panel a task; numbers are steps, hollow points a held-out score."""
    runs = [curve for curve in results["curves"] if curve["algorithm"] in _WITH_ROLLOUTS]
    if not runs:
        return ""
    figure, axes = _figure(1, len(results["tasks"]), height=3.0)
    for axis, task in zip(axes[0], results["tasks"], strict=True):
        for curve in runs:
            if curve["task"] == task["task"]:
                _frontier(axis, curve)
        axis.set(title=task["task"].capitalize(), xlabel="KL to SFT, nats a response", ylabel="score of rollouts")
        axis.axvline(0, color="#dddddd", linewidth=0.8, zorder=0)
        axis.margins(x=0.2, y=0.15)
    return _svg(figure)


def curves(results: Json) -> str:
    """What each run logged, by step: SFT loss, reward model loss, DPO's margin, and of algorithms with rollouts their score and KL."""
    wanted = [each for each in _LOGGED if any(_logs(curve, each[0], each[1]) for curve in results["curves"])]
    if not wanted:
        return ""
    figure, axes = _figure(len(results["tasks"]), len(wanted), height=2.3)
    for place, (row, task) in enumerate(zip(axes, results["tasks"], strict=True)):
        for axis, (algorithms, metric, title) in zip(row, wanted, strict=True):
            for curve in results["curves"]:
                if curve["task"] == task["task"] and curve["algorithm"] in algorithms:
                    _line(axis, curve, metric, named=True)
            if place == 0:
                axis.set_title(title, fontsize=9.5)
            axis.margins(x=0.12, y=0.18)
            axis.xaxis.get_major_locator().set_params(integer=True)
        row[0].set_ylabel(task["task"].capitalize(), fontsize=10)
    return _svg(figure)


def health(results: Json) -> str:
    """How runs with rollouts went, a block of panels a task: what says by step that one goes wrong, and the mean time of a step by phase. A panel
    is there where a run has its metric; empty where no run has rollouts."""
    runs = [curve for curve in results["curves"] if curve["algorithm"] in _WITH_ROLLOUTS]
    shown = [metric for metric in _WATCHED if any(_logs(curve, _WITH_ROLLOUTS, metric) for curve in runs)]
    timed = any(_logs(curve, _WITH_ROLLOUTS, phase) for curve in runs for phase in _PHASES)
    panels = len(shown) + timed
    if not panels:
        return ""
    columns, tasks = min(_PANELS, panels), [task["task"] for task in results["tasks"] if any(curve["task"] == task["task"] for curve in runs)]
    rows = -(-panels // columns)
    figure, axes = _figure(rows * len(tasks), columns, height=1.9)
    for place, task in enumerate(tasks):
        block, own = list(axes[rows * place : rows * (place + 1)].flat), [curve for curve in runs if curve["task"] == task]
        for axis, metric in zip(block, shown, strict=False):
            for curve in own:
                _line(axis, curve, metric, named=False)
            axis.set_title(_WATCHED[metric], fontsize=9, fontweight="normal")
            axis.margins(x=0.06, y=0.18)
            if metric in _SHARES:
                axis.set_ylim(bottom=0.0)
            axis.xaxis.get_major_locator().set_params(integer=True)
        if timed:
            _phases(block[len(shown)], own)
        for axis in block[panels:]:
            axis.set_axis_off()
        block[0].set_ylabel(task.capitalize(), fontsize=10)
    _health_legend(figure, runs, timed=timed)
    return _svg(figure)


def judges(results: Json) -> str:
    """Each judge on held-out pairs: agreement with people beside the length baseline, and how often it prefers what it is shown first."""
    checks = [judge for judge in results["judges"] if judge["purpose"] == "held-out check" and judge["card"]["human_agreement"]]
    if not checks:
        return ""
    figure, axes = _figure(1, 2, height=max(1.6, 0.5 * len(checks) + 0.9 + 0.1 * sum(bool(settings_of(judge)) for judge in checks)))
    left, right = axes[0]
    names = []
    for place, judge in enumerate(reversed(checks)):
        card = judge["card"]
        name = f"{title_of(judge)}, {judge['task']} (n={card['human_agreement']['n']})"
        names.append("\n".join([name, *textwrap.wrap(settings_of(judge), _LETTERS)]))
        _bar(left, card["human_agreement"], place, "#2a6f97")
        baseline = card["length_baseline"]
        if baseline:
            left.plot([baseline["value"]] * 2, [place - 0.32, place + 0.32], color="#222222", linewidth=1.6)
        if card["first_preferred"]:
            _bar(right, card["first_preferred"], place, "#b8552b")
        else:
            right.text(0.5, place, "shown one at a time", ha="center", va="center", fontsize=8, color="#777777")
    left.set(title="Agreement with people (line: take the longer)", xlim=(0, 1))
    right.set(title="Prefers the response shown first", xlim=(0, 1))
    for axis, labels in ((left, names), (right, [""] * len(names))):
        axis.set_yticks(range(len(names)), labels)
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.axvline(0.5, color="#bbbbbb", linewidth=0.8, zorder=0)
    return _svg(figure)


def draw_judge_tables(tables: Json, path: Path) -> None:
    """Writes a PNG of the tables of `accord.study.judge_tables`: a panel for each table and task, shares with their intervals; baselines are grey."""
    import matplotlib.pyplot as plt

    from accord.study.judge_tables import BASELINES

    baselines = {words for words, _ in BASELINES}

    tasks = list(dict.fromkeys(task for table in tables.values() for row in table["rows"] for task in row["cells"]))
    heights = [0.34 * len(table["rows"]) + 0.7 for table in tables.values()]
    figure, axes = _figure(len(tables), len(tasks), height=sum(heights) / len(heights), ratios=heights)
    for line, (name, table) in zip(axes, tables.items(), strict=True):
        rows = list(reversed(table["rows"]))
        for axis, task in zip(line, tasks, strict=True):
            for place, row in enumerate(rows):
                cell = row["cells"].get(task) or {}
                both = name == "judges" and cell.get("same_position")
                if cell.get("agreement"):
                    colour = "#8a8f95" if row["name"] in baselines else COLOURS["ai"]
                    _point(axis, cell["agreement"], place + (0.14 if both else 0.0), colour)
                if both:
                    _point(axis, cell["same_position"], place - 0.14, COLOURS["human"])
            axis.set_yticks(range(len(rows)), [row["name"] for row in rows] if axis is line[0] else [""] * len(rows))
            axis.set(xlim=(-0.02, 1.02), ylim=(-0.6, len(rows) - 0.4), title=f"{name.capitalize()}, {task}")
            axis.axvline(0.5, color="#bbbbbb", linewidth=0.8, zorder=0)
    words = "blue: agrees with people; grey: what needs no judge" + ("; brown: same position after a swap" if "judges" in tables else "")
    figure.supxlabel(words, fontsize=9, color="#555555")
    figure.savefig(path, dpi=150, facecolor="white", metadata={"Software": None})
    plt.close(figure)


def _figure(rows: int, columns: int, *, height: float, ratios: Sequence[float] | None = None) -> tuple[Figure, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update(_STYLE)
    figure, axes = plt.subplots(rows, columns, figsize=(11, height * rows), squeeze=False, layout="constrained", height_ratios=ratios)
    return figure, axes


def _interval(axis: Axes, found: Json | None, place: float, arm: Json, *, filled: bool) -> None:
    if not _has(found):
        return
    assert found is not None
    colour = COLOURS[arm["feedback"]]
    axis.plot([found["low"], found["high"]], [place, place], color=colour, linewidth=1.4, alpha=0.75)
    axis.plot(found["value"], place, _MARKERS[arm["algorithm"]], color=colour, markersize=5.5, markerfacecolor=colour if filled else "white")


def _cross(axis: Axes, x: Json, y: Json, arm: Json, *, filled: bool, named: bool) -> None:
    colour = COLOURS[arm["feedback"]]
    axis.plot([x["low"], x["high"]], [y["value"]] * 2, color=colour, linewidth=0.9, alpha=0.45)
    axis.plot([x["value"]] * 2, [y["low"], y["high"]], color=colour, linewidth=0.9, alpha=0.45)
    face = colour if filled else "white"
    axis.plot(x["value"], y["value"], _MARKERS[arm["algorithm"]], color=colour, markersize=7, markerfacecolor=face)
    if named:
        axis.annotate(arm["arm"], (x["value"], y["value"]), textcoords="offset points", xytext=(7, 5), fontsize=8, color=colour)


def _line(axis: Axes, curve: Json, metric: str, *, named: bool) -> None:
    points = [(row["step"], row["values"][metric]) for row in curve["curve"] if _number(row["values"].get(metric))]
    if not points:
        return
    colour, style = COLOURS[_feedback_of(curve["arm"])], _LINES[curve["algorithm"] if curve["algorithm"] in _LINES else None]
    steps, values = zip(*points, strict=True)
    axis.plot(steps, values, linestyle=style, color=colour, linewidth=1.6, marker="." if len(points) <= _FEW else None)
    if named:
        axis.annotate(curve["arm"], (steps[-1], values[-1]), textcoords="offset points", xytext=(2, 5), fontsize=7.5, color=colour, ha="right")


def _phases(axis: Axes, runs: Sequence[Json]) -> None:
    """A bar a run: the mean seconds of a step, by what they went to."""
    for place, curve in enumerate(reversed(runs)):
        start = 0.0
        for phase, (_, colour) in _PHASES.items():
            seconds = [row["values"][phase] for row in curve["curve"] if _number(row["values"].get(phase))]
            mean = sum(seconds) / len(seconds) if seconds else 0.0
            axis.barh(place, mean, left=start, height=0.55, color=colour)
            start += mean
    axis.set_yticks(range(len(runs)), [curve["arm"] for curve in reversed(runs)], fontsize=8)
    axis.set_ylim(-0.6, len(runs) - 0.4)
    axis.set_title("seconds a step", fontsize=9, fontweight="normal")


def _health_legend(figure: Figure, runs: Sequence[Json], *, timed: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    known = {curve["arm"]: curve["algorithm"] for curve in runs}
    handles: list[Any] = [
        Line2D([], [], color=COLOURS[_feedback_of(arm)], linestyle=_LINES[algorithm], linewidth=1.6, label=arm) for arm, algorithm in known.items()
    ]
    handles += [Patch(color=colour, label=name) for name, colour in _PHASES.values()] if timed else []
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 8), frameon=False, fontsize=8.5, handlelength=2.6)


def _logs(curve: Json, algorithms: Sequence[str], metric: str) -> bool:
    return curve["algorithm"] in algorithms and any(_number(row["values"].get(metric)) for row in curve["curve"])


def _frontier(axis: Axes, curve: Json) -> None:
    points = frontier({row["step"]: row["values"] for row in curve["curve"]})
    points = [point for point in points if _number(point.kl) and _number(point.score)]
    if not points:
        return
    feedback = _feedback_of(curve["arm"])
    colour, marker = COLOURS[feedback], _MARKERS.get(curve["algorithm"], "^")
    axis.plot([point.kl for point in points], [point.score for point in points], "-", color=colour, linewidth=1.1, alpha=0.6)
    axis.scatter(
        [point.kl for point in points], [point.score for point in points], c=colour, marker=marker, s=[14 + 3 * n for n in range(len(points))]
    )
    for point in (points[0], points[-1]):
        label = f"{curve['arm']}, {point.step}" if point is points[-1] else f"{point.step}"
        axis.annotate(label, (point.kl, point.score), textcoords="offset points", xytext=(5, 5), fontsize=7.5, color=colour)
    held_out = [(point.kl, point.held_out) for point in points if point.held_out is not None]
    if held_out:
        axis.plot(*zip(*held_out, strict=True), marker, color=colour, linestyle=":", linewidth=1.0, markerfacecolor="white", markersize=5)


def _feedback_of(arm: str) -> str | None:
    return next((name for name in ("human", "ai") if arm.endswith(name)), None)


def _bar(axis: Axes, share: Json, place: float, colour: str) -> None:
    axis.barh(place, share["value"], height=0.42, color=colour, alpha=0.35)
    _point(axis, share, place, colour)


def _point(axis: Axes, share: Json, place: float, colour: str) -> None:
    axis.plot([share["low"], share["high"]], [place, place], color=colour, linewidth=1.6)
    axis.plot(share["value"], place, "o", color=colour, markersize=5)


def _arm_legend(figure: Figure, arms: Iterable[Json], *, hollow: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=COLOURS[arm["feedback"]], marker=_MARKERS[arm["algorithm"]], linestyle="", label=arm["arm"]) for arm in arms]
    if hollow:
        handles.append(Line2D([], [], color="#444444", marker="o", markerfacecolor="white", linestyle="", label="hollow: AI reward model"))
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=8.5)


def _svg(figure: Figure) -> str:
    import matplotlib.pyplot as plt

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _known(arm: Json, metric: str) -> bool:
    return _has(arm["metrics"].get(metric))


def _has(found: Json | None) -> bool:
    return found is not None and _number(found.get("value"))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


PICTURES: Mapping[str, Callable[[Json], str]] = {
    "win_rates": win_rates, "quality": quality, "reward_against_kl": reward_against_kl, "frontiers": frontiers, "curves": curves,
    "health": health, "judges": judges,
}  # fmt: skip
