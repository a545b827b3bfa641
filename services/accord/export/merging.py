"""An adapter merged into its base and written as a model folder, then read back and compared with base plus adapter.

Weights are merged in float32 whatever they are written in. What does not belong here: where the folder lies and how it appears
(`accord.export.folder`), and its card.
"""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from accord.errors import DataLossError, FailedPreconditionError, InternalError
from accord.export.folder import TOKENIZER_FILES
from accord.models.base import BaseModel, load_base_model
from accord.models.digests import CACHE_FILE
from accord.models.encoding import PLAIN_CHAT_TEMPLATE
from accord.models.heads import HeadFacts, ScalarHead
from accord.models.lora import AdaptedModel
from accord.text.chat import Message

Dtype = Literal["float32", "bfloat16", "float16"]
_ADAPTER = "exported"
_OF_THE_MACHINE = ("backend", "is_local", "local_files_only", "name_or_path")
_LARGEST_DIFFERENCE = 1e-4
_PROBES = (
    ("Name three rivers.", "The Danube, the Nile and the Mekong."),
    ("What is 12 times 12? Answer in one sentence.", "12 times 12 is 144."),
    ("Write one line about rain, and one with numbers: 3.14, 2,000, 7%.", "Rain ticks on the tin roof.\n3.14, 2,000, 7%"),
)


@dataclass(frozen=True, slots=True)
class Head:
    """A reward model's head and facts."""

    head: ScalarHead
    facts: HeadFacts

    @property
    def weight(self) -> Tensor:
        """What a head without a constant has to multiply by, shape (1, H), so that differences of scores are Accord's."""
        return (self.head.weight.detach() / self.facts.std)[None]

    @property
    def offset(self) -> float:
        """What such a head leaves out of Accord's score."""
        return (float(self.head.bias.detach()) - self.facts.mean) / self.facts.std


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: the largest difference to base plus adapter over some texts (logits, or scores), and the largest number compared."""

    difference: float
    magnitude: float
    pad_token: str = ""


def write_merged(base: BaseModel, adapter: Path, folder: Path, *, head: Head | None, dtype: Dtype, max_shard_bytes: int) -> Written:
    """Merges the adapter in a folder into the base and fills `folder`; the base cannot be used afterwards.

    The folder is read back with transformers and compared on three texts: in float32 by at most 1e-4 (of the largest logit, where that
    is above 1). In 16 bits rounding moves logits further, and the difference is for the card.

    Args:
        base: in float32.
        head: makes it a sequence classifier with one label; None a causal model.

    Raises:
        FailedPreconditionError: transformers has no such classifier for this architecture, or no token is free for padding.
        DataLossError: merged weights are not finite, in float32 or in the type asked for.
        InternalError: what was written does not compute what base plus adapter do.
    """
    texts = _probe_ids(base)
    adapted = AdaptedModel(base)
    adapted.load(_ADAPTER, adapter)
    wanted = [_expected(adapted, ids, head) for ids in texts]
    merged: Any = adapted.merge(_ADAPTER)
    pad_token = ""
    if head is not None:
        pad_id, pad_token = _free_token(base)
        merged = _classifier(merged, head, pad_id)
    _write(merged, base, folder, dtype, max_shard_bytes)
    _copy_tokenizer(base, folder, pad_token)
    del merged, adapted
    base.model.to("meta")  # 4 bytes a parameter that the model read back can have
    gc.collect()
    difference, magnitude = _compare(_read_back(folder, head, dtype), texts, wanted, head)
    if not math.isfinite(difference):
        raise DataLossError(f"the model gives numbers that are not finite in {dtype}", field="dtype")
    if dtype == "float32" and difference > _LARGEST_DIFFERENCE * max(1.0, magnitude):
        raise InternalError(f"the merged model differs from base plus adapter by {difference:.3g}, at numbers up to {magnitude:.3g}")
    return Written(difference, magnitude, pad_token)


def weights_bytes(base: BaseModel, dtype: Dtype) -> int:
    """Bytes of the merged weights."""
    return base.parameters * (4 if dtype == "float32" else 2)


def _probe_ids(base: BaseModel) -> list[list[int]]:
    encoder = base.encoder
    texts = [encoder.encode_prompt([Message("user", prompt)]) + encoder.encode_response(response, append_eos=True) for prompt, response in _PROBES]
    return [ids[: base.context_tokens] for ids in texts]


def _expected(adapted: AdaptedModel, ids: Sequence[int], head: Head | None) -> Tensor:
    """Logits (T, vocabulary) of base plus adapter, or with a head Accord's score (1,)."""
    tokens = torch.tensor([list(ids)])
    with torch.inference_mode():
        hidden = adapted.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool), adapter=_ADAPTER)[0]
        if head is None:
            return adapted.logits_of(hidden).clone()
        raw: Tensor = head.head(hidden[-1])
        return ((raw - head.facts.mean) / head.facts.std).reshape(1).clone()


