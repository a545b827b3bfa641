"""What the processes of a run say to each other: each learns from its part of a batch, and all take the same step.

Losses are sums over a batch divided by the whole batch's own denominator (its tokens, its pairs, its groups of prompts), so gradients of the
parts add up to the batch's whatever the split. Only adapters and heads learn: their gradients travel in one flat buffer a step, which is
less than DistributedDataParallel's hooks and buckets cost, and does not care how many passes a process made. What does not belong here:
starting the processes (`accord.training.ranks`), finding out which one this is (`accord.training.place`) and where they meet
(`accord.training.rendezvous`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from accord.errors import AbortedError, AccordError, FailedPreconditionError, InternalError, UnavailableError
from accord.training.place import ALONE, Place
from accord.training.rendezvous import is_local, meet
from accord.training.stopping import SERVICE, RunStopped, StopSignal

T = TypeVar("T")
SILENCE_SECONDS = 600.0  # longest that one process lets the others wait without a word
_BEAT_SECONDS = 10.0
_BEAT = b""  # what the first process says while its call lasts; an answer is JSON, and never empty


class World:
    """The processes of a run as one of them sees them; with one process, every method is what it would be without it.

    Args:
        place: which process this is.
        stop: held while processes must agree before they heed it.
        lockstep: each process makes as many passes as every other, because weights are gathered from all in each pass (FSDP).
        device: that this process computes on.
    """

    def __init__(self, place: Place = ALONE, stop: StopSignal | None = None, *, lockstep: bool = False, device: str = "cpu") -> None:
        self.rank, self.size, self.device = place.rank, place.size, device
        self.lockstep = lockstep
        self._stop = stop or StopSignal()
        self._stop.held = place.size > 1
        self._counts = True

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def counts(self) -> bool:
        """Whether what is computed now is this process's part; False while it only keeps step with others."""
        return self._counts

    def share(self, parts: Sequence[T]) -> Iterator[T]:
        """This process's parts of a batch: every `size`-th, so that alike lengths are spread.

        In lockstep a process that has one part less repeats the first; what it adds then through `backward`, `Sums` and `Rows` counts nothing.
        """
        own = parts[self.rank :: self.size]
        yield from own
        if self.lockstep and len(own) * self.size < len(parts):
            self._counts = False
            try:
                yield parts[0]
            finally:
                self._counts = True

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradient of a loss that is divided by the whole batch's denominator."""
        (loss if self._counts else loss * 0).backward()  # type: ignore[no-untyped-call]

    def sums(self) -> Sums:
        """Numbers to be summed over parts and processes."""
        return Sums(self)

    def rows(self, *shape: int) -> Rows:
        """A tensor to be filled by rows over parts and processes."""
        return Rows(self, shape)

    def from_first(self, call: Callable[[], T]) -> T:
        """What the call returns in the first process, JSON, in all of them; what it raises is raised in all, and heeds a stop.

        It may last as long as it does: the first process says every ten seconds that it is there, and the others give up on its silence alone. They
        answer whether one of them was asked to stop; the first is then too. The call must not speak with the other processes itself.

        Raises:
            RunStopped: a process was asked to stop.
            UnavailableError: a service stayed away from it.
            AbortedError: anything else went wrong there.
        """
        if self.size == 1:
            return call()
        if self.leads:
            return self._tell(call)
        while (answer := self._broadcast(_BEAT)) == _BEAT:
            self._hear()
        told = json.loads(answer)
        if told["raised"]:
            raise self._followed(0, told)
        result: T = told["value"]
        return result

    def each(self, call: Callable[[], T]) -> T:
        """What the call returns in this process, where all make it, each for itself; what one raises is raised in all, and each heeds a stop.

        Whoever is asked to stop ends its call, and the others are then asked too. Beside their calls the processes tell each other every ten seconds
        that they are there. The call must not speak with the other processes itself.

        Raises:
            RunStopped: a process was asked to stop, whatever else went wrong.
            Exception: what the call raised here.
            UnavailableError: a service stayed away from another process.
            AbortedError: anything else went wrong in another, or one is gone.
        """
        if self.size == 1:
            return call()
        ends, said, lost, made = [_in_words(None)], list[Any](), list[AbortedError](), threading.Event()

        def converse() -> None:
            try:
                while not said or None in said:
                    made.wait(_BEAT_SECONDS)
                    said[:] = self.gather(ends[-1] if made.is_set() else None)
                    self._heed(said)
            except AbortedError as error:
                lost.append(error)

        thread = threading.Thread(target=converse, name="each", daemon=True)
        thread.start()
        self._stop.held = False
        try:
            result = call()
        except BaseException as error:
            ends.append(_in_words(error))
            raise
        finally:
            self._stop.held = True
            made.set()
            thread.join()
            if self._heed(said):
                raise RunStopped
        for rank, other in enumerate(said):
            if other and other["raised"]:
                raise self._followed(rank, other)
        if lost:
            raise lost[0]
        return result

    def _followed(self, rank: int, told: dict[str, Any]) -> Exception:
        """What is raised here where another process raised something."""
        if told["raised"] == RunStopped.__name__:
            return RunStopped()
        kind = UnavailableError if told["raised"] == UnavailableError.__name__ else AbortedError
        return kind(f"process {rank} of {self.size}: {told['message']}", metadata={SERVICE: told["service"]} if told["service"] else None)

    def agree(self, wish: bool) -> bool:
        """Whether any process wishes so."""
        return wish if self.size == 1 else any(self.gather(wish))

    def gather(self, value: Any) -> list[Any]:
        """The value of each process by rank, JSON."""
        if self.size == 1:
            return [value]
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.long, device="cpu") for _ in range(self.size)]
        with self._peers():
            torch.distributed.all_gather(sizes, torch.tensor([len(content)], device="cpu"))
            padded = torch.zeros(max(int(size) for size in sizes), dtype=torch.uint8, device="cpu")
            padded[: len(content)] = content
            found = [torch.zeros_like(padded) for _ in range(self.size)]
            torch.distributed.all_gather(found, padded)
        return [json.loads(each[: int(size)].numpy().tobytes()) for each, size in zip(found, sizes, strict=True)]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each of them."""
        if self.size > 1:
            with self._peers():
                torch.distributed.all_reduce(tensor)
        return tensor

    def reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sums gradients over all processes; a parameter that no process has a gradient for keeps none."""
        if self.size == 1:
            return
        present = torch.tensor([float(each.grad is not None) for each in parameters], device=parameters[0].device)
        parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        flat = self.sum(torch.cat([*(part.reshape(-1) for part in parts), present]))
        sums = flat.split([*(each.numel() for each in parameters), len(parameters)])
        for parameter, total, held in zip(parameters, sums, sums[-1].tolist(), strict=False):
            parameter.grad = total.view_as(parameter) if held else None

    def check_same(self, what: str, content: Iterable[Tensor] | str) -> None:
        """Compares something that must be alike in all processes.

        Raises:
            InternalError: it is not; the run would go on with models that drift apart.
        """
        if self.size == 1:
            return
        total = hashlib.sha256()
        for part in [content.encode()] if isinstance(content, str) else (each.detach().cpu().numpy().tobytes() for each in content):
            total.update(part)
        digests = self.gather(total.hexdigest())
        if len(set(digests)) > 1:
            found = ", ".join(digest[:12] for digest in digests)
            raise InternalError(f"{what} must be the same in all {self.size} processes; their digests are {found}")

    def join(self, place: Place) -> None:
        """Finds the other processes: over a file on one machine, else at MASTER_ADDR and MASTER_PORT. gloo on CPUs, nccl beside it on GPUs.

        Raises:
            RunStopped: this process was asked to stop before all had come.
            UnavailableError: they did not come in time.
        """
        if not place.joined:
            return
        backend = "cpu:gloo" if self.device == "cpu" else "cpu:gloo,cuda:nccl"
        if is_local(place):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", next(name for _, name in socket.if_nameindex() if name.startswith("lo")))
        patience = timedelta(seconds=SILENCE_SECONDS)
        try:
            store = meet(place, self._stop, patience)
            torch.distributed.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=patience)
            torch.distributed.all_reduce(torch.zeros(1, device="cpu"))  # who has connected may leave, or end, before another has: now all have
        except RuntimeError as error:
            raise UnavailableError(f"the {place.size} processes of the run did not find each other: {_first_line(error)}") from error

    def leave(self) -> None:
        """Leaves the others, at the end."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _tell(self, call: Callable[[], T]) -> T:
        told: dict[str, Any] = {"raised": "", "message": "", "service": ""}
        self._stop.held = False
        try:
            with self._beating():
                told["value"] = result = call()
        except BaseException as error:
            told |= _in_words(error)
            raise
        finally:
            self._stop.held = True
            self._broadcast(json.dumps(told).encode())
        return result

    @contextlib.contextmanager
    def _beating(self) -> Iterator[None]:
        """Tells the others now and then, while the block runs, that this process is there; whatever is said next comes after the last beat."""
        over = threading.Event()

        def beat() -> None:
            with contextlib.suppress(AbortedError):  # whoever speaks next finds out that another process is gone
                while not over.wait(_BEAT_SECONDS):
                    self._broadcast(_BEAT)
                    self._hear()

        thread = threading.Thread(target=beat, name="beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _heed(self, ends: Sequence[dict[str, Any] | None]) -> bool:
        """Whether a process ended its call because it was asked to stop; this one is then asked too."""
        stopped = any(end is not None and end["raised"] == RunStopped.__name__ for end in ends)
        if stopped:
            self._stop.set()
        return stopped

    def _hear(self) -> None:
        """Who was asked to stop asks all."""
        if self.agree(self._stop.is_set):
            self._stop.set()

    def _broadcast(self, content: bytes) -> bytes:
        """What the first process says, in all of them."""
        with self._peers():
            size = torch.tensor([len(content)], device="cpu")
            torch.distributed.broadcast(size, 0)
            buffer = torch.zeros(int(size), dtype=torch.uint8, device="cpu")
            if self.leads and content:
                buffer[:] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            if len(buffer):
                torch.distributed.broadcast(buffer, 0)
        return content if self.leads else buffer.numpy().tobytes()

    @contextlib.contextmanager
    def _peers(self) -> Iterator[None]:
        """Errors of the connection as what they mean."""
        try:
            yield
        except RuntimeError as error:
            raise AbortedError(f"another process of the run ended, or was silent for too long: {_first_line(error)}") from error


class Sums:
    """Numbers of a batch, each a sum over its parts; the sum over processes is made once, in `total`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._values: dict[str, float] = {}

    def add(self, **values: float) -> None:
        """Adds what one part contributes."""
        if self._world.counts:
            for name, value in values.items():
                self._values[name] = self._values.get(name, 0.0) + value

    def total(self) -> dict[str, float]:
        """The sums over all processes, the same in each of them."""
        found: dict[str, float] = {}
        for values in self._world.gather(self._values):
            for name, value in values.items():
                found[name] = found[name] + value if name in found else value
        return found


