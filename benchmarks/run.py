"""Runs all benchmarks and draws what they found: build/bench/figures.md and build/bench/figures.png.

    python benchmarks/run.py [--own | --peers | generation.py services.py "training.py --only sft" ...]

Without names it runs all (`make bench`). `--own` are those of minutes that need nothing but what `make setup` installs (`make bench-own`); `--peers`
install their peers on first use (`make bench-peers`); reward_model.py trains for a quarter of an hour, learning.py for half an hour and more. One
that fails does not keep the others from running.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

OWN = ("generation.py", "services.py", "labelling.py", "plan.py", "training.py --only dpo,reward,sft,resume,ppo-resume")
PEERS = ("peers.py", "training.py --only ppo")
LONG = ("reward_model.py", "learning.py")
SETS = {"--own": OWN, "--peers": PEERS}
FOLDER = Path("build/bench")
LARGER, SMALLER = "#2a6f97", "#d08c36"


def main(names: list[str]) -> int:
    """Runs one after the other; the exit code is that of the first that failed."""
    here, failed = Path(__file__).resolve().parent, 0
    for name in [each for given in names for each in SETS.get(given, (given,))] or [*OWN, *PEERS, *LONG]:
        print(f"== {name}", flush=True)
        script, *options = name.split()
        done = subprocess.run([sys.executable, str(here / script), *options, "--json", str(FOLDER / f"{file_stem(name)}.json")], check=False)
        if done.returncode:
            print(f"== {name} failed with {done.returncode}", flush=True)
        failed = failed or done.returncode
    FOLDER.mkdir(parents=True, exist_ok=True)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))]
    (FOLDER / "figures.md").write_text(table(found), encoding="utf-8")
    draw(found, FOLDER / "figures.png")
    print(f"{FOLDER / 'figures.md'} and {FOLDER / 'figures.png'} hold the figures")
    return failed


def file_stem(command: str) -> str:
    """Of the JSON of a benchmark, with what it was asked for, so that two parts of one do not overwrite each other."""
    script, *options = command.split()
    return "-".join([Path(script).stem, *(part for option in options if not option.startswith("-") for part in option.split(","))])


def table(found: list[dict[str, Any]]) -> str:
    """All figures as Markdown."""
    lines = []
    for part in found:
        machine = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in part["machine"].items())
        lines += [f"## {part['title']}", "", machine, "", "| figure | median | lowest to highest | rounds | asked for |", "|---|---|---|---|---|"]
        for figure in part["figures"]:
            spread = f"{figure['low']:.4g} to {figure['high']:.4g}"
            lines.append(f"| {figure['name']} | {figure['median']:.4g} {figure['unit']} | {spread} | {figure['rounds']} | {figure['reach']} |")
        lines.append("")
    return "\n".join(lines)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """The ratios with their spread; a line at 1, where nothing is gained. Those that are to be small have a colour of their own."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    rows = [figure for part in found for figure in part["figures"] if figure["unit"] == "times"]
    if not rows:
        return
    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.42 * len(rows)), layout="constrained")
    for place, row in enumerate(reversed(rows)):
        axes.barh(place, row["median"], height=0.5, color=SMALLER if _to_be_small(row) else LARGER)
        axes.plot([row["low"], row["high"]], [place, place], color="#12242f", linewidth=1.5)
        asked = f"   (asked for: {row['reach']})" if row["reach"] else ""
        axes.text(max(row["high"], 0) + 0.05, place, f"{row['median']:.2f}{asked}", va="center", fontsize=8)
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)], fontsize=8)
    axes.set_xlim(0, 1.45 * max(row["high"] for row in rows))
    axes.set_xlabel("times; line: lowest to highest round")
    colours = [Patch(color=LARGER, label="more is better"), Patch(color=SMALLER, label="less is better")]
    axes.legend(handles=colours, loc="lower right", frameon=False, fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=130)


def _to_be_small(figure: dict[str, Any]) -> bool:
    """Whether less of a figure is better: where at most something is asked for, or a cost is held against a floor."""
    return figure["reach"].startswith(("<", "0.")) or "over the floor" in figure["name"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
