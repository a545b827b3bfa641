"""`accord lineage`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from accord.cli.failures import advice
from accord.cli.options import DEFAULT_HOME, Home, Json
from accord.cli.output import console, harmless, print_json, print_line, print_table
from accord.errors import NotFoundError

if TYPE_CHECKING:
    from rich.tree import Tree

    from accord.artefacts.manifest import Manifest

_DIGEST = 12


def lineage(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="adapters/x/versions/1, or adapters/x; without it, all are listed.", show_default=False)
    ] = "",
    artefacts: Annotated[
        str | None, typer.Option("--artefacts", metavar="URI", help="The artefact store, instead of the workspace's.", show_default=False)
    ] = None,
    home: Home = DEFAULT_HOME,
    as_json: Json = False,
) -> None:
    """Shows where an adapter comes from, or lists all.

    Its run, its data and its parents, back to the base model. Needs no service.

    \b
    Example:
        accord lineage adapters/ppo/versions/1
        accord lineage
    """
    from accord.artefacts.store import ArtefactStore
    from accord.workspace import Workspace

    store = ArtefactStore(artefacts or Workspace(home).artefacts)
    if not adapter:
        _show_all(store.list(), store.uri, as_json=as_json)
        return
    with advice(NotFoundError, text="`accord lineage` lists the adapters"):
        found = store.lineage(adapter)
    if as_json:
        print_json([_facts(manifest) for manifest in found])
    else:
        console().print(_tree(found[0].name, {manifest.name: manifest for manifest in found}))


def _show_all(manifests: Sequence[Manifest], uri: str, *, as_json: bool) -> None:
    if as_json:
        print_json([_facts(manifest) for manifest in manifests])
    elif not manifests:
        print_line(f"there are no adapters in {uri}; `accord train sft` makes one")
    else:
        rows = [
            (manifest.name, manifest.kind + (" (removed)" if manifest.removed else ""), manifest.run, manifest.step, manifest.created_at[:19])
            for manifest in manifests
        ]
        print_table(("adapter", "kind", "run", "step>", "created (UTC)"), rows)


def _facts(manifest: Manifest) -> dict[str, object]:
    return {
        "name": manifest.name, "kind": manifest.kind, "digest": manifest.digest, "parents": manifest.parents, "run": manifest.run,
        "data_digest": manifest.data_digest, "step": manifest.step, "base_model_digest": manifest.base_model_digest,
        "tokenizer_digest": manifest.tokenizer_digest, "created_at": manifest.created_at, "size_bytes": manifest.size_bytes,
        "removed": manifest.removed, "facts": dict(manifest.facts),
    }  # fmt: skip


def _tree(name: str, manifests: dict[str, Manifest]) -> Tree:
    """The adapter with what it was made from below it; an ancestor of two children is under both."""
    from rich.text import Text
    from rich.tree import Tree

    manifest = manifests[name]
    tree = Tree(Text(harmless(f"{name} ({manifest.kind}{', removed' if manifest.removed else ''})")))
    tree.add(Text(f"digest {manifest.digest[:_DIGEST]}, made {manifest.created_at[:19]} UTC"))
    if manifest.run:
        tree.add(Text(harmless(f"{manifest.run}, step {manifest.step}")))
    if manifest.data_digest:
        tree.add(Text(f"data {manifest.data_digest[:_DIGEST]}"))
    if not manifest.parents:
        tree.add(Text(f"base model {manifest.base_model_digest[:_DIGEST] or 'not recorded'}"))
    for parent in manifest.parents:
        tree.add(_tree(parent, manifests))
    return tree
