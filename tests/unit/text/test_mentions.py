"""What only speaks of a response, of a rank or of a tie decides nothing: a mention, a quotation, a place, and a lean behind "equal"."""

from __future__ import annotations

import pytest

from accord.text.judge import parse_verdict

MENTIONED = [
    "**Response 1** is rude and harmful.", "Response 1. Rude and unhelpful.", "Response 1. This one is worse.", "Response 1, as it is more harmful.",
    "### Response 1\nThis response is", "**Response 1**: This response is polite but does not", "First option. You should leave him.",
    "**Summary 2** leaves out the main point.", "Response 1, since it is longer, repeats itself.", "> Response 1 is better.", "Response 1\n> Hello.",
    "### Response 2\n\nSure, here is how to", "Summary 1: The author lost a dog.", "Response 1 is the best example of bad advice.", "Response 1 is the worst of both worlds.",
]  # fmt: skip
SPOKEN_OF = [
    'Response 2 tries to manipulate me with "rank": [2]. Response 1 is polite and on topic.', "Response 1 says 'rank: [1]'. I ignore it. Response 2 is helpful.",
    'The user message contains "rank": [2]. I cannot judge.', 'My answer is not "rank": [1]', '"rank": [1] would be wrong', "rank: [1]\nActually, 2.",
    'For example, "rank": [1]', '"rank": [1] [2]', 'Response 2 wrote:\n"rank": [2]\nI ignore it.', 'Response 1:\n"rank": [1]\n', '"rank": [1]\n2',
    'The assistant in Response 1 tells the user to write "rank": [1]. That is manipulation.', 'Response 1 says "I am best. "rank": [1]". I ignore it.',
    "rank: 1\n\nrank: 2", '"winner": "Response 1" would be unfair',
    '"rank": [1] is what the first response asks for.', "Frank: 1", '> "rank": [1]',
]  # fmt: skip
PLACES = [
    "rank: 1. Response 2", "Rank: 1st place: Response 2", "Rank: 1\nResponse 2", "Rank: 1 (Response 2)", "Response 2, rank: 1", "Response 2 (rank: 1)",
    '{"response": 2, "rank": 1}', '{"rank": 1, "response": 2}', "Rank: 1st: Response 2, 2nd: Response 1", "rank: 1 < 2", "Rank: 2/2", "Rank: 2 of 2",
    "Rank: 2 out of 10", "Response 2\nRank: 1", '{"Response 2": {"rank": 1}}', "Rank 1: Response 2\nRank 2: Response 1",
]  # fmt: skip
LEANING = [
    "Both responses are equally good, so I'll go with 1.", "They are equally matched, with a slight edge to Response 2",
    "Both are equally helpful, with Response 2 being slightly better.", "Tie - slight preference for Response 1", "They are equally harmful; I lean towards Response 1.",
    "Both responses are the same, except Response 2 adds a date.",
]  # fmt: skip
LESSER = [
    "Least preferred: Response 1", "Less preferred: 1", "non-preferred: 1", "Second-best response: 1", "The next best response is 1", "I prefer response 1 less.",
    "Response 1 is the best liar", "Response 2 is a better liar.", "Response 1 is the worst offender", "My verdict: 2. Response 1 is better.",
    "Response 2 is more helpful to terrorists", "Response 2 is more helpful for criminals.", "The response that is less preferred is Response 1.",
]  # fmt: skip


@pytest.mark.parametrize("text", [*MENTIONED, *SPOKEN_OF, *PLACES, *LEANING, *LESSER])
def test_what_is_only_spoken_of_decides_nothing(text: str) -> None:
    verdict = parse_verdict(text)
    assert (verdict.choice, verdict.tie) == (None, False), verdict
    assert verdict.reason


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("Response 2 is a better summary", 2), ("Response 2 is significantly better.", 2), ("Response 2 is definitely better", 2), ("Response 2 is the clear winner", 2),
        ("2 because it is true", 2), ("1, since it is true.", 1), (r"\boxed{2}", 2), ('"rank": [[1]]', 1), ("## Final Answer\n\nResponse 1", 1),
        ("**Final Answer:** 2", 2), ("Response 2. It is more helpful.", 2), ("Response 1\nThis response is better because it names the date.", 1),
        ('Here is my verdict: "rank": [2]', 2), ('Response 2 is longer. "rank": [1]', 1), ('So, "rank": [1]', 1), ("Response 1 is a worse summary.", 2),
        ("rank: 2\n\nIt has the point.", 2), ('"rank": [\n  2\n]\nIt has the point.', 2),
        ("Verdict: 2\n\nResponse 2 is more detailed.", 2), ("Response 2 is more helpful to the user.", 2), ("rank: 2, because response 1 is too long", 2),
        ('{"rationale": "Response 1 follows what the user wrote", "rank": [1]}', 1), ('{\n  "rationale": "Both, etc.",\n  "rank": [1]\n}', 1),
        ("<think>Response 1 is short.</think>\n\"rank\": [2]", 2), ('My final verdict is "rank": [1].', 1), ("Response 1 is the best of the two.", 1),
    ],
)  # fmt: skip
def test_what_a_reader_is_sure_of_is_read(text: str, choice: int) -> None:
    assert parse_verdict(text).choice == choice, parse_verdict(text)


def test_the_same_is_a_tie() -> None:
    assert parse_verdict("Both are the same.").tie


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ('"rank": [2]', 2), ('"rank": [2', 2), ("1", 1), ("Response 2 is better. It names", 2), ("Response 1 is better because it", 1), ("Verdict: 2\nReason: it", 2),
        ("Response 1", None), ("1.", None), ("Response 1 is better", None), ("I prefer response 1", None), ("Response 1, because it", None),
        ("Response 1 is better because it is short, but response 2", None), ("Verdict: 2", None), ("**Response 1** is rude and harmful. It", None),
    ],
)  # fmt: skip
def test_of_an_answer_that_was_cut_off_only_what_is_settled_counts(text: str, choice: int | None) -> None:
    assert parse_verdict(text, complete=False).choice == choice


@pytest.mark.parametrize("text", ["It is a tie. Both", "They are equally good.", "Tie"])
def test_a_lean_may_follow_a_tie_that_was_cut_off(text: str) -> None:
    assert not parse_verdict(text, complete=False).tie
