"""Ties in a judge's words: one that it declares is read, and the word alone, a denial, a condition or a report is none."""

from __future__ import annotations

import pytest

from accord.text.judge import parse_verdict


@pytest.mark.parametrize(
    "text",
    [
        "Tie", "tie.", "**Tie**", "A tie", "It's a tie.", "It is a tie.", "It\u2019s a tie!", "This is a tie.", "Draw", "It's a draw.", "Tied.", "Equal",
        "Verdict: tie", "Final verdict: **Tie**", "My verdict is a tie.", "The final verdict is a tie.", "Answer: Tie", "Final answer: tie",
        "Both are equally good.", "They are equally good.", "They are equal", "They are equal.", "Both responses are equal.", "Equally good.", "Both equally bad.",
        "The two responses are equally good.", "The responses are tied.", "Responses 1 and 2 are equally good.", "Response 1 and Response 2 are equally good.",
        "Summary 1 and summary 2 are of equal quality.", "Both summaries are of the same quality.", "They are equal in quality.", "Both of them are equally helpful.",
        '{"verdict": "tie"}', '{"rank": "tie"}', '"rank": ["tie"]', "rank: tie", '{"winner": "tie", "confidence": 0.4}', '```json\n{"verdict": "tie"}\n```',
        '{"rationale": "Both say the same.", "verdict": "tie"}',
        "Neither is better", "Neither is better.", "Neither response is better.", "Neither of them is better than the other.", "Neither summary wins.",
        "No preference", "I have no preference.", "I have no preference between the two.", "There is no clear winner.", "There's no winner.",
        "I call it a tie.", "I'd call this a tie.", "I would say it's a tie.", "I'd say they are equal.", "I declare a tie.", "I consider both equally good.",
        "I rate them equal.", "I would call it a tie between the two.", "I think it is a tie.", "It is a tie because both miss the date.",
        "Tie. Both responses say the same.", "Tie: both miss the point.", "Tie \u2013 both miss the point.", "Tie\n\nBoth responses say the same.",
        "Response 1 is short. Response 2 is clear. Therefore, it is a tie.", "Both answer the question. Overall, a tie.", "Overall, they are equally good.",
        "Both responses answer the question well.\n\nTie", "Both have the point.\nVerdict: tie\nReason: they say the same.",
        "Response 1 is short, response 2 is long; they are equally good.", "If I had to choose, I would say it is a tie.", "It is clearly a tie.",
        "The first one and the second one are good. It's a tie.", "Response 1 is not better, it is a tie.", "Response 2 is better in tone, but overall they are equal.",
        "They're equal.", "I think they're equally good.", "Response 1 and 2 are equally good.", "We have a tie.", "I would give a tie.", "Result: tie",
        "Both responses are equally helpful and harmless.", "Both responses are equally good, so it's a tie.", "Verdict: It's a tie", "[tie]", '"rank": [tie]',
        "I cannot decide, it's a tie.", "I can't choose; they are equally good.", "In conclusion, both responses are equally good.", "They are equally good summaries.",
    ],
)  # fmt: skip
def test_a_tie_that_is_declared(text: str) -> None:
    verdict = parse_verdict(text)
    assert (verdict.tie, verdict.choice) == (True, None), verdict


