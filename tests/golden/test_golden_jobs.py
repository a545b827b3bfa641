"""The objects that runs become in a cluster, to the byte: who changes them sees it here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from tests.unit.launch.orders import FULL, NEW, OLD, WITH_JOBSET, config, order

from accord.launch.jobset import build_several
from accord.launch.manifest import build_config_map, build_job

OBJECTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "job-plain": lambda: [{**build_config_map(order(), config()), "data": "(the run file)"}, build_job(order(), config(), NEW)],
    "job-kubernetes-1.20": lambda: [build_job(order(), config(), OLD)],
    "job-gpu-queue": lambda: [build_job(order("ppo"), config(FULL), NEW)],
    "jobset": lambda: build_several(order("sft", distribution={"processes": 8}), config(FULL), WITH_JOBSET),
    "indexed-job": lambda: build_several(order("sft", distribution={"processes": 8}), config(FULL), NEW),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_of_runs(golden: Callable[[str, str], str], name: str) -> None:
    text = yaml.safe_dump_all(OBJECTS[name](), sort_keys=False, width=140)
    assert text == golden(f"{name}.yaml", text)
