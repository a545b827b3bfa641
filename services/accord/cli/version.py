"""`accord version`."""

from __future__ import annotations

import importlib.metadata
import platform

from accord.cli.options import Json
from accord.cli.output import print_json, print_line

_SHOWN = ("grpcio", "protobuf", "pydantic", "torch", "transformers", "peft")


def version(as_json: Json = False) -> None:
    """Shows versions: Accord, Python, and packages that results depend on.

    \b
    Example:
        accord version --json
    """
    found = {"accord": importlib.metadata.version("accord"), "python": platform.python_version(), "platform": platform.platform()}
    for name in _SHOWN:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        print_line(f"{name} {value}")
