"""Ratings in a judge's words: what it calls its rating is read, and other numbers of a text are not."""

from __future__ import annotations

import time

import pytest

from accord.text.ratings import parse_rating


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("7", 7), ("7.", 7), ("**3**", 3), ("[8]", 8), (" 10\n", 10), ('"9"', 9), ('"rating": [10]', 10), ('"rating": [7], it is clear.', 7), ("{'rating': '4'}", 4),
        ('{"rating": 8, "reason": "It has 3 points."}', 8), ('{"coherence": 9, "rating": 7}', 7), ('```json\n{"rating": [6]}\n```', 6), ("rating: [5]", 5),
        ('"rating": [8]\n\nThe summary covers points 1 and 2.', 8), ("Rating: 1.", 1), ("Rating: **8**", 8), ("**Rating:** 8", 8), ("Rating: 8/10", 8), ("Rating = 8", 8),
        ("Rating - 8", 8), ("Score: 8", 8), ("Score: 8 out of 10", 8), ("Grade: 7", 7), ("Overall score: 6", 6), ("My rating is 8.", 8), ("The rating is a 7.", 7),
        ("I give it a rating of 8.", 8), ("The score for this response is 7.", 7), ("Rating (1-10): 8", 8), ("Rating: 8 (out of 10)", 8),
        ("8/10", 8), ("8 / 10", 8), ("8 out of 10", 8), ("8 out of ten", 8), ("8/10 (80%)", 8), ("8/10. It leaves out 2 points.", 8), ("A solid 8/10!", 8), ("I give it 9 out of 10", 9),
        ("I give it a 3.", 3), ("I'd give it an 8 because it is clear.", 8), ("I would give this summary a 7.", 7), ("I rate it 6.", 6), ("I rate this response 9/10.", 9),
        ("I would rate it as a 4.", 4), ("I'd say 8.", 8), ("It deserves a 7.", 7), ("This response gets an 8.", 8), ("It's an 8.", 8), ("Overall, 8.", 8), ("Overall: 7/10", 7),
        ("7, so 7", 7), ("8 because it is clear", 8), ("8\n\nThe response has 4 sentences.", 8), ("The response is short and true.\n8", 8), ("Final answer: 8", 8),
        ("On a scale of 1 to 10, I rate it 7.", 7), ("On a scale from 1 to 10: 7", 7), ("Clarity: 9/10\nOverall: 7/10", 7), ("Coherence: 8, accuracy: 9, overall: 8/10", 8),
        ("The response has 3 sentences and names 2 dates. Rating: 6", 6), ("Not bad, 8/10.", 8), ("Rating: 8, but 2 points are missing.", 8), ("Step 1: I read the post. Rating: 5", 5),
        ("It is not a 10. I give it a 7.", 7), ("Rating: 10", 10), ("Rating: 10/10", 10), ("8/10, since it says what to do if it rains.", 8),
        ("<rating>8</rating>", 8), ("[[8]]", 8), ("Rating:\n8", 8), ("### Rating: 8", 8), ("I'd rate this summary an 8.", 8), ("I rate the response a 6 out of 10.", 6),
        ("Rating: 7 - clear and short.", 7), ("Rating: 7 (clear, short)", 7), ("7/10 - clear and short", 7), ("The summary is an 8/10.", 8), ("Overall quality: 8", 8),
        ("I give the summary a rating of 6/10.", 6), ("I assign a rating of 7.", 7), ("Sure, here is my rating: 8", 8), ("Given its errors, I give it a 3.", 3),
        ('The final answer is: "rating": [8] because it is true.', 8), ("7.0", 7), ("Score: 7.0", 7), ("Rating: 8 points", 8), ("Rating: `8`", 8), (r"\boxed{8}", 8), ("Rating (out of 10): 7", 7), ("This response is 8/10.", 8),
        ("Clarity: 8\nAccuracy: 6\nOverall: 7", 7), ("Helpfulness: 8/10\nOverall: 6/10", 6), ("Rating (1 = worst, 10 = best): 7", 7), ("Clarity: 9\nRating: 7", 7),
        ("The response says the pain is 8/10. Rating: 4", 4), ("Its rating is 8.", 8), ("Score: 7/10\nConfidence: 9/10", 7), ("Rating: 7\nRating: 7", 7),
        ("Based on the criteria, I rate it 7.", 7), ("It's a 7 out of 10.", 7), ("The response deserves a rating of 9.", 9), ("Rating: 7/10. It does not name the date.", 7),
    ],
)  # fmt: skip
def test_a_rating(text: str, rating: int) -> None:
    assert parse_rating(text) == rating


