"""`accord compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from accord.cli.connect import reach
from accord.cli.options import DEFAULT_HOME, Home, Json, RewardAddress, Timeout
from accord.cli.output import number_text, print_json, print_line, print_table
from accord.cli.progress import ProgressBar
from accord.cli.prompts import PromptTask, PromptText, System, conversation
from accord.cli.score import RewardModels, StdCoefficient, advice_on_unknown_reward_model
from accord.text.tasks import Task


def compare(
    prompt: PromptText,
    response_a: Annotated[str, typer.Argument(metavar="A", help="A response.", show_default=False)],
    response_b: Annotated[str, typer.Argument(metavar="B", help="Another response.", show_default=False)],
    reward_model: RewardModels,
    std_coefficient: StdCoefficient = 0.0,
    system: System = "",
    task: PromptTask = Task.CONVERSATION,
    reward: RewardAddress = None,
    home: Home = DEFAULT_HOME,
    timeout: Timeout = 120.0,
    as_json: Json = False,
) -> None:
    """Says which of two responses a reward model prefers, and how surely.

    The probability is that of Bradley and Terry, from the scores as they were trained; the scores shown are scaled, as in `accord score`.

    \b
    Example:
        accord compare "Name a river." "The Danube." "No." --reward-model adapters/reward-model/versions/1
    """
    from accord.client.reward import ComparePair, RewardClient, RewardModel

    pair = ComparePair(conversation(prompt, system=system, task=task), response_a, response_b)
    model = RewardModel(tuple(reward_model), std_coefficient)
    with reach("reward", home, reward, timeout) as target, RewardClient(target) as client, advice_on_unknown_reward_model(home):
        with ProgressBar("comparing"):
            reply = client.compare([pair], model, timeout_seconds=timeout)
        result = reply.results[0]
        if result.error is not None:
            raise result.error
    if as_json:
        print_json(reply)
        return
    rows = [("A", number_text(result.score_a), response_a), ("B", number_text(result.score_b), response_b)]
    print_table(("", "score>", "response"), rows, title=", ".join(reply.reward_model_versions))
    print_line(f"P(A is better) = {result.probability_a:.3f}")