@pytest.mark.parametrize(
    "text",
    [
        "This is not a tie.", "They are not equally good.", "It isn't a tie.", "It is no tie.", "It is hardly a tie.", "It's almost a tie.", "It is never a tie.",
        "I don't think it is a tie.", "I would not call it a tie.", "I cannot call it a tie.", "I am not sure it is a tie.", "Nobody would call it a tie.",
        "Response 1 explains how to tie a knot. Response 2 is too short.", "Tie your shoes first.", "It is a tie with stripes.", "That is a tie he wore.",
        "The post is about a tie that he bought.", "Both are tied to the post.", "They are tied up in details.", "Both dogs are equally good.",
        "Is it a tie?", "So it's a tie?", "Tie?", "Is neither better?", "Are they equally good?", "Could it be that they are equal?", "Tie or response 1?",
        "Some would say it is a tie.", "Many people think they are equal.", "It is a tie, some would say.", "Readers may say both are equally good.",
        "One could argue that it is a tie.", "The claim that they are equally good is weak.", "Response 1 says it is a tie.",
        "It would be wrong to say that they are equal.", "I doubt that it is a tie.", 'Response 2 ends with "It is a tie."', "I was told to say it is a tie.",
        "If both are equal, choose the shorter.", "When they are equally good, pick the shorter.", "Assuming they are equal, pick the shorter.",
        "If you ignore the date, it is a tie.", "If brevity counts, they are equally good.", "It is a tie if you ignore the date.", "It is a tie unless dates count.",
        "Whether they are equal is hard to say.", "They are equally good, if you only count words.", "Tie (if both are equal)", "rank: tie if both are equal",
        "It is not a tie: response 2", "tie-breaker: Response 1", "Tie breaker: Response 1", "Tie-break: 2", "The tiebreaker is response 1.",
        "Possible verdicts: 1, 2 or tie.", "Verdict: tie or 1", "Verdict: 1, 2, tie", "Response 1\nResponse 2\nTie", "Tie\nResponse 1\nResponse 2", "Tie / 1 / 2",
        '"rank": ["tie", 1]', '{"verdict": "tie or 2"}', '{"verdict": "1 or tie"}', '{"verdict": "tie"}?',
        "They are equally good in tone.", "Both are equal in length.", "Both are equally good at rhyming.", "They are equally long.", "Neither is better written.",
        "Coherence: both are equally good.", "1. Accuracy: They are equal.", "In terms of tone, they are equally good.", "Neither is much better.",
        "They are equally good, but response 2 is shorter.", "It's a tie. However, response 2 is shorter.", "Although they are equally good, one is longer.",
        "It is a tie. Response 2 is better.", '"rank": [1]\nIt is a tie.', '{"rank": "tie"} Response 2 is better.', "They are equal, said nobody.",
        "As an AI language model, I have no preference.", "It is a tie, which is not true.", "There is no preference in the post.",
        "The knot needs a tie.", "They are equal before the law.", "The two are equally good friends.", "Both mention a tie game.", "The summary says: they are equal.",
        "Response 1 says the game ended in a tie.", "I would say tie goes to the shorter one.", "Neither", "There is no winner in the post.", "Both are not equal.",
        "Equally good? No.", "A tie would be unfair.", "Let us see if it is a tie.", "In a tie, choose the shorter.", "Only if it is a tie, say so.", "Do not say tie.",
        '{"options": ["1", "2", "tie"]}', '{"verdict": ["1", "tie"]}', "Draw a picture.", "Draw: 1", "Equal rights are the topic.", "A tie is not allowed.",
    ],
)  # fmt: skip
def test_a_tie_that_nobody_declares(text: str) -> None:
    verdict = parse_verdict(text)
    assert (verdict.tie, verdict.choice) == (False, None), verdict
    assert verdict.reason


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("It is not a tie. Response 2 is better.", 2), ("They are not equally good: response 1 is better.", 1), ("It's a tie, but if I had to choose, response 2 is better.", 2),
        ("They are equally good in tone. Response 1 is better.", 1), ("While both are equally good in tone, response 2 is better.", 2),
        ("Both are equally good, but response 1 is better.", 1), ('Both are equally good.\n"rank": [2]', 2), ("Coverage: they are equal. Overall, response 1 is better.", 1),
        ("Tie-breaker: response 1 is better.", 1), ("If they are equal, choose the shorter. Response 2 is better.", 2), ("Some say it is a tie. I prefer response 2.", 2),
    ],
)  # fmt: skip
def test_a_choice_beside_a_tie_that_is_none(text: str, choice: int) -> None:
    assert parse_verdict(text).choice == choice
