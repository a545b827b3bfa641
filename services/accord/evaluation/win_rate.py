"""Win rates corrected for the length of the responses.

What does not belong here: who won (the study asks a judge) and resampling (`accord.evaluation.bootstrap`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from accord.evaluation.bootstrap import Interval, Statistic, replicate

Array = NDArray[np.float64]
# A normal prior of deviation 2.5 on both coefficients (Gelman et al. 2008 use that scale): finite where one side wins everything.
_PENALTY = 1 / 2.5**2
_MOST_STEPS = 200
_LONGEST_STEP = 2.0
_TOLERANCE = 1e-9


def length_adjusted_win_rate(wins: Array, log_length_ratios: Array, *, samples: int = 1000, seed: int = 0) -> Interval:
    """The win rate that the length model predicts where both responses are equally long, in [0, 1], with its bootstrap interval.

    After length-controlled AlpacaEval (Dubois et al. 2024, arXiv:2404.04475, eq. 2): P(win) = sigmoid(theta + phi tanh(r / s)), read at
    r = 0, where it is sigmoid(theta). Theirs has r = difference of lengths, s = its deviation, and a term for the prompt's difficulty. Here r is
    the log of the ratio; s is its root mean square, since a deviation is near 0 for an arm that is always longer by the same factor; and
    there is no term for difficulty. Where length does not tell wins from losses, it is the plain win rate, drawn a little towards 1/2.

    Args:
        wins: 1 won, 0 lost, between for a tie or a probability, shape (rows,).
        log_length_ratios: log(length of the response / length of the opponent's), shape (rows,).

    Raises:
        ValueError: there are no rows, the shapes differ, a win lies outside [0, 1], or a ratio is not finite.
    """
    statistic = win_rate_statistic(wins, log_length_ratios)
    rows = [str(row) for row in range(len(wins))]
    return replicate(rows, {"win_rate": statistic}, samples=samples, seed=seed)["win_rate"].interval()


def win_rate_statistic(wins: Array, log_length_ratios: Array) -> Statistic:
    """`length_adjusted_win_rate` as a function of how often each row counts, for `replicate`; s stays that of all rows."""
    wins, terms = _checked(wins, log_length_ratios)

    def of(weights: Array) -> Array:
        return _sigmoid(fit_length_model(wins, terms, weights)[0])

    return of


def length_terms(log_length_ratios: Array) -> Array:
    """tanh(r / s) with s the root mean square of r; zeros where all responses are as long as their opponents'."""
    scale = float(np.sqrt(np.mean(np.square(log_length_ratios))))
    return np.tanh(log_length_ratios / scale) if scale > 0 else np.zeros_like(log_length_ratios)


def fit_length_model(wins: Array, terms: Array, weights: Array) -> tuple[Array, Array]:
    """theta and phi, shape (resamples,) each, that minimise the penalised cross-entropy of P(win) = sigmoid(theta + phi term).

    Newton's method over all resamples at once, its steps cut to length 2. The penalty makes the objective strictly convex, so there is one
    minimum, and it is finite under complete separation too.

    Args:
        wins: targets in [0, 1], shape (rows,).
        terms: shape (rows,).
        weights: how often each row counts, shape (resamples, rows).

    Raises:
        ArithmeticError: no minimum was reached; a defect.
    """
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_MOST_STEPS):
        probabilities = _sigmoid(theta[:, None] + phi[:, None] * terms)
        surplus = weights * (probabilities - wins)
        curvature = weights * probabilities * (1 - probabilities)
        slope_theta, slope_phi = surplus.sum(axis=1) + _PENALTY * theta, surplus @ terms + _PENALTY * phi
        a, b, d = curvature.sum(axis=1) + _PENALTY, curvature @ terms, curvature @ terms**2 + _PENALTY
        determinant = a * d - b * b
        step_theta, step_phi = (d * slope_theta - b * slope_phi) / determinant, (a * slope_phi - b * slope_theta) / determinant
        lengths = np.hypot(step_theta, step_phi)
        cut = np.minimum(1.0, _LONGEST_STEP / np.maximum(lengths, 1e-300))
        theta, phi = theta - cut * step_theta, phi - cut * step_phi
        if float(lengths.max()) < _TOLERANCE:
            return theta, phi
    raise ArithmeticError(f"the length model did not converge in {_MOST_STEPS} steps")


def _checked(wins: Array, log_length_ratios: Array) -> tuple[Array, Array]:
    wins, ratios = np.asarray(wins, dtype=np.float64), np.asarray(log_length_ratios, dtype=np.float64)
    if wins.ndim != 1 or wins.shape != ratios.shape or not wins.size:
        raise ValueError(f"wins of shape {wins.shape} and ratios of shape {ratios.shape} given; one of each a row, at least one row, is needed")
    if not np.all((wins >= 0) & (wins <= 1)):
        raise ValueError("a win lies outside [0, 1]")
    if not np.all(np.isfinite(ratios)):
        raise ValueError("a length ratio is not finite")
    return wins, length_terms(ratios)


def _sigmoid(values: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * values))
