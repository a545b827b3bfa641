"""Prompts of a data set as the algorithms with rollouts use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accord.data.files import shown
from accord.data.readers import read_prompts
from accord.runspec_parts import DataSpec
from accord.training.context import RunContext
from accord.training.examples import EncodedPrompt, encode_prompts


def read_encoded_prompts(context: RunContext, data: DataSpec, field: str) -> tuple[Sequence[EncodedPrompt], str]:
    """Prompts within the run's limits, and the data's digest; the account goes to the run's messages.

    Raises:
        InvalidArgumentError: no prompt fits; the error names `field`.
    """
    found = read_prompts(data.uri, format=data.format, split=data.split, limit=data.limit, strict=data.strict, seed=context.spec.seed)
    encoded = replace(encode_prompts(context.base.encoder, found.rows, context.limits), source=found.report.account())
    context.events.message(f"{shown(data.uri)} ({data.split}): {encoded.account('prompts')}")
    return encoded.at_least_one("prompts", field).rows, found.report.digest
