"""Functions as the processes of one run: forked from a server that has imported torch, joined over a file on the loopback device."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accord.training.distribution import World
from accord.training.place import Place

_PATIENCE_SECONDS = 120.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["tests.unit.training.surroundings", "torch.distributed.fsdp", "transformers.models.llama.modeling_llama", "peft.tuners.lora"]
)


def on_ranks(root: Path, size: int, act: Callable[..., Any], *arguments: Any, strategy: str = "ddp") -> list[Any]:
    """What `act(world, *arguments)` returns in each of `size` processes."""
    rendezvous = root / f"rendezvous-{act.__name__}-{size}-{strategy}"
    rendezvous.unlink(missing_ok=True)
    outputs = [root / f"{rendezvous.name}-{rank}.out" for rank in range(size)]
    places = [Place(rank, size, rank, size, str(rendezvous), joined=True) for rank in range(size)]
    children = [
        _context.Process(target=_child, args=(place, strategy, output, act, arguments))
        for place, output in zip(places, outputs, strict=True)
    ]  # fmt: skip
    try:
        for child in children:
            child.start()
        for child in children:
            child.join(_PATIENCE_SECONDS)
    finally:  # also where the test's own time is over: what is left would hold up the end of all tests
        for child in children:
            if child.is_alive():
                child.kill()
                child.join()
    ends = [child.exitcode for child in children]
    assert ends == [0] * size
    return [pickle.loads(output.read_bytes()) for output in outputs]


def _child(place: Place, strategy: str, output: Path, act: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    world = World(place, lockstep=strategy == "fsdp")
    world.join(place)
    try:
        output.write_bytes(pickle.dumps(act(world, *arguments)))
    finally:
        world.leave()
