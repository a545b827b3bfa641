"""Where the trainable adapter of a run starts, and what of it goes into checkpoints; shared by all algorithms.

What does not belong here: losses.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from accord.checkpoint import Checkpoint
from accord.errors import FailedPreconditionError
from accord.models.adapter_files import WEIGHTS_FILE
from accord.serving.parent_lora import CONFIG_FILE, check_lora, read_lora
from accord.training.context import RunContext
from accord.training.loop import ADAPTER_FOLDER

POLICY = "policy"
REFERENCE = "reference"


def start_adapter(context: RunContext, name: str, parent: str) -> tuple[str, ...]:
    """Adds the trainable adapter `name`: a copy of a published version, or a fresh one by the run's seed. Returns its parents.

    Raises:
        FailedPreconditionError: a policy was to start from an adapter that is none; a reward model may start from any.
        InvalidArgumentError: the specification asks for another form than the parent's.
    """
    if not parent:
        context.adapted.add(name, context.spec.lora, seed=context.spec.seed, trainable=True)
        return ()
    version = context.fetch_parent(parent)
    kind = context.manifest(version).kind
    if name == POLICY and kind != "policy":
        raise FailedPreconditionError(f"{version} is of kind {kind}; a policy starts from one of kind policy", field="parent_adapter")
    lora = read_lora(context.read_store(lambda store: store.read_file(version, CONFIG_FILE)))
    if lora is not None:
        check_lora(context.spec.lora, lora, version)
    context.adapted.load(name, context.read_store(lambda store: store.fetch(version)), trainable=True)
    return (version,)


def start_reference(context: RunContext, parents: tuple[str, ...]) -> str | None:
    """Adds the frozen reference: the parent, or None for the bare base model. Returns the name to compute under."""
    if not parents:
        return None
    context.adapted.load(REFERENCE, context.read_store(lambda store: store.fetch(parents[0])), trainable=False)
    return REFERENCE


def save_adapter(context: RunContext, name: str, folder: Path) -> None:
    """Writes the adapter in PEFT's format."""
    context.adapted.save(name, folder)


def load_adapter(context: RunContext, name: str, checkpoint: Checkpoint, folder: str = ADAPTER_FOLDER) -> None:
    """Takes up the adapter's weights of a checkpoint."""
    context.adapted.load_state(name, load_file(checkpoint.path / folder / WEIGHTS_FILE))
