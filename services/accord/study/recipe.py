"""What a study compares, as one frozen model; a recipe file is this model in YAML.

What does not belong here: the steps that follow from it (`accord.study.graph`).
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from accord.client.feedback_messages import Judge
from accord.data.files import absolute_uri
from accord.errors import AccordError, InvalidArgumentError, NotFoundError
from accord.feedback.judge_config import JudgeName, NamedJudge, Price, asked_through, facts_of
from accord.feedback.settings import read_settings
from accord.runspec_parts import LoraSpec, NonNegative, Positive, Spec
from accord.text.tasks import Task

Feedback = Literal["human", "ai"]
PolicyAlgorithm = Literal["ppo", "dpo"]
JudgeKindName = Literal["likelihood", "verdict", "rating"]


class TaskPart(Spec):
    """One task: where its prompts, references and pairs come from."""

    task: Task
    uri: str = Field(min_length=1, max_length=2048, description="data with prompts, references and human-labelled pairs")
    test_uri: str = Field("", max_length=2048, description="the same for the held-out part; empty: the data of `uri`")
    format: str = ""
    split: str = Field("train", min_length=1, max_length=64, description="whose rows are trained on; all is every split")
    test_split: str = Field("test", min_length=1, max_length=64, description="whose rows are the held-out part, of `test_uri` where there is one")

    @property
    def held_out_uri(self) -> str:
        """Where the held-out part is."""
        return self.test_uri or self.uri


class TrainPart(Spec):
    """Size and pace of one kind of run."""

    steps: int = Field(ge=1, le=1_000_000)
    batch_size: int = Field(8, ge=1, le=4096)
    micro_batch_size: int = Field(4, ge=1, le=4096)
    learning_rate: Positive = Field(le=1)
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    checkpoint_every_steps: int = Field(0, ge=0)
    eval_every_steps: int = Field(0, ge=0)


class DpoPart(TrainPart):
    """DPO runs."""

    beta: Positive = 0.1
    nll_coefficient: NonNegative = Field(0.0, description="weight of the chosen response's negative log-likelihood a token beside the loss")


class PpoPart(TrainPart):
    """PPO runs."""

    kl_coef: NonNegative = 0.05
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    kl_target: Positive = 6.0
    epochs: int = Field(2, ge=1, le=64)
    minibatch_size: int | None = Field(None, ge=1)
    missing_eos_penalty: NonNegative = 1.0
    ptx_coefficient: NonNegative = 0.0
    gae_lambda: float = Field(
        0.95, ge=0, le=1, description="below 1 a response's early tokens learn from the critic, which knows little in a short run"
    )
    value_from_reward_model: bool = True


class JudgePart(Spec):
    """The judge that stands in for people."""

    name: str = Field("", max_length=64, description="one of `judges`, or of those that the feedback service has; empty: its default")
    kind: JudgeKindName = "likelihood"
    rubric: str | dict[str, str] = Field("", description="a rubric's id; with several tasks one for each, by task; without one the task's default")
    rationale: bool = False
    adapter: str = ""
    tie_margin: float = Field(0.0, ge=0, lt=0.5)
    seconds_per_pair: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="how long a judge with a name takes for a pair, for plans made before it was asked; in no key"
    )

    @field_validator("rubric", mode="before")
    @classmethod
    def _is_one_or_one_a_task(cls, value: object) -> object:
        each = value.values() if isinstance(value, dict) else [value]
        if not all(isinstance(rubric, str) for rubric in each):
            raise ValueError("the id of a rubric is allowed, or a mapping from task to one")
        return value

    def rubric_of(self, task: str) -> str:
        """The id of the rubric that a task's pairs are judged by; empty for the task's default."""
        return self.rubric if isinstance(self.rubric, str) else self.rubric.get(task, "")


class EvaluationPart(Spec):
    """What the arms are measured on."""

    prompts: int = Field(ge=2, description="held-out prompts of each task")
    samples: int = Field(1, ge=1, le=16, description="responses of each arm to each prompt; intervals draw prompts with all of them")
    pairs: int = Field(12, ge=2, description="held-out pairs on which reward models and DPO are measured")
    temperature: Positive = Field(0.7, le=10)
    bootstrap_samples: int = Field(1000, ge=100, le=100_000)
    held_out_reward_model: bool = Field(
        False, description="counts wins by one more reward model, trained on the human labels of the held-out part, which no arm sees"
    )
    judge_check_pairs: int = Field(
        8, ge=0, description="held-out pairs with a human label on which each judge kind and the judge in use are measured"
    )
    judge_check_kinds: tuple[JudgeKindName, ...] = ("likelihood", "verdict")

    @property
    def responses(self) -> int:
        """Responses of each arm in all."""
        return self.prompts * self.samples


class StudyRecipe(Spec):
    """Tasks x feedback x algorithm, with the sizes of everything."""

    name: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=60)
    description: str = ""
    seed: int = Field(0, ge=0)
    base_model: str = Field("embedded", min_length=1)
    tasks: tuple[TaskPart, ...] = Field(min_length=1)
    feedback: tuple[Feedback, ...] = ("human", "ai")
    algorithms: tuple[PolicyAlgorithm, ...] = ("ppo", "dpo")
    human_pairs: int = Field(ge=2, description="human-labelled training pairs of each task")
    ai_pairs: int = Field(ge=2, description="pairs of each task that the judge labels")
    max_prompt_tokens: int = Field(ge=16)
    max_response_tokens: int = Field(ge=8, description="longest response to train on, in tokens")
    max_sampled_tokens: int = Field(ge=4, description="longest rollout and longest evaluated response, in tokens")
    lora: LoraSpec = LoraSpec()
    judge: JudgePart = JudgePart()
    judges: dict[JudgeName, NamedJudge] = Field(
        default={}, description="judges that the study's own feedback service is given, as its YAML has them; services elsewhere must have them"
    )
    prices: dict[str, Price] = Field(default={}, description="the price table of these")
    sft: TrainPart
    preferred_ft: TrainPart | None = Field(
        None,
        description="one more arm, without preferences: SFT goes on with the chosen responses of the human-labelled pairs (the baseline Preferred-FT "
        "of Rafailov et al. 2023), so that what preferences give can be told from what more SFT gives",
    )
    reward_model: TrainPart
    dpo: DpoPart
    ppo: PpoPart
    evaluation: EvaluationPart

    @model_validator(mode="after")
    def _nothing_twice(self) -> StudyRecipe:
        for name, values in (("tasks", [part.task for part in self.tasks]), ("feedback", self.feedback), ("algorithms", self.algorithms)):
            if len(set(values)) != len(values) or not values:
                raise ValueError(f"{name}: each value once, at least one")
        return self

    @model_validator(mode="after")
    def _judge_can_be_asked_about_each_task(self) -> StudyRecipe:
        """As the feedback service would say it, which would for the second task once the first one is trained."""
        tasks = [part.task.value for part in self.tasks]
        for task in self.judge.rubric if isinstance(self.judge.rubric, dict) else ():
            if task not in tasks:
                raise ValueError(f"judge.rubric: {task!r} is not one of the recipe's tasks, which are {', '.join(tasks)}")
        for task in tasks:
            asked = Judge(self.judge.kind, rubric=self.judge.rubric_of(task), rationale=self.judge.rationale or None)
            try:
                read_settings(asked, self.judge.kind).rubric_for(Task(task))
            except AccordError as error:
                several = isinstance(self.judge.rubric, str) and len(tasks) > 1
                how = f"; with several tasks give one for each: rubric: {{{', '.join(f'{name}: ID' for name in tasks)}}}" if several else ""
                raise ValueError(f"{error.field}: {error.message}{how if error.field == 'judge.rubric' else ''}") from error
        return self

    @model_validator(mode="after")
    def _reward_models_read_what_is_sampled(self) -> StudyRecipe:
        if self.max_sampled_tokens > self.max_response_tokens:
            raise ValueError(
                f"max_sampled_tokens {self.max_sampled_tokens} must not be over max_response_tokens {self.max_response_tokens}, with which reward "
                "models are trained: they read no longer responses"
            )
        return self

    def judge_facts(self, task: str) -> dict[str, Any]:
        """The judge of a task as its steps know it: who is asked and how, with all whom an ensemble or escalation asks; of a name alone, the name."""
        facts = self.judge.model_dump(mode="json", exclude={"seconds_per_pair"}) | {"rubric": self.judge.rubric_of(task)}
        if not self.judge.name:  # steps of before there were names keep their keys
            del facts["name"]
        elif self.judge.name in self.judges:
            facts["who"] = facts_of(self.judges[self.judge.name])
            parts = {name: facts_of(self.judges[name]) for name in asked_through(self.judge.name, self.judges) if name in self.judges}
            if parts:  # steps of judges that answer themselves keep their keys
                facts["parts"] = parts
        return facts

    @property
    def judge_table(self) -> dict[str, dict[str, Any]]:
        """`judges` and `prices` as YAML has them."""
        return self.model_dump(mode="json", include={"judges", "prices"}, exclude_defaults=True)

    @property
    def with_absolute_paths(self) -> StudyRecipe:
        """The same with the data's relative paths taken from the current folder: the study, its services and its runs each work in another one."""
        tasks = [part.model_copy(update={"uri": absolute_uri(part.uri), "test_uri": absolute_uri(part.test_uri)}) for part in self.tasks]
        return self.model_copy(update={"tasks": tuple(tasks)})

    @property
    def longest_measured_prompt(self) -> int | None:
        """Most tokens of a held-out prompt that the recipe's reward models can read with any sampled response; None where it trains none of them.

        They read max_prompt_tokens + max_response_tokens + 1, of which a sampled response takes max_sampled_tokens and an end where it was cut. A
        bound by the prompt alone leaves the same prompts out for all arms.
        """
        if "ppo" not in self.algorithms and not self.evaluation.held_out_reward_model:
            return None
        return self.max_prompt_tokens + self.max_response_tokens - self.max_sampled_tokens

    @property
    def arms(self) -> tuple[tuple[Feedback, PolicyAlgorithm], ...]:
        """The trained arms of each task."""
        return tuple((feedback, algorithm) for feedback in self.feedback for algorithm in self.algorithms)


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with Accord, by name."""
    folder = Path(str(resources.files("accord.recipes").joinpath("study")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str, *, seed: int | None = None) -> StudyRecipe:
    """The recipe of that name (quick, dialogue, full, larger-judge) or in that file, with another seed where one is given.

    Raises:
        NotFoundError: there is no such recipe or file; the message lists the names there are.
        InvalidArgumentError: it is not YAML, or a field is unknown, missing or out of range.
    """
    path = shipped_recipes().get(name_or_path) or Path(name_or_path)
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError) as error:
        names = ", ".join(shipped_recipes())
        raise NotFoundError(f"there is no recipe {name_or_path!r}; there are {names}, or give a YAML file", field="recipe") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{path} is not YAML: {str(error).splitlines()[0]}", field="recipe") from error
    if seed is not None and isinstance(values, dict):
        values["seed"] = seed
    try:
        return StudyRecipe.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        given = "" if isinstance(first.get("input"), dict) else f" (given: {first.get('input')!r})"
        raise InvalidArgumentError(f"{path.name}: {field}: {first['msg']}{given}", field=field) from error
