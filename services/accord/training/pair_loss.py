"""The DPO family on encoded pairs, for pairs from data (`dpo`) and for pairs that the policy has just sampled (`online_dpo`).

What does not belong here: the arithmetic (`accord.algos.preference`), where pairs come from, what is kept of the reference
(`accord.training.reference`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from accord.algos.preference import PreferenceLoss, PreferenceOutput, preferred_nll
from accord.models.packing import group_logprobs
from accord.runspec_parts import DpoSpec, OnlineDpoSpec
from accord.training.adapter_state import POLICY
from accord.training.context import RunContext
from accord.training.examples import EncodedPair
from accord.training.pairs import Ratings, agreement, agreement_estimate, length_baseline, passes, toward_labels
from accord.training.reference import ReferenceLogprobs

_ONE_PASS = 2**62  # `passes` has cut the batch already


class PairLoss:
    """Losses, gradients and metrics of the policy on pairs.

    Args:
        context: of the run.
        spec: loss, beta, smoothing.
        nll_coefficient: weight of the better response's negative log-likelihood a token.
    """

    def __init__(self, context: RunContext, spec: DpoSpec | OnlineDpoSpec, nll_coefficient: float = 0.0) -> None:
        self._context = context
        self._loss = PreferenceLoss(spec.loss, spec.beta, spec.label_smoothing)
        self._nll_coefficient = nll_coefficient
        self.ratings = Ratings()

    def sums(self, pairs: Sequence[EncodedPair], adapter: str | None) -> tuple[Tensor, Tensor]:
        """Summed logprobs of chosen and rejected responses, (pairs,) each: one forward pass, each prompt computed once for both."""
        groups = [(pair.prompt, (pair.chosen, pair.rejected)) for pair in pairs]
        rows = group_logprobs(self._context.adapted, groups, adapter=adapter, micro_batch_tokens=_ONE_PASS)
        chosen, rejected = zip(*((first.sum(), second.sum()) for first, second in rows), strict=True)
        return torch.stack(chosen), torch.stack(rejected)

    def accumulate(self, batch: Sequence[EncodedPair], reference: ReferenceLogprobs) -> dict[str, float]:
        """Adds the gradient of the batch's mean loss to the policy's; returns means over the batch.

        `margin` is the implicit reward of the response that the label prefers less the other's, `accuracy` the share of pairs without a tie on
        which it is positive: pairs that were sampled come in no order, and a label below one half says that `rejected` is better.

        Raises:
            RunStopped: the run was asked to stop between two passes.
        """
        world = self._context.world
        sums = world.sums()
        for part in world.share(passes(self._context, batch)):
            self._context.stop.check()
            output = self._output(part, reference)
            part_loss = (self.ratings.weights_of(part) * output.losses).sum() / len(batch)
            world.backward(part_loss)
            hits, _ = agreement(output.margins.tolist(), [pair.preference for pair in part])
            means = {name: float(column.sum() / len(batch)) for name, column in _columns(output, part).items()}
            sums.add(loss=float(part_loss.detach()), hits=hits, **means)
        total = sums.total()
        hits, decided = total.pop("hits"), sum(pair.preference != 0.5 for pair in batch)
        return total | {"accuracy": hits / decided if decided else 0.5}

    def evaluate(self, pairs: Sequence[EncodedPair], reference: ReferenceLogprobs) -> dict[str, float]:
        """Implicit reward margin and accuracy on held-out pairs, without gradient; empty where there are none.

        Raises:
            RunStopped: the run was asked to stop between two passes.
        """
        if not pairs:
            return {}
        world, parts = self._context.world, passes(self._context, pairs)
        ordered = [pair for part in parts for pair in part]
        place = {id(pair): index for index, pair in enumerate(ordered)}
        found = world.rows(len(ordered), 2)
        with torch.no_grad():
            for part in self._context.read_parts(parts):
                output = self._output(part, reference)
                found.put([place[id(pair)] for pair in part], torch.stack([output.margins, output.losses], dim=1))
        margins, losses = found.whole().T.tolist()
        signed = toward_labels(margins, [pair.preference for pair in ordered])
        accuracy = agreement_estimate(margins, ordered)
        return {
            "eval_margin": sum(signed) / len(signed), "eval_accuracy": accuracy.value, "eval_accuracy_low": accuracy.low,
            "eval_accuracy_high": accuracy.high, "eval_loss": sum(losses) / len(losses), "eval_pairs": accuracy.n,
            "eval_length_baseline": length_baseline(pairs),
        }  # fmt: skip

    def _output(self, pairs: Sequence[EncodedPair], reference: ReferenceLogprobs) -> PreferenceOutput:
        labels = torch.tensor([pair.preference for pair in pairs])
        policy = self.sums(pairs, POLICY)
        output = self._loss(*policy, *reference.of(pairs), labels, self.ratings.margins(pairs))
        if not self._nll_coefficient:
            return output
        lengths = torch.tensor([(len(pair.chosen), len(pair.rejected)) for pair in pairs], device=output.losses.device)
        nll = preferred_nll(*policy, *lengths.unbind(1), preference=labels)
        return output._replace(losses=output.losses + self._nll_coefficient * nll)


def _columns(output: PreferenceOutput, pairs: Sequence[EncodedPair]) -> dict[str, Tensor]:
    """Implicit rewards of the response that each label prefers (of a tie, the first) and of the other."""
    turned = torch.tensor([pair.preference < 0.5 for pair in pairs], device=output.margins.device)
    better = torch.where(turned, output.rejected_rewards, output.chosen_rewards)
    worse = torch.where(turned, output.chosen_rewards, output.rejected_rewards)
    return {"margin": better - worse, "chosen_reward": better, "rejected_reward": worse}
