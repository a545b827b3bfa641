"""Running a study: the services up, the steps in order, each kept as it ends, the report at the end.

What does not belong here: how a step is done (`actions`, `measuring`), and printing (the command line gives a `Reporter`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accord.client.endpoints import ServiceEndpoints
from accord.client.policy import PolicyClient
from accord.data.records import PreferencePair
from accord.rundir import write_atomically
from accord.study import actions, measuring
from accord.study.actions import Clients, StepContext
from accord.study.costs import Lengths, lengths_of
from accord.study.graph import BASE, Graph, Step, arms_of, build_graph
from accord.study.home import check_home, keep_home
from accord.study.lock import held
from accord.study.recipe import StudyRecipe
from accord.study.results import assemble
from accord.study.same_judge import changes
from accord.study.services import addressed, check_known_runs, check_same_model, started
from accord.study.specs import check_specs
from accord.study.speed import Speed
from accord.study.steps import StepResult, StepStore
from accord.study.task_data import check_split, read_task_data, rejections, repeated_prompts

RESULTS_FILE, RECIPE_FILE, REPORT_FILE = "results.json", "recipe.json", "report.html"
_DIGESTS_FILE = "digests.json"
_OF_BASE = "recipe_base_model"


class Reporter(Protocol):
    """Who is told how a study goes on."""

    def message(self, text: str) -> None:
        """A line for people."""

    def step(self, title: str, number: int, total: int, *, known: bool) -> None:
        """A step begins; with `known` its result was there already."""

    def progress(self, fraction: float, text: str) -> None:
        """How far the step is."""

    def remaining(self, seconds: float) -> None:
        """About how long the rest takes."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step with whether it is done and about how long it takes."""

    name: str
    title: str
    kind: str
    done: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """What would run and for how long; `judge_is_unknown` says that nobody knows how long its judge takes: that counts as this machine's model.

    `notes` are sentences about rows of the data that cannot be used.
    """

    recipe: StudyRecipe
    steps: tuple[PlannedStep, ...]
    judge_is_unknown: bool = False
    notes: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """About how long the steps take that are not done."""
        return sum(step.seconds for step in self.steps if not step.done)


@dataclass(frozen=True, slots=True)
class StudyResult:
    """Where the results are, and the results."""

    results: Mapping[str, Any]
    results_path: Path
    report_path: Path
    seconds: float
    reused: int


def plan_study(recipe: StudyRecipe, home: Path, *, endpoints: ServiceEndpoints | None = None) -> StudyPlan:
    """What a study would do in a folder; nothing is started or called, and what an earlier call did is found.

    Raises:
        AccordError: data that cannot be read, or that is in both the training and the held-out part; endpoints that cannot be used; sizes that a
            run would refuse.
    """
    check_home(home)
    if endpoints is None:
        recipe = recipe.with_absolute_paths
    else:
        addressed(recipe, endpoints)
    check_specs(recipe)
    store = StepStore(home)
    model = _last_digests(store, recipe)
    data, lengths, notes = data_facts(recipe)
    graph = build_graph(recipe, model | data, lengths)
    found = _known(store, graph)
    speed = Speed.of([(step, result) for step in graph.steps if (result := found.get(step.name))], recipe.judge.seconds_per_pair)
    steps = [PlannedStep(step.name, step.title, step.kind, step.name in found, speed.seconds(step)) for step in graph.steps]
    unknown = any(step.asked_pairs and step.name not in found for step in graph.steps) and speed.seconds_per_pair is None
    return StudyPlan(recipe, tuple(steps), judge_is_unknown=unknown, notes=notes)


