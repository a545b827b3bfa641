"""`accord export`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from accord.cli.connect import local_command
from accord.cli.failures import advice
from accord.cli.options import DEFAULT_HOME, Home, Json
from accord.cli.output import print_json, print_line, size_text
from accord.cli.progress import ProgressBar
from accord.errors import AccordError, InternalError, NotFoundError, UnavailableError, error_classes

_STOP_SECONDS = 10.0


class Dtype(StrEnum):
    """Types of exported weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="adapters/x/versions/1, or adapters/x for its newest.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; must not exist.", show_default=False)],
    adapter_only: Annotated[bool, typer.Option("--adapter-only", help="The adapter in PEFT's format instead of a full model.")] = False,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Type of the full model's weights.")] = Dtype.float32,
    max_shard_mib: Annotated[int, typer.Option("--max-shard-mib", min=1, metavar="MIB", help="Weights above this go into several files.")] = 4768,
    base_model: Annotated[
        str | None, typer.Option("--base-model", metavar="NAME", help="embedded, a folder or a hub id.", show_default="the workspace's")
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="ORG/NAME",
            help="Pushes the folder to a model hub afterwards, in an earlier export's place; needs HF_TOKEN.",
            show_default=False,
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="A repository that --push makes is public, not private.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replaces a folder that an earlier export wrote.")] = False,
    artefacts: Annotated[
        str | None, typer.Option("--artefacts", metavar="URI", help="The artefact store, instead of the workspace's.", show_default=False)
    ] = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Writes an adapter as a folder that other tools load, with a card that says where it comes from.

    A full model by default: the adapter merged into its base, as safetensors with configuration and tokenizer, for transformers, vLLM and GGUF
    converters. A reward model becomes a sequence classifier with one label. What was written is read back and compared with base plus adapter.
    Needs no service. The folder appears when it is whole, and not before.

    \b
    Example:
        accord export adapters/dpo/versions/1 exported/dpo
        accord export adapters/reward-model exported/reward --dtype bfloat16
        accord export adapters/ppo exported/ppo-adapter --adapter-only
        accord export adapters/dpo exported/dpo --push my-org/my-model
    """
    from accord.launch.processes import module_command
    from accord.workspace import Workspace
    from accord.workspace.basemodel import EMBEDDED, absolute_base_model

    workspace = Workspace(home)
    base = absolute_base_model(base_model or workspace.base_model or EMBEDDED)
    command = [*module_command("accord.export"), adapter, str(folder.expanduser().absolute())]
    command += ["--artefacts", artefacts or workspace.artefacts, "--base-model", base, "--dtype", dtype.value]
    command += ["--form", "adapter" if adapter_only else "model", "--max-shard-bytes", str(max_shard_mib * 2**20)]
    command += [*(("--push", push) if push else ()), *(("--public",) if public else ()), *(("--force",) if force else ())]
    listing = local_command("lineage", home, artefacts=artefacts)
    with advice(NotFoundError, text=f"`{listing}` lists the adapters"), ProgressBar("exporting", 100) as bar:
        facts = _run(command, bar)
    if as_json:
        print_json(facts)
    else:
        _show(facts)


def _run(command: list[str], bar: ProgressBar) -> dict[str, Any]:
    """Runs the process that exports; returns its facts.

    Raises:
        AccordError: what it says is wrong.
        UnavailableError: it ended without a word.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            for line in child.stdout or ():
                said = json.loads(line)
                if "done" in said:
                    child.wait()
                    return dict(said["done"])
                if "error" in said:
                    raise _error(said["error"])
                bar.set(round(100 * said["fraction"]), text=said["text"])
            raise UnavailableError(f"the export ended with code {child.wait()}: {_last_line(errors)}")
        finally:
            _end(child)


def _end(child: subprocess.Popen[str]) -> None:
    """Lets the process clean up; kills it where it does not."""
    child.terminate()
    try:
        child.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _error(said: dict[str, Any]) -> AccordError:
    kinds = {kind.code: kind for kind in error_classes()}
    return kinds.get(said["code"], InternalError)(said["message"], field=said["field"])


def _last_line(errors: IO[str]) -> str:
    errors.seek(0)
    words = errors.read().strip().splitlines()
    return words[-1][:300] if words else "it said nothing"


def _show(facts: dict[str, Any]) -> None:
    print_line(f"{facts['version']} is in {facts['folder']}, {size_text(facts['size_bytes'])}")
    for sentence in facts["checked"]:
        print_line(f"- {sentence}")
    if facts.get("pushed_to"):
        print_line(f"pushed to {facts['pushed_to']}")
    elif facts["form"] == "model" and facts["score_offset"] is None:
        sys.stderr.write(f"next: accord up --base-model {facts['folder']} --home another\n")
