"""The metrics of a run in the order in which a person reads them.

What does not belong here: drawing (`accord.cli.following`).
"""

from __future__ import annotations

from collections.abc import Mapping

from accord.cli.curves import KEY_CURVES
from accord.cli.output import number_text

_FIRST = (*KEY_CURVES, "policy_loss", "value_loss", "grad_norm", "seconds")
_LINE_METRICS = 6


def ordered(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """Names with values for people, what matters most first."""
    known = [name for name in _FIRST if name in metrics]
    return [(name, number_text(metrics[name])) for name in (*known, *sorted(set(metrics) - set(known)))]


def in_a_line(metrics: Mapping[str, float]) -> str:
    """The foremost of them in one line."""
    return "  ".join(f"{name} {value}" for name, value in ordered(metrics)[:_LINE_METRICS])
