"""Guards against reward hacking: what is watched beside the reward, when a bound counts as passed, and which checkpoint was the best.

Pure: metrics of a step in, sentences out. Everything is compared over windows of `patience` steps, so that no single batch decides, and all of
it is in the state of a checkpoint. What does not belong here: stopping and publishing (`accord.training.loop`), scoring
(`accord.training.rollout`), and alarms about a defect of the run rather than of the reward (`accord.training.rollout_metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from accord.runspec import RunSpec
from accord.runspec_parts import PpoSpec

_RESOLVED = 4.0
"""Standard errors that a fall of the held-out score must have: its best is the highest of many noisy means, which alone is worth two or three."""
_NGRAM = 4
_HELD_OUT, _EVALUATION, _REWARD = "held-out score", "evaluation", "reward"
"""By what checkpoints are compared."""


def repeated_share(tokens: Sequence[int], n: int = _NGRAM) -> float:
    """The share of a response's n-grams that occurred before in it: 1 - distinct / all, 0 where it is shorter than n tokens.

    Welleck et al. 2020 (arXiv:1908.04319), section 6: seq-rep-n. ``a b a b a b`` has three 4-grams of which two differ: 1/3.
    """
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass
class _Window:
    """The last numbers of a metric, and what the first ones were on average."""

    last: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)

    def add(self, value: float, size: int) -> None:
        if len(self.first) < size:
            self.first.append(value)
        self.last = [*self.last, value][-size:]

    @property
    def mean(self) -> float:
        return math.fsum(self.last) / len(self.last)

    @property
    def first_mean(self) -> float:
        return math.fsum(self.first) / len(self.first)


@dataclass
class _HeldOut:
    """The held-out score beside the trained one; `best` is its highest window, `trained_then` the trained score of that window.

    `differences` sums squared steps from one batch to the next: half their mean is the variance of a batch's mean, whatever the trend
    (von Neumann 1941), prompts that differ from batch to batch included.
    """

    score: _Window = field(default_factory=_Window)
    trained: _Window = field(default_factory=_Window)
    variance: _Window = field(default_factory=_Window)
    best: float | None = None
    trained_then: float = 0.0
    differences: float = 0.0
    steps: int = 0

    def add(self, score: float, std: float, trained: float, size: int) -> None:
        if self.score.last:
            self.differences += (score - self.score.last[-1]) ** 2
            self.steps += 1
        self.score.add(score, size)
        self.trained.add(trained, size)
        self.variance.add(std**2, size)
        if len(self.score.last) == size and (self.best is None or self.score.mean > self.best):
            self.best, self.trained_then = self.score.mean, self.trained.mean

    @property
    def fall(self) -> float:
        return 0.0 if self.best is None else self.best - self.score.mean

    @property
    def std(self) -> float:
        """Of the responses' held-out scores in the first batches."""
        return math.sqrt(self.variance.first_mean)

    @property
    def error(self) -> float:
        """Standard error of the difference of two windows' means."""
        return math.sqrt(self.differences / max(1, self.steps) / len(self.score.last))


