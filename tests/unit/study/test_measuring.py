"""What a study asks the services about an arm's responses, and what it makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accord.client.reward import ScoreItem
from accord.study.actions import StepContext
from accord.study.graph import Step
from accord.study.measuring import measure
from accord.study.steps import StepResult

END = 2


def test_cut_responses_are_scored_with_an_end_and_their_kl_is_of_what_was_sampled(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": "ended", "prompt_token_ids": [1, 7], "token_ids": [5, END], "logprobs": [-0.5, -0.25], "finish_reason": "eos"},
        {"prompt_id": "cut", "prompt_token_ids": [1, 8], "token_ids": [5, 6], "logprobs": [-0.5, -1.0], "finish_reason": "length"},
    ]
    (tmp_path / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored: list[tuple[int, ...]] = []

    def score(items: Sequence[ScoreItem], model: str, *, timeout_seconds: float) -> Any:
        assert (model, timeout_seconds > 0) == ("adapters/rm/versions/1", True)
        scored.extend(item.response.ids for item in items)  # type: ignore[union-attr]
        return SimpleNamespace(results=[SimpleNamespace(error=None, score=float(len(item.response.ids))) for item in items])  # type: ignore[union-attr]

    def compute_logprobs(items: Sequence[Any], **_: Any) -> Any:
        one = SimpleNamespace(error=None, responses=[SimpleNamespace(sequence_logprob=-2.0)])
        return SimpleNamespace(results=[one for _ in items])

    policy = SimpleNamespace(model_info=lambda **_: SimpleNamespace(eos_token_ids=(END, 9)), compute_logprobs=compute_logprobs)
    inputs = {
        name: StepResult(name, "k", values, 1.0, 1.0)
        for name, values in (
            ("generated", {"responses": str(tmp_path / "responses.jsonl")}),
            ("sft", {"adapter_version": "adapters/sft/versions/1"}),
            ("rm", {"adapter_version": "adapters/rm/versions/1"}),
        )
    }
    services: Any = SimpleNamespace(policy=policy, reward=SimpleNamespace(score=score))
    params = {"responses_from": "generated", "reference_from": "sft", "reward_models_from": {"human": "rm"}, "temperature": 0.7}
    found = measure(Step("m", "measure", "", params), StepContext(services, inputs, tmp_path, "", "k", lambda *_: None))
    assert scored == [(5, END), (5, 6, END)]
    assert found["values"]["ended"] == {"response_tokens": 2.0, "kl": pytest.approx(1.25), "score_human": 2.0}
    assert found["values"]["cut"] == {"response_tokens": 2.0, "kl": pytest.approx(0.5), "score_human": 3.0}
