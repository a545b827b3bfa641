"""The adapters of one base model by name (PEFT underneath): made, loaded, switched, trained or not, saved, merged.

PEFT does the layers and the file format. It does not do the bookkeeping: its `set_adapter` flips `requires_grad` as a side effect, its
initialisation draws from the global random state, and an adapter that is off may still be trained. Here these are apart and explicit:
`use` says which adapter counts, `set_trainable` says which ones learn, `add` initialises from a seed alone.

What does not belong here: passes through the model (`accord.models.lora`), and where adapters are kept (`accord.artefacts`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from accord.errors import AlreadyExistsError, DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from accord.models.adapter_files import lora_config, read_lora_config, read_weights, write_adapter
from accord.models.base import BaseModel
from accord.models.lora_linear import replace_forward

_PREFIX = "base_model.model."
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_/-]{0,199}")


class LoraShape(Protocol):
    """What `add` needs to know: `accord.runspec.LoraSpec` has it."""

    @property
    def rank(self) -> int: ...
    @property
    def scale_alpha(self) -> float: ...
    @property
    def target_modules(self) -> tuple[str, ...]: ...
    @property
    def last_layers(self) -> int: ...


class Adapters:
    """The adapters of a base model by name. Their names are letters, digits, `_`, `-` and `/` (an `adapters/{adapter}/versions/{n}` is one).

    One base takes one such object: the base's linear layers are replaced in place.
    """

    def __init__(self, base: BaseModel) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        if any(isinstance(module, BaseTunerLayer) for module in base.model.modules()):
            raise FailedPreconditionError("the base model already carries adapters: one base takes one AdaptedModel", field="model")
        self.base = base
        self.module: Any = base.model
        self.module.requires_grad_(False)
        self._active: str | None = None
        self._configs: dict[str, Any] = {}
        self._tuner: Any = None
        self._layers: list[Any] = []

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters, in the order in which they came."""
        return tuple(self._configs)

    @property
    def active(self) -> str | None:
        """The adapter in use, None for the bare base."""
        return self._active

    def add(self, name: str, lora: LoraShape, *, seed: int, trainable: bool = True) -> None:
        """A new adapter: A from a uniform Kaiming draw with that seed alone, B zero, so that it changes nothing yet.

        Raises:
            AlreadyExistsError: the name is taken.
            InvalidArgumentError: a malformed name, a target module that is no linear layer of the model (the message lists those), or more
                `last_layers` than it has.
        """
        config = lora_config(
            lora.rank, lora.scale_alpha, list(lora.target_modules), hub_id=self.base.hub_id, layers=self._last_layers(lora.last_layers)
        )
        self._draw(name, config, seed, trainable)

    def add_like(self, name: str, source: str, *, seed: int, trainable: bool = True) -> None:
        """A new adapter in the form of another (rank, alpha, modules, layers), with weights as `add` draws them.

        Raises:
            NotFoundError: there is no `source`.
            AlreadyExistsError: the name is taken.
        """
        self._draw(name, deepcopy(self._config(source)), seed, trainable)

    def load(self, name: str, folder: Path, *, trainable: bool = False) -> None:
        """Adds the adapter saved in a folder in PEFT's format. Whether it fits the base's digest is for the caller (the manifest says).

        Raises:
            NotFoundError: the folder lacks a file.
            DataLossError: a file is damaged, or tensors are missing, extra or of another shape than the configuration says.
            FailedPreconditionError: it is not plain LoRA, or targets modules that the model does not have (they are named).
            AlreadyExistsError: the name is taken.
        """
        config = read_lora_config(folder)
        state = read_weights(folder)
        try:
            self._inject(name, config)
        except InvalidArgumentError as error:
            raise FailedPreconditionError(f"adapter in {folder} does not fit {self.base.name}: {error.message}", field="adapter") from error
        try:
            self.load_state(name, state)
        except DataLossError:
            self.remove(name)
            raise
        self._require_grad(name, trainable)

    def copy(self, source: str, target: str, *, trainable: bool = True) -> None:
        """A new adapter with the shape and weights of another, sharing nothing with it: a policy that starts from the SFT adapter.

        Raises:
            NotFoundError: there is no `source`.
            AlreadyExistsError: `target` is taken.
        """
        self._inject(target, deepcopy(self._config(source)))
        self.load_state(target, self.state(source))
        self._require_grad(target, trainable)

    def remove(self, name: str) -> None:
        """Forgets an adapter; where it was in use, the bare base is.

        Raises:
            NotFoundError: there is none of that name.
        """
        self._config(name)
        del self._configs[name]
        if self._active == name:
            self._switch(None)
        for layer in self._layers:
            for part in (*layer.adapter_layer_names, *layer.other_param_names):
                held = getattr(layer, part, None)
                if isinstance(held, dict | nn.ModuleDict | nn.ParameterDict) and name in held:
                    del held[name]
        self._tuner.peft_config.pop(name)

    @contextlib.contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Within the block the named adapter counts (None: the bare base); afterwards the one before does again.

        Which parameters require gradients does not change.

        Raises:
            NotFoundError: there is none of that name.
        """
        if name is not None:
            self._config(name)
        before = self._active
        if name != before:
            self._switch(name)
        try:
            yield
        finally:
            back = before if before in self._configs else None
            if back != self._active:
                self._switch(back)

    def set_trainable(self, *names: str) -> None:
        """The named adapters' parameters require gradients, all others' and the base's do not.

        Raises:
            NotFoundError: there is none of that name.
        """
        for name in names:
            self._config(name)
        for name in self._configs:
            self._require_grad(name, name in names)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The adapter's parameters in an order that does not depend on the process.

        Raises:
            NotFoundError: there is none of that name.
        """
        return list(self._tensors(name).values())

    def state(self, name: str) -> dict[str, Tensor]:
        """Copies of the adapter's tensors by PEFT's file keys, on the CPU.

        Raises:
            NotFoundError: there is none of that name.
        """
        return {key: tensor.detach().cpu().clone() for key, tensor in self._tensors(name).items()}

    def load_state(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Takes the tensors of `state` as the adapter's.

        Raises:
            NotFoundError: there is none of that name.
            DataLossError: tensors are missing, extra, or of another shape.
        """
        tensors = self._tensors(name)
        missing, extra = sorted(set(tensors) - set(state)), sorted(set(state) - set(tensors))
        if missing or extra:
            raise DataLossError(f"adapter {name}: tensors missing: {missing[:3] or 0}, not known: {extra[:3] or 0}", field="adapter")
        for key, tensor in tensors.items():
            if state[key].shape != tensor.shape:
                shapes = f"{tuple(state[key].shape)}, not {tuple(tensor.shape)}"
                raise DataLossError(f"adapter {name}: {key} has shape {shapes}", field="adapter")
        with torch.no_grad():
            for key, tensor in tensors.items():
                tensor.copy_(state[key])

    def save(self, name: str, folder: Path) -> None:
        """Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT does; the same weights give the same bytes.

        Raises:
            NotFoundError: there is none of that name.
        """
        write_adapter(folder, self._config(name), self.state(name))

    def merge(self, name: str) -> nn.Module:
        """The base model with the adapter's update added to its weights (W + scale B A, in float32) and no adapter layers left.

        The base that this was made over is that model afterwards: neither it nor this object can be used as before.

        Raises:
            NotFoundError: there is none of that name.
            DataLossError: a merged weight is not finite.
        """
        self._config(name)
        try:
            merged: nn.Module = self._tuner.merge_and_unload(safe_merge=True, adapter_names=[name])
        except ValueError as error:  # PEFT's check of each product
            raise DataLossError(f"adapter {name} cannot be merged: {error}", field="adapter") from error
        self._configs.clear()
        self._layers = []
        return merged

    def first_layer(self, adapter: str | None) -> int:
        """Index of the first decoder layer that an adapter changes; for None, the bare base, the number of layers.

        Raises:
            NotFoundError: there is none of that name.
        """
        if adapter is None:
            return int(self.base.model.config.get_text_config().num_hidden_layers)
        return min(self._config(adapter).layers_to_transform or (0,))

    def _draw(self, name: str, config: Any, seed: int, trainable: bool) -> None:
        self._inject(name, config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in self._tensors(name).items():
                if key.endswith("lora_A.weight"):
                    bound = parameter.shape[1] ** -0.5  # kaiming_uniform with a = sqrt(5), as PEFT
                    parameter.copy_((torch.rand(parameter.shape, generator=generator, device="cpu") * 2 - 1) * bound)
                else:
                    parameter.zero_()
        self._require_grad(name, trainable)

    def _last_layers(self, count: int) -> list[int] | None:
        """Indices of so many layers, None for all of them."""
        layers = self.first_layer(None)
        if count > layers:
            raise InvalidArgumentError(f"{count} is more than the {layers} layers of {self.base.name}", field="lora.last_layers")
        return list(range(layers - count, layers)) if count else None

    def _config(self, name: str) -> Any:
        try:
            return self._configs[name]
        except KeyError:
            raise NotFoundError(f"adapter {name!r} is not loaded; loaded: {', '.join(self._configs) or 'none'}", field="adapter") from None

    def _tensors(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's parameters by PEFT's file keys, sorted."""
        from peft.tuners.lora import LoraLayer

        self._config(name)
        found: dict[str, nn.Parameter] = {}
        for path, module in self.module.named_modules():
            if isinstance(module, LoraLayer) and name in module.lora_A:
                found[f"{_PREFIX}{path}.lora_A.weight"] = module.lora_A[name].weight
                found[f"{_PREFIX}{path}.lora_B.weight"] = module.lora_B[name].weight
        return dict(sorted(found.items()))

    def _inject(self, name: str, config: Any) -> None:
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(f"{name[:200]!r} is not an adapter name: letters, digits, '_', '-', '/'", field="adapter")
        if name in self._configs:
            raise AlreadyExistsError(f"adapter {name!r} is loaded already", field="adapter")
        self._check_targets(config.target_modules)
        from peft.tuners.lora import LoraLayer, LoraModel

        trainable = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        with torch.random.fork_rng(devices=[]):  # PEFT draws weights that the caller overwrites
            if self._tuner is None:
                self._tuner = LoraModel(self.module, config, name)
            else:
                self._tuner.peft_config[name] = config
                self._tuner.active_adapter = name  # PEFT looks the active one up while it injects; it may be removed by now
                self._tuner.inject_adapter(self.module, name)
        self._configs[name] = config
        self._layers = [module for module in self.module.modules() if isinstance(module, LoraLayer)]
        for layer in self._layers:
            replace_forward(layer)
        # Injection turns adapters on and flips requires_grad: put both back as they were.
        self._switch(self._active)
        self.module.requires_grad_(False)
        for parameter in trainable:
            parameter.requires_grad_(True)
        for parameter in self._tensors(name).values():
            parameter.data = parameter.data.float()  # PEFT gives them the base's type, and bfloat16 loses small updates
        self.module.eval()

    def _check_targets(self, targets: Any) -> None:
        from peft.tuners.lora import LoraLayer

        layers = (path for path, module in self.module.named_modules() if isinstance(module, nn.Linear | LoraLayer))
        known = {path.rsplit(".", 1)[-1] for path in layers if ".lora_" not in path} - {"base_layer", "lm_head"}
        unknown = sorted(set(targets) - known)
        if unknown or not targets:
            raise InvalidArgumentError(
                f"target modules {', '.join(unknown) or '(none)'} are not linear layers of {self.base.name}; those are {', '.join(sorted(known))}",
                field="lora.target_modules",
            )

    def _switch(self, name: str | None) -> None:
        self._active = name
        for layer in self._layers:
            layer._disable_adapters = name is None
            layer._active_adapter = [] if name is None else [name]

    def _require_grad(self, name: str, trainable: bool) -> None:
        for parameter in self._tensors(name).values():
            parameter.requires_grad_(trainable)