@pytest.mark.parametrize(
    "text",
    [
        "", "none", "eight", "11", "0", "7.5", "7,5", "100", "-5", "v2", "8%", "10 %", "8 percent", "between 3 and 5", "3 or 4", "eleven",
        "The summary leaves out 3 important points.", "The response is 4 sentences long and clear.", "Step 1: read the post.", "There are 2 errors.", "1. Read the post.",
        "1.\nRead the post.", "1) It is clear.", "1. Coherence\n2. Accuracy", "It has 3.", "The post is from day 5.", "See point 2.", "Response 1 is better.", "Only 1 of the 3 points is there.",
        "It names 4 of 10 towns.", "He won 9 out of 10 games.", "Score 3 goals.", "The team has a score of 3 goals.", "It rates 3 films.", "I give 2 reasons.", "I say 3 things.",
        "I'd say 8-9.", "9-10", "8\u20139", "8 to 9", "8 or 9", "Rating: 8-9", "Rating: 8 to 9", "Rating: 8 or 9", "8, maybe 9", "8 or maybe a 9", "7-8/10", "7 to 8/10", "7 or 8/10",
        "I rate it between 7 and 8.", "Rating: 7, 8", "8+", "8 or so", "Rating: at least 8", "Rating: almost 9", "It's almost a 9.", "up to 8/10", "Less than 5/10", "Rating: 8ish",
        "4/5", "Rating: 4/5", "4 out of 5", "Rating: 4 out of 5", "4 stars", "4-star", "Rating: 4 stars", "80/100", "Rating: 80", "Rating: 8%", "3 of 4",
        "Rating: 0", "Rating: 11", "0/10", "12/10", "Rating: -5", "Rating: 7.5", "I give it 7.5.", "7.5/10", "Rating: 8.5/10",
        "Rating: 8. Rating: 6.", "8/10 or 6/10", "I give it an 8. No, a 6.", "8/10, but the errors make it a 5.", "Score: 8\nRating: 6", '"rating": [8] "rating": [3]', '"rating": [8]. I give it a 5.',
        "1\n2\n3", "1, 2, 3", "8/10. However, I lower it to 6.",
        "I would not give it 8/10.", "This is not an 8.", "I can't give it a 9.", "It does not deserve 8/10.", "It is hardly a 9/10.", "Nobody would give it a 9.",
        "8?", "Is it an 8?", "8/10?", "Rating: 8?", "If it were shorter, I would give it a 9.", "I give it a 9 if brevity counts.", "For brevity, I give it a 9.",
        "Some would say 8/10.", "People may rate it 8/10.", "They would give it an 8.", "It is wrong to say that it is an 8.", "The response says: 8/10.", 'It ends with "Rating: 10".',
        "The user gives the film 8/10.", "The movie has a rating of 8.", "She scored 9/10.", "The post was written on 9/10.", "The maximum rating is 10.", "The highest score is 10.",
        "I was told to give it a 10.", "Clarity: 9/10", "Coherence: 8\nAccuracy: 8", "Tone - 8/10", "9/10 for clarity", "I give it a 9 in tone.", "In terms of tone, 8/10.",
        "Rate it from 1 to 10.", "A number from 1 to 10.", "On a scale of 1 to 10.", "Answer with 1 to 10.", '"rating": [N], N from 1 to 10.', "Rating: N/10", "Rating: 1-10", "1-10",
        "I counted 5.", "Chapter 3.", "The dog is 8.", "It took 9 hours.", "7 of the points are there.", "I'd rate it 4/5 stars.", "The rating scale has 10 steps.",
        "A rating of 10 would need more detail.", "It would be an 8 with more detail.", "It could be a 9.", "I almost gave it an 8.", "My rating would have been 9.",
        "9 - 2 = 7", "Rating: 8 -> 6", "Score: 3-1", "The answer is 4.", "So 2.", "Answer: 1 + 1 = 2.", "10 out of 10 people agree.", "2/10/2024", "It was posted on 3/10.",
        "7\n8", "8\n4", "10\n1", '"rating": [7, 8]', '"rating": [7, 3]', "Rating: 7; 8", "Rating: 7 | 8", "Rating: 6\n\nUser: next question\nRating: 3",
        'The final answer is: "rating": [8] for its tone', "Rating: 1 (worst) to 10 (best): 4", 'The response writes "rating": [10] to trick me.', "> Rating: 10", "Her score is 9.", "This text suits grade 5.",
        "The response's final answer is 5.", "To get a rating of 10, it would need citations.", "I start with a rating of 10. I subtract 3 for errors: 7.",
        "Accuracy rating: 9", "Relevance score: 9", '{"toxicity_score": 1}', "My pain is 8/10", "The student scored 8/10.", "IMDb: 8/10", "The odds are 1/10.",
        "It computes 2+3. The final answer is 5.", "Confidence score: 9", "Readability grade: 8", "Helpfulness: 8", "Rating: [8] [9]", "The score was 5.",
        "The rating of the film is 8.", "Rating 3: poor", "Score: 8 (accuracy), 6 (tone)",
        "Rating: 08", "Rating: 8th", "no rating: 8", "Is a rating of 8 fair?", "Unless you like puns, it's an 8.", "7, so 8", "I wish I could give it a 9.",
    ],
)  # fmt: skip
def test_a_number_that_is_no_rating(text: str) -> None:
    assert parse_rating(text) is None


@pytest.mark.parametrize(
    "said",
    [
        "8/10 ",
        "Rating: 8, ",
        "I give it ",
        "but ",
        "8\n",
        "1-",
        "rating of ",
        "7, so ",
        "8/10 but ",
        "overall ",
        "the ",
        '"rating": [',
        "\n",
        " \n",
        " ",
        "*",
        "1",
        '"',
        "8;",
    ],
)
def test_a_judge_that_rates_over_and_over_takes_time_in_proportion(said: str) -> None:
    began = time.process_time()
    parse_rating(said * (30_000 // len(said)))
    assert time.process_time() - began < 5.0  # in the square of its length half a minute
