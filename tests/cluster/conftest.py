"""One release for all files of this folder: it is installed once, and `test_study_on_cluster.py` installs it again on what an uninstall left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.cluster.release import Release, new_release


@pytest.fixture(scope="session")
def release() -> Iterator[Release]:
    yield from new_release()
