"""About how much each step computes, in tokens of a forward pass, so that a plan can say how long it takes.

A training pass counts three times a forward pass, a sampled token twelve times (it is computed alone). What does not belong here: how fast this
machine is (`accord.study.speed`).
"""

from __future__ import annotations

from dataclasses import dataclass

from accord.study.recipe import StudyRecipe, TrainPart

_TRAIN, _SAMPLED, _WITHOUT_HEAD = 3, 12, 0.8
_STATISTICS_PAIRS, _RUBRIC_TOKENS, _TEMPLATE_TOKENS = 64, 300, 35
_TOKENS_PER_WORD = 1.35


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of a task's prompts, of a response to train on, and of a sampled one."""

    prompt: float
    response: float
    sampled: float

    @property
    def pair(self) -> float:
        """A prompt with two responses."""
        return self.prompt + 2 * self.response


def lengths_of(recipe: StudyRecipe, prompt_words: float | None, response_words: float | None) -> Lengths:
    """Lengths out of mean words, or the recipe's limits where those are not known."""
    prompt = recipe.max_prompt_tokens if prompt_words is None else _TOKENS_PER_WORD * prompt_words + _TEMPLATE_TOKENS
    response = recipe.max_response_tokens if response_words is None else _TOKENS_PER_WORD * response_words + 1
    return Lengths(min(prompt, recipe.max_prompt_tokens), min(response, recipe.max_response_tokens), 0.9 * recipe.max_sampled_tokens)


def run_cost(recipe: StudyRecipe, algorithm: str, size: TrainPart, lengths: Lengths) -> int:
    """Of a training run of that size, evaluation on held-out pairs included."""
    rows = size.steps * size.batch_size
    held_out = recipe.evaluation.pairs * lengths.pair
    if algorithm == "sft":
        return round(rows * (lengths.prompt + lengths.response) * _TRAIN)
    if algorithm == "reward_model":
        return round(_WITHOUT_HEAD * (rows * lengths.pair * _TRAIN + 2 * held_out + _STATISTICS_PAIRS * lengths.pair))
    if algorithm == "dpo":
        return round(rows * lengths.pair * (_TRAIN + 1) + 3 * held_out)
    passes = 3 + 2 * _TRAIN * recipe.ppo.epochs + (_TRAIN * recipe.ppo.epochs if recipe.ppo.ptx_coefficient else 0)
    return round(rows * ((lengths.prompt + lengths.sampled) * passes + lengths.sampled * _SAMPLED))


def label_cost(kind: str, pairs: int, lengths: Lengths) -> int:
    """Of labelling pairs."""
    if kind == "likelihood":
        return round(pairs * (lengths.pair + 2 * lengths.response))
    asked = 2 if kind == "verdict" else 4
    return round(pairs * asked * (lengths.pair + _RUBRIC_TOKENS))


def generate_cost(recipe: StudyRecipe, lengths: Lengths) -> int:
    """Of one arm's responses to the held-out prompts."""
    return round(recipe.evaluation.responses * (lengths.prompt + _SAMPLED * lengths.sampled))


def measure_cost(recipe: StudyRecipe, reward_models: int, lengths: Lengths) -> int:
    """Of one arm's rewards and KL."""
    return round(recipe.evaluation.responses * (lengths.prompt + lengths.sampled) * (1 + _WITHOUT_HEAD * reward_models))


def judge_cost(recipe: StudyRecipe, arms: int, lengths: Lengths) -> int:
    """Of the judge's comparisons: every response under its prompt and alone; a judge of pairs reads each of two pairs an arm in both orders."""
    if recipe.judge.kind == "likelihood":
        return round(recipe.evaluation.responses * (lengths.prompt + 2 * (arms + 1) * lengths.sampled))
    return label_cost(recipe.judge.kind, 2 * arms * recipe.evaluation.responses, Lengths(lengths.prompt, lengths.sampled, lengths.sampled))
