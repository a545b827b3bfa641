"""Rows for whole evaluations: three arms on six prompts, of which one copies the reference, one answers partly and one fails."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from accord.rundir import RunDirectory, RunFile
from accord.runspec import parse_spec

REFERENCES = (
    "I lost my keys at the station. My neighbour found them.",
    "My brother wants my car for a year, and I said no.",
    "We adopted a dog. It eats shoes, but we love it.",
    "The landlord kept our deposit, so we wrote to the court.",
    "Should I tell my boss that I am leaving in May?",
    "Zoë baked 12 crème brûlées and dropped them all.",
)


def rows() -> list[dict[str, object]]:
    """18 rows of summarization; arm `sft` knows no wins, and arm `broken` gives an empty response once."""
    found: list[dict[str, object]] = []
    for number, reference in enumerate(REFERENCES):
        words = reference.split()
        responses = {"copy": reference, "half": " ".join(words[: len(words) // 2]), "broken": "" if number == 2 else f"Blah {number} blah."}
        for arm, response in responses.items():
            values: dict[str, float | None] = {"kl": 0.5 * number, "win_vs_reference": 0.5 if arm == "copy" else 0.0, "win_vs_sft": None}
            if arm != "half":
                values |= {"win_vs_sft": float(arm == "copy"), "log_length_ratio_sft": (0.5 if arm == "copy" else -0.5) + 0.3 * (number - 2)}
            found.append(
                {"arm": arm, "task": "summarization", "prompt_id": f"p{number}", "response": response, "reference": reference, "values": values}
            )
    return found


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., tuple[RunFile, RunDirectory]]:
    """Writes rows and a run file; returns the run and its directory."""

    def prepare(given: list[dict[str, object]], *, samples: int = 200, seed: int = 7) -> tuple[RunFile, RunDirectory]:
        uri = tmp_path / "rows.jsonl"
        uri.write_text("".join(json.dumps(row) + "\n" for row in given))
        spec = parse_spec({"seed": seed, "evaluate": {"uri": str(uri), "bootstrap_samples": samples}})
        run = RunFile(name="runs/evaluate-1", artefacts=str(tmp_path / "artefacts"), base_model="embedded", threads=1, spec=spec)
        directory = RunDirectory(tmp_path / "run")
        directory.write_run_file(run)
        return run, directory

    return prepare


@pytest.fixture
def three_arms() -> list[dict[str, object]]:
    """The rows of `rows()`, new for each test."""
    return rows()
