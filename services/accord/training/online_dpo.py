"""Online DPO: the policy learns from pairs that it has just sampled and that a judge has labelled, without a reward model.

Guo et al. 2024 (arXiv:2402.04792), algorithm 1: two responses of the current policy to each prompt, the judge's preference, one DPO step against the
frozen reference. What does not belong here: sampling and labelling (`accord.training.sampled_pairs`), losses (`pair_loss`).
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from accord.checkpoint import Checkpoint
from accord.data.readers import read_prompts
from accord.data.records import Prompt
from accord.models.logprobs import response_logprobs
from accord.runspec_parts import OnlineDpoSpec
from accord.serving.run_limits import check_sampled_tokens
from accord.training.adapter_state import POLICY, load_adapter, save_adapter, start_adapter, start_reference
from accord.training.context import RunContext
from accord.training.examples import Encoded, EncodedPair, EncodedPrompt, batch_at
from accord.training.loop import ADAPTER_FOLDER
from accord.training.optim import Optimizer
from accord.training.pair_loss import PairLoss
from accord.training.pairs import hard_labelled, read_encoded_pairs
from accord.training.prompts import read_encoded_prompts
from accord.training.reference import ReferenceLogprobs
from accord.training.rollout import check_sampler_gap
from accord.training.rollout_algorithm import rollout_seed
from accord.training.rollout_files import kept_rows, read_rows, write_rows
from accord.training.rollout_versions import publish_rollout_version
from accord.training.sampled_pairs import SAME_RESPONSES, PairSource, SampledPair, pair_of
from accord.training.sampler import Draw

_SAMPLER_GAP_BOUND = 0.05
_JUDGE_FACTS = ("judge", "judge_digest", "judge_kind", "rubric")


class OnlineDirectPreferenceOptimization:
    """Online DPO through the policy and the feedback service; batch_size counts pairs. Implements `loop.Algorithm`."""

    _reference: ReferenceLogprobs

    def __init__(self, context: RunContext, spec: OnlineDpoSpec) -> None:
        check_sampled_tokens(context.spec)
        self._context = context
        self._spec = spec
        self._source = PairSource(context, spec)
        self._loss = PairLoss(context, spec)
        self._parents: tuple[str, ...] = ()
        self._data_digest = ""
        self._prompts: Sequence[EncodedPrompt] = ()
        self._texts: Mapping[str, Prompt] = {}
        self._eval_pairs: Sequence[EncodedPair] = ()
        self._judge: dict[str, str] = {}

    def setup(self) -> None:
        """Reads prompts and held-out pairs, starts policy and reference, compares models with the services."""
        data, spec = self._spec.data, self._context.spec
        self._prompts, self._data_digest = read_encoded_prompts(self._context, data, "online_dpo.data")
        texts = read_prompts(data.uri, format=data.format, split=data.split, limit=data.limit, strict=data.strict, seed=spec.seed).rows
        self._texts = {prompt.prompt_id: prompt for prompt in texts}
        if self._spec.eval_data is not None:
            held, _ = read_encoded_pairs(self._context, self._spec.eval_data, hard=not self._spec.soft_labels)
            self._eval_pairs = held.at_least_one("pairs", "online_dpo.eval_data").rows
        self._parents = start_adapter(self._context, POLICY, spec.parent_adapter)
        adapter = start_reference(self._context, self._parents)
        self._reference = ReferenceLogprobs(self._context, adapter, "".join(self._parents), self._loss.sums)
        if self._eval_pairs:
            self._context.events.state("reference")
            self._reference.prepare(self._eval_pairs)
        self._context.world.from_first(self._source.check_services)

    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """The policy's adapter."""
        return {POLICY: self._context.adapted.parameters(POLICY)}

    def evaluate(self, *, final: bool) -> dict[str, float]:
        """Implicit reward margin and accuracy on held-out pairs."""
        return self._loss.evaluate(self._eval_pairs, self._reference)

    def step(self, step: int, optimizer: Optimizer) -> dict[str, float]:
        """Samples and labels a batch of pairs and does one update on those that have a label."""
        self._context.stop.check()
        started = time.monotonic()
        self._context.events.state("rollouts")
        sampled = self._sampled(step)
        labelled = time.monotonic()
        self._context.stop.check()
        self._context.events.state("train")
        metrics = self._observed(step, sampled)
        pairs = self._usable(sampled)
        metrics |= {"pairs": len(pairs)} | (self._learn(pairs, optimizer) if pairs else self._nothing_to_learn(step))
        finished = time.monotonic()
        return metrics | {
            "seconds_rollout": labelled - started, "seconds_train": finished - labelled,
            "tokens_per_second": 2 * len(sampled) * metrics["response_tokens"] / (finished - started),
        }  # fmt: skip

    def save(self, folder: Path) -> None:
        """The policy's adapter."""
        save_adapter(self._context, POLICY, folder / ADAPTER_FOLDER)

    def load(self, checkpoint: Checkpoint) -> None:
        """The policy's adapter, and who has judged."""
        load_adapter(self._context, POLICY, checkpoint)
        self._judge = dict(checkpoint.state["algorithm"]["judge"])

    def state(self) -> dict[str, Any]:
        """Who has judged."""
        return {"judge": self._judge}

    def publication(self) -> dict[str, Any]:
        """A policy, with the judge that labelled last."""
        spec = self._spec
        facts = {"algorithm": "online_dpo", "loss": spec.loss, "beta": spec.beta, **self._judge, "spec_digest": self._context.spec.digest}
        return {"kind": "policy", "parents": list(self._parents), "data_digest": self._data_digest, "facts": facts}

    def _sampled(self, step: int) -> list[SampledPair]:
        """The labelled pairs of a step: those on disk where a killed run left them, else new ones, on disk before they are used."""
        path = self._context.directory.rollouts / f"{step:08d}.jsonl"
        self._context.world.from_first(lambda: self._sample(step, path))
        found = read_rows(path, pair_of)
        assert found is not None
        return found

    def _sample(self, step: int, path: Path) -> None:
        if kept_rows(path, pair_of, self._context.events.message) is not None:
            return
        spec = self._context.spec
        prompts = batch_at(self._prompts, step, spec.batch_size, spec.seed)
        draw = Draw(
            spec.max_response_tokens, self._spec.temperature, tuple(rollout_seed(spec.seed, step, index) for index in range(2 * len(prompts)))
        )  # fmt: skip
        version = publish_rollout_version(self._context, parents=self._parents, data_digest=self._data_digest, step=step)
        write_rows(path, [pair.row() for pair in self._source.collect(prompts, self._texts, draw, version)])

    def _usable(self, sampled: Sequence[SampledPair]) -> list[EncodedPair]:
        """Pairs with a label, as `hard_labelled` gives them where labels are not soft."""
        for pair in sampled:
            if pair.judge:
                self._judge = {name: getattr(pair, name) for name in _JUDGE_FACTS}
        pairs = tuple(pair.encoded(pair.preference) for pair in sampled if pair.preference is not None)
        return list(pairs if self._spec.soft_labels else hard_labelled(Encoded(pairs, Counter())).rows)

    def _learn(self, pairs: Sequence[EncodedPair], optimizer: Optimizer) -> dict[str, float]:
        metrics = self._loss.accumulate(pairs, self._reference)
        kl = (metrics["chosen_reward"] + metrics["rejected_reward"]) / (2 * self._spec.beta)
        return metrics | {"kl": kl, "grad_norm": optimizer.apply()}

    def _nothing_to_learn(self, step: int) -> dict[str, float]:
        self._context.events.message(f"step {step + 1}: no pair has a label that can be learned from; the policy stays as it is")
        return {}

    def _observed(self, step: int, sampled: Sequence[SampledPair]) -> dict[str, float]:
        """Metrics of the pairs as they were sampled; why pairs have no label goes to the messages."""
        reasons = Counter(pair.reason for pair in sampled if pair.preference is None and pair.reason != SAME_RESPONSES)
        for reason, count in reasons.most_common(3):
            self._context.events.message(f"{count} of {len(sampled)} pairs have no label: {reason[:200]}")
        responses = [response for pair in sampled for response in pair.responses]
        lengths = [len(response.token_ids) for response in responses]
        gap = self._sampler_gap(step, sampled[step % len(sampled)])
        return {
            "abstentions": sum(reasons.values()), "same_responses": sum(pair.reason == SAME_RESPONSES for pair in sampled),
            "ties": sum(pair.preference == 0.5 for pair in sampled), "response_tokens": statistics.fmean(lengths),
            "eos_rate": statistics.fmean(response.ended for response in responses), "sampler_gap_max": gap,
            "tokens": sum(lengths) + sum(len(pair.prompt_ids) for pair in sampled),
        }  # fmt: skip

    def _sampler_gap(self, step: int, pair: SampledPair) -> float:
        """Largest difference of the policy service's logprobs and this process's on the responses to one prompt, another at each step (of several
        replicas one may be wrong), nats a token.

        Raises:
            OtherPolicyError: they do not compute the same policy.
        """
        sequences = [(pair.prompt_ids, response.token_ids) for response in pair.responses]
        with torch.no_grad():
            mine = response_logprobs(self._context.adapted, sequences, adapter=POLICY, temperature=self._spec.temperature)
        gaps = [
            (row - torch.tensor(response.logprobs, device=row.device)).abs().max() for row, response in zip(mine, pair.responses, strict=True)
        ]  # fmt: skip
        gap = float(torch.stack(gaps).max())  # NaN where any is, which Python's max hides behind a number
        check_sampler_gap(self._context, step, gap, _SAMPLER_GAP_BOUND)
        return gap
