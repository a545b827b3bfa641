"""Rollouts: responses sampled by the policy service, scored by the reward service while others are still being sampled.

They are on disk before they are used, and read from there when a run is resumed, so that each is sampled, paid for and used once. What does
not belong here: what is learned from them (`accord.training.ppo`, `groups`).
"""

from __future__ import annotations

import json
import math
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from accord.client.messages import TokenIds
from accord.client.policy import GenerateItem, Origin, PolicyClient, Sampling
from accord.client.policy import Sample as WireSample
from accord.client.reward import RewardClient, RewardModel, ScoreItem, ScoreResult
from accord.errors import DataLossError, FailedPreconditionError, InternalError, InvalidArgumentError, UnavailableError
from accord.rpc.channels import ChannelConfig
from accord.rundir import write_atomically
from accord.training.context import RunContext
from accord.training.examples import EncodedPrompt
from accord.training.waiting import with_patience

_CALL_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One response with its score.

    `sampler_logprobs` are the policy service's, nats a token at the sampling temperature; `ended` says that the model ended the turn;
    `member_scores` are those of each reward model, of which `score` is made.
    """

    id: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    score: float
    ended: bool
    seed: int
    adapter_version: str
    member_scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Draw:
    """How to sample: at most so many tokens, at this temperature (0 is greedy), each prompt with its own seed."""

    max_tokens: int
    temperature: float
    seeds: tuple[int, ...]


class RolloutSource:
    """Samples and scores through the services.

    Args:
        context: of the run; its endpoints name the services.
        reward_model: versions that score, and how their scores become one (the reward service does it).

    Raises:
        InvalidArgumentError: the run has no address of a service.
    """

    def __init__(self, context: RunContext, reward_model: RewardModel) -> None:
        endpoints = context.run.endpoints
        for name in ("policy", "reward"):
            if not getattr(endpoints, name):
                raise InvalidArgumentError(f"{context.spec.algorithm} needs the {name} service; its address is empty", field=f"endpoints.{name}")
        self._context = context
        self._reward_model = reward_model
        # One attempt a call: `with_patience` tries again, and says so. gRPC's own retries can lose the end of a stream whose server dies.
        policy = ChannelConfig(address=endpoints.policy, load_balancing=endpoints.policy_balancing, attempts=1)
        self._policy = PolicyClient(policy, origin=Origin("rollout", context.run.name))
        self._reward = RewardClient(ChannelConfig(address=endpoints.reward, attempts=1))

    def check_services(self) -> None:
        """Compares the services' base model with this process's.

        Raises:
            FailedPreconditionError: they hold another model, tokenizer or template; both digests are named.
        """
        mine = self._context.base.digests
        theirs = with_patience(
            self._context, "rollouts", f"policy service at {self._context.run.endpoints.policy}", lambda: self._policy.model_info().digests
        )
        scorers = with_patience(
            self._context, "rollouts", f"reward service at {self._context.run.endpoints.reward}",
            lambda: [self._reward.reward_model_info(member).digests for member in self._reward_model.members],
        )  # fmt: skip
        for service, other in (("policy", theirs), *(("reward", scorer) for scorer in scorers)):
            for name in ("base_model", "tokenizer", "chat_template"):
                if getattr(mine, name) != getattr(other, name):
                    raise FailedPreconditionError(
                        f"the {service} service has {name} {getattr(other, name)}, this run {getattr(mine, name)}",
                        field=f"endpoints.{service}",
                    )

    def collect(self, prompts: Sequence[EncodedPrompt], draw: Draw, version: str) -> list[Rollout]:
        """One rollout for each prompt under a policy version, in the order of the prompts; waits for services that are away."""
        endpoints = self._context.run.endpoints
        service = f"policy service at {endpoints.policy} or reward service at {endpoints.reward}"
        return with_patience(self._context, "rollouts", service, lambda: self._collect(prompts, draw, version))

    def close(self) -> None:
        """Closes the channels."""
        self._policy.close()
        self._reward.close()

    def _collect(self, prompts: Sequence[EncodedPrompt], draw: Draw, version: str) -> list[Rollout]:
        samples: dict[int, WireSample] = {}
        waiting: queue.Queue[ScoreItem | None] = queue.Queue()
        with ThreadPoolExecutor(1) as pool:
            scores = pool.submit(self._score, waiting)
            try:
                for index, sample in self._sample(prompts, draw, version):
                    samples[index] = sample
                    waiting.put(ScoreItem(TokenIds(prompts[index].prompt), TokenIds(sample.token_ids), str(index)))
            finally:
                waiting.put(None)
            found = scores.result()
        return [
            Rollout(
                prompt.id, prompt.prompt, samples[index].token_ids, samples[index].logprobs, found[str(index)].score,
                samples[index].finish_reason == "eos", draw.seeds[index], version, found[str(index)].member_scores,
            )
            for index, prompt in enumerate(prompts)
        ]  # fmt: skip

    def _sample(self, prompts: Sequence[EncodedPrompt], draw: Draw, version: str) -> Iterator[tuple[int, WireSample]]:
        items = [
            GenerateItem(TokenIds(prompt.prompt), Sampling(max_tokens=draw.max_tokens, temperature=draw.temperature, seed=seed))
            for prompt, seed in zip(prompts, draw.seeds, strict=True)
        ]
        missing = set(range(len(prompts)))
        for event in self._policy.generate_stream(items, adapter=version, timeout_seconds=_CALL_SECONDS):
            if event.error is not None:
                raise event.error
            if event.sample is not None and event.sample.finish_reason == "aborted":
                raise UnavailableError("the policy service was paused in the middle of a response", retry_after_seconds=1.0)
            if event.sample is not None:
                missing.discard(event.item_index)
                yield event.item_index, event.sample
        if missing:
            raise InternalError(f"the policy service left {len(missing)} of {len(prompts)} prompts without an answer")

    def _score(self, waiting: queue.Queue[ScoreItem | None]) -> dict[str, ScoreResult]:
        found: dict[str, ScoreResult] = {}
        for result in self._reward.score_stream(iter(waiting.get, None), self._reward_model, timeout_seconds=_CALL_SECONDS):
            if result.error is not None:
                raise result.error
            self._check_score(result)
            found[result.item_id] = result
        return found

    def _check_score(self, result: ScoreResult) -> None:
        members = self._reward_model.members
        if len(result.member_scores) != len(members):
            raise InternalError(f"the reward service gave {len(result.member_scores)} scores of {len(members)} reward models")
        for index, (member, score) in enumerate(zip(members, result.member_scores, strict=True)):
            if not math.isfinite(score):
                field = f"more_reward_models[{index - 1}]" if index else "reward_model"
                raise DataLossError(f"{member} gives a score of {score}", field=f"{self._context.spec.algorithm}.{field}")


def write_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    """Writes rollouts at once: a reader sees all of them or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(json.dumps(asdict(rollout)) + "\n" for rollout in rollouts))


def read_rollouts(path: Path) -> list[Rollout] | None:
    """Rollouts as they were written, None where there are none.

    Raises:
        DataLossError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [
            Rollout(
                row["id"], tuple(row["prompt_ids"]), tuple(row["response_ids"]), tuple(row["sampler_logprobs"]), row["score"],
                row["ended"], row["seed"], row["adapter_version"], tuple(row["member_scores"]),
            )
            for row in rows
        ]  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(f"rollout file {path.name} is damaged: {error}") from error
