"""An adapter on disk, in PEFT's own format: `adapter_config.json` and `adapter_model.safetensors`.

What does not belong here: the layers that the tensors go into (`accord.models.lora`), manifests (`accord.artefacts`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from accord.errors import DataLossError, FailedPreconditionError, NotFoundError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# Settings that change what the tensors mean; an adapter that uses one is refused rather than read as plain LoRA.
_UNSUPPORTED = (
    "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_pattern", "layer_replication", "bias", "target_parameters",
    "trainable_token_indices", "use_qalora", "use_bdlora", "lora_bias", "exclude_modules", "fan_in_fan_out", "megatron_config",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
_LAYER_INDEX = re.compile(r".*?\.[^.]*\.(\d+)\.")
# Initialisations that leave the base's weights alone; others (PiSSA, OLoRA, CorDA, LoftQ, ...) belong to a base that was changed with them.
_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


def lora_config(
    rank: int, alpha: float, targets: list[str], *, hub_id: str | None, rank_stabilised: bool = False, layers: Sequence[int] | None = None
) -> Any:  # fmt: skip
    """PEFT's configuration of a plain LoRA adapter without dropout, on the layers of these indices, None for all."""
    from peft import LoraConfig

    return LoraConfig(
        r=rank, lora_alpha=int(alpha) if float(alpha).is_integer() else alpha, target_modules=sorted(targets), lora_dropout=0.0,
        bias="none", task_type="CAUSAL_LM", use_rslora=rank_stabilised, base_model_name_or_path=hub_id,
        layers_to_transform=None if layers is None else sorted(layers),
    )  # fmt: skip


def read_lora_config(folder: Path) -> Any:
    """The PEFT configuration in a folder, checked to be plain LoRA.

    Raises:
        NotFoundError: there is no adapter_config.json.
        DataLossError: it is not JSON.
        FailedPreconditionError: another method than LoRA, or a variant of it that is not supported.
    """
    content = _read_json(folder)
    kind, start = content.get("peft_type"), content.get("init_lora_weights", True)
    if kind != "LORA":
        raise FailedPreconditionError(f"adapter in {folder} is of type {kind!r}; only LORA is supported", field="adapter")
    if start not in _INITIALISATIONS:
        raise FailedPreconditionError(f"adapter in {folder} was initialised by {start!r}, which changes the base too", field="adapter")
    rank, alpha, targets = content.get("r"), content.get("lora_alpha"), content.get("target_modules")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or alpha <= 0:
        raise FailedPreconditionError(f"adapter in {folder} has rank {rank!r} and alpha {alpha!r}; both must be positive", field="adapter")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise FailedPreconditionError(f"adapter in {folder} does not list its target modules by name", field="adapter")
    layers = content.get("layers_to_transform")
    if isinstance(layers, int) and not isinstance(layers, bool):
        layers = [layers]
    if layers is not None and not (isinstance(layers, list) and layers and all(type(layer) is int and layer >= 0 for layer in layers)):
        raise FailedPreconditionError(f"adapter in {folder} has layers_to_transform {layers!r}; indices of layers are needed", field="adapter")
    for variant in _UNSUPPORTED:
        if content.get(variant) not in (None, False, [], {}, "none"):
            raise FailedPreconditionError(f"adapter in {folder} sets {variant}; only plain LoRA is supported", field="adapter")
    return lora_config(
        rank, alpha, targets, hub_id=content.get("base_model_name_or_path"), rank_stabilised=bool(content.get("use_rslora", False)), layers=layers
    )


def targets_layer(config: Any, name: str) -> bool:
    """Whether an adapter has factors for the linear layer of that full name, as PEFT reads its configuration."""
    if name.rsplit(".", 1)[-1] not in config.target_modules:
        return False
    index = _LAYER_INDEX.match(name)
    return config.layers_to_transform is None or (index is not None and int(index[1]) in config.layers_to_transform)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors in a folder by PEFT's keys.

    Raises:
        NotFoundError: there is no adapter_model.safetensors (pickled ones are not read).
        DataLossError: it is damaged.
    """
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise NotFoundError(f"{folder} has no {WEIGHTS_FILE}; pickled adapters are not read", field="adapter")
    try:
        state: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise DataLossError(f"{path} cannot be read: {error}", metadata={"file": WEIGHTS_FILE}) from error
    return state


def write_adapter(folder: Path, config: Any, state: Mapping[str, Tensor]) -> None:
    """Writes both files; the same configuration and tensors give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    content = config.to_dict() | {"inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in content.items()}
    (folder / CONFIG_FILE).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise NotFoundError(f"{folder} has no {CONFIG_FILE}: it is not an adapter", field="adapter")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataLossError(f"{path} is not JSON: {error}", metadata={"file": CONFIG_FILE}) from error
    if not isinstance(content, dict):
        raise DataLossError(f"{path} is not a JSON object", metadata={"file": CONFIG_FILE})
    return content
