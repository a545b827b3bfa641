"""`python -m accord.export`: one export as a process, started by `accord export`, which has no torch.

It writes JSON Lines to stdout: {"text", "fraction"} on the way, at the end {"done": facts} or {"error": {"code", "message", "field"}}.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from accord.artefacts.manifest import Manifest
from accord.artefacts.names import MANIFEST_FILE
from accord.artefacts.store import ArtefactStore
from accord.errors import AccordError, FailedPreconditionError
from accord.export.card import BaseFacts, Checked, Form, card_text, facts_of
from accord.export.conventions import converter_problems
from accord.export.folder import FACTS_FILE, check_place, check_room, remove_leftovers, written_at_once
from accord.export.hub import check_push, push

if TYPE_CHECKING:
    from accord.export.merging import Dtype

_HEAD_FILE = "head.safetensors"
_SIXTEEN_BITS = "in 16 bits rounding moves them; float32 exports are held to 0.0001"


@dataclass(frozen=True, slots=True)
class Order:
    """What to export; `push` is empty where nothing is pushed."""

    adapter: str
    folder: Path
    artefacts: str
    base_model: str
    form: Form = "model"
    dtype: Dtype = "float32"
    max_shard_bytes: int = 5 * 10**9
    push: str = ""
    public: bool = False
    force: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Exports and returns the exit code: 0, or 1 with the error as the last line."""
    signal.signal(signal.SIGTERM, _stop)
    order = _read(arguments)
    try:
        _say(done=run(order))
    except AccordError as error:
        _say(error={"code": error.code, "message": error.message, "field": error.field})
        return 1
    except OSError as error:
        _say(error={"code": "INTERNAL", "message": f"{error.strerror or error}: {error.filename or order.folder}", "field": None})
        return 1
    return 0


def run(order: Order) -> dict[str, Any]:
    """Does an export; returns its facts.

    Raises:
        AccordError: what is wrong with the order, before anything is written where that can be known.
    """
    remove_leftovers(order.folder)
    check_place(order.folder, force=order.force)
    if order.push:
        check_push(order.push)
    store = ArtefactStore(order.artefacts)
    lineage = store.lineage(order.adapter)
    files = store.fetch(lineage[0].name)
    _say(text="looking at the base model", fraction=0.05)
    base = _base_facts(order.base_model, lineage[0])
    with written_at_once(order.folder) as partial:
        checked = _copy(files, partial) if order.form == "adapter" else _merge(order, lineage[0], files, partial)
        facts = facts_of(order.form, lineage, base, checked)
        (partial / "README.md").write_text(card_text(order.folder.name, order.form, lineage, base, checked), encoding="utf-8")
        (partial / FACTS_FILE).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    facts |= {"folder": str(order.folder), "size_bytes": sum(path.stat().st_size for path in order.folder.iterdir()), "checked": checked.sentences}
    if order.push:
        _say(text=f"pushing to {order.push}", fraction=0.9)
        facts["pushed_to"] = push(order.push, order.folder, public=order.public)
    return facts


def _base_facts(name: str, manifest: Manifest) -> BaseFacts:
    """What is known of the base, after its digest was compared with the manifest's; weights are hashed, not loaded."""
    from accord.models import embedded
    from accord.models.base import EMBEDDED, resolve_model_folder
    from accord.models.digests import folder_digests

    folder = resolve_model_folder(name)
    digest = folder_digests(folder, "").base_model
    if digest != manifest.base_model_digest:
        raise FailedPreconditionError(
            f"{manifest.name} was trained on base model {manifest.base_model_digest or '(not recorded)'}, {name!r} is {digest}", field="base_model"
        )
    if name == EMBEDDED or folder.name.startswith(embedded.FOLDER_PREFIX):
        note = "the base's weights are those of a 4-bit GGUF file, dequantised to float32: not bit for bit the original's"
        return BaseFacts(digest, embedded.ORIGIN, embedded.LICENCE, note)
    return BaseFacts(digest, "" if Path(name).expanduser().is_dir() else name, _licence(folder / "README.md"))


def _licence(card: Path) -> str:
    """The licence that a model card's front matter names; empty where it names none."""
    import yaml

    try:
        _, matter, _ = card.read_text(encoding="utf-8").split("---\n", 2)
        found = yaml.safe_load(matter)
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    return str(found.get("license", "")) if isinstance(found, dict) else ""


def _copy(files: Path, partial: Path) -> Checked:
    for path in files.iterdir():
        if path.name != MANIFEST_FILE:
            shutil.copyfile(path, partial / path.name)
    return Checked(("every file has the sha256 that its manifest names",))


def _merge(order: Order, manifest: Manifest, files: Path, partial: Path) -> Checked:
    import torch

    from accord.export.merging import Head, weights_bytes, write_merged
    from accord.models.base import load_base_model
    from accord.models.heads import HeadFacts, ScalarHead

    _say(text="loading the base model", fraction=0.1)
    base = load_base_model(order.base_model, dtype=torch.float32)
    check_room(order.folder.parent, weights_bytes(base, order.dtype))
    head = None
    if manifest.kind == "reward":
        head = Head(ScalarHead.load(files, hidden_size=base.hidden_size), HeadFacts.from_facts(manifest.facts))
    elif manifest.kind != "policy":
        raise FailedPreconditionError(f"{manifest.name} is of kind {manifest.kind}; policies and reward models can be merged", field="adapter")
    _say(text="merging, writing and reading back", fraction=0.3)
    written = write_merged(base, files, partial, head=head, dtype=order.dtype, max_shard_bytes=order.max_shard_bytes)
    what = "logits" if head is None else "scores (with score_offset added)"
    rounding = "" if order.dtype == "float32" else f" ({_SIXTEEN_BITS})"
    sentences = [
        f"read back by transformers, its {what} differ from base plus adapter by at most {written.difference:.2g}, at numbers up to "
        f"{written.magnitude:.3g}, over three texts{rounding}"
    ]
    if head is None:
        problems = converter_problems(partial)
        sentences += [f"llama.cpp's converter may stumble: {problem}" for problem in problems] or [
            "llama.cpp's converter was not run; file and tensor names (by gguf's table), tied embeddings, tokenizer files, vocabulary size and "
            "rope_theta are as it expects them"
        ]
        return Checked(tuple(sentences), written.difference)
    sentences.append(f"padding is {written.pad_token}: transformers scores at the last token that is not padding, Accord at the end of the turn")
    sentences.append(
        f"transformers' head has no constant: score = logit + score_offset ({head.offset:.9g}); without it only differences are Accord's"
    )
    return Checked(tuple(sentences), written.difference, head.offset)


def _read(arguments: Sequence[str] | None) -> Order:
    parser = argparse.ArgumentParser(prog="python -m accord.export", description=__doc__)
    parser.add_argument("adapter")
    parser.add_argument("folder", type=lambda text: Path(text).absolute())
    parser.add_argument("--artefacts", required=True)
    parser.add_argument("--base-model", required=True)
    parser.add_argument("--form", choices=("model", "adapter"), default="model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--max-shard-bytes", type=int, default=5 * 10**9)
    parser.add_argument("--push", default="")
    parser.add_argument("--public", action="store_true")
    parser.add_argument("--force", action="store_true")
    return Order(**vars(parser.parse_args(arguments)))


def _say(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _stop(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)  # unwinds, so that the half-filled folder is removed


if __name__ == "__main__":
    sys.exit(main())
