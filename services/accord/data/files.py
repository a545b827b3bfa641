"""Files of rows, here or behind an fsspec URL (s3://, gs://, https://): whether one can be there, opening it, and what is said where that fails.

What does not belong here: what is in a file (`accord.data.sources`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import urlsplit

from accord.errors import AccordError, FailedPreconditionError, InvalidArgumentError, NotFoundError, PermissionDeniedError, UnavailableError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_FIELD = "data.uri"
_FAR = ("sample:", "hub:")


def is_url(uri: str) -> bool:
    """Whether the file is reached through fsspec; file:// is a path of this machine."""
    return "://" in uri and not uri.startswith("file://")


def file_name(uri: str) -> str:
    """The name of the file, without folders and without what a URL says behind a question mark."""
    if not is_url(uri):
        return local_path(uri).name
    parts = urlsplit(uri.partition("::")[0])
    return PurePosixPath(parts.netloc + parts.path).name


def local_path(uri: str) -> Path:
    """The path of a file of this machine."""
    return Path(uri.removeprefix("file://"))


def absolute_uri(uri: str) -> str:
    """The same source with a relative path taken from the current folder: the services work in another one."""
    if not uri or uri.startswith(_FAR) or "://" in uri:
        return uri
    return str(Path(uri).expanduser().absolute())


def is_this_file(uri: str, path: Path) -> bool:
    """Whether a source is this file of this machine, by whatever name or link; local:// is what fsspec calls file://, too."""
    uri = uri.removeprefix("local://")
    if is_url(uri) or uri.startswith(("sample:", "hub:")):
        return False
    source = local_path(uri)
    return source.exists() and path.exists() and source.samefile(path)


def check_file(uri: str) -> None:
    """Says at once whether a file can be there; a local one is looked for, and the network is never asked.

    Raises:
        InvalidArgumentError: the name ends in nothing that can be read, or nobody knows the URL's protocol.
        NotFoundError: there is no such local file.
        FailedPreconditionError: the package that speaks the URL's protocol is not installed.
    """
    if not file_name(uri).endswith(SUFFIXES):
        raise InvalidArgumentError(f"{shown(uri)!r} is neither sample:NAME, nor hub:NAME, nor a file ending in {', '.join(SUFFIXES)}", field=_FIELD)
    if is_url(uri):
        for part in uri.split("::"):
            _check_protocol(part)
    elif not local_path(uri).is_file():
        raise NotFoundError(f"there is no file {local_path(uri)}", field=_FIELD)


@contextmanager
def opened(uri: str) -> Iterator[BinaryIO]:
    """The file, open for reading bytes.

    Raises:
        NotFoundError, PermissionDeniedError, UnavailableError: the file is not there or may not be read, or what is behind a URL fails later.
        FailedPreconditionError: as `check_file`.
    """
    if not is_url(uri):
        with _local(uri) as file:
            yield file
        return
    with _reported(uri):
        import fsspec

        with fsspec.open(uri, "rb") as file:
            yield file


def _local(uri: str) -> BinaryIO:
    path = local_path(uri)
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", field=_FIELD) from None
    except PermissionError as error:
        raise PermissionDeniedError(f"{path} may not be read: {error.strerror}", field=_FIELD) from error
    except OSError as error:
        raise UnavailableError(f"{path} cannot be read: {error.strerror}", field=_FIELD) from error


def shown(uri: str) -> str:
    """The URI for messages and logs: without a password and without a query, which may be a signature."""
    if not is_url(uri):
        return uri
    return "::".join(_shown_part(part) for part in uri.split("::"))


def _shown_part(uri: str) -> str:
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if "://" in uri else uri


def _check_protocol(uri: str) -> None:
    import fsspec  # 60 ms, and only for URLs

    protocol = uri.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        what = f"pip install 'accord[{extra}]'" if extra else str(error)
        raise FailedPreconditionError(f"reading {protocol}:// needs a package that is not installed: {what}", field=_FIELD) from error
    except ValueError as error:
        raise InvalidArgumentError(f"{protocol}:// is no protocol that fsspec knows", field=_FIELD) from error


@contextmanager
def _reported(uri: str) -> Iterator[None]:
    """What file systems and their drivers raise, as errors of ours."""
    try:
        yield
    except AccordError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {shown(uri)}", field=_FIELD) from error
    except PermissionError as error:
        raise PermissionDeniedError(f"{shown(uri)} may not be read: {error}", field=_FIELD) from error
    except Exception as error:  # drivers have classes of their own, which are no OSError
        raise UnavailableError(f"{shown(uri)} cannot be read: {type(error).__name__}: {error}", field=_FIELD, retry_after_seconds=5.0) from error
