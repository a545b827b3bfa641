"""The reward engine's use of the artefact store; what it scores is in tests/contract."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.contract import tiny

from accord.reward.config import RewardConfig
from accord.reward.engine import RewardEngine, ScoreRequest

FIRST, SECOND = (f"adapters/{name}/versions/1" for name in (tiny.REWARD_MODEL, tiny.SECOND_REWARD_MODEL))


async def test_a_reward_model_in_memory_may_leave_the_cache(tmp_path: Path) -> None:
    engine = RewardEngine(tiny.base_model(), tiny.store_afar(tmp_path), RewardConfig(artefacts="unused", threads=1))
    scores = []
    for version in (FIRST, SECOND, FIRST):
        (item,) = engine.submit([ScoreRequest((5, 6), (7,))], version, None)
        scores.append(await item.result())
    assert scores[0] == scores[2] != scores[1]
    assert tiny.cached(tmp_path) == [SECOND]
    assert await asyncio.to_thread(engine.stop, 10)
