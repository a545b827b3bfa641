"""Base models: finding them, loading them, and the digests by which services know that they hold the same one.

A base model is frozen, in eval mode, float32 on a CPU. What does not belong here: adapters (`accord.models.lora`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from accord.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from accord.models.digests import Digests, folder_digests
from accord.models.embedded import ensure_embedded
from accord.models.encoding import PromptEncoder

EMBEDDED = "embedded"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model")
_HUB_TIMEOUT_SECONDS = 10.0
# Heads that do more than one linear map; `AdaptedModel.logits_at` applies the map alone, so these are refused rather than served wrongly.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
_log = structlog.get_logger(__name__)

__all__ = ["EMBEDDED", "BaseModel", "Digests", "load_base_model", "resolve_model_folder"]


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A loaded base model with its tokenizer.

    `eos_token_ids` end a generation: those of generation_config.json and the end-of-turn token, which comes first.
    """

    name: str
    model: Any
    tokenizer: Any
    encoder: PromptEncoder
    digests: Digests
    context_tokens: int
    eos_token_ids: tuple[int, ...]
    parameters: int
    folder: Path
    device: str

    @property
    def pad_token_id(self) -> int:
        """The id that fills padded positions (masked everywhere, so its value never matters)."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.eos_token_ids[0])

    @property
    def hub_id(self) -> str | None:
        """The name where it is one that others can resolve: not `embedded`, not a folder of this machine."""
        return None if self.name == EMBEDDED or Path(self.name).expanduser().is_dir() else self.name

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.model.config.hidden_size)

    @property
    def vocabulary_size(self) -> int:
        """Rows of the language-model head."""
        return int(self.model.get_output_embeddings().weight.shape[0])


def load_base_model(name: str, *, device: str = "cpu", threads: int | None = None, allow_download: bool = False, dtype: Any = None) -> BaseModel:
    """The base model of that name, frozen and in eval mode.

    Args:
        name: `embedded`, a folder with safetensors and tokenizer.json, or a hub id such as `meta-llama/Llama-2-7b-hf`.
        device: a torch device.
        threads: torch's intra-op threads for this process; None leaves them.
        allow_download: whether a hub id that is not in the local hub cache may be downloaded.
        dtype: a torch dtype; default float32 on a CPU and bfloat16 elsewhere.

    Raises:
        NotFoundError: there is no such folder.
        FailedPreconditionError: no safetensors weights, no fast tokenizer, not in the hub cache, or an architecture that is not supported.
    """
    import torch

    folder = resolve_model_folder(name, allow_download=allow_download)
    if threads is not None:
        torch.set_num_threads(threads)
    tokenizer = _load_tokenizer(folder)
    encoder = PromptEncoder(tokenizer)
    if not encoder.own_template:
        _log.warning("model has no chat template; using Accord's plain one", model=name)
    model = _load_weights(folder, dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16))
    _check_supported(name, model)
    model = model.to(device).eval().requires_grad_(False)
    return BaseModel(
        name=name,
        model=model,
        tokenizer=tokenizer,
        encoder=encoder,
        digests=folder_digests(folder, encoder.chat_template),
        context_tokens=int(model.config.max_position_embeddings),
        eos_token_ids=_eos_ids(model, encoder),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        folder=folder,
        device=device,
    )


def resolve_model_folder(name: str, *, allow_download: bool = False) -> Path:
    """The local folder of a model name; never waits for a network that is not there.

    Raises:
        InvalidArgumentError: the name is none of `embedded`, a path, a hub id.
        NotFoundError: the path does not exist.
        FailedPreconditionError: the folder has no safetensors weights, or the hub id is not in the local cache and may not be downloaded.
    """
    if name == EMBEDDED:
        return ensure_embedded(None)
    if not name:
        raise InvalidArgumentError("the model's name is empty; give 'embedded', a folder or a hub id", field="model")
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked_folder(path.absolute())
    if name.startswith(("/", "./", "../", "~")) or path.exists():
        raise NotFoundError(f"model folder {name!r} does not exist or is not a folder", field="model")
    if not _HUB_ID.fullmatch(name):
        raise InvalidArgumentError(f"model {name!r} is neither 'embedded', nor a folder, nor a hub id such as 'org/name'", field="model")
    return _checked_folder(_hub_folder(name, allow_download))


def _checked_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise FailedPreconditionError(f"{folder} has no config.json: it is not a model folder", field="model")
    if not any(folder.glob("*.safetensors")):
        pickled = any(path.suffix in (".bin", ".pt", ".pth", ".ckpt") for path in folder.iterdir())
        found = "pickled weights only, which can run code when read" if pickled else "no weights"
        raise FailedPreconditionError(f"{folder} has {found}; Accord reads safetensors only: convert it first", field="model")
    return folder


def _hub_folder(name: str, allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=list(_HUB_FILES)))
    except LocalEntryNotFoundError:
        pass
    if not allow_download:
        raise FailedPreconditionError(
            f"model {name!r} is neither a folder here nor in the local hub cache, and downloads are off: "
            f"fetch it with `hf download {name}`, set allow_download, or give a folder",
            field="model",
        )
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise FailedPreconditionError(f"model {name!r} is not in the local hub cache and HF_HUB_OFFLINE is set", field="model")
    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_SECONDS)  # one bounded request decides whether the hub can be reached at all
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES), etag_timeout=_HUB_TIMEOUT_SECONDS))
    except Exception as error:
        raise FailedPreconditionError(
            f"model {name!r} cannot be downloaded: {type(error).__name__}: {error}; fetch it elsewhere and give its folder", field="model"
        ) from error


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise FailedPreconditionError(f"{folder} has no tokenizer that can be loaded (tokenizer.json): {error}", field="model") from error


def _load_weights(folder: Path, dtype: Any) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a server's log is no terminal
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=dtype, attn_implementation="sdpa",
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FailedPreconditionError(f"the model in {folder} cannot be loaded: {error}", field="model") from error
    # transformers fills what the files lack with random numbers and only warns.
    wrong = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in found[kind])
    if wrong:
        names = ", ".join(wrong[:5])
        raise FailedPreconditionError(f"the weights in {folder} lack tensors, or have them in other shapes: {names}", field="model")
    return model


def _check_supported(name: str, model: Any) -> None:
    if model.get_output_embeddings() is None or not hasattr(model, model.base_model_prefix):
        raise FailedPreconditionError(f"model {name!r} ({type(model).__name__}) has no plain decoder with a token head", field="model")
    for attribute in _LOGIT_TRANSFORMS:
        if getattr(model.config, attribute, None) not in (None, 1, 1.0):
            raise FailedPreconditionError(f"model {name!r} transforms its logits ({attribute}); that is not supported", field="model")


def _eos_ids(model: Any, encoder: PromptEncoder) -> tuple[int, ...]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    more = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    return tuple(dict.fromkeys([encoder.end_of_turn_id, *more]))
