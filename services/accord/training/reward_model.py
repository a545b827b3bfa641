"""Reward models: a LoRA adapter and a scalar head that score the chosen response above the rejected one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from accord.algos.preference import bradley_terry_loss
from accord.checkpoint import Checkpoint
from accord.data.files import shown
from accord.errors import InvalidArgumentError
from accord.models.heads import HEAD_FILE, HeadFacts, ScalarHead
from accord.models.packing import pack
from accord.runspec_parts import DataSpec, RewardModelSpec
from accord.training.adapter_state import load_adapter, save_adapter, start_adapter
from accord.training.context import RunContext
from accord.training.examples import EncodedPair
from accord.training.held_out import held_out
from accord.training.loop import ADAPTER_FOLDER
from accord.training.optim import Optimizer
from accord.training.pairs import (
    Ratings,
    agreement,
    batch_of_groups,
    group_sizes,
    group_weights,
    hard_label,
    passes,
    read_encoded_pairs,
    read_ratings,
    spread_over_prompts,
    tokens_of,
    toward_labels,
    unseen,
)

REWARD = "reward"
_STATISTICS_PAIRS = 64  # the mean of 128 scores is within a tenth of their spread; they cost as much as 20 pairs that are learnt from


class RewardModelTraining:
    """Bradley-Terry loss with soft labels; all pairs of a prompt weigh as much as one, and share a batch. Implements `loop.Algorithm`."""

    def __init__(self, context: RunContext, spec: RewardModelSpec) -> None:
        self._context = context
        self._spec = spec
        self._head = ScalarHead(context.base.hidden_size, seed=context.spec.seed).to(context.base.device)
        self._facts: dict[str, Any] = {"mean": 0.0, "std": 1.0, "statistics_pairs": 0, "held_out_accuracy": None, "held_out": {}}
        self._parents: tuple[str, ...] = ()
        self._data_digest = ""
        self._eval_source: dict[str, Any] = {}
        self._labelled_by: dict[str, list[str]] = {}
        self._pairs: Sequence[EncodedPair] = ()
        self._eval_pairs: Sequence[EncodedPair] = ()
        self._sizes: Mapping[str, int] = {}
        self._ratings = Ratings()

    def setup(self) -> None:
        """Reads the pairs, starts adapter and head."""
        pairs, self._data_digest = read_encoded_pairs(self._context, self._spec.data)
        self._pairs = pairs.at_least_one("pairs", "reward_model.data").rows
        self._sizes = group_sizes(self._pairs)
        self._labelled_by = {"label_jobs": list(pairs.label_jobs)} if pairs.label_jobs else {}
        self._ratings = read_ratings(self._pairs, margin=self._spec.rating_margin, weights=self._spec.rating_weights, part="reward_model")
        if self._spec.eval_data is not None:
            self._eval_pairs = self._held_out(self._spec.eval_data)
        self._parents = start_adapter(self._context, REWARD, self._context.spec.parent_adapter)

    def _held_out(self, data: DataSpec) -> Sequence[EncodedPair]:
        """The pairs to measure on, without those whose prompt is trained on.

        Raises:
            InvalidArgumentError: there is no pair, or none with a prompt of its own.
        """
        found, digest = read_encoded_pairs(self._context, data)
        read = found.at_least_one("pairs", "reward_model.eval_data").rows
        kept, where = unseen(read, self._pairs), f"{shown(data.uri)} ({data.split})"
        if not kept:
            what = f"all {len(read)} pairs of {where} have a prompt that is trained on: they hold nothing out"
            more = "rows that name no split are in every split" if data.uri == self._spec.data.uri else "give other pairs"
            raise InvalidArgumentError(f"{what}; {more}, and reward_model.eval_data: null measures nothing", field="reward_model.eval_data")
        if shared := len(read) - len(kept):
            self._context.events.message(f"{shared} of {len(read)} pairs of {where} have a prompt that is trained on, and are not measured on")
        self._eval_source = {
            "eval_data_uri": shown(data.uri), "eval_data_split": data.split, "eval_data_digest": digest, "eval_pairs_left_out": shared,
        }  # fmt: skip
        return kept

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Adapter and head."""
        return {REWARD: self._context.adapted.parameters(REWARD), "head": [self._head.weight, self._head.bias]}

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """Accuracy on held-out pairs beside the length baseline, and calibration; with `final` also the scores' mean and spread for the manifest."""
        metrics: dict[str, float] = {}
        if self._eval_pairs:
            chosen, rejected = self._all_scores(self._eval_pairs)
            found = held_out((chosen - rejected).tolist(), self._eval_pairs)
            metrics = found.metrics()
            self._facts["held_out_accuracy"] = found.accuracy.value if found.accuracy.n else None
            self._facts["held_out"] = found.facts() | self._eval_source
        if final:
            pairs = spread_over_prompts(self._pairs, _STATISTICS_PAIRS, self._context.spec.seed)
            scores = torch.cat(self._all_scores(pairs)).double()
            self._facts["statistics_pairs"] = len(pairs)
            self._facts["mean"], self._facts["std"] = float(scores.mean()), max(float(scores.std(unbiased=False)), 1e-6)
            metrics |= {"score_mean": float(self._facts["mean"] or 0.0), "score_std": float(self._facts["std"] or 1.0)}
        return metrics

    def step(self, step: int, optimizer: Optimizer) -> dict[str, float]:
        """One update on one batch of pairs."""
        batch = batch_of_groups(self._pairs, step, self._context.spec.batch_size, self._context.spec.seed)
        weights = dict(zip((id(pair) for pair in batch), group_weights(batch, self._sizes), strict=True))
        world = self._context.world
        sums = world.sums()
        for part in world.share(passes(self._context, batch, self._context.micro_batch_size)):
            self._context.stop.check()
            chosen, rejected = self._scores(part)
            labels = torch.tensor([pair.preference if self._spec.soft_labels else hard_label(pair.preference) for pair in part])
            output = bradley_terry_loss(chosen, rejected, preference=labels, margin=self._ratings.margins(part))
            centred = self._spec.centering_coefficient * (chosen + rejected) ** 2
            losses = self._ratings.weights_of(part) * output.losses + centred
            part_loss = (losses * torch.tensor([weights[id(pair)] for pair in part])).sum()
            world.backward(part_loss)
            margins, preferences = output.margins.tolist(), [pair.preference for pair in part]
            hits, _ = agreement(margins, preferences)
            sums.add(loss=float(part_loss.detach()), margin=sum(toward_labels(margins, preferences)) / len(batch), hits=hits)
        total = sums.total()
        hits, decided = total.pop("hits"), sum(pair.preference != 0.5 for pair in batch)
        return total | {"accuracy": hits / decided if decided else 0.5, "grad_norm": optimizer.apply(), "tokens": tokens_of(batch)}

    def save(self, folder: Path) -> None:
        """Adapter and head."""
        save_adapter(self._context, REWARD, folder / ADAPTER_FOLDER)
        self._head.save(folder / ADAPTER_FOLDER)

    def load(self, checkpoint: Checkpoint) -> None:
        """Adapter, head and facts."""
        load_adapter(self._context, REWARD, checkpoint)
        stored = load_file(checkpoint.path / ADAPTER_FOLDER / HEAD_FILE)
        with torch.no_grad():
            self._head.weight.copy_(stored["weight"])
            self._head.bias.copy_(stored["bias"].reshape(()))
        self._facts |= checkpoint.state["algorithm"]["facts"]

    def state(self) -> dict[str, Any]:
        """What the manifest will say of the scores."""
        return {"facts": self._facts}

    def publication(self) -> dict[str, Any]:
        """A reward model with its facts."""
        spec = self._context.spec
        longest = spec.max_prompt_tokens + spec.max_response_tokens + 1  # a cut response is given an end
        facts = HeadFacts(
            mean=float(self._facts["mean"] or 0.0), std=float(self._facts["std"] or 1.0), training_data_digest=self._data_digest,
            held_out_accuracy=self._facts["held_out_accuracy"], max_tokens=longest,
        )  # fmt: skip
        more = {
            "algorithm": "reward_model", "spec_digest": spec.digest, "statistics_pairs": self._facts["statistics_pairs"], **self._labelled_by,
            **self._facts["held_out"],
        }  # fmt: skip
        return {"kind": "reward", "parents": list(self._parents), "data_digest": self._data_digest, "facts": facts.to_facts() | more}

    def _scores(self, pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
        """Scores of chosen and rejected responses, (pairs,) each, at their last tokens; each prompt computed once for both."""
        base = self._context.base
        packed = pack([(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs], pad_id=base.pad_token_id, device=base.device)
        hidden = self._context.adapted.hidden(
            packed.input_ids, packed.attention_mask, adapter=REWARD, position_ids=packed.position_ids, asked=packed.last_token_mask,
            real=packed.real_mask,
        )  # fmt: skip
        last = torch.tensor(packed.lengths).cumsum(0) - 1
        scores = self._head(hidden[packed.rows[last], packed.token_columns[last]])
        return scores[0::2], scores[1::2]

    def _all_scores(self, pairs: Sequence[EncodedPair]) -> tuple[Tensor, Tensor]:
        """Scores of chosen and rejected responses in the order of `pairs`, without gradient; heeds a stop."""
        scores = self._context.world.rows(len(pairs), 2)
        place = {id(pair): index for index, pair in enumerate(pairs)}
        with torch.no_grad():
            for part in self._context.read_parts(passes(self._context, pairs, self._context.micro_batch_size)):
                scores.put([place[id(pair)] for pair in part], torch.stack(self._scores(part), dim=1))
        chosen, rejected = scores.whole().unbind(dim=1)
        return chosen, rejected
