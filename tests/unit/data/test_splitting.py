"""Likeness of texts, duplicates, splits by prompt, and what of one split stands in another: planted, and found again."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accord.data.contamination import Split, contamination
from accord.data.duplicates import Duplicates
from accord.data.likeness import _word, conversation_key, exact_key, near_key, ngrams, normalised, prompt_key, words
from accord.data.records import PreferencePair
from accord.data.splitting import Shares
from accord.errors import InvalidArgumentError
from accord.text.chat import Message
from accord.text.tasks import Task

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def pair(number: int, *, prompt: str = "", chosen: str = "", rejected: str = "", **more: object) -> PreferencePair:
    generator = random.Random(number)
    texts = [" ".join(generator.choices(WORDS, k=30)) for _ in range(3)]
    made = PreferencePair(
        f"p{number}", Task.CONVERSATION, (Message("user", prompt or texts[0]),), chosen or texts[1], rejected or texts[2], group=f"g{number}"
    )  # fmt: skip
    return replace(made, **more)  # type: ignore[arg-type]


def test_texts_are_alike_but_for_case_punctuation_and_spaces() -> None:
    assert normalised("  Hello,\tWorld!  ") == normalised("hello world") == normalised("ＨＥＬＬＯ world")
    assert normalised("?!") == "?!"
    assert normalised("ab c") != normalised("a bc")
    first, turned = pair(1, chosen="Yes.", rejected="No."), pair(1, chosen="No.", rejected="Yes.")
    assert exact_key(first) == exact_key(turned)
    assert exact_key(first) != exact_key(pair(1, chosen="yes", rejected="no"))
    assert near_key(first) == near_key(pair(1, chosen="no", rejected="yes"))
    assert near_key(first) != near_key(pair(1, chosen="Yes. No", rejected="."))
    assert len(ngrams(" ".join(WORDS[:20]))) == 13
    assert len(ngrams("three words here")) == 1
    assert ngrams("...") == set()


@pytest.mark.parametrize("invisible", ["\u200b", "\u00ad", "\u2060", "\ufeff", "\u200e", "\U000e0041"])
def test_what_nobody_sees_makes_no_other_text(invisible: str) -> None:
    plain = "How do I bake bread without yeast, and how long does that take at home?"
    hidden = plain.replace("bread", f"bre{invisible}ad") + invisible
    assert normalised(hidden) == normalised(plain)
    assert ngrams(hidden) == ngrams(plain)
    assert normalised(f"{invisible}?!") == "?!"
    train, test = pair(1, prompt=plain, chosen="Yes.", rejected="No."), pair(2, prompt=hidden, chosen=f"Y{invisible}es.", rejected="No.")
    assert prompt_key(train.messages) == prompt_key(test.messages)
    assert conversation_key(train.messages) == conversation_key(test.messages)
    assert Shares.parse("a=0.5,b=0.5").split_of(train, 0, "prompt") == Shares.parse("a=0.5,b=0.5").split_of(test, 0, "prompt")
    found = contamination(Split("test", lambda: [test]), Split("train", lambda: [train]))
    assert (found.equal_prompts, found.equal_responses) == (1, 1)
    known = Duplicates()
    assert [known.add(train), known.add(test), known.near] == [False, True, 1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u0e14\u0e35", "\u0e14\u0e39"),  # Thai: good, look
        ("\u0926\u093f\u0928", "\u0926\u093e\u0928"),  # Hindi: day, gift
        ("\u0915\u093f\u0924\u093e\u092c", "\u0915\u0924\u092c"),
        ("\u0b95\u0bbf", "\u0b95\u0bc1"),  # Tamil
        ("What is 1+1?", "What is 1-1?"), ("What is 1 + 1?", "What is 1 - 1?"), ("2*3", "2/3"), ("6\u00d73", "6\u00f73"), ("2 < 3", "2 > 3"), ("2^3", "2 3"),
        ("How is C++?", "How is C#?"), ("How is C++?", "How is C?"), ("I like F#.", "I like F."), ("a+b", "a-b"),
        ("Solve 3 - x = 1", "Solve 3 + x = 1"), ("a > b", "a < b"), ("f(-1)", "f(1)"), ("f(-x)", "f(x)"), ("p && q", "p || q"), ("p && q", "p & q"), ("x - 1", "x * 1"),
        ("x-1", "x*1"), ("2 * (3 - x)", "2 / (3 - x)"), ("f(x) - 1", "f(x) * 1"), ("x != 1", "x = 1"), ("x == 1", "x = 1"), ("Take !p", "Take p"), ("x -> y", "x <- y"),
        ("-1 apple", "1 apple"), ("Yes \U0001f44d", "Yes \U0001f44e"), ("\U0001f44d Yes", "\U0001f44e Yes"), ("\u2713 Yes", "\u2717 Yes"), ("$5", "\u20ac5"), ("$5", "5"),
        ("save 5%", "save 5"), ("50 \u00b0C", "50 C"), ("a \u2264 b", "a \u2265 b"), ("\U0001f1e9\U0001f1ea won", "\U0001f1eb\U0001f1f7 won"),
    ],
)  # fmt: skip
def test_signs_that_tell_texts_apart_stay(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)
    assert ngrams(one) != ngrams(other)
    known = Duplicates()
    assert not any(known.add(pair(1, prompt=text, chosen="Yes.", rejected="No.")) for text in (one, other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("C++ or C#?", "c++, or c# !"), ("1 + 1", "1+1"), ("2019\u20132020", "2019 - 2020"), ("2019\u22122020", "2019-2020"), ("**bold** move", "bold move"),
        ("well-known", "well known"), ("caf\u00e9", "cafe\u0301"), ("Yes - no", "yes, no"), ("1. Read", "1) read"), ("(5)", "5"), ("# Title", "Title"), ("+ item", "* item"),
        ("a+b", "a + b"), ("3-x", "3 - x"), ("3 -x", "3 - x"), ("x*1", "x * 1"), ("p&&q", "p && q"), ("x\u22121", "x - 1"), ("1\u20442", "1/2"), ("C ++", "C++"),
        ("\U0001f602\U0001f602", "\U0001f602 \U0001f602"), ("10-minute walk", "10 minute walk"), ("GPT-4", "GPT 4"), ("an e-mail", "an e mail"), ("`code` here", "code here"),
        ("> quoted\n> words", "quoted words"), ("* one\n  + two", "one two"), ("\u25cf one\n\u25a0 two", "one two"), ("and/or", "and or"), ("Option **A** (best)", "Option A (best)"),
        ("**5** (five)", "5 (five)"), ("in 2020\n- 3 apples", "in 2020, 3 apples"), ("word \u2014 she", "word, she"),
    ],
)  # fmt: skip
def test_signs_that_are_only_punctuation_go(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@given(st.lists(st.tuples(st.text("a1é-*/!%#+>$)(\n", max_size=3), st.integers(0, 9), st.sampled_from(" \t")), max_size=8))
def test_runs_of_spaces_are_read_as_they_stand(parts: list[tuple[str, int, str]]) -> None:
    """Only the time that they take is another: words are those that the expression finds in the text itself."""
    text = "".join(piece + space * count for piece, count, space in parts)
    assert words(text) == [word.strip() for word in _word(also_other=not text.isascii()).findall(text)]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("first", ["a", "é"])
def test_a_long_run_of_spaces_takes_no_longer_than_other_text(first: str) -> None:
    """As in a table or a web page that was turned to text; it took the square of its length, minutes for these."""
    assert words(f"{first}{' ' * 200_000}+{chr(9) * 200_000}b") == [first, "+", "b"]


def test_a_mark_is_no_word_of_its_own() -> None:
    """Eight letters of Thai make one n-gram, however many vowels stand above them."""
    assert len(ngrams("\u0e14\u0e35" * 8)) == len(ngrams("\u0e14" * 8)) == 1


def test_instructions_of_the_system_are_not_the_prompt() -> None:
    user = (Message("user", "How tall?"),)
    assert prompt_key(user) == prompt_key((Message("system", "Be kind."), *user))
    longer = (*user, Message("assistant", "30 m"), Message("user", "And old?"))
    assert prompt_key(user) != prompt_key(longer)
    assert conversation_key(user) == conversation_key(longer)


def test_duplicates_by_kind() -> None:
    known = Duplicates()
    rows = [
        pair(1, chosen="Yes.", rejected="No."), pair(1, chosen="yes", rejected="no"), pair(1, chosen="Yes.", rejected="No."),
        pair(1, chosen="No.", rejected="Yes."), pair(1, chosen="Yes.", rejected="No.", metadata={"annotator": "anna"}), pair(2),
        pair(1, chosen="Yes.", rejected="No.", preference=0.5),
    ]  # fmt: skip
    assert [known.add(row) for row in rows] == [False, True, True, True, False, False, True]
    assert (known.exact, known.near) == (3, 1)
    assert known.contradicting == 2  # turned, and a tie; the near one says the same in other letters
    assert known.add(pair(1, chosen="no", rejected="yes!"))
    assert known.contradicting == 3  # turned, in other letters


def test_a_split_has_all_pairs_of_a_prompt_and_about_its_share() -> None:
    shares = Shares.parse("train=0.7, validation=0.1,test=0.2")
    rows = [pair(number % 3000, chosen=f"{number}") for number in range(9000)]
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.group, set()).add(shares.split_of(row, 3, "prompt"))
    assert all(len(names) == 1 for names in found.values())
    counts = Counter(name for names in found.values() for name in names)
    for name, share in shares.shares.items():
        assert counts[name] == pytest.approx(share * 3000, abs=4 * (share * (1 - share) * 3000) ** 0.5)
    again = [Shares.parse("train=0.7,validation=0.1,test=0.2").split_of(row, 3, "prompt") for row in rows]
    assert again == [next(iter(found[row.group])) for row in rows]
    other = [shares.split_of(row, 4, "prompt") for row in rows]
    assert sum(a != b for a, b in zip(again, other, strict=True)) > 3000
    assert shares.split_of(rows[0], 3, "prompt") == shares.split_of(
        replace(rows[0], messages=(Message("user", rows[0].messages[0].content.upper()),)), 3, "prompt"
    )


@pytest.mark.parametrize(
    "text", ["", "train", "train=x", "train=0.5", "train=0.5,train=0.5", "a/b=1", "train=1.2", "train=-1,test=2", "train=nan", ".. =1"]
)
def test_shares_that_cannot_be(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        Shares.parse(text)
    assert error.value.field == "shares"


def test_planted_contamination_is_found_and_nothing_else() -> None:
    train = [pair(number) for number in range(500)]
    clean = [pair(number) for number in range(1000, 1100)]
    words = train[0].messages[0].content.split()
    planted = [
        pair(2000, prompt=train[1].messages[0].content.upper()),  # equal
        pair(2001, prompt=" ".join(words[:25] + WORDS[:5])),  # most of it
        pair(2002, prompt=" ".join(words[:9] + WORDS[:30])),  # little of it
        pair(2003, chosen=train[2].rejected + "!"),  # a response
        pair(2004, rejected=" ".join(train[3].chosen.split()[4:])),  # most of a response
        pair(2005, prompt="short"),
    ]  # fmt: skip
    found = contamination(Split("test", lambda: clean + planted), Split("train", lambda: train))
    assert (found.pairs, found.equal_prompts, found.overlapping_prompts) == (106, 1, 2)
    assert (found.equal_responses, found.overlapping_responses) == (1, 2)
    assert found.examples == ("p2000", "p2001")
    back = contamination(Split("train", lambda: train), Split("test", lambda: planted))
    assert (back.pairs, back.equal_prompts) == (500, 1)
    none = contamination(Split("test", lambda: clean), Split("train", lambda: train))
    assert (none.overlapping_prompts, none.overlapping_responses, none.examples) == (0, 0, ())
    assert contamination(Split("a", list), Split("b", lambda: train)).pairs == 0


def test_contamination_is_found_in_scripts_without_spaces() -> None:
    """A sentence of Chinese is one run of letters: most of it in another prompt is most of it in words, too."""
    draw = random.Random(3)
    han, thai = ([chr(first + draw.randrange(span)) for _ in range(60)] for first, span in ((0x4E00, 3000), (0x0E01, 40)))
    for letters in (han, thai):
        whole = "".join(letters)
        train = [pair(1, prompt=whole)]
        most, little = pair(2, prompt="".join(letters[:45]) + "\u4e8c\u4e09"), pair(3, prompt="".join(letters[:12]) + "\u4e8c" * 30)
        found = contamination(Split("test", lambda most=most, little=little: [most, little]), Split("train", lambda train=train: train))
        assert (found.equal_prompts, found.overlapping_prompts, found.examples) == (0, 1, ("p2",))


def test_a_sign_that_turns_the_answer_round_is_no_contradiction() -> None:
    """Of 3 - x = 1 the solution is 2, of 3 + x = 1 it is -2: both pairs stay, and neither says something else of the other."""
    known = Duplicates()
    first = pair(1, prompt="Solve 3 - x = 1", chosen="x = 2", rejected="x = 4")
    second = pair(2, prompt="Solve 3 + x = 1", chosen="x = -2", rejected="x = 4")
    assert [known.add(first), known.add(second), known.contradicting] == [False, False, 0]
    assert prompt_key(first.messages) != prompt_key(second.messages)
