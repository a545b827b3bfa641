"""Several LoRA adapters over one copy of a base model's weights (PEFT underneath).

PEFT does the layers and the file format. It does not do the bookkeeping: its `set_adapter` flips `requires_grad` as a side effect, its
initialisation draws from the global random state, and an adapter that is off may still be trained. Here these are apart and explicit:
`use` says which adapter counts, `set_trainable` says which ones learn, `add` initialises from a seed alone.

Threads never share an AdaptedModel without a lock: which adapter is on is a property of the model. What does not belong here: optimisation
(`accord.training`) and where adapters are kept (`accord.artefacts`).
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
from accord.models.llama_layer import is_llama_layer
from accord.models.lora_linear import replace_forward
from accord.models.trunk import LayerRange, Trunk
from accord.models.unpadded import Unpadded, hook_attention, unhook_attention

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


class AdaptedModel:
    """A base model and its adapters by name. With no adapter in use it computes the bare base, bit for bit.

    Adapter names are letters, digits, `_`, `-` and `/` (an `adapters/{adapter}/versions/{n}` is one). One base takes one AdaptedModel: the
    base's linear layers are replaced in place.
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
        self._asked: Tensor | None = None
        self._range: LayerRange | None = None
        self._trunk: Trunk | None = None
        layers = getattr(self._decoder, "layers", None)
        self._known = isinstance(layers, nn.ModuleList) and len(layers) > 0 and all(map(is_llama_layer, layers))
        if self._known:
            self._spare_last_mlp()
            hook_attention(self.module)

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
        if self._known:
            unhook_attention(self.module)
        try:
            merged: nn.Module = self._tuner.merge_and_unload(safe_merge=True, adapter_names=[name])
        except ValueError as error:  # PEFT's check of each product
            raise DataLossError(f"adapter {name} cannot be merged: {error}", field="adapter") from error
        self._configs.clear()
        self._layers = []
        return merged

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        adapter: str | None,
        position_ids: Tensor | None = None,
        asked: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, shape (batch, T, H), without the language-model head. The caller's grad mode holds.

        Args:
            attention_mask: (batch, T), True at real tokens; or (batch, 1, T, T), True where a position may look at another. Within
                `shared_trunk`, rows of the first kind are computed from the trunk on.
            position_ids: (batch, T). Without them, real tokens count from 0, so that the padding side does not matter.
            asked: (batch, T), True where the result will be read; elsewhere it holds something else, for the last layer's MLP, which no other
                position looks at, is spared there. None: everywhere.
            real: (batch, T), True at real tokens, for a mask of the second kind; None: everywhere. On a CPU what is not real is not computed, and
                the result is 0 there.

        Raises:
            ValueError: a four-dimensional mask comes without position ids.
        """
        if position_ids is None and attention_mask.dim() != 2:
            raise ValueError("a mask of shape (batch, 1, T, T) needs position_ids")
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
        plain = attention_mask.dim() == 2
        given: dict[str, Any] = {"input_ids": input_ids, "position_ids": position_ids}
        rest: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if self._trunk is not None and plain and self.first_layer(adapter) >= self._trunk.depth:
            given["inputs_embeds"] = self._trunk.states(given.pop("input_ids"), attention_mask)
            rest = self._layer_range().only(self._trunk.depth, len(self._decoder.layers))
        unpadded = self._unpadded(attention_mask.bool() if plain else real, None if plain else attention_mask)
        if unpadded is None:
            given["attention_mask"] = attention_mask.long() if plain else attention_mask
        else:
            given = {name: unpadded.taken(tensor) for name, tensor in given.items()} | unpadded.arguments()
            asked = None if asked is None else unpadded.taken(asked)
        with self.use(adapter), self.asked_at(asked), rest:
            result: Tensor = self._decoder(**given, use_cache=False).last_hidden_state
        return result if unpadded is None else unpadded.padded(result)

    def first_layer(self, adapter: str | None) -> int:
        """Index of the first decoder layer that an adapter changes; for None, the bare base, the number of layers.

        Raises:
            NotFoundError: there is none of that name.
        """
        if adapter is None:
            return int(self.base.model.config.get_text_config().num_hidden_layers)
        return min(self._config(adapter).layers_to_transform or (0,))

    @property
    def trunk(self) -> Trunk | None:
        """What is shared within `shared_trunk`; None where nothing is."""
        return self._trunk

    @contextlib.contextmanager
    def shared_trunk(self) -> Iterator[None]:
        """Within the block, the layers below all adapters are computed once for a row of tokens; what they give is forgotten behind it.

        Adapters on all layers do not count, and passes under them are computed whole, as all are where there is nothing to share or where the
        decoder is not of a shape that is known.
        """
        depth = min(filter(None, map(self.first_layer, self._configs)), default=0)
        before = self._trunk
        if self._known and 0 < depth < len(self._decoder.layers):
            self._trunk = Trunk(self._decoder, self._layer_range(), depth)
        try:
            yield
        finally:
            self._trunk = before

    @property
    def asked(self) -> Tensor | None:
        """The positions of a pass in the making whose results will be read, None for all."""
        return self._asked

    @contextlib.contextmanager
    def asked_at(self, positions: Tensor | None) -> Iterator[None]:
        """Within the block passes compute for these positions, as `asked` of `hidden`."""
        before, self._asked = self._asked, positions
        try:
            yield
        finally:
            self._asked = before

    def logits_at(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits (float32) at the positions that a boolean mask (batch, T) marks, in row order: shape (N, vocabulary).

        The head is a fifth of a small model's work; most positions (the prompt, the padding) need none of it.
        """
        return self.logits_of(hidden[mask])

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Logits (float32) of hidden states: shape (..., H) to (..., vocabulary)."""
        logits: Tensor = self.module.get_output_embeddings()(hidden)
        return logits.float()

    @property
    def _decoder(self) -> Any:
        return getattr(self.module, self.module.base_model_prefix)

    def _unpadded(self, real: Tensor | None, looks_at: Tensor | None) -> Unpadded | None:
        """The real tokens of a pass; None where all are, or where padding is computed too."""
        worth = self._known and real is not None and real.device.type == "cpu" and not bool(real.all()) and bool(real.any(dim=1).all())
        return Unpadded(real, looks_at) if worth and real is not None else None

    def _layer_range(self) -> LayerRange:
        if self._range is None:
            self._range = LayerRange(self._decoder.layers)
        return self._range

    def _last_layers(self, count: int) -> list[int] | None:
        """Indices of so many layers, None for all of them."""
        layers = self.first_layer(None)
        if count > layers:
            raise InvalidArgumentError(f"{count} is more than the {layers} layers of {self.base.name}", field="lora.last_layers")
        return list(range(layers - count, layers)) if count else None

    def _spare_last_mlp(self) -> None:
        """Lets the last layer's MLP compute at the asked positions alone."""
        mlp: Any = self._decoder.layers[-1].mlp
        whole = mlp.forward

        def forward(x: Tensor) -> Tensor:
            if self._asked is None:
                everywhere: Tensor = whole(x)
                return everywhere
            places = self._asked.flatten().nonzero().squeeze(1)
            rows = x.flatten(0, 1)
            return torch.zeros_like(rows).index_copy(0, places, whole(rows.index_select(0, places)[None])[0]).view_as(x)

        mlp.forward = forward

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
