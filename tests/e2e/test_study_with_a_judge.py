"""A study whose labels come from a judge of its recipe, behind an endpoint: who labelled, what was measured, and a judge that is away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.contract.doubles.openai_double import MODEL, verdict_share
from tests.contract.doubles.process import Double
from tests.e2e.test_study import Steps, make_recipe, row

from accord.data.readers import read_pairs
from accord.errors import AccordError
from accord.study.runner import run_study
from accord.text.judge import swap_average

pytestmark = [pytest.mark.timeout(400), pytest.mark.training]


def better_is_good(number: int) -> dict[str, Any]:
    """A row whose better response is the one that the double likes."""
    words = row(number)
    return {**words, "chosen": [{"role": "assistant", "content": f"good good {number}"}]}


def test_the_labels_are_the_judge_s_and_so_are_the_wins(tmp_path: Path) -> None:
    price = {"prompt_per_million": 1.0, "completion_per_million": 4.0}
    with Double("openai", [], tmp_path) as endpoint:
        larger = {"kind": "openai", "base_url": f"{endpoint.url}/v1", "model": MODEL, "context_tokens": 8192}
        recipe = make_recipe(
            tmp_path,
            feedback=["ai"],
            algorithms=["dpo"],
            judges={"larger": larger},
            prices={MODEL: price},
            judge={"name": "larger", "kind": "verdict"},
        )
        (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(better_is_good(number)) for number in range(18)))
        steps = Steps()
        results = run_study(recipe, tmp_path / "home", steps).results
        assert steps.done[0] == "conversation: verdict judge larger labels"
    judges = {(judge["purpose"], judge["name"], judge["card"]["kind"]): judge["card"] for judge in results["judges"]}
    assert set(judges) == {
        ("training labels", "larger", "verdict"), ("held-out check", "larger", "verdict"), ("held-out check", "", "likelihood"),
        ("held-out check", "", "verdict"),
    }  # fmt: skip
    card = judges["training labels", "larger", "verdict"]
    assert card["judge"].startswith(MODEL)
    assert card["cost_per_thousand_pairs"] > 0
    assert results["tasks"][0]["judged_by"] == {card["judge_digest"]: card["judge"]}
    assert judges["held-out check", "larger", "verdict"]["human_agreement"]["value"] == 1.0
    (labels,) = [path for path in (tmp_path / "home" / "study").rglob("labels.jsonl") if len(path.read_text().splitlines()) == recipe.ai_pairs]
    sure = swap_average(verdict_share("good good", "no"), verdict_share("no", "good good"))
    for pair in read_pairs(str(labels), strict=True).rows:
        assert (pair.chosen.startswith("good good"), pair.preference) == (True, pytest.approx(sure))
    assert "verdict larger" in (tmp_path / "home" / "report.html").read_text()
    assert "larger" in yaml.safe_load((tmp_path / "home" / "config" / "feedback.yaml").read_text())["judges"]


class UntilLabelled(Steps):
    """Ends a study once it has labelled, before it does anything else."""

    def step(self, title: str, number: int, total: int, *, known: bool) -> None:
        if "labels" not in title:
            raise KeyboardInterrupt
        super().step(title, number, total, known=known)


def test_a_judge_that_refuses_or_abstains_is_named_before_anything_is_trained_and_labels_once_it_is_mended(tmp_path: Path) -> None:
    """The same step all the time: what is mended is the endpoint, not the recipe."""
    free = {"prompt_per_million": 0.0, "completion_per_million": 0.0}
    many = 60
    with Double("openai", [], tmp_path) as endpoint:
        larger = {"kind": "openai", "base_url": f"{endpoint.url}/v1", "model": MODEL, "context_tokens": 8192}
        judge = {"name": "larger", "kind": "verdict"}
        size = {"prompts": 3, "pairs": 4, "bootstrap_samples": 100, "judge_check_pairs": 0}
        recipe = make_recipe(tmp_path, judges={"larger": larger}, prices={MODEL: free}, judge=judge, evaluation=size)
        endpoint.set(faults=[{"status": 401}] * many)
        with pytest.raises(AccordError, match=r"the judge larger .* answered 401.*run the study again"):
            run_study(recipe, tmp_path / "home", UntilLabelled())
        endpoint.set(faults=[{"text": "I cannot say."}] * many)
        with pytest.raises(AccordError, match="abstained from all 4 pairs"):
            run_study(recipe, tmp_path / "home", UntilLabelled())
        endpoint.set(faults=[], fingerprint="fp_2")
        steps = UntilLabelled()
        with pytest.raises(KeyboardInterrupt):
            run_study(recipe, tmp_path / "home", steps)
        assert steps.done == ["conversation: verdict judge larger labels"]
        assert not [text for text in steps.messages if "another one" in text]
        endpoint.set(faults=[], fingerprint="fp_3")  # another judge from now on, who is to count the wins
        again = UntilLabelled()
        with pytest.raises(KeyboardInterrupt):
            run_study(recipe, tmp_path / "home", again)
        assert [text for text in again.messages if text.startswith("conversation/labels-ai: the judge is another one now (")]
    (kept,) = (json.loads(path.read_text())["values"] for path in (tmp_path / "home" / "study" / "steps").glob("*.json"))
    assert (kept["pairs"], kept["abstained"]) == (4, 0)
    assert len(read_pairs(kept["dataset_uri"], strict=True).rows) == 4
    assert not list((tmp_path / "home" / "runs").glob("*/run.json"))
