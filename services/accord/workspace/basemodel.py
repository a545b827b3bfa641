"""The base model of a workspace: found, and where it is the embedded one converted, without torch in this process.

What does not belong here: the conversion (`accord.models.embedded`), which runs in a child process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from accord.errors import DeadlineExceededError, FailedPreconditionError, NotFoundError, UnavailableError

EMBEDDED = "embedded"
_SCRIPT = """\
import json, sys
from accord.errors import AccordError
from accord.models.embedded import ensure_embedded
say = lambda **line: print(json.dumps(line), flush=True)
try:
    say(folder=str(ensure_embedded(lambda text, fraction: say(text=text, fraction=fraction))))
except AccordError as error:
    say(error=str(error))
    sys.exit(2)
"""
CONVERT_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-c", _SCRIPT)


def absolute_base_model(name: str) -> str:
    """The name as every process understands it: a folder becomes absolute, `embedded` and hub ids stay.

    Raises:
        NotFoundError: it is a path, and there is no such folder.
    """
    path = Path(name).expanduser()
    if name == EMBEDDED:
        return name
    if path.is_dir():
        return str(path.resolve())
    if path.is_absolute() or name.startswith((".", "~")):
        raise NotFoundError(f"there is no model folder {name}; give a folder, a hub id, or {EMBEDDED}", field="base_model")
    return name


def ensure_model_folder(name: str, *, report: Callable[[str], None], timeout_seconds: float, command: Sequence[str] = CONVERT_COMMAND) -> str:
    """The folder of a base model's files, empty where only the services can find it (a hub id). Converts the embedded model if need be.

    Raises:
        FailedPreconditionError: the embedded model cannot be converted.
        UnavailableError: the conversion broke off.
        DeadlineExceededError: it took longer than the timeout.
    """
    if name != EMBEDDED:
        return name if Path(name).is_dir() else ""
    late = threading.Event()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True)
        timer = threading.Timer(timeout_seconds, _end, (child, late))
        timer.start()
        try:
            folder = _folder_of(child, report)
        finally:
            timer.cancel()
            child.kill()
            child.communicate()
        if late.is_set():
            raise DeadlineExceededError(f"the embedded model was not converted within {timeout_seconds:g} s; give it more time")
        if not folder:
            raise UnavailableError(f"the embedded model's conversion broke off: {_last_line(errors)}")
    return folder


def _folder_of(child: subprocess.Popen[str], report: Callable[[str], None]) -> str:
    """Passes the child's progress on; returns the folder that it names, empty where it ends before."""
    folder = ""
    for line in child.stdout or ():
        said = json.loads(line)
        if "error" in said:
            raise FailedPreconditionError(said["error"], field="base_model")
        if "folder" in said:
            folder = str(said["folder"])
        else:
            report(f"embedded model: {said['text']} ({said['fraction']:.0%})")
    return folder


def _end(child: subprocess.Popen[str], late: threading.Event) -> None:
    late.set()
    child.kill()


def _last_line(errors: IO[str]) -> str:
    errors.seek(0)
    words = errors.read().strip().splitlines()
    return words[-1] if words else "it said nothing"
