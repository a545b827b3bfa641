"""Pushing an export to a model hub, when asked. The token comes from HF_TOKEN alone and is never shown.

What does not belong here: what is pushed.
"""

from __future__ import annotations

import glob
import os
import re
import socket
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlparse

from accord.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from accord.export.folder import TOKENIZER_FILES

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REACH_SECONDS = 10.0
TOKEN_VARIABLE = "HF_TOKEN"
_LOADED = (
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "head.safetensors", "config.json",
    "generation_config.json", "adapter_config.json", *TOKENIZER_FILES,
)  # fmt: skip
"""Of what exports write: what a library loads by its name, whatever stands beside it."""


def check_push(repository: str) -> None:
    """Whether a push can be tried at all: found out before anything is merged.

    Raises:
        InvalidArgumentError: the name is not ORG/NAME.
        FailedPreconditionError: there is no token in the environment, or the hub is switched off.
        UnavailableError: the hub cannot be reached.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise InvalidArgumentError(f"{repository!r} is not a repository of a hub; it must be ORG/NAME", field="push")
    _token()
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise FailedPreconditionError("HF_HUB_OFFLINE is set, so nothing can be pushed", field="push")
    parsed = urlparse(constants.ENDPOINT)
    host, port = parsed.hostname or "", parsed.port or (80 if parsed.scheme == "http" else 443)
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return  # a proxy resolves names itself
    try:
        socket.create_connection((host, port), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise UnavailableError(f"the hub {constants.ENDPOINT} cannot be reached: {error.strerror or error}", field="push") from error


def push(repository: str, folder: Path, *, public: bool) -> str:
    """Uploads the folder; returns the address of the repository, which is made (private unless `public`) where it does not exist.

    What an earlier export left there, and this one does not write again, is deleted by the same commit: model.safetensors is loaded before shards,
    a chat template before the tokenizer's own. Other files stay.

    Raises:
        FailedPreconditionError: the hub refuses.
        UnavailableError: the connection broke; the folder stays, and the push can be done again.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, token = HfApi(token=_token()), _token()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        earlier = [glob.escape(name) for name in loaded_names(api.list_repo_files(repository))]
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Exported by Accord", delete_patterns=earlier)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "")
        raise FailedPreconditionError(f"the hub refuses {repository} ({status}): {str(error).replace(token, '***')}", field="push") from error
    except Exception as error:
        words = f"{type(error).__name__}: {error}".replace(token, "***")
        raise UnavailableError(f"the push to {repository} broke off ({words}); {folder} is whole", field="push") from error
    return f"{api.endpoint}/{repository}"


def loaded_names(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that an export may have written and that are loaded by their names; files in folders are somebody else's."""
    return [name for name in names if "/" not in name and any(fnmatchcase(name, pattern) for pattern in _LOADED)]


def _token() -> str:
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise FailedPreconditionError(f"a push needs a token with write access in the environment variable {TOKEN_VARIABLE}", field="push")
    return token