class Guards:
    """Watches the metrics of a run with rollouts, step by step.

    Args:
        spec: of the run; runs without rollouts are not watched.
    """

    def __init__(self, spec: RunSpec) -> None:
        part = spec.rollout_part
        self._spec = spec.guards
        self._part = part
        self._watches = part is not None
        self._every = spec.checkpoint_every_steps
        self._behind = 1 + (spec.ppo.max_staleness if spec.ppo is not None else 0)
        """Steps from a checkpoint to the one that learns from what it sampled."""
        self._length, self._reward, self._held_out = _Window(), _Window(), _HeldOut()
        self._streaks: dict[str, int] = {}
        self._evaluations: dict[int, float] = {}
        """By step, as far back as a checkpoint is still to be rated."""
        self._ratings: dict[str, dict[int, float]] = {}
        """Of checkpoints whose own rollouts were within all bounds, by measure and step."""
        self._beyond = 0
        """Checkpoints whose own rollouts were not."""
        self._score_unit = 0.0
        """What a spread of 1 of normalised scores is in scores as they are: of the first batch, for the whole run; 0 before it."""
        self._moves = False
        """Whether rewards count as they were learnt from, because an earlier version rated the first checkpoints so."""
        self._newest = 0
        self.tripped = ""

    @property
    def rolls_back(self) -> bool:
        """Whether a run that is stopped publishes its best checkpoint."""
        return self._spec.action == "rollback"

    @property
    def measure(self) -> str:
        """By what checkpoints are compared: one measure for all of them.

        Evaluations where at least half of those that can be published have one, since they come later than the first checkpoints, or not at all;
        else rewards, which all have.
        """
        if self._spec.held_out_reward_model:
            return _HELD_OUT
        evaluated, rewarded = (self._ratings.get(name, {}) for name in (_EVALUATION, _REWARD))
        return _EVALUATION if evaluated and 2 * len(evaluated) >= len(evaluated.keys() | rewarded.keys()) else _REWARD

    @property
    def without_best(self) -> str:
        """Why there is no best checkpoint, in words, where none is published."""
        if self._ratings:
            return "no checkpoint that was within all bounds is whole"
        if self._beyond:
            return "no checkpoint was within all bounds"
        return "no checkpoint had been rated by then, which takes rollouts of its own"

    def observe(self, done: int, metrics: Mapping[str, float]) -> list[str]:
        """Takes note of the metrics of a step, `done` steps being done with it; returns alarms, each once while its bound stays passed.

        `tripped` is the first of them from then on, where the specification says that it stops the run.
        """
        if not self._watches:
            return []
        size = self._spec.patience
        self._length.add(metrics["response_tokens"], size)
        self._reward.add(self._lasting_reward(metrics), size)
        if self._spec.held_out_reward_model:
            self._held_out.add(metrics["held_out_score_mean"], metrics["held_out_score_std"], metrics["score_mean"], size)
        passed = {name: words for name, words in self._passed(metrics).items() if words}
        self._streaks = {name: self._streaks.get(name, 0) + 1 for name in passed}
        self._measure(done - self._behind)
        self._newest = done
        if "eval_score" in metrics:
            self._evaluations[done] = metrics["eval_score"]
        self._forget_evaluations(done + 1 - self._behind)
        alarms = [passed[name] for name, count in self._streaks.items() if count == size]
        if alarms and self._spec.action != "warn":
            self.tripped = alarms[0]
        return [f"alarm: {words}" for words in alarms]

    def ranked(self) -> list[tuple[int, float]]:
        """Steps of the checkpoints whose own rollouts were within all bounds, with their measure; the best first, of equal ones the earlier."""
        return _ranked(self._ratings.get(self.measure, {}))

    def kept_steps(self) -> set[int]:
        """Steps whose checkpoints must stay: the best so far by each measure, and those that are still to be measured."""
        if not self.rolls_back:
            return set()
        waiting = range(max(1, self._newest - self._behind + 1), self._newest + 1)
        best = {_ranked(ratings)[0][0] for ratings in self._ratings.values()}
        return best | {step for step in waiting if self._is_scheduled(step)}

    def state(self) -> dict[str, Any]:
        """JSON for a checkpoint."""
        return {
            "length": asdict(self._length), "reward": asdict(self._reward), "held_out": asdict(self._held_out), "streaks": dict(self._streaks),
            "evaluations": {str(step): value for step, value in self._evaluations.items()},
            "ratings": {name: {str(step): value for step, value in found.items()} for name, found in self._ratings.items()},
            "beyond": self._beyond, "score_unit": self._score_unit, "moves": self._moves, "newest": self._newest, "tripped": self.tripped,
        }  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continues from a checkpoint."""
        held_out: dict[str, Any] = {name: _Window(**value) if isinstance(value, Mapping) else value for name, value in state["held_out"].items()}
        self._length, self._reward, self._held_out = _Window(**state["length"]), _Window(**state["reward"]), _HeldOut(**held_out)
        self._streaks, self._evaluations = dict(state["streaks"]), _evaluations(state)
        ratings = state["ratings"] if "ratings" in state else self._earlier_ratings(state["quality"])
        self._ratings = {name: {int(step): value for step, value in found.items()} for name, found in ratings.items()}
        self._beyond, self._newest, self.tripped = state.get("beyond", 0), state["newest"], state["tripped"]
        self._score_unit, self._moves = state.get("score_unit", 0.0), state.get("moves", True)

    def _earlier_ratings(self, quality: Mapping[str, float]) -> dict[str, Mapping[str, float]]:
        """Those of an earlier version's state, whose measure was evaluation wherever there were prompts for one."""
        evaluates = self._part is not None and self._part.eval_data is not None
        measure = _HELD_OUT if self._spec.held_out_reward_model else _EVALUATION if evaluates else _REWARD
        return {measure: quality} if quality else {}

    def _lasting_reward(self, metrics: Mapping[str, float]) -> float:
        """The mean reward of a step's responses on a scale that is the same to the run's end.

        What PPO learns from is not where it divides scores by the spread of all so far, so that a steep climb is worth more than the height that it
        led to, or where its controller moves the KL coefficient: here both stay what they were at the start.
        """
        ppo = self._part
        if not isinstance(ppo, PpoSpec) or not ppo.reward_moves or self._moves:
            return metrics["reward_mean"]
        self._score_unit = self._score_unit or (metrics["score_std"] if ppo.normalize_scores else 1.0)
        penalties = ppo.missing_eos_penalty * (1 - metrics["eos_rate"]) + ppo.kl_coef * metrics["kl"]
        return metrics["score_mean"] - self._score_unit * penalties

    def _is_scheduled(self, step: int) -> bool:
        return self._every > 0 and step > 0 and step % self._every == 0

    def _measure(self, step: int) -> None:
        """Rates the scheduled checkpoint of a step by the rollouts of its own that were just looked at, and by the newest evaluation up to that step.

        Only scheduled ones count: a run that was stopped in between has one more, and must choose as a run that was not.
        """
        if not self._is_scheduled(step):
            return
        if self._streaks:
            self._beyond += 1
            return
        if self._spec.held_out_reward_model:
            found: dict[str, float | None] = {_HELD_OUT: self._held_out.score.mean}
        else:
            found = {_REWARD: self._reward.mean, _EVALUATION: self._evaluation_at(step)}
        for name, value in found.items():
            if value is not None:
                self._ratings.setdefault(name, {})[step] = value

    def _evaluation_at(self, step: int) -> float | None:
        """The newest evaluation of a step or an earlier one: with rollouts one step ahead, the step after it has been evaluated already."""
        known = [each for each in self._evaluations if each <= step]
        return self._evaluations[max(known)] if known else None

    def _forget_evaluations(self, due: int) -> None:
        """Keeps what rates the checkpoint of a step and of later ones."""
        for step in sorted(each for each in self._evaluations if each <= due)[:-1]:
            del self._evaluations[step]

    def _passed(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """What is over its bound, in words; an empty sentence where it is not."""
        return {
            "held_out": self._held_out_words(), "kl": self._kl_words(metrics["kl"]), "length": self._length_words(),
            "repetition": self._repetition_words(metrics["repetition"]),
        }  # fmt: skip

    def _held_out_words(self) -> str:
        seen, bound = self._held_out, self._spec.max_held_out_drop
        if not self._spec.held_out_reward_model or not bound or seen.best is None:
            return ""
        rises = seen.trained.mean > seen.trained_then
        if not rises or seen.fall <= bound * seen.std or seen.fall <= _RESOLVED * seen.error:
            return ""
        return (
            f"{self._spec.held_out_reward_model}, which the policy is not trained on, fell from {seen.best:.3g} to {seen.score.mean:.3g} "
            f"({_times(seen.fall, seen.std)} standard deviations; max_held_out_drop {bound:g}) while the trained score rose from "
            f"{seen.trained_then:.3g} to {seen.trained.mean:.3g}, {self._steps}: the policy learns what only its own reward model likes; "
            "read the latest rollouts, then mend the reward model's data or raise kl_coef"
        )

    def _kl_words(self, kl: float) -> str:
        bound = self._spec.max_kl
        if not bound or kl <= bound:
            return ""
        return (
            f"KL to the reference is {kl:.3g} nats a response, over max_kl {bound:g} {self._steps}: the policy is far from where it started, where "
            "its reward model was never shown anything; raise kl_coef, or lower the learning rate"
        )

    def _length_words(self) -> str:
        bound, length = self._spec.max_length_ratio, self._length
        if not bound or len(length.first) < self._spec.patience:
            return ""
        ratio = length.mean / length.first_mean
        if 1 / bound <= ratio <= bound:
            return ""
        kind, cause = ("longer", "length") if ratio > 1 else ("shorter", "brevity")
        return (
            f"responses of {length.mean:.0f} tokens are {max(ratio, 1 / ratio):.2g} times {kind} than the first ones ({length.first_mean:.0f}), over "
            f"max_length_ratio {bound:g} {self._steps}: {cause} may be what is rewarded; compare scores of long and short responses, and balance the "
            "lengths of chosen and rejected in the reward model's data"
        )

    def _repetition_words(self, repetition: float) -> str:
        bound = self._spec.max_repetition
        if not bound or repetition <= bound:
            return ""
        return (
            f"{repetition:.0%} of the {_NGRAM}-grams of a response repeat earlier ones, over max_repetition {bound:.0%} {self._steps}: the policy "
            "loops, and the reward model likes it; read the latest rollouts, show the reward model loops as rejected, or raise kl_coef"
        )

    @property
    def _steps(self) -> str:
        size = self._spec.patience
        return "in one step" if size == 1 else f"{size} steps in a row"


def _ranked(ratings: Mapping[int, float]) -> list[tuple[int, float]]:
    """Steps with their ratings, the best first, of equal ones the earlier."""
    return sorted(ratings.items(), key=lambda item: (-item[1], item[0]))


def _evaluations(state: Mapping[str, Any]) -> dict[int, float]:
    """Evaluations by step; a checkpoint of an earlier version has the newest alone, without its step, which counts as one before all."""
    if "evaluations" in state:
        return {int(step): value for step, value in state["evaluations"].items()}
    return {} if state["evaluation"] is None else {0: state["evaluation"]}


def _times(fall: float, std: float) -> str:
    return f"{fall / std:.2g}" if std > 0 else "any number of"
