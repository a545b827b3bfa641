"""`accord score`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from accord.cli.connect import local_command, reach
from accord.cli.failures import advice
from accord.cli.options import DEFAULT_HOME, Home, Json, RewardAddress, Timeout
from accord.cli.output import number_text, print_json, print_table
from accord.cli.progress import ProgressBar
from accord.cli.prompts import PromptTask, PromptText, System, conversation
from accord.errors import NotFoundError
from accord.text.tasks import Task

RewardModels = Annotated[
    list[str],
    typer.Option("--reward-model", metavar="NAME", help="adapters/x/versions/1, or adapters/x for its newest; several are an ensemble."),
]
StdCoefficient = Annotated[
    float, typer.Option("--std-coefficient", min=0, help="An ensemble's score is the mean minus this many standard deviations.")
]


def score(
    prompt: PromptText,
    responses: Annotated[list[str], typer.Argument(metavar="RESPONSE...", help="One response, or more.", show_default=False)],
    reward_model: RewardModels,
    std_coefficient: StdCoefficient = 0.0,
    system: System = "",
    task: PromptTask = Task.CONVERSATION,
    reward: RewardAddress = None,
    home: Home = DEFAULT_HOME,
    timeout: Timeout = 120.0,
    as_json: Json = False,
) -> None:
    """Scores responses to a prompt with a reward model.

    Only differences between scores of one prompt mean something.

    \b
    Example:
        accord score "Name a river." "The Danube." "No." --reward-model adapters/reward-model/versions/1
    """
    from accord.client.reward import RewardClient, RewardModel, ScoreItem

    messages = conversation(prompt, system=system, task=task)
    items = [ScoreItem(messages, response) for response in responses]
    model = RewardModel(tuple(reward_model), std_coefficient)
    with reach("reward", home, reward, timeout) as target, RewardClient(target) as client, advice_on_unknown_reward_model(home):
        with ProgressBar("scoring"):
            reply = client.score(items, model, timeout_seconds=timeout)
        for result in reply.results:
            if result.error is not None:
                raise result.error
    if as_json:
        print_json(reply)
        return
    several = len(reply.reward_model_versions) > 1
    rows = [
        (number_text(result.score), *([" ".join(map(number_text, result.member_scores))] if several else []), result.tokens, response)
        for result, response in zip(reply.results, responses, strict=True)
    ]
    columns = ("score>", *(("members",) if several else ()), "tokens>", "response")
    print_table(columns, rows, title=", ".join(reply.reward_model_versions))


def advice_on_unknown_reward_model(home: Path) -> AbstractContextManager[None]:
    """Says of a reward model that is not there which command lists those that are."""
    return advice(NotFoundError, text=f"`{local_command('lineage', home)}` lists the adapters, reward models among them")
