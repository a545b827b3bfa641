"""What the steps of each algorithm hold and compute: memory by role, and floating-point operations. No torch.

A new algorithm is a line in `PASSES`. What does not belong here: sizes of a model (`accord.trainer.shape`), reading data, deciding whether it
fits (`accord.trainer.planner`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from accord.runspec import Algorithm, RunSpec
from accord.runspec_parts import ROWS_FOR_EACH_CHECKED
from accord.trainer.calibration import Speed
from accord.trainer.judging import Judging
from accord.trainer.lengths import Lengths, Row
from accord.trainer.shape import ModelShape

PROCESS_BYTES = 470 * 2**20
# Tensors of the logits' size that live at once where a loss is differentiated: logits and their gradient; with a temperature the gradient of the
# divided ones too.
_LOGITS_ALIVE = 2
# PyTorch asks glibc for aligned blocks, which does not find the freed ones of the same size again: the heap's holes beside what is alive came to the
# same share in runs of SFT (0.70) and DPO (0.69), and to 1.0 to 1.4 before runs gave holes back (`accord.training.allocation`).
_HOLES = 0.7
_LARGEST_HEAP_BLOCK = 32 * 2**20  # glibc gives larger ones pages of their own
# What lies between the products (norms, rotation, attention, gates, fresh pages), in reads of every kept number from memory; measured on SmolLM2.
_TOUCHES_FORWARD, _TOUCHES_LEARNING = 14.0, 46.0


@dataclass(frozen=True, slots=True)
class Passes:
    """What an algorithm does with each row of a batch.

    Attributes:
        held: adapters in memory.
        trained: adapters that learn, one after the other.
        read: passes without gradients over a batch in each step, without those that `Workload.reads` counts by the settings of a run.
        once: passes without gradients over each distinct row of the run, before the first step.
        head: whether the vocabulary's head is needed.
        samples: how many responses of each row of data are generated; 0 where the data has them.
        scored: whether the reward service scores them.
        alone: whether a pass holds one row of data whatever micro_batch_size says, as it does on a CPU for pairs whose logprobs are compared.
        shared: whether the layers below all adapters are computed once a step, for all passes over its rows.
    """

    held: int
    trained: int
    read: int = 0
    once: int = 0
    head: bool = True
    samples: int = 0
    scored: bool = False
    alone: bool = False
    shared: bool = False


PASSES: dict[Algorithm, Passes] = {
    "sft": Passes(held=1, trained=1),
    "reward_model": Passes(held=1, trained=1, head=False),
    "dpo": Passes(held=2, trained=1, once=1, alone=True),
    "ppo": Passes(held=3, trained=2, read=1, samples=1, scored=True, shared=True),
    "grpo": Passes(held=2, trained=1, read=2, samples=1, scored=True, shared=True),
    "rloo": Passes(held=2, trained=1, read=2, samples=1, scored=True, shared=True),
    "online_dpo": Passes(held=2, trained=1, read=1, samples=2, alone=True),
}


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """Memory of one role in bytes with its arithmetic."""

    role: str
    bytes: int
    arithmetic: str


@dataclass(frozen=True)
class Workload:
    """A run's work on one model with data of some lengths.

    Args:
        spec: of the run.
        shape: of its base model.
        lengths: of its data; None takes every row at the limits.
        text_lengths: of the pretraining text, where there is some.
        local_scores: whether reward models are in the run's own process.
        judging: what the default judge reads; None where there is none, or another one.
        on_gpu: whether the weights go on to a device, so that they are in memory as their files have them.
    """

    spec: RunSpec
    shape: ModelShape
    lengths: Lengths | None = None
    text_lengths: Lengths | None = None
    local_scores: bool = False
    judging: Judging | None = None
    on_gpu: bool = False

    @property
    def passes(self) -> Passes:
        """Of the algorithm."""
        return PASSES[self.spec.algorithm]

    @property
    def reads(self) -> float:
        """Passes without gradients over a batch in each step. The policy that sampled reads all or those that are checked, and one step ahead the
        policy before the update, which is another one, reads all; the critic reads what the first minibatch does not learn from."""
        if self.spec.ppo is None:
            return self.passes.read
        size = self.spec.batch_size
        checked = -(-size // ROWS_FOR_EACH_CHECKED) if self.spec.ppo.reuse_sampler_logprobs else size
        return self.passes.read + self._ahead + (checked + size - min(self.spec.ppo.minibatch_size or size, size)) / size

    @property
    def micro(self) -> int:
        """Rows of data computed at once by a process, which has a share of the batch."""
        share = -(-self.spec.batch_size // self.spec.distribution.processes)
        return 1 if self.passes.alone else min(self.spec.micro_batch_size or share, share)

    @cached_property
    def rows(self) -> Lengths:
        """The rows as they are computed: responses that are still to be sampled count at their most."""
        spec, passes = self.spec, self.passes
        responses = passes.samples * spec.max_response_tokens
        if self.lengths is None or not self.lengths.rows:
            pairs = 2 if spec.algorithm in ("dpo", "reward_model", "online_dpo") else 1
            context = self.shape.context
            return Lengths((Row(min(spec.max_prompt_tokens, context), pairs * min(spec.max_response_tokens, context), 0),), 1.0)
        if not responses:
            return self.lengths
        return Lengths(tuple(Row(row.prompt, responses, spec.max_response_tokens) for row in self.lengths.rows), self.lengths.kept)

    def memory(self) -> list[MemoryItem]:
        """By role, at the peak: in the backward pass of the largest micro-batch."""
        spec, shape, passes = self.spec, self.shape, self.passes
        size = 2 if spec.dtype == "bfloat16" else 4
        adapter = 4 * shape.adapter_parameters(spec.lora)
        processes = spec.distribution.processes
        weights = shape.held_bytes(None if self.on_gpu else size, head=passes.head)
        mapped = self.on_gpu or shape.held_bytes(None) == shape.held_bytes(size)
        read = "mapped from the safetensors files" if mapped else f"read from the safetensors files into {size} B a number"
        width, responses = self.rows.largest(self.micro, spec.steps * spec.batch_size // self._group)
        texts = self._text_tokens()
        kept = shape.kept_floats(spec.lora, max(width, texts))
        adapted = shape.adapted_layers(spec.lora)
        layers = f"{adapted} layers x {kept:,}"
        held = adapted * kept
        if spec.activation_checkpointing:
            held, layers = adapted * shape.hidden + kept, f"({adapted} layers x {shape.hidden} + {kept:,} of one)"
        tokens = self.micro * max(width, texts)
        alive = _LOGITS_ALIVE + (1 if passes.samples else 0)  # sampled ones are divided by a temperature
        logits = max(responses * alive, self.micro * max(0, texts - 1) * _LOGITS_ALIVE) if passes.head else 0
        activations = MemoryItem("activations", tokens * held * size, f"{self.micro} rows x {max(width, texts)} tokens x {layers} x {size} B")
        of_logits = MemoryItem(
            "logits", logits * shape.vocabulary * 4, f"{logits} tokens (each {alive} or {_LOGITS_ALIVE} times) x {shape.vocabulary} x 4 B"
        )
        heap = self._in_heap(activations.bytes, tokens * size) + (of_logits.bytes if of_logits.bytes <= alive * _LARGEST_HEAP_BLOCK else 0)
        items = [
            MemoryItem("process", PROCESS_BYTES, "Python, torch and transformers, measured"),
            MemoryItem("base weights", weights, read + ("" if passes.head else ", without the vocabulary's tables")),
            MemoryItem("adapters", self._held * adapter, f"{self._held} adapters x {_mib(adapter)} (rank {spec.lora.rank})"),
            *self._scorers(adapter),
            MemoryItem("gradients and Adam moments", 3 * passes.trained * adapter, f"3 x {passes.trained} trained adapters x {_mib(adapter)}"),
            activations,
            of_logits,
            MemoryItem("holes", round(_HOLES * heap), f"{_HOLES} x {_mib(heap)} in blocks below {_mib(_LARGEST_HEAP_BLOCK)}, in the heap, measured"),
        ]
        if processes == 1:
            return items
        return [
            item
            if item.role == "base weights" and mapped
            else MemoryItem(item.role, processes * item.bytes, f"{processes} processes x {item.arithmetic}")
            for item in items
        ]

    def step_seconds(self, speed: Speed, threads: int) -> float:
        """Processor-bound time of one step: passes of the run's process, and where responses are sampled those of the services; one step ahead they
        work beside one another, and the longer of the two counts."""
        own, services = self._own_seconds(speed, threads), self._service_seconds(speed, threads)
        return max(own, services) if self._ahead else own + services

    def _own_seconds(self, speed: Speed, threads: int) -> float:
        """Time that a step takes in the run's own process."""
        spec, passes = self.spec, self.passes
        tokens, width, responses = self.rows.batch(spec.batch_size, self.micro)
        epochs: int = getattr(spec.rollout_part, "epochs", 1)
        head = responses if passes.head else 0.0
        seconds = self._read(speed, threads, tokens, width, head) * self.reads
        if below := self.shape.layers - self._layers:
            seconds += self._seconds(speed, threads, self.shape.forward_operations(tokens, width, 0.0, 0, below), self._touched(tokens, width, below))
        seconds += epochs * self._learn(speed, threads, tokens, width, head)
        if passes.trained > 1:
            seconds += epochs * (passes.trained - 1) * self._learn(speed, threads, tokens, width, 0.0)
        if spec.ppo is not None and self.text_lengths is not None and self.text_lengths.rows:
            rows = spec.batch_size * spec.ppo.ptx_rows_per_rollout
            tokens, width, predicted = self.text_lengths.batch(rows, self.micro)
            seconds += epochs * self._learn(speed, threads, tokens, width, predicted)
        return seconds / spec.distribution.processes

    def once_seconds(self, speed: Speed, threads: int, distinct_rows: int) -> float:
        """Time that no step has: the reference's passes over each row that the run will see, before the first one; one step ahead nothing is learnt
        while the first batch is sampled, and nothing is sampled while the last one is learnt from."""
        if self._ahead:
            return min(self._own_seconds(speed, threads), self._service_seconds(speed, threads))
        if not self.passes.once:
            return 0.0
        spec = self.spec
        tokens, width, responses = self.rows.batch(spec.batch_size, self.micro)
        seen = min(distinct_rows, spec.steps * spec.batch_size) / spec.batch_size
        return self.passes.once * seen * self._read(speed, threads, tokens, width, responses)

    def evaluation_seconds(self, speed: Speed, threads: int, rows: int) -> float:
        """Time of one evaluation over so many rows."""
        if not rows:
            return 0.0
        if self.passes.scored:
            return self._service_seconds(speed, threads, rows)
        tokens, width, responses = self.rows.batch(rows, self.micro)
        return self._read(speed, threads, tokens, width, responses if self.passes.head else 0.0)

    @property
    def _held(self) -> int:
        """Adapters in memory: one step ahead, the policy that sampled too."""
        return self.passes.held + self._ahead

    @property
    def _ahead(self) -> bool:
        """Whether the next batch is sampled while a step learns."""
        return self.spec.ppo is not None and self.spec.ppo.max_staleness > 0

    @property
    def _group(self) -> int:
        """Rows of a batch that share one row of data: the samples of a group."""
        size: int = getattr(self.spec.rollout_part, "group_size", 1)
        return size

    def _scorers(self, adapter: int) -> list[MemoryItem]:
        """Reward models on the run's own base, whose rank is in their files: counted as the run's."""
        count = self._reward_models
        if not self.local_scores or not count:
            return []
        return [
            MemoryItem("local reward models", count * adapter, f"{count} adapters x {_mib(adapter)}, taken at the run's rank {self.spec.lora.rank}")
        ]

    @property
    def _reward_models(self) -> int:
        """Reward models that read each response: all members of an ensemble, and the guards' held-out one. A judge's ratings are another service's
        work."""
        part = self.spec.rollout_part
        if part is None:
            return 0
        trained = 0 if part.judge_reward is not None else 1 + len(part.more_reward_models)
        return trained + bool(self.spec.guards.held_out_reward_model)

    def _service_seconds(self, speed: Speed, threads: int, rows: int | None = None) -> float:
        """Sampling, scoring and judging of a batch: prompts read once, then one pass a token, which reads all weights, with every row in it."""
        spec, shape, passes = self.spec, self.shape, self.passes
        if not passes.samples:
            return 0.0
        count = spec.batch_size if rows is None else rows
        prompts = sum(row.prompt for row in self.rows.rows) / len(self.rows.rows)
        adapter, length = shape.adapter_parameters(spec.lora), spec.max_response_tokens
        sampled = count * passes.samples
        read = shape.forward_operations(count * prompts, prompts, count, adapter)
        decode = length * shape.forward_operations(sampled, prompts + length / 2, sampled, adapter)
        score = self._reward_models * shape.forward_operations(sampled * (prompts + length), prompts + length, 0, adapter)
        operations = (read + decode + score + count * self._judge_operations(prompts)) / speed.operations_per_second
        return (operations + length * shape.weights_bytes / speed.bytes_per_second) / threads

    def _judge_operations(self, prompt: float) -> float:
        """Of the judge for a row of data whose prompt has so many tokens."""
        if self.judging is None:
            return 0.0
        tokens = prompt + self.judging.read
        return self.shape.forward_operations(tokens, tokens, self.judging.scored, 0)

    @property
    def _layers(self) -> int:
        """How many layers each pass of the run's process computes, besides those that a step computes once."""
        shared = self.passes.shared and self.spec.distribution.processes == 1
        return self.shape.adapted_layers(self.spec.lora) if shared else self.shape.layers

    def _read(self, speed: Speed, threads: int, tokens: float, width: float, head: float) -> float:
        operations = self.shape.forward_operations(tokens, width, head, self.shape.adapter_parameters(self.spec.lora), self._layers)
        return self._seconds(speed, threads, operations, self._touched(tokens, width, self._layers))

    def _learn(self, speed: Speed, threads: int, tokens: float, width: float, head: float) -> float:
        adapter, adapted = self.shape.adapter_parameters(self.spec.lora), self.shape.adapted_layers(self.spec.lora)
        operations = self.shape.learning_operations(tokens, width, head, adapter, self._layers, adapted)
        if self.spec.activation_checkpointing:
            operations += self.shape.forward_operations(tokens, width, 0.0, adapter, adapted)
        touched = self._touched(tokens, width, self._layers - adapted) + _TOUCHES_LEARNING * tokens * self._kept_bytes(width, adapted)
        return self._seconds(speed, threads, operations, touched)

    def _touched(self, tokens: float, width: float, layers: int) -> float:
        """Bytes that a pass without gradients touches between the products of so many layers."""
        return _TOUCHES_FORWARD * tokens * self._kept_bytes(width, layers)

    def _in_heap(self, activations: int, bytes_of_a_number: int) -> int:
        """Bytes of the activations that are in blocks of the heap: those of the MLP's width and those of the model's leave it at their own sizes."""
        shape = self.shape
        inner = 4 * shape.inner / shape.kept_floats(self.spec.lora, 0)
        shares = ((inner, shape.inner), (1 - inner, shape.hidden))
        return round(sum(activations * share for share, width in shares if width * bytes_of_a_number <= _LARGEST_HEAP_BLOCK))

    def _kept_bytes(self, width: float, layers: int) -> float:
        return 4.0 * layers * self.shape.kept_floats(self.spec.lora, int(width))

    def _seconds(self, speed: Speed, threads: int, operations: float, touched_bytes: float) -> float:
        return (operations / speed.operations_per_second + touched_bytes / speed.bytes_per_second) / threads

    def _text_tokens(self) -> int:
        """The longest row of pretraining text, 0 where there is none."""
        if self.spec.ppo is None or not self.spec.ppo.ptx_coefficient or self.spec.ppo.ptx_data is None:
            return 0
        if self.text_lengths is None or not self.text_lengths.rows:
            return min(self.spec.max_prompt_tokens + self.spec.max_response_tokens, self.shape.context)
        ppo = self.spec.ppo
        drawn = self.spec.steps * self.spec.batch_size * ppo.epochs * ppo.ptx_rows_per_rollout
        return self.text_lengths.largest(self.micro, drawn)[0]


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
