"""A release for each file of this folder, in a namespace of its own, so that files can run at the same time (`make cluster-test`)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.cluster.release import Release, new_release


@pytest.fixture(scope="module")
def release() -> Iterator[Release]:
    yield from new_release()
