"""The card (README.md) of an export: what it is, where it comes from, how it was evaluated, how it is used, and what to know.

Everything is from manifests and from what the export itself checked. What does not belong here: writing weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from accord.artefacts.manifest import Manifest

Form = Literal["model", "adapter"]
_OF_ROLLOUTS = {
    "rollout_score_mean": "mean score of the rollouts of its last step, sampled by the policy before it",
    "rollout_held_out_score_mean": "their mean score by a reward model that it was not trained on",
    "rollout_kl": "their KL to the reference, nats a response",
}
_FACTS_OF_HEAD = ("mean", "std", "held_out_accuracy", "training_data_digest", "max_tokens")


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What is known of the base model: its name as others find it, its licence as the hub spells it; empty where not known."""

    digest: str
    origin: str = ""
    licence: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What the export found: sentences for the card, and the largest difference to base plus adapter (None where nothing was merged)."""

    sentences: tuple[str, ...] = ()
    difference: float | None = None
    score_offset: float | None = None


def card_text(title: str, form: Form, lineage: Sequence[Manifest], base: BaseFacts, checked: Checked) -> str:
    """The card.

    Args:
        lineage: the version and its ancestors, nearest first.
    """
    manifest = lineage[0]
    parts = [
        _front_matter(form, manifest, base),
        f"# {title}\n\n{_what(form, manifest, base)}",
        "## Where it comes from\n\n" + _origin(base) + "\n\n" + "\n".join(_table(lineage)),
        "## How it was evaluated\n\n" + _evaluation(manifest),
        "## Use\n\n" + _use(form, manifest),
    ]
    if checked.sentences:
        parts.append("## What was checked\n\n" + "\n".join(f"- {sentence}" for sentence in checked.sentences))
    return "\n\n".join(parts) + "\n"


def facts_of(form: Form, lineage: Sequence[Manifest], base: BaseFacts, checked: Checked) -> dict[str, Any]:
    """The same for programs."""
    return {
        "form": form, "version": lineage[0].name, "digest": lineage[0].digest, "base_model_digest": base.digest, "base_model": base.origin,
        "licence": base.licence, "difference": checked.difference, "score_offset": checked.score_offset,
        "lineage": [json.loads(manifest.to_bytes()) for manifest in lineage],
    }  # fmt: skip


def _front_matter(form: Form, manifest: Manifest, base: BaseFacts) -> str:
    reward = manifest.kind == "reward"
    lines = ["---", f"library_name: {'peft' if form == 'adapter' else 'transformers'}"]
    if not (reward and form == "adapter"):
        lines.append(f"pipeline_tag: {'text-classification' if reward else 'text-generation'}")
    if base.licence:
        lines.append(f"license: {json.dumps(base.licence)}")
    if base.origin:
        lines += [f"base_model: {json.dumps(base.origin)}", f"base_model_relation: {'adapter' if form == 'adapter' else 'finetune'}"]
    tags = [
        "accord",
        *(["reward-model"] if reward else []),
        *([str(manifest.facts["algorithm"]).replace("_", "-")] if "algorithm" in manifest.facts else []),
    ]
    return "\n".join([*lines, "tags:", *(f"- {json.dumps(tag)}" for tag in dict.fromkeys(tags)), "---"])


def _what(form: Form, manifest: Manifest, base: BaseFacts) -> str:
    kind = "reward model" if manifest.kind == "reward" else manifest.kind
    what = "LoRA adapter in PEFT's format" if form == "adapter" else "full model (the adapter is merged into the base's weights)"
    return f"`{manifest.name}` of Accord, a {kind}, exported as a {what}. Base model: {base.origin or 'a local folder'}."


def _origin(base: BaseFacts) -> str:
    licence = base.licence or "not known here; the base model's own terms hold"
    lines = [f"- base model digest: `{base.digest}`", f"- licence of the base model: {licence}"]
    return "\n".join([*lines, *([f"- {base.note}"] if base.note else [])])


def _table(lineage: Sequence[Manifest]) -> list[str]:
    rows = ["| version | kind | algorithm | parents | run, step | data | digest |", "|---|---|---|---|---|---|---|"]
    for each in lineage:
        algorithm, parents = str(each.facts.get("algorithm", "")), ", ".join(each.parents) or "base model"
        run = f"{each.run}, {each.step}" if each.run else ""
        cells = (each.name, each.kind, algorithm, parents, run, f"`{each.data_digest[:12]}`" if each.data_digest else "", f"`{each.digest[:12]}`")
        rows.append("| " + " | ".join(cells) + " |")
    rows += ["", "Other facts of each version:", ""]
    for each in lineage:
        facts = {name: value for name, value in sorted(each.facts.items()) if name not in ("algorithm", *_FACTS_OF_HEAD, "eval_reliability")}
        rows.append(f"- {each.name}: " + (", ".join(f"{name} {json.dumps(value)}" for name, value in facts.items()) or "none"))
    return rows


def _evaluation(manifest: Manifest) -> str:
    found = {name: manifest.facts.get(name) for name in _FACTS_OF_HEAD if name in manifest.facts}
    found |= {name: value for name, value in manifest.facts.items() if name.startswith("eval_")}
    lines = [*_held_out(found), *(f"- {words}: {manifest.facts[name]:.3f}" for name, words in _OF_ROLLOUTS.items() if name in manifest.facts)]
    reliability = found.pop("eval_reliability", None)
    lines += [f"- {name}: {json.dumps(value)}" for name, value in sorted(found.items()) if value not in ("", None)]
    if isinstance(reliability, list) and reliability:
        lines += ["", *_reliability(reliability)]
    return "\n".join(lines) if lines else "Its manifest holds no evaluation."


def _held_out(found: dict[str, Any]) -> list[str]:
    """What a reward model does on held-out pairs, in sentences; takes what these say out of `found`."""
    accuracy = found.pop("held_out_accuracy", None)
    if not isinstance(accuracy, int | float):
        return []
    line = f"- accuracy on held-out preference pairs: {accuracy:.3f}"
    pairs = found.pop("eval_pairs", None)
    if pairs is None:
        return [line]
    for name in ("eval_accuracy", "eval_margin"):
        found.pop(name, None)
    least, most = found.pop("eval_accuracy_low"), found.pop("eval_accuracy_high")
    longer, low, high = (found.pop(f"eval_length_baseline{end}") for end in ("", "_low", "_high"))
    above = "which it is above, though its interval reaches down to it" if accuracy > longer else "which it does not beat"
    beats = "which it beats" if least > longer else above
    return [
        f"{line} (95 % interval over prompts {least:.3f} to {most:.3f}, {pairs:.0f} pairs)",
        f"- always taking the longer response: {longer:.3f} ({low:.3f} to {high:.3f}), {beats}",
        f"- expected calibration error of sigmoid(raw score of one response - that of the other): {found.pop('eval_calibration_error'):.3f}",
    ]


def _reliability(bins: Sequence[Sequence[float]]) -> list[str]:
    """How often the model is right where it is so sure; rows are those of `accord.training.held_out`."""
    rows = [f"| {low:.2f} to {high:.2f} | {sure:.2f} | {right:.2f} | {pairs:.0f} |" for low, high, sure, right, pairs in bins]
    return ["| confidence | mean | right | pairs |", "|---|---|---|---|", *rows]


def _use(form: Form, manifest: Manifest) -> str:
    if form == "adapter":
        head = " The score is `weight @ h + bias` of head.safetensors at the last token's hidden state, then (score - mean) / std."
        return "```python\nPeftModel.from_pretrained(base, FOLDER)\n```" + (head if manifest.kind == "reward" else "")
    if manifest.kind == "reward":
        return (
            "```python\nmodel = AutoModelForSequenceClassification.from_pretrained(FOLDER)\n"
            "score = model(**batch).logits[:, 0] + model.config.score_offset\n```\n\n"
            "The text is the chat template with the generation prompt, then the response, then the end-of-turn token. transformers' head is\n"
            "a linear map without a constant, so the constant is `score_offset` in config.json; differences of scores need none."
        )
    loading = "```python\nmodel = AutoModelForCausalLM.from_pretrained(FOLDER)\n```"
    return f"{loading}\n\n`vllm serve FOLDER`, and `base_model: FOLDER` in Accord, read it too."