def run_study(
    recipe: StudyRecipe, home: Path, reporter: Reporter, *, endpoints: ServiceEndpoints | None = None, keep_services: bool = False
) -> StudyResult:
    """Runs a study to its end and writes results.json and report.html; a second call continues where the first stopped.

    Args:
        recipe: what is compared.
        home: the folder of the results; with services of its own, their workspace too.
        reporter: is told how it goes on.
        endpoints: services that run elsewhere; None starts those of the workspace.
        keep_services: leaves the services running that a study started; those that somebody else started stay in any case.

    Raises:
        FailedPreconditionError: another process runs a study in that folder.
        AccordError: a service or a step failed; what was done is kept.
    """
    started_at = time.monotonic()
    keep_home(home)
    elsewhere = None if endpoints is None else addressed(recipe, endpoints)
    if elsewhere is None:
        recipe = recipe.with_absolute_paths
    check_specs(recipe)
    store = StepStore(home)
    with held(home, store.folder, reporter.message):
        data, lengths, notes = data_facts(recipe)
        for note in notes:
            reporter.message(f"note: {note}")
        local = started(recipe, home, store.folder, reporter.message, keep=keep_services) if elsewhere is None else contextlib.nullcontext(elsewhere)
        with local as services, Clients(services.channels) as clients:
            if elsewhere is not None:
                check_same_model(recipe, clients.policy, clients.reward, reporter.message)
            digests = model_digests(clients.policy)
            write_atomically(store.folder / _DIGESTS_FILE, json.dumps(digests | {_OF_BASE: recipe.base_model}))
            graph = build_graph(recipe, digests | data, lengths)
            runner = _Runner(recipe, graph, store, clients, reporter, services.label_folder)
            runner.check_known(home)
            found, reused = runner.run()
        results = assemble(recipe, graph, found, digests | data)
        results["notes"] = [*notes, *results["notes"]]
        report_path = _write(home, recipe, results)
    return StudyResult(results, home / RESULTS_FILE, report_path, time.monotonic() - started_at, reused)


def _write(home: Path, recipe: StudyRecipe, results: Mapping[str, Any]) -> Path:
    """Writes recipe, results and report; returns where the report is."""
    from accord.study.report import write_report

    write_atomically(home / RECIPE_FILE, recipe.model_dump_json(indent=1))
    write_atomically(home / RESULTS_FILE, json.dumps(results, indent=1, ensure_ascii=False))
    return write_report(home)


