"""Runs in this process on the tiny model, with planted data; and stand-ins that behave: an optimizer that keeps gradients, a rollout source."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from accord.artefacts.store import ArtefactStore
from accord.models.base import load_base_model
from accord.models.batching import collate
from accord.models.heads import HeadFacts, ScalarHead
from accord.models.lora import AdaptedModel
from accord.rundir import Endpoints, RunDirectory, RunEvent, RunFile, RunResult
from accord.runspec import parse_spec
from accord.runspec_parts import LoraSpec
from accord.training.__main__ import build
from accord.training.context import EventLog, RunContext
from accord.training.distribution import World, shard_base
from accord.training.examples import EncodedPrompt
from accord.training.loop import train
from accord.training.recomputation import recompute_activations
from accord.training.rollout import Rollout
from accord.training.sampler import Draw

WORDS = ("alpha", "beta", "gamma", "delta", "omega", "kappa", "sigma", "theta", "lambda", "zeta", "iota", "tau")
TIMINGS = ("seconds", "seconds_rollout", "seconds_score", "seconds_train", "seconds_evaluate", "seconds_checkpoint", "tokens_per_second")
"""Metrics that no two runs share."""
ALONE = World()
COMMON: dict[str, Any] = {"steps": 3, "batch_size": 4, "max_prompt_tokens": 120, "max_response_tokens": 40, "lora": {"rank": 4}, "adapter": "a"}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows as a file, and the data spec that names it."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if not path.exists() or path.read_text(encoding="utf-8") != text:  # processes of one run read it while another one is here
        path.write_text(text, encoding="utf-8")
    return {"uri": str(path)}


def planted_pairs(words: Sequence[str] = WORDS) -> list[dict[str, Any]]:
    """Pairs whose better response repeats the word; lengths of prompts and responses vary."""
    return [{"prompt": f"say {word}", "chosen": word * (1 + n % 2), "rejected": "?" * (4 + n % 3)} for n, word in enumerate(words)]


def other_prompts(root: Path) -> dict[str, Any]:
    """Planted pairs whose prompts are none of `planted_pairs`, to hold out."""
    return write_rows(root / "held-out.jsonl", [{**row, "prompt": f"tell {row['prompt']}"} for row in planted_pairs()])


def make_context(
    root: Path, model: Path, values: Mapping[str, Any], *, name: str = "run", endpoints: Endpoints | None = None, world: World = ALONE,
) -> RunContext:  # fmt: skip
    """The surroundings of a run as `accord.training.__main__` makes them; the artefact store is shared by all runs below `root`."""
    directory = RunDirectory(root / name)
    run = RunFile(
        name=f"runs/{name}", artefacts=str(root / "artefacts"), base_model=str(model), threads=1, endpoints=endpoints or Endpoints(),
        wait_seconds=30, spec=parse_spec({**COMMON, **values}),
    )  # fmt: skip
    if world.leads:
        directory.write_run_file(run)
    base = load_base_model(str(model), threads=1, dtype=getattr(torch, run.spec.dtype) if run.spec.dtype else None)
    if run.spec.distribution.strategy == "fsdp":
        shard_base(base.model, world)
    context = RunContext(run, directory, base, ArtefactStore(run.artefacts), world)
    context.events = EventLog(directory, silent=not world.leads)
    if run.spec.activation_checkpointing:
        recompute_activations(context.adapted)
    return context


def run_here(root: Path, model: Path, values: Mapping[str, Any], *, name: str = "run") -> tuple[RunResult, list[RunEvent]]:
    """Trains to the end in this process; returns how it ended and what it said."""
    context = make_context(root, model, values, name=name)
    result = train(context, build(context))
    return result, list(context.directory.events())


def metrics_of(events: Iterable[RunEvent], metric: str) -> list[float]:
    """The values of a metric, in order."""
    return [event.values[metric] for event in events if event.kind == "metrics" and metric in event.values]


def publish_reward_model(context: RunContext, *, name: str = "rm", seed: int = 7, reads: int = 0) -> str:
    """A reward model with an untrained adapter and a head that says something, to name, and for PPO to start its critic from; `reads` are the most
    tokens that it reads, 0 for no limit."""
    context.adapted.add("tmp", LoraSpec(rank=4, last_layers=context.spec.lora.last_layers), seed=5, trainable=False)
    folder = context.directory.path / "tmp-reward"
    folder.mkdir(parents=True, exist_ok=True)
    context.adapted.save("tmp", folder)
    context.adapted.remove("tmp")
    ScalarHead(context.base.hidden_size, seed=seed).save(folder)
    digests = context.base.digests
    facts = HeadFacts(mean=0.25, std=2.0, max_tokens=reads).to_facts()
    return context.store.publish(name, folder, kind="reward", base_model_digest=digests.base_model, tokenizer_digest=digests.tokenizer, facts=facts)


class GradientKeeper:
    """Stands in for the optimizer: keeps the gradients of a step, summed over processes, instead of applying them."""

    def __init__(self, groups: Mapping[str, Sequence[nn.Parameter]], world: World = ALONE) -> None:
        self._world = world
        self.parameters = [parameter for _, group in sorted(groups.items()) for parameter in group]
        self.steps: list[list[Tensor]] = []

    def apply(self) -> float:
        self._world.reduce_gradients(self.parameters)
        self.steps.append([torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in self.parameters])
        self.zero_grad()
        return float(torch.stack([gradient.norm() for gradient in self.steps[-1]]).norm())

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


class LocalSource:
    """Stands in for the services: samples from the context's policy adapter, token by token, and scores with a function.

    Seeds decide everything, as they do for the policy service. `spread` makes lengths differ: the response in place i ends at
    `i % (spread + 1)` tokens before the longest.
    """

    def __init__(
        self, context: RunContext, score: Callable[[Sequence[int]], float], held_out: Callable[[Sequence[int]], float] | None = None
    ) -> None:  # fmt: skip
        self._context = context
        self._score = score
        self.member_scores: Callable[[Sequence[int]], tuple[float, ...]] = lambda response: (self._score(response),)
        self.spread = 0
        self._held_out = held_out
        self.score_seconds = 0.0
        self.calls: list[tuple[str, ...]] = []

    def check_services(self) -> None:
        """Nothing to compare."""

    def collect(self, prompts: Sequence[EncodedPrompt], draw: Draw, version: str) -> list[Rollout]:
        self.calls.append(tuple(prompt.id for prompt in prompts))
        base, eos = self._context.base, set(self._context.base.eos_token_ids)
        generators = [torch.Generator().manual_seed(seed) for seed in draw.seeds]
        responses: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        limits = [draw.max_tokens - index % (self.spread + 1) for index in range(len(prompts))]
        for _ in range(draw.max_tokens):
            live = [index for index, ids in enumerate(responses) if len(ids) < limits[index] and not (ids and ids[-1] in eos)]
            if not live:
                break
            batch = collate([(prompts[index].prompt, responses[index]) for index in live], pad_id=base.pad_token_id)
            with torch.no_grad():
                hidden = self._context.adapted.hidden(batch.input_ids, batch.attention_mask, adapter="policy", position_ids=batch.position_ids)
                logits = self._context.adapted.logits_of(hidden[torch.arange(len(live)), batch.last_token_index])
            for row, index in enumerate(live):
                scaled = torch.log_softmax(logits[row] / (draw.temperature or 1.0), -1)
                greedy = draw.temperature == 0
                token = int(scaled.argmax()) if greedy else int(torch.multinomial(scaled.exp(), 1, generator=generators[index]))
                responses[index].append(token)
                logprobs[index].append(float(scaled[token]))
        return [
            Rollout(
                prompt.id, prompt.prompt, tuple(responses[index]), tuple(logprobs[index]), self._score(responses[index]),
                responses[index][-1] in eos, draw.seeds[index], version, self.member_scores(responses[index]),
                None if self._held_out is None else self._held_out(responses[index]),
            )
            for index, prompt in enumerate(prompts)
        ]  # fmt: skip


class VersionSource:
    """Stands in for the services, as `LocalSource`, with a model of its own: it samples by the version that it is asked for, from any thread."""

    def __init__(self, context: RunContext, score: Callable[[Sequence[int]], float]) -> None:
        self._store = context.store
        self._adapted = AdaptedModel(load_base_model(context.run.base_model, threads=1))
        self._own = LocalSource(SimpleNamespace(base=self._adapted.base, adapted=self._adapted), score)  # type: ignore[arg-type]
        self._lock = threading.Lock()
        self.versions: list[str] = []
        self.score_seconds = 0.0

    def check_services(self) -> None:
        """Nothing to compare."""

    def beside(self) -> VersionSource:
        """Itself: calls wait for one another."""
        return self

    def close(self) -> None:
        """Nothing is open."""

    def collect(self, prompts: Sequence[EncodedPrompt], draw: Draw, version: str) -> list[Rollout]:
        torch.set_num_threads(1)  # a thread's own number; it decides the last bits
        with self._lock:
            self.versions.append(version)
            if "policy" in self._adapted.names:
                self._adapted.remove("policy")
            self._adapted.load("policy", self._store.fetch(version))
            return self._own.collect(prompts, draw, version)


NOWHERE = Endpoints(policy="127.0.0.1:1", reward="127.0.0.1:1")


def even_share(response: Sequence[int]) -> float:
    """A planted score: how much of a response is tokens with even ids, from 0 to 4."""
    return 4.0 * sum(token % 2 == 0 for token in response) / len(response)


def make_ppo(
    root: Path,
    model: Path,
    values: Mapping[str, Any],
    ppo: Mapping[str, Any],
    *,
    name: str = "run",
    score: Callable[[Sequence[int]], float] = even_share,
    held_out: Callable[[Sequence[int]], float] | None = None,
    world: World = ALONE,
) -> tuple[RunContext, Any, LocalSource]:
    """A PPO run, not yet set up, whose rollouts come from this process; with a reward model published for its critic."""
    return make_rollout_run(root, model, {**values, "ppo": ppo}, name=name, score=score, held_out=held_out, world=world)


def make_rollout_run(
    root: Path, model: Path, values: Mapping[str, Any], *, name: str = "run", score: Callable[[Sequence[int]], float] = even_share,
    held_out: Callable[[Sequence[int]], float] | None = None, world: World = ALONE,
) -> tuple[RunContext, Any, LocalSource]:  # fmt: skip
    """A run of PPO, GRPO or RLOO, not yet set up, whose rollouts come from this process; with a reward model published, and one for the guards
    (adapters/honest) where `held_out` stands in for it."""
    parts = {kind: {"reward_model": "adapters/rm", **values[kind]} for kind in ("ppo", "grpo", "rloo") if kind in values}
    context = make_context(root, model, {"max_response_tokens": 10, **values, **parts}, name=name, endpoints=NOWHERE, world=world)
    world.from_first(lambda: publish_reward_model(context))
    if held_out is not None:
        world.from_first(lambda: publish_reward_model(context, name="honest"))
    algorithm = build(context)
    source = LocalSource(context, score, held_out)
    algorithm._source.close()  # type: ignore[attr-defined]
    algorithm._source = source  # type: ignore[attr-defined]
    return context, algorithm, source


def shake(context: RunContext, name: str, seed: int = 3) -> None:
    """Gives an adapter weights that change something: a fresh one has B = 0."""
    generator = torch.Generator().manual_seed(seed)
    state = {key: 0.2 * torch.randn(tensor.shape, generator=generator) for key, tensor in context.adapted.state(name).items()}
    context.adapted.load_state(name, state)


def dying_in(algorithm: Any, step: int) -> Any:
    """The algorithm, interrupted when it has done a step and nothing is written of it yet."""
    done = algorithm.step

    def die(at: int, optimizer: Any) -> dict[str, float]:
        metrics: dict[str, float] = done(at, optimizer)
        if at == step:
            raise KeyboardInterrupt
        return metrics

    algorithm.step = die
    return algorithm
