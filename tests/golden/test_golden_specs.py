"""What stands for a specification, to the byte: request ids, checkpoints and manifests of runs that earlier versions began hold it against today's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from accord.runspec import ALGORITHMS, RunSpec, parse_spec

_DATA = {"uri": "rows.jsonl", "limit": 40}
_ROLLOUTS = {"data": _DATA, "reward_model": "adapters/rm/versions/2", "more_reward_models": ["adapters/rn"], "temperature": 0.9, "kl_coef": 0.1}
_PARTS: dict[str, dict[str, Any]] = {
    "sft": {"data": _DATA, "eval_data": _DATA | {"split": "test"}},
    "reward_model": {"data": _DATA, "centering_coefficient": 0.01, "rating_weights": True},
    "dpo": {"data": _DATA, "beta": 0.2, "loss": "cdpo", "label_smoothing": 0.1},
    "ppo": _ROLLOUTS | {"value_from_reward_model": False, "ptx_coefficient": 27.8, "ptx_data": {"uri": "texts.jsonl"}, "epochs": 2},
    "grpo": _ROLLOUTS | {"group_size": 4, "loss_normalization": "tokens"},
    "rloo": _ROLLOUTS | {"epochs": 2},
    "online_dpo": {"data": _DATA, "soft_labels": False, "judge": "verdict"},
    "evaluate": {"uri": "answers.jsonl", "bootstrap_samples": 200},
}


def _rich(algorithm: str) -> RunSpec:
    common = {"adapter": "a", "parent_adapter": "adapters/sft", "steps": 12, "batch_size": 16, "seed": 2**63, "lora": {"rank": 4}}
    training: dict[str, Any] = {} if algorithm == "evaluate" else {"distribution": {"processes": 2}}
    return parse_spec({**common, "optimizer": {"learning_rate": 1e-5}, **training, algorithm: _PARTS[algorithm]})


def _plain(algorithm: str) -> RunSpec:
    """No more than what must be given."""
    part = {"data": {"uri": "x"}} | ({"reward_model": "adapters/rm"} if algorithm in ("ppo", "grpo", "rloo") else {})
    return parse_spec({"adapter": "a", "steps": 1, algorithm: {"uri": "x"} if algorithm == "evaluate" else part})


def test_digests_of_specifications(golden: Callable[[str, str], str]) -> None:
    """Who changes one makes every run that was begun before one with another specification."""
    digests = {algorithm: [_plain(algorithm).digest, _rich(algorithm).digest] for algorithm in ALGORITHMS}
    text = json.dumps(digests, indent=1) + "\n"
    assert text == golden("spec-digests.json", text)


def test_defaults_stay_what_they_were(golden: Callable[[str, str], str]) -> None:
    """Digests leave defaults out, so that another default would make the same digest ask for something else: a new behaviour is a new field."""
    now = {algorithm: _plain(algorithm).model_dump(mode="json") for algorithm in ALGORITHMS}
    stored = json.loads(golden("spec-defaults.json", json.dumps(now, indent=1) + "\n"))
    assert set(_flat(stored)) <= set(_flat(now))


def _flat(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}: {json.dumps(value)}"
