"""The in-process backend: a transformers model, many LoRA adapters over one copy of its weights, static batches with early exit.

Joining a batch between decode steps, shared prefixes across requests and prepacked kernels are a later piece of work behind the same
`accord.policy.backend.Backend`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

import accord.models.base as base_models
from accord.artefacts.store import ArtefactStore
from accord.client.messages import ModelDigests
from accord.models.batching import collate
from accord.models.lora import AdaptedModel
from accord.models.packing import PromptGroup, group_logprobs, packed_length
from accord.policy.backend import BackendInfo, GenerationJob, LogprobsRequest
from accord.policy.decoding import Decoder
from accord.serving.reader import check_adapter_base

_LOGPROB_MICRO_BATCH_TOKENS = 2048


class TransformersBackend:
    """A loaded base model with its adapters.

    Args:
        base: the base model; the backend takes it over.
        store: where adapters come from.
        max_loaded: adapter versions kept; the least recently used goes first.
    """

    def __init__(self, base: base_models.BaseModel, store: ArtefactStore, *, max_loaded: int) -> None:
        self._base = base
        self._adapted = AdaptedModel(base)
        self._store = store
        self._max_loaded = max_loaded
        self._loaded: OrderedDict[str, tuple[str, int]] = OrderedDict()
        digests = base.digests
        self._info = BackendInfo(
            name="transformers",
            base_model=base.name,
            digests=ModelDigests(digests.base_model, digests.tokenizer, digests.chat_template),
            context_tokens=base.context_tokens,
            vocabulary_size=base.vocabulary_size,
            eos_token_ids=base.eos_token_ids,
            parameters=base.parameters,
        )

    @property
    def info(self) -> BackendInfo:
        """What is served."""
        return self._info

    def load_adapter(self, version: str) -> None:
        """Verifies and loads a version where it is not loaded yet, and marks it as the most recently used."""
        if version in self._loaded:
            self._loaded.move_to_end(version)
            return
        manifest = self._store.manifest(version)
        check_adapter_base(version, manifest.base_model_digest, self._info.digests.base_model)
        folder = self._store.fetch(version)
        while len(self._loaded) >= self._max_loaded:
            self.unload_adapter(next(iter(self._loaded)))
        self._adapted.load(version, folder)
        self._loaded[version] = (manifest.digest, manifest.size_bytes)

    def unload_adapter(self, version: str) -> None:
        """Forgets a version."""
        del self._loaded[version]
        self._adapted.remove(version)

    def loaded_adapters(self) -> dict[str, tuple[str, int]]:
        """Digest and bytes of each loaded version."""
        return dict(self._loaded)

    def generate(self, jobs: Sequence[GenerationJob], adapter: str, step: Callable[[], bool]) -> None:
        """Decodes one batch; see `Backend.generate`."""
        decoder = Decoder(
            CachedRows(self._adapted),
            eos_token_ids=self._base.eos_token_ids,
            context_tokens=self._base.context_tokens,
            decode_text=self._base.encoder.decode,
        )
        with torch.inference_mode(), self._adapted.use(adapter or None):
            decoder.run(jobs, step)

    def compute_logprobs(self, requests: Sequence[LogprobsRequest], adapter: str, step: Callable[[], bool]) -> list[list[list[float]]]:
        """Logprobs of responses; those of one request share its prompt, which is computed once. See `Backend.compute_logprobs`."""
        results: list[list[list[float]]] = [[] for _ in requests]
        by_temperature: dict[float, list[int]] = {}
        for index, request in enumerate(requests):
            by_temperature.setdefault(request.temperature, []).append(index)
        with torch.inference_mode():
            for temperature, members in by_temperature.items():
                groups = {index: (requests[index].prompt_ids, requests[index].responses) for index in members}
                for part in _parts(groups):
                    step()
                    tensors = group_logprobs(
                        self._adapted, [groups[index] for index in part], adapter=adapter or None, temperature=temperature,
                        micro_batch_tokens=_LOGPROB_MICRO_BATCH_TOKENS,
                    )  # fmt: skip
                    for index, responses in zip(part, tensors, strict=True):
                        results[index] = [tensor.tolist() for tensor in responses]
        return results


class CachedRows:
    """The rows of one batch with their key-value cache; prompts are padded on the left. Implements `decoding.SequenceModel`."""

    def __init__(self, adapted: AdaptedModel) -> None:
        from transformers import DynamicCache

        self._base = adapted.base
        self._decoder = getattr(adapted.module, adapted.module.base_model_prefix)
        self._head = adapted.module.get_output_embeddings()
        self._cache = DynamicCache()
        self._mask = torch.zeros((0, 0), dtype=torch.long)
        self._next_position = torch.zeros(0, dtype=torch.long)

    def prefill(self, prompts: Sequence[Sequence[int]], repeats: Sequence[int]) -> Tensor:
        """Reads the prompts in one pass; see `SequenceModel.prefill`."""
        batch = collate([(prompt, ()) for prompt in prompts], pad_id=self._base.pad_token_id, side="left", device=self._base.device)
        self._mask = batch.attention_mask.long()
        self._next_position = self._mask.sum(dim=1)
        hidden = self._forward(batch.input_ids, batch.position_ids)
        if any(count != 1 for count in repeats):
            rows = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(list(repeats)))
            self.keep(rows)
            hidden = hidden[rows]
        return self._logits(hidden)

    def keep(self, rows: Tensor) -> None:
        """Keeps some rows; an index may come more than once."""
        self._cache.batch_select_indices(rows)
        self._mask, self._next_position = self._mask[rows], self._next_position[rows]

    def advance(self, tokens: Tensor) -> Tensor:
        """Reads one token of each row."""
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        hidden = self._forward(tokens[:, None], self._next_position[:, None])
        self._next_position = self._next_position + 1
        return self._logits(hidden)

    def _forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        output = self._decoder(input_ids=input_ids, attention_mask=self._mask, position_ids=position_ids, past_key_values=self._cache, use_cache=True)
        hidden: Tensor = output.last_hidden_state[:, -1]
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self._head(hidden)
        return logits.float()


def _parts(groups: Mapping[int, PromptGroup]) -> list[list[int]]:
    """Requests in parts of about one micro-batch, longest first; between parts the watchdog hears of progress."""
    lengths = {index: packed_length(group) for index, group in groups.items()}
    parts: list[list[int]] = []
    tokens = 0
    for index in sorted(groups, key=lambda index: (-lengths[index], index)):
        if not parts or tokens + lengths[index] > _LOGPROB_MICRO_BATCH_TOKENS:
            parts.append([])
            tokens = 0
        parts[-1].append(index)
        tokens += lengths[index]
    return parts