def _last_digests(store: StepStore, recipe: StudyRecipe) -> dict[str, str]:
    """Digests of what the policy service served when a study last ran here; empty where that was nothing, or another base model than the recipe's."""
    try:
        digests: dict[str, str] = json.loads((store.folder / _DIGESTS_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    # Files of earlier versions do not say which base model they are of.
    return digests if digests.pop(_OF_BASE, recipe.base_model) == recipe.base_model else {}


def _known(store: StepStore, graph: Graph) -> dict[str, StepResult]:
    """Results of earlier calls, by the step's name."""
    return {step.name: result for step in graph.steps if (result := store.read(step.name, graph.keys[step.name])) is not None}


def model_digests(policy: PolicyClient) -> dict[str, str]:
    """Digests of what the policy service serves."""
    digests = policy.model_info().digests
    return {"base_model": digests.base_model, "tokenizer": digests.tokenizer, "chat_template": digests.chat_template}


def data_facts(recipe: StudyRecipe) -> tuple[dict[str, str], dict[str, Lengths], tuple[str, ...]]:
    """Digests of each task's training and held-out data, how long its texts are, and a sentence for what could not be used of it.

    Raises:
        InvalidArgumentError: a prompt is in both parts, a part has fewer than two pairs or rows of another task, or the evaluation would refuse a
            reference.
        AccordError: data that cannot be read.
    """
    found, lengths = {}, {}
    notes: list[str] = []
    for index, part in enumerate(recipe.tasks):
        train, test = (read_task_data(part, recipe.seed, index, held_out=held_out) for held_out in (False, True))
        check_split(train, test, index)
        notes += [*rejections(train, part, index, held_out=False), *rejections(test, part, index, held_out=True)]
        facts = [train.pairs.report.digest, test.pairs.report.digest, test.prompts.report.digest]
        # Only of data of which more is read: other data keeps its keys.
        if repeated_prompts(part, recipe.evaluation.prompts, recipe.seed, index):
            facts.append("each held-out prompt once")
        facts += [f"{split} {data.digest_beyond_pairs}" for split, data in (("train", train), ("test", test)) if data.digest_beyond_pairs]
        found[f"data_{part.task.value}"] = hashlib.sha256(" ".join(facts).encode()).hexdigest()
        pairs = train.pairs.rows
        lengths[part.task.value] = lengths_of(recipe, _mean_words(pair.messages[-1].content for pair in pairs), _response_words(pairs))
    return found, lengths, tuple(notes)


def _response_words(pairs: Sequence[PreferencePair]) -> float:
    return _mean_words(text for pair in pairs for text in (pair.chosen, pair.rejected))


def _mean_words(texts: Iterable[str]) -> float:
    return statistics.mean(len(text.split()) for text in texts)


class _Runner:
    """Does the steps of a graph that are not done."""

    def __init__(self, recipe: StudyRecipe, graph: Graph, store: StepStore, clients: Clients, reporter: Reporter, label_folder: str) -> None:
        self._recipe = recipe
        self._graph = graph
        self._store = store
        self._clients = clients
        self._reporter = reporter
        self._label_folder = label_folder
        self._results: dict[str, StepResult] = {}
        self._done_here: list[tuple[Step, StepResult]] = []

    def check_known(self, home: Path) -> None:
        """Holds the results of earlier calls against the services that go on with them, and says where another judge would answer.

        Raises:
            FailedPreconditionError: they are of runs of other services.
        """
        known = _known(self._store, self._graph)
        check_known_runs(home, known, self._clients.trainer)
        for change in changes(self._graph, known, self._clients.feedback, self._label_folder_of):
            self._reporter.message(change)

    def run(self) -> tuple[dict[str, StepResult], int]:
        """All results by name, and how many were there already."""
        total = len(self._graph.steps)
        for number, step in enumerate(self._graph.steps, start=1):
            key = self._graph.keys[step.name]
            known = self._store.read(step.name, key)
            self._reporter.step(step.title, number, total, known=known is not None)
            if known is None:
                self._tell_remaining(number - 1)
                known = self._timed(step, key)
                self._done_here.append((step, known))
            self._results[step.name] = known
            if step.kind == "generate" and step.params["arm"] == BASE:
                for note in measuring.left_out(known, self._recipe.longest_measured_prompt):
                    self._reporter.message(f"{step.params['task']}: {note}")
        return self._results, total - len(self._done_here)

    def _label_folder_of(self, key: str) -> str:
        """Where the label job of a step writes."""
        return f"{self._label_folder}/study-{key}" if self._label_folder else str(self._store.files(key).absolute())

    def _timed(self, step: Step, key: str) -> StepResult:
        """Does a step and keeps its result with the time of all calls that worked on it; a run tells itself how long it trained."""
        earlier, started = self._store.spent(key), time.monotonic()
        self._store.begin(key, earlier or 0.0)
        try:
            values = self._do(step, key)
        except BaseException:  # an interruption too
            self._store.begin(key, (earlier or 0.0) + time.monotonic() - started)
            raise
        seconds = (earlier or 0.0) + time.monotonic() - started
        return self._store.write(step.name, key, values, max(seconds, values.get("seconds", 0.0)), resumed=earlier is not None)

    def _do(self, step: Step, key: str) -> dict[str, Any]:
        folder, labels = self._store.files(key).absolute(), self._label_folder_of(key)
        context = StepContext(self._clients, self._results, folder, labels, key, self._reporter.progress, self._recipe.longest_measured_prompt)
        if step.kind == "train":
            return actions.train(step, context)
        if step.kind == "label":
            return actions.label(step, context)
        if step.kind == "generate":
            return measuring.generate(step, context)
        if step.kind == "measure":
            return measuring.measure(step, context)
        if step.kind == "judge":
            return measuring.judge(step, context)
        arms = arms_of(self._recipe)
        tasks = {part.task.value: {arm: f"{part.task.value}/generate-{arm}" for arm in arms} for part in self._recipe.tasks}
        return actions.evaluate(step, context, measuring.evaluation_rows(tasks, self._results, self._recipe.longest_measured_prompt))

    def _tell_remaining(self, first: int) -> None:
        speed = Speed.of(self._done_here, self._recipe.judge.seconds_per_pair)
        left = [step for step in self._graph.steps[first:] if self._store.read(step.name, self._graph.keys[step.name]) is None]
        self._reporter.remaining(sum(speed.seconds(step) for step in left))
