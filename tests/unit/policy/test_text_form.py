"""TextForm: ids as text that reads back as the ids, with a tokenizer that begins every text with a token and merges bytes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from accord.errors import InvalidArgumentError
from accord.policy.text_form import TextForm

BEGIN, END = 0, 1


def tokenizer(*, begins: bool) -> Tokenizer:
    vocabulary = {"<s>": BEGIN, "</s>": END}
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[symbol] = len(vocabulary)
    vocabulary["ab"] = len(vocabulary)
    found = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    found.decoder = decoders.ByteLevel()
    found.add_special_tokens([AddedToken("<s>", special=True, normalized=False), AddedToken("</s>", special=True, normalized=False)])
    if begins:
        found.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    return found


def form(found: Tokenizer) -> TextForm:
    return TextForm(SimpleNamespace(backend_tokenizer=found))


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("text", ["ab", "cab</s>ünï", " a b\n", "<s>twice"])
def test_a_text_s_ids_are_written_as_a_text_that_reads_as_them(begins: bool, text: str) -> None:
    found = tokenizer(begins=begins)
    ids = found.encode(text, add_special_tokens=True).ids
    assert found.encode(form(found).text(ids), add_special_tokens=True).ids == ids
    assert form(found).text(ids) == text


def test_what_no_text_reads_as_is_refused() -> None:
    found = tokenizer(begins=True)
    ids = found.encode("ab", add_special_tokens=False).ids
    letters = [found.token_to_id("a"), found.token_to_id("b")]
    half = found.encode("🌊", add_special_tokens=True).ids[:3]
    assert form(found).text([BEGIN, *ids]) == "ab"
    for wrong in (ids, [BEGIN, *letters], half, [BEGIN], []):
        with pytest.raises(InvalidArgumentError, match="not what any text is read as"):
            form(found).text(wrong)
