"""Where a label job's files go: a local folder, or a folder behind an fsspec URL (s3://, gs://).

Local files appear whole, by renaming. Files for a URL are made here and then put, each in one piece, the card last: object stores show an object
whole or not at all. What does not belong here: what is in the files (`accord.feedback.job_data`).
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from accord.data.files import is_url, shown
from accord.errors import AccordError, FailedPreconditionError, InvalidArgumentError, UnavailableError

_FIELD = "output_uri"
_LAST = "card.json"


def output_place(uri: str) -> str:
    """The folder as an absolute path, or as a URL without a slash at its end."""
    if is_url(uri):
        return uri.rstrip("/")
    return os.path.abspath(uri.removeprefix("file://"))


def is_same_place(one: str, other: str) -> bool:
    """Whether two files or folders are one, by whatever path."""
    return one == other if is_url(one) or is_url(other) else os.path.realpath(one) == os.path.realpath(other)


def check_output(place: str) -> None:
    """Makes a local folder; of a URL, says whether its protocol can be spoken. Asks no network.

    Raises:
        FailedPreconditionError: the folder cannot be made, or a package is missing.
        InvalidArgumentError: nobody knows the protocol.
    """
    if is_url(place):
        _file_system(place)
        return
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPreconditionError(f"{place} cannot be made: {error.strerror}", field=_FIELD) from error


def check_no_strangers(place: str, labels: str) -> None:
    """Refuses a local folder whose labels no job wrote: a job's have its card beside them. Where the output is a URL, nobody looks.

    Raises:
        FailedPreconditionError: there are such labels.
    """
    if is_url(place) or not os.path.lexists(Path(place) / labels):
        return
    try:
        card = json.loads((Path(place) / _LAST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        card = None
    if not (isinstance(card, dict) and {"job", "dataset_digest", "cards"} <= card.keys()):
        said = f"{Path(place) / labels} is there, and no label job's {_LAST} beside it: it would be replaced"
        raise FailedPreconditionError(f"{said}; move it away, or give another folder", field=_FIELD)


def is_output_there(place: str, names: Iterable[str]) -> bool:
    """Whether a local folder has the files; of a URL it is taken for granted, since asking could take long."""
    return is_url(place) or all((Path(place) / name).is_file() for name in names)


@contextlib.contextmanager
def output_folder(place: str) -> Iterator[Path]:
    """A local folder to write to; where the output is a URL, its files are there when the block has ended well.

    Raises:
        UnavailableError: the files could not be written where they belong (a full disk, a folder that is gone); a later try may.
    """
    try:
        with _folder_of(place) as folder:
            yield folder
    except OSError as error:
        raise UnavailableError(f"{shown(place)} cannot be written: {error.strerror or error}", field=_FIELD, retry_after_seconds=1.0) from error


@contextlib.contextmanager
def _folder_of(place: str) -> Iterator[Path]:
    if not is_url(place):
        Path(place).mkdir(parents=True, exist_ok=True)
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="accord-labels-") as folder:
        yield Path(folder)
        file_system, root = _file_system(place)
        files = sorted(Path(folder).iterdir(), key=lambda file: (file.name == _LAST, file.name))
        try:
            file_system.makedirs(root, exist_ok=True)
            for file in files:
                file_system.put_file(str(file), f"{root}/{file.name}")
        except AccordError:
            raise
        except Exception as error:  # drivers have classes of their own, which are no OSError
            raise UnavailableError(
                f"{shown(place)} cannot be written: {type(error).__name__}: {error}", field=_FIELD, retry_after_seconds=5.0
            ) from error


def _file_system(place: str) -> tuple[Any, str]:
    import fsspec  # 60 ms, and only for URLs

    try:
        file_system, root = fsspec.core.url_to_fs(place)
    except ImportError as error:
        raise FailedPreconditionError(f"writing to {shown(place)} needs a package that is not installed: {error}", field=_FIELD) from error
    except ValueError as error:
        raise InvalidArgumentError(f"{shown(place)} is no folder and no URL that fsspec knows: {error}", field=_FIELD) from error
    return file_system, str(root).rstrip("/")