class Rows:
    """A tensor whose rows come from the parts of a batch; the whole is put together once, in `whole`. No gradient."""

    def __init__(self, world: World, shape: Sequence[int]) -> None:
        self._world = world
        self._tensor = torch.zeros(*shape)

    def put(self, rows: Sequence[int], values: Tensor) -> None:
        """Puts values of some rows in their places, the first columns where they are narrower. A row is put once."""
        if self._world.counts:
            where: Any = (torch.tensor(list(rows)), *(slice(width) for width in values.shape[1:]))
            self._tensor[where] = values.detach().to(self._tensor.dtype)

    def whole(self) -> Tensor:
        """All rows, zero where nothing was put, the same in each process."""
        return self._world.sum(self._tensor)


def local_device(place: Place) -> str:
    """The GPU of this process where there are some, and tensors are made there from now on; else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    device = f"cuda:{place.local_rank}"
    torch.cuda.set_device(device)
    torch.set_default_device(device)
    return device


def shard_base(model: Any, world: World) -> None:
    """Spreads the frozen weights of a model over all processes (FSDP2): a layer's are whole only while it computes.

    Adapters and heads, which are put on afterwards, stay whole in each process: they are a hundredth of the weights, and so any number of
    processes writes and reads the same checkpoint. A head that is tied to the embedding gets a share of its own, the same numbers.

    Raises:
        FailedPreconditionError: the model's decoder has no list of layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    decoder = getattr(model, model.base_model_prefix)
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise FailedPreconditionError(f"strategy fsdp needs a decoder with a list of layers; {type(decoder).__name__} has none", field="distribution")
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    mesh = init_device_mesh(torch.device(world.device).type, (world.size,))
    for module in (*layers, decoder, head):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def _in_words(error: BaseException | None) -> dict[str, Any]:
    """An error for the others: a stop and a service that stays away are followed by a checkpoint, in all processes or in none."""
    if error is None:
        return {"raised": "", "message": "", "service": ""}
    raised = next((kind.__name__ for kind in (RunStopped, UnavailableError) if isinstance(error, kind)), type(error).__name__)
    return {"raised": raised, "message": str(error), "service": error.metadata.get(SERVICE, "") if isinstance(error, AccordError) else ""}


def is_absence(error: Exception) -> bool:
    """Whether an error says only that another process is gone."""
    return isinstance(error, AbortedError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection closed by peer"))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
