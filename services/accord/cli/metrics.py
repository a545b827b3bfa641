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


def held_out_line(metrics: Mapping[str, float]) -> str:
    """What a run over pairs is worth on those that it has not seen, as a sentence; empty where it was not measured."""
    if not {"eval_pairs", "eval_accuracy", "eval_accuracy_low", "eval_accuracy_high", "eval_length_baseline"} <= metrics.keys():
        return ""
    accuracy, low, high, longer = (100 * metrics[f"eval_{name}"] for name in ("accuracy", "accuracy_low", "accuracy_high", "length_baseline"))
    sure = f"; expected calibration error {metrics['eval_calibration_error']:.2f}" if "eval_calibration_error" in metrics else ""
    return (
        f"right on {accuracy:.0f} % of {metrics['eval_pairs']:.0f} held-out pairs (95 % interval {low:.0f} to {high:.0f} %); "
        f"always taking the longer response: {longer:.0f} %{sure}"
    )


def in_a_line(metrics: Mapping[str, float]) -> str:
    """The foremost of them in one line."""
    return "  ".join(f"{name} {value}" for name, value in ordered(metrics)[:_LINE_METRICS])
