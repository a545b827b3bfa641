"""Personal data by its form and check sums, and swear words. All numbers are made up, or those that standards give as examples."""

from __future__ import annotations

import time

import pytest

from accord.data.privacy import iban, luhn, personal_data, swear_words


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to anna.b+x@mail.example.org, please", "email"),
        ("(a_b-c@example.co.uk)", "email"),
        ("call +49 30 1234567 now", "phone"), ("+15551234567", "phone"), ("(555) 123-4567", "phone"), ("555-123-4567.", "phone"),
        ("call 1-800-555-0199", "phone"), ("1 (555) 123-4567", "phone"),
        ("030/1234567", "phone"), ("0171 2345678", "phone"),
        ("ping 192.168.0.17!", "ip"), ("at 2001:db8::8a2e:370:7334", "ip"), ("::1 is here", "ip"),
        ("4111 1111 1111 1111", "card"), ("card 5500-0055-5555-5559", "card"), ("378282246310005", "card"),
        ("pay DE89 3704 0044 0532 0130 00 today", "iban"), ("GB82WEST12345698765432", "iban"), ("to NL91ABNA0417164300 AND MORE", "iban"),
    ],
)  # fmt: skip
def test_each_kind_is_found_once_and_as_nothing_else(text: str, kind: str) -> None:
    assert personal_data(text) == {kind: 1}


@pytest.mark.parametrize(
    "text",
    [
        "me@home", "a @ b.com", "version 1.2.3", "300.1.2.3", "12:30:45", "std::vector", "4111 1111 1111 1112", "1111111111111111", "0000 0000 0000 0000",
        "DE89 3704 0044 0532 0130 01", "XX12 3456 7890 1234", "in 1914-1918", "pages 100-200", "1,234,567", "3.14159265358979", "10 000 000", "2026-01-02",
        "5 to 10", "", "the years 1990, 1991, 1992 and 1993",
    ],
)  # fmt: skip
def test_what_only_looks_alike_is_not_counted(text: str) -> None:
    assert personal_data(text) == {}


def test_several_of_several_kinds() -> None:
    text = "a@b.org c@d.org 10.0.0.1 4111111111111111 DE89370400440532013000 (555) 123-4567"
    assert personal_data(text) == {"email": 2, "ip": 1, "card": 1, "iban": 1, "phone": 1}


def test_check_sums() -> None:
    assert luhn("79927398713")
    assert not any(luhn(f"7992739871{digit}") for digit in "012456789")
    assert iban("GB82WEST12345698765432")
    assert not iban("GB82WEST1234569876543")
    assert not iban("GB83WEST12345698765432")


def test_swear_words_are_whole_words_in_any_case() -> None:
    assert swear_words("Damnit! What a load of BULLSHIT, bullshit.") == 3
    assert swear_words("Scunthorpe has a shitake assassin; class, peacock, dickens") == 0


@pytest.mark.parametrize("unit", ["1234 ", "a.b-c+", "12-", "1.2.3.", "AB12 CD34 ", "f:", "word word ", "+49 30 "])
def test_a_very_long_text_takes_time_in_proportion(unit: str) -> None:
    """100,000 tokens of what the patterns begin to like."""
    text = unit * (500_000 // len(unit))
    started = time.process_time()
    personal_data(text)
    swear_words(text)
    assert time.process_time() - started < 5
