"""`python -m accord.models.fetch NAME`: sees to it that a base model's files are in the cache, before a service is started that wants them there.

The init container of the chart. `embedded` is converted once into a shared volume, a hub id is downloaded only with `--download`. What does not
belong here: loading the weights (`accord.models.base`).
"""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from accord.errors import AccordError
from accord.models.base import resolve_model_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetches and prints the folder on stdout; returns 0, or 2 with one line on stderr where the model cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m accord.models.fetch", description="Puts a base model into the cache.")
    parser.add_argument("name", help="embedded, a folder or a hub id")
    parser.add_argument(
        "--link", type=Path, metavar="PATH", help="a symbolic link to the folder, made or replaced at once: a name that does not change"
    )
    parser.add_argument("--download", action="store_true", help="a hub id that is not in the cache may be downloaded; HF_TOKEN opens gated ones")
    given = parser.parse_args(arguments)
    try:
        folder = resolve_model_folder(given.name, allow_download=given.download)
    except AccordError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if given.link is not None:
        _link(folder, given.link)
    sys.stdout.write(f"{folder}\n")
    return 0


def _link(folder: Path, link: Path) -> None:
    """Points `link` at the folder, relative to where both lie, so that another mount of the same volume can follow it."""
    staging = link.with_name(f".{link.name}-{uuid.uuid4().hex}")
    staging.symlink_to(os.path.relpath(folder, link.parent))
    staging.replace(link)


if __name__ == "__main__":
    sys.exit(main())