def _classifier(merged: Any, head: Head, pad_id: int) -> Any:
    """A sequence classifier with one label over the merged decoder."""
    from transformers import AutoModelForSequenceClassification

    config = type(merged.config).from_dict(merged.config.to_dict())
    config.num_labels, config.pad_token_id, config.score_offset = 1, pad_id, head.offset
    config.tie_word_embeddings = False
    try:
        with torch.device("meta"):
            classifier: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise FailedPreconditionError(f"transformers has no sequence classifier for {config.model_type}", field="adapter") from error
    prefix, score = classifier.base_model_prefix, getattr(classifier, "score", None)
    if not isinstance(score, nn.Linear) or score.bias is not None or not hasattr(merged, prefix):
        raise FailedPreconditionError(f"the sequence classifier of {config.model_type} has no plain linear head", field="adapter")
    setattr(classifier, prefix, getattr(merged, prefix))
    classifier.score.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
    return classifier


def _free_token(base: BaseModel) -> tuple[int, str]:
    """A token for padding that no scored text has: transformers scores at the last token that is not padding, and Accord at the end of the turn.

    Raises:
        FailedPreconditionError: every special token occurs in conversations.
    """
    used = {*base.eos_token_ids, *(token for ids in _probe_ids(base) for token in ids)}
    known = base.tokenizer.backend_tokenizer.get_added_tokens_decoder()
    free = {index: token.content for index, token in sorted(known.items()) if token.special and index not in used}
    own = base.tokenizer.pad_token_id
    if own in free:
        return int(own), free[own]
    if not free:
        raise FailedPreconditionError("the tokenizer has no special token that could pad scored texts; use --adapter-only", field="adapter")
    return next(iter(free.items()))


def _write(model: Any, base: BaseModel, folder: Path, dtype: Dtype, max_shard_bytes: int) -> None:
    model.to(getattr(torch, dtype))
    wrong = next((name for name, tensor in model.state_dict().items() if not bool(torch.isfinite(tensor).all())), "")
    if wrong:
        raise DataLossError(f"{wrong} is not finite in {dtype}", field="dtype")
    model.config.dtype = getattr(torch, dtype)
    if getattr(model, "generation_config", None) is not None:  # a classifier generates nothing
        ends = list(base.eos_token_ids)
        model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
        model.generation_config.pad_token_id = base.pad_token_id
    try:
        model.save_pretrained(folder, max_shard_size=max_shard_bytes)
    except ValueError as error:  # transformers refuses generation settings that contradict each other
        raise FailedPreconditionError(f"transformers does not write this model: {error}", field="base_model") from error
    _add_older_names(folder / "config.json")


def _add_older_names(path: Path) -> None:
    """Adds what tools from before transformers 5 look for under names of their own; without rope_theta they would take another one in silence."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_tokenizer(base: BaseModel, folder: Path, pad_token: str) -> None:
    """The tokenizer's files as the base has them, under a class that every version of transformers has; the plain template where there is none."""
    for name in TOKENIZER_FILES:
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, folder / name)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings = {name: value for name, value in settings.items() if name not in _OF_THE_MACHINE}
    if settings.get("tokenizer_class") in (None, "TokenizersBackend"):
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if pad_token:
        settings["pad_token"] = pad_token
        _set_pad_token(folder / "special_tokens_map.json", pad_token)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    if not base.encoder.own_template:
        (folder / "chat_template.jinja").write_text(PLAIN_CHAT_TEMPLATE, encoding="utf-8")


def _set_pad_token(path: Path, pad_token: str) -> None:
    if path.is_file():
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, "pad_token": pad_token}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _compare(model: Any, texts: Sequence[Sequence[int]], wanted: Sequence[Tensor], head: Head | None) -> tuple[float, float]:
    """The largest difference to what was wanted, and the largest number wanted."""
    differences, magnitudes = [], []
    for ids, expected in zip(texts, wanted, strict=True):
        with torch.inference_mode():
            found = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].float()
        differences.append((found + (head.offset if head is not None else 0.0) - expected).abs().max())
        magnitudes.append(expected.abs().max())
    return float(torch.stack(differences).max()), float(torch.stack(magnitudes).max())


def _read_back(folder: Path, head: Head | None, dtype: Dtype) -> Any:
    if head is None:
        model = load_base_model(str(folder), dtype=getattr(torch, dtype)).model
        (folder / CACHE_FILE).unlink(missing_ok=True)  # its times are of this machine
        return model
    from transformers import AutoModelForSequenceClassification

    loaded = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, dtype=getattr(torch, dtype), output_loading_info=True
    )
    model, found = cast("tuple[Any, dict[str, Any]]", loaded)
    if found["missing_keys"] or found["mismatched_keys"]:
        raise InternalError(f"the classifier lacks tensors after writing: {sorted(found['missing_keys'])[:3]}")
    return model.eval()
