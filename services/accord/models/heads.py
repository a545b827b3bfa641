"""Scalar heads: one number from a hidden state, for reward models (a score) and critics (a value).

What does not belong here: the pass that makes the hidden states (`accord.models.lora`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from accord.errors import DataLossError, FailedPreconditionError, NotFoundError

HEAD_FILE = "head.safetensors"


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """What a manifest tells about a trained reward head. Scores are reported as (raw - mean) / std.

    `mean` and `std` are of raw scores on chosen and rejected responses of the training data, of as many prompts as possible; `held_out_accuracy` is
    None where no pair was held out; `max_tokens` is the longest prompt plus response that the head saw.
    """

    mean: float = 0.0
    std: float = 1.0
    training_data_digest: str = ""
    held_out_accuracy: float | None = None
    max_tokens: int = 0

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise FailedPreconditionError(f"std of a reward head must be positive, got {self.std}", field="facts.std")

    def to_facts(self) -> dict[str, Any]:
        """As a manifest's facts hold them."""
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> HeadFacts:
        """From a manifest's facts; other keys are left alone.

        Raises:
            FailedPreconditionError: a fact of a reward head is missing.
        """
        missing = [name for name in cls.__slots__ if name not in facts]
        if missing:
            raise FailedPreconditionError(f"the manifest is not one of a reward model: it lacks {', '.join(missing)}", field="facts")
        return cls(**{name: facts[name] for name in cls.__slots__})


class ScalarHead(nn.Module):
    """A linear map from a hidden state (..., H) to a number (...), in float32 whatever the model's type.

    Args:
        hidden_size: H.
        seed: None starts at zero (every output 0, as a critic should); a number draws weights from N(0, 1 / (H + 1)) with that seed alone
            (Stiennon et al. 2020, arXiv:2009.01325, for reward models).
    """

    def __init__(self, hidden_size: int, *, seed: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(()))
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                self.weight.copy_(torch.randn(hidden_size, generator=generator, device="cpu") * (hidden_size + 1) ** -0.5)

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.weight.shape[0]

    def forward(self, hidden: Tensor) -> Tensor:
        """One number for each hidden state: shape (..., H) to (...)."""
        return hidden.to(self.weight.dtype) @ self.weight + self.bias

    def at_last_token(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """The number at each sequence's last real token, whatever the padding side: (batch, T, H), (batch, T) to (batch,).

        Raises:
            ValueError: a row of the mask has no real token.
        """
        mask = attention_mask.bool()
        if not bool(mask.any(dim=1).all()):
            raise ValueError("a sequence without tokens has no last token")
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
        result: Tensor = self(hidden[torch.arange(hidden.shape[0], device=hidden.device), last])
        return result

    def save(self, folder: Path) -> None:
        """Writes `head.safetensors` into the folder."""
        save_file({"weight": self.weight.detach().cpu().contiguous(), "bias": self.bias.detach().cpu().reshape(1)}, folder / HEAD_FILE)

    @classmethod
    def load(cls, folder: Path, *, hidden_size: int | None = None) -> ScalarHead:
        """The head saved in the folder.

        Raises:
            NotFoundError: there is none.
            DataLossError: the file is damaged.
            FailedPreconditionError: it is for another hidden size than `hidden_size`.
        """
        path = folder / HEAD_FILE
        if not path.is_file():
            raise NotFoundError(f"{folder} has no {HEAD_FILE}: it holds no reward or value model", field="adapter")
        try:
            state = load_file(path)
            weight, bias = state["weight"], state["bias"]
        except (SafetensorError, KeyError) as error:
            raise DataLossError(f"{path.name} cannot be read: {error}", metadata={"file": path.name}) from error
        if weight.dim() != 1 or bias.numel() != 1:
            raise DataLossError(f"{path.name} has shapes {tuple(weight.shape)} and {tuple(bias.shape)}", metadata={"file": path.name})
        if hidden_size is not None and weight.shape[0] != hidden_size:
            raise FailedPreconditionError(f"the head is for hidden size {weight.shape[0]}, the model has {hidden_size}", field="adapter")
        head = cls(weight.shape[0])
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias.reshape(()))
        return head
