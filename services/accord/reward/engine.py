"""The reward service's compute: one queue, one thread, one base model with reward adapters and their scalar heads.

What does not belong here: protobuf and ensembles (`accord.reward.servicer`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from prometheus_client import Counter, Gauge

from accord.artefacts.names import AdapterName
from accord.artefacts.store import ArtefactStore
from accord.errors import DataLossError, FailedPreconditionError
from accord.models.base import BaseModel
from accord.models.batching import collate, micro_batches
from accord.models.heads import HEAD_FILE, HeadFacts, ScalarHead
from accord.models.lora import AdaptedModel
from accord.reward.config import RewardConfig
from accord.rpc.worker import run_worker
from accord.rpc.workitem import WorkItem
from accord.rpc.workqueue import WorkQueue, WorkRequest
from accord.serving.reader import check_adapter_base

_TOKENS = Counter("accord_reward_tokens_total", "Tokens scored, without padding")
_MODELS = Gauge("accord_reward_loaded_models", "Reward models in memory")


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """One prompt with its response as token ids; neither is empty."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of both together."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class RewardModelFacts:
    """What the manifest of a reward model says."""

    version: str
    digest: str
    head: HeadFacts


Item = WorkItem[ScoreRequest, float]
_ONE_AT_A_TIME, _TOKENS_ELSEWHERE = 1, 16_384


class RewardEngine:
    """Scores sequences with any reward model of the store.

    Args:
        base: the base model; the engine takes it over.
        store: where reward models come from.
        config: limits.
    """

    def __init__(self, base: BaseModel, store: ArtefactStore, config: RewardConfig) -> None:
        self.base = base
        self._store = store
        self._config = config
        self._micro_batch_tokens = config.micro_batch_tokens or (_ONE_AT_A_TIME if base.device.startswith("cpu") else _TOKENS_ELSEWHERE)
        self._adapted = AdaptedModel(base)
        self._heads: OrderedDict[str, tuple[ScalarHead, HeadFacts]] = OrderedDict()
        self._queue: WorkQueue[ScoreRequest, float] = WorkQueue(max_items=config.max_queue_items, max_cost=config.max_queue_tokens, name="reward")
        self._worker = run_worker(
            self._queue,
            self._compute,
            max_cost=config.max_batch_tokens,
            max_items=config.max_batch_items,
            linger_seconds=config.linger_seconds,
        )

    def describe(self, name: str) -> RewardModelFacts:
        """Resolves a name and reads its manifest; nothing is loaded.

        Raises:
            InvalidArgumentError: the name is malformed.
            NotFoundError: there is no such version.
            FailedPreconditionError: it is no reward model, or belongs to another base model.
        """
        version = self._store.resolve(str(AdapterName.parse(name)))
        manifest = self._store.manifest(version)
        if HEAD_FILE not in manifest.files or manifest.kind != "reward":
            raise FailedPreconditionError(
                f"{version} is of kind {manifest.kind} and {'has' if HEAD_FILE in manifest.files else 'has no'} scalar head; "
                "a reward model is needed",
                field="reward_model.members",
            )
        check_adapter_base(version, manifest.base_model_digest, self.base.digests.base_model)
        return RewardModelFacts(version, manifest.digest, HeadFacts.from_facts(manifest.facts))

    def submit(self, requests: Sequence[ScoreRequest], version: str, deadline: float | None) -> list[Item]:
        """Queues requests for one version: all of them or none.

        Raises:
            ResourceExhaustedError: the queue is full. UnavailableError: it is closed.
        """
        return self._queue.submit_all([WorkRequest(request, request.tokens, version, deadline) for request in requests])

    def fault(self) -> str | None:
        """Why the compute thread cannot be counted on, or None."""
        return self._worker.fault(self._config.stall_seconds)

    def stop(self, timeout_seconds: float) -> bool:
        """Closes the queue and waits for the batch in compute."""
        return self._worker.stop(timeout_seconds)

    def _compute(self, batch: list[Item]) -> None:
        version = str(batch[0].key)
        head, facts = self._ready(version)
        lengths = [item.payload.tokens for item in batch]
        for group in micro_batches(lengths, self._micro_batch_tokens):
            items = [batch[index] for index in group if not batch[index].abandoned]
            self._worker.beat()
            if items:
                self._score([item for item in items], version, head, facts)

    def _score(self, items: list[Item], version: str, head: ScalarHead, facts: HeadFacts) -> None:
        rows = [(item.payload.prompt_ids, item.payload.response_ids) for item in items]
        batch = collate(rows, pad_id=self.base.pad_token_id, device=self.base.device)
        with torch.inference_mode():
            hidden = self._adapted.hidden(
                batch.input_ids, batch.attention_mask, adapter=version, position_ids=batch.position_ids, asked=batch.last_token_mask
            )
            raw = head.at_last_token(hidden, batch.attention_mask).double()
        _TOKENS.inc(sum(item.payload.tokens for item in items))
        for item, score in zip(items, ((raw - facts.mean) / facts.std).tolist(), strict=True):
            if math.isfinite(score):
                item.complete(score)
            else:
                item.fail(DataLossError(f"{version} gives this response a score of {score}; its weights or facts are damaged"))

    def _ready(self, version: str) -> tuple[ScalarHead, HeadFacts]:
        """Loads a reward model where it is not loaded yet; the least recently used one makes room."""
        if version in self._heads:
            self._heads.move_to_end(version)
            return self._heads[version]
        facts = self.describe(version).head
        folder = self._store.fetch(version)
        try:
            head = ScalarHead.load(folder, hidden_size=self.base.hidden_size).to(self.base.device).requires_grad_(False)
            while len(self._heads) >= self._config.max_loaded_models:
                oldest, _ = self._heads.popitem(last=False)
                self._adapted.remove(oldest)
            self._adapted.load(version, folder)
        finally:
            self._store.release(version)
        self._heads[version] = (head, facts)
        _MODELS.set(len(self._heads))
        return head, facts
