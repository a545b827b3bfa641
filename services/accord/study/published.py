"""The table of the published study that this one reproduces in form.

"Extensions to RLHF: RLAIF and DPO" (Agarwal, Kapuriya, Prasad; IIIT Delhi): LLaMA-2 as policy and reward model, 1000 human-labelled against 500
AI-labelled pairs. Facts of that paper, typed from its table; never a result of this software.
"""

from __future__ import annotations

from collections.abc import Mapping

TITLE = "Extensions to RLHF: RLAIF and DPO (Agarwal, Kapuriya, Prasad)"
METRICS = ("meteor", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "rouge_lsum", "bertscore")
METRIC_TITLES = dict(
    zip(METRICS, ("METEOR", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum", "BERTScore"), strict=True)
)
_ROWS = {
    ("summarization", "dpo-ai"): (0.2231, 0.0799, 0.0499, 0.0377, 0.0290, 0.1875, 0.0507, 0.1430, 0.1472, 0.7594),
    ("summarization", "ppo-ai"): (0.3144, 0.0712, 0.0566, 0.0499, 0.0428, 0.1638, 0.1048, 0.1396, 0.1468, 0.7731),
    ("summarization", "dpo-human"): (0.2709, 0.2118, 0.1247, 0.0872, 0.0632, 0.2924, 0.1026, 0.2283, 0.2284, 0.7843),
    ("summarization", "ppo-human"): (0.3392, 0.0784, 0.0620, 0.0541, 0.0463, 0.1822, 0.1191, 0.1564, 0.1629, 0.7789),
    ("conversation", "dpo-ai"): (0.2677, 0.2225, 0.1140, 0.0685, 0.0416, 0.2900, 0.0861, 0.1809, 0.2068, 0.7882),
    ("conversation", "dpo-human"): (0.2762, 0.2199, 0.1024, 0.0599, 0.0377, 0.2985, 0.0746, 0.1789, 0.2034, 0.7876),
    ("conversation", "ppo-ai"): (0.2845, 0.2377, 0.1194, 0.0715, 0.0437, 0.3143, 0.0925, 0.1952, 0.2259, 0.7933),
    ("conversation", "ppo-human"): (0.2670, 0.2116, 0.1031, 0.0620, 0.0376, 0.2881, 0.0776, 0.1774, 0.2076, 0.7842),
}


def published(task: str, arm: str) -> Mapping[str, float] | None:
    """The published figures of an arm by metric, None for rows that the paper does not have (base, SFT)."""
    row = _ROWS.get((task, arm))
    return None if row is None else dict(zip(METRICS, row, strict=True))
