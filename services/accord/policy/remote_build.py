"""Puts an engine over another server together.

What does not belong here: the parts themselves.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Literal

import structlog

from accord.artefacts.store import ArtefactStore
from accord.errors import UnavailableError
from accord.models.encoding import PromptEncoder
from accord.policy.config import PolicyConfig
from accord.policy.remote import RemoteEngine
from accord.policy.remote_config import RemoteConfig
from accord.policy.remote_model import FolderModel, read_model
from accord.policy.remote_server import RemoteServer
from accord.policy.text_form import TextForm
from accord.policy.tgi import TgiServer
from accord.policy.vllm import VllmServer

_AGAIN_SECONDS = 1.0
_log = structlog.get_logger(__name__)


async def build_remote(
    kind: Literal["vllm", "tgi"], remote: RemoteConfig, store: ArtefactStore, config: PolicyConfig
) -> tuple[RemoteEngine, PromptEncoder]:
    """Returns the engine, in use on this event loop from now on, and the encoder of its base model (`config.base_model`, a folder here).

    Raises:
        UnavailableError: the server was not ready within `remote.start_seconds`.
        FailedPreconditionError: it is not the server that is meant, or the base model's folder lacks something.
    """
    model = await asyncio.to_thread(read_model, config.base_model, kind)
    server = _server(kind, remote, model)
    try:
        most = await _described(server, remote.start_seconds)
    except BaseException:
        await server.close()
        raise
    info = replace(model.info, context_tokens=min(model.info.context_tokens, most))
    return RemoteEngine(server, store, model.encoder, info, remote, config), model.encoder


def _server(kind: Literal["vllm", "tgi"], remote: RemoteConfig, model: FolderModel) -> RemoteServer:
    if kind == "vllm":
        return VllmServer(remote, model.encoder, model.info.eos_token_ids)
    return TgiServer(remote, model.encoder, TextForm(model.tokenizer))


async def _described(server: RemoteServer, seconds: float) -> int:
    """Servers load weights for minutes: asks again while there is time."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            return await server.describe()
        except UnavailableError as error:
            if time.monotonic() + _AGAIN_SECONDS > give_up:
                raise
            _log.info("waiting_for_server", server=server.name, why=error.message)
        await asyncio.sleep(_AGAIN_SECONDS)
