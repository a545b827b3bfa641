"""Keeps released rubrics from changing: a label records a rubric's id and digest, so the text behind an id must stay.

python tools/prompts.py write     # release new rubrics: adds their digests; refuses to change an old one
python tools/prompts.py check
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from accord.prompts import list_rubrics

LOCK = Path(__file__).resolve().parent.parent / "services" / "accord" / "prompts" / "released.lock"


def problems() -> list[str]:
    """What differs between the rubrics and their released digests."""
    released = json.loads(LOCK.read_text()) if LOCK.exists() else {}
    today = {rubric.id: rubric.digest for rubric in list_rubrics()}
    changed = [f"{name} has changed after its release; give it the next number" for name in released if today.get(name) != released[name]]
    return changed + [f"{name} is not released; run make prompts" for name in sorted(set(today) - set(released))]


def write() -> None:
    """Adds what is new."""
    changed = [problem for problem in problems() if "changed" in problem]
    if changed:
        raise SystemExit("\n".join(changed))
    LOCK.write_text(json.dumps({rubric.id: rubric.digest for rubric in list_rubrics()}, indent=1, sort_keys=True) + "\n")


def check() -> None:
    """Stops when something differs."""
    if found := problems():
        raise SystemExit("\n".join(found))
    print(f"prompts: {len(list_rubrics())} rubrics as released")


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1] if len(sys.argv) > 1 else "check"]()
