"""Reward models on the run's own base model, where `endpoints.reward` is `local`: one copy of the weights less, and no reward service.

What does not belong here: scoring through the service (`accord.training.rollout`), training reward models (`accord.training.reward_model`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Sequence

import torch

from accord.client.messages import ModelDigests, TokenIds
from accord.client.reward import RewardModel, ScoreItem, ScoreResult
from accord.errors import FailedPreconditionError, InternalError, InvalidArgumentError
from accord.models.batching import TokenSequence, collate
from accord.models.heads import HEAD_FILE, HeadFacts, ScalarHead
from accord.training.context import RunContext


class LocalScores:
    """Answers what a run asks a `RewardClient`.

    Several threads may ask; none of them beside one that trains, since both switch adapters of one model.

    Raises:
        InvalidArgumentError: the run samples while it learns, or its base model is spread over processes.
    """

    def __init__(self, context: RunContext) -> None:
        spec = context.spec
        if spec.ppo is not None and spec.ppo.max_staleness:
            raise InvalidArgumentError("a run that samples one step ahead needs a reward service: local scores are computed by the model that learns",
                                       field="endpoints.reward")  # fmt: skip
        if spec.distribution.strategy == "fsdp":
            raise InvalidArgumentError("local scores need the whole base model in one process; fsdp spreads it", field="endpoints.reward")
        self._context = context
        self._heads: dict[str, tuple[ScalarHead, HeadFacts]] = {}
        self._lock = threading.Lock()

    def score_groups(self, groups: Iterable[Sequence[ScoreItem]], reward_model: RewardModel) -> Iterator[ScoreResult]:
        """Yields scores in the order of the items; those of a group are computed at once, and their bits depend on all of it."""
        for group in groups:
            rows = [_tokens(item) for item in group]
            columns = [self._scores(member, rows) for member in reward_model.members]
            for item, (prompt, response), *scores in zip(group, rows, *columns, strict=True):
                members = tuple(scores)
                yield ScoreResult(item.item_id, None, _combined(members, reward_model.std_coefficient), members, len(prompt) + len(response))

    def digests_of(self, reward_model: str) -> ModelDigests:
        """Of the model that a reward model belongs to: this run's, since another is refused.

        Raises:
            FailedPreconditionError: it is no reward model, or was trained on another base model.
        """
        with self._lock:
            self._ready(reward_model)
        digests = self._context.base.digests
        return ModelDigests(digests.base_model, digests.tokenizer, digests.chat_template)

    def close(self) -> None:
        """Nothing is open."""

    def _scores(self, member: str, rows: Sequence[TokenSequence]) -> list[float]:
        base = self._context.base
        batch = collate(rows, pad_id=base.pad_token_id, device=base.device)
        with self._lock, torch.inference_mode():
            head, facts = self._ready(member)
            hidden = self._context.adapted.hidden(
                batch.input_ids, batch.attention_mask, adapter=_name(member), position_ids=batch.position_ids, asked=batch.last_token_mask
            )
            raw = head.at_last_token(hidden, batch.attention_mask).double()
        found: list[float] = ((raw - facts.mean) / facts.std).tolist()
        return found

    def _ready(self, member: str) -> tuple[ScalarHead, HeadFacts]:
        if member in self._heads:
            return self._heads[member]
        context = self._context
        manifest = context.store.manifest(member)
        if manifest.kind != "reward" or HEAD_FILE not in manifest.files:
            raise FailedPreconditionError(f"{member} is of kind {manifest.kind}; a reward model is needed", field="reward_model")
        if manifest.base_model_digest != context.base.digests.base_model:
            raise FailedPreconditionError(
                f"{member} was trained on base model {manifest.base_model_digest}, this run has {context.base.digests.base_model}",
                field="reward_model",
            )
        folder = context.store.fetch(member)
        context.adapted.load(_name(member), folder, trainable=False)
        head = ScalarHead.load(folder, hidden_size=context.base.hidden_size).to(context.base.device).requires_grad_(False)
        self._heads[member] = head, HeadFacts.from_facts(manifest.facts)
        return self._heads[member]


def _tokens(item: ScoreItem) -> TokenSequence:
    if not isinstance(item.prompt, TokenIds) or not isinstance(item.response, TokenIds):
        raise InternalError("a run scores token ids")
    return item.prompt.ids, item.response.ids


def _name(member: str) -> str:
    return f"scorer/{member}"


def _combined(scores: tuple[float, ...], std_coefficient: float) -> float:
    """The mean less so many population standard deviations, as the reward service combines."""
    mean = sum(scores) / len(scores)
    return mean - std_coefficient * math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
