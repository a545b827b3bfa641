"""A verdict under a condition, for one merit, or in somebody else's mouth is none; what says how sure a judge is takes nothing from it."""

from __future__ import annotations

import pytest

from accord.text.judge import parse_verdict


@pytest.mark.parametrize(
    "text",
    [
        "If you want brevity, Response 2 is better.", "If accuracy counts, response 2 is better.", "If you want brevity Response 2 is better.",
        "If you want brevity: Response 2 is better.", "If you want brevity:\nResponse 2 is better.", "When brevity counts, response 2 is better.",
        "Whenever brevity counts, response 2 is better.", "Unless you want detail, response 2 is better.", "Assuming that dates matter, response 1 is better.",
        "Suppose brevity counts, then response 2 is better.", "Provided that the user is a child, response 2 is better.",
        "Should you want brevity, response 2 is better.", "In case you want brevity, I choose response 2.", "As long as brevity counts, I prefer response 2.",
        "Depending on the reader, response 2 is better.", "For readers who want brevity, response 2 is better.", "For brevity, response 2 is better.",
        "In terms of accuracy, response 2 is better.", "With regard to tone, response 1 is better.", "On accuracy, response 1 is better.",
        "Coherence: Response 2 is better.", "1. Accuracy: Response 2 is better.", "**Tone**: Response 1 is better.", "Style - response 1 is better.",
        "Response 2 is better if you want brevity.", "Response 2 is better, if you want brevity.", "Response 2 is better only if brevity counts.",
        "Response 2 is better when brevity counts.", "Response 2 is better unless you want detail.", "Response 2 is better (if brevity counts).",
        "Response 2 is better than response 1 if brevity counts.", "I prefer response 2 if brevity counts.", "Response 2 is better, provided brevity counts.",
        "Response 2 is better, depending on the reader.", "Response 2 is better for those who want brevity.", "Response 1 is worse if brevity counts.",
        "So, if brevity counts, response 2 is better.", "Both are short, and if brevity counts, response 2 is better.", "I say that if brevity counts, response 2 is better.",
        'If brevity counts, "rank": [2]', '"rank": [2] if brevity counts', "If you want brevity, the better one is response 2.",
        "Response 2 is better, said nobody.", "Response 2 is better. Said nobody ever.", "Response 2 is better, says the author.", "Response 2 is better, claims the post.",
        "Response 2 is better, according to some.", "Response 2 is better, which is false.", "Response 2 is better... not!", "Response 2 is better. Just kidding.",
        "Response 2 is better, or is it.", '"Response 2 is better" is what it says.', "Nobody would say response 2 is better.", "Few would say that response 2 is better.",
        'Response 2 writes "Response 2 is better."', 'It ends with: "Response 2 is better."', "I was told to say response 2 is better.",
        "The text asks me to choose response 2.", "Response 1 tries to say that response 1 is better.", "It is rarely true that response 2 is better.",
        "Were brevity all that counts, response 2 is better.", "Had you asked for brevity, response 2 is better.", "For a beginner, response 2 is better.",
        "From the point of view of brevity, response 2 is better.", "As a summary for children, response 2 is better.", "In a tie, choose 1.",
        "Response 2 is better where brevity counts.", "Response 2 is better so long as brevity counts.", "If and only if brevity counts, response 2 is better.",
        "If you prefer a short answer, choose response 2. If you prefer a long answer, choose response 1.", "Response 2 is better, it is said.",
        "Response 2 is better if you prefer it short; otherwise response 1 is better.", "Supposedly, response 2 is better.", "Response 2 is better to some.",
        "Say that response 2 is better.", "It says: response 2 is better.", '"Response 2 is better," said the fox.', "Response 2 is better (said no one).",
    ],
)  # fmt: skip
def test_a_verdict_that_hangs_on_something(text: str) -> None:
    verdict = parse_verdict(text)
    assert (verdict.choice, verdict.tie) == (None, False), verdict


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("If I had to choose, response 2 is better.", 2), ("If I had to pick one, I choose response 1.", 1), ("If I must, I choose response 1.", 1),
        ("If forced to choose, response 2 is better.", 2), ("If anything, response 2 is better.", 2), ("If you ask me, response 2 is better.", 2),
        ("Response 2 is better, if I had to choose.", 2), ("Response 2 is better, even if it is longer.", 2), ("Response 2 is better, if only slightly.", 2),
        ("Even if it is longer, response 2 is better.", 2), ("Response 2 is better, if not perfect.", 2), ("When comparing both, response 2 is better.", 2),
        ("When I compare the two, response 1 is better.", 1), ("Considering everything, response 2 is better.", 2), ("In terms of overall quality, response 2 is better.", 2),
        ("Response 1 does not say what to do if it rains. Response 2 is better.", 2), ("Response 1 tells what to do if it rains, so response 1 is better.", 1),
        ("Response 2 is better because it says what to do if it rains.", 2), ("If you want brevity, take the short one. Response 1 is better.", 1),
        ("If brevity counts, response 2 is short, but response 1 is better.", 1), ("In my opinion, response 2 is better.", 2), ("For these reasons, response 1 is better.", 1),
        ("Overall: Response 2 is better.", 2), ("Verdict: Response 2 is better.", 2), ("Coherence: both read well.\nOverall, response 2 is better.", 2),
        ("Coherence: response 1 is better.\nAccuracy: response 2 is better.\nOverall: response 2 is better.", 2), ("Rationale: Response 2 is better because it is true.", 2),
        ("Response 2 is better according to the criteria.", 2), ("Response 2 is better, as said above.", 2), ("Response 2 is better, I said.", 2),
        ("It says too much. Response 2 is better.", 2), ("I was asked to compare them, and response 2 is better.", 2), ('{"rationale": "Response 2 is better."}', 2),
        ('If accuracy counts, response 2 is right.\n"rank": [2]', 2), ("As for me, I prefer response 1.", 1), ("On balance, response 1 is better.", 1),
        ("Given the post, response 2 is better.", 2), ("Looking at both, response 2 is better.", 2), ("For the post, response 1 is better.", 1),
        ("Response 2 is better when taken as a whole.", 2), ("Response 2 is better. If you like, I can explain.", 2), ("As a result, response 2 is better.", 2),
        ("Response 2 is better, when all is said and done.", 2), ("The user wants a short summary, so response 2 is better.", 2),
        ("I must say response 2 is better.", 2), ("Response 2 is better because the user said that it matters.", 2),
    ],
)  # fmt: skip
def test_a_verdict_that_hangs_on_nothing(text: str, choice: int) -> None:
    assert parse_verdict(text).choice == choice, parse_verdict(text)
