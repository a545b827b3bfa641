"""Counting what should perhaps not be in a data set: personal data by kind, and swear words. Counts only: nothing that is found is kept.

Patterns find what has the form of an address, a number or a name of a machine; card numbers and IBANs must also pass their check sums. A count of 0
is no promise: names and postal addresses are not looked for. What does not belong here: removing anything.
"""

from __future__ import annotations

import codecs
import ipaddress
import re
from collections import Counter
from collections.abc import Callable

KINDS = ("email", "phone", "ip", "card", "iban")
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")
_CARD = re.compile(r"(?<![\w.-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}")
_PHONE = re.compile(
    r"(?<![\w.,-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"  # +49 30 1234 5678, +15551234567
    r"|(?:1[ .-]?)?\(\d{3}\) ?\d{3}[ .-]\d{4}|(?:1[ .-])?\d{3}([ .-])\d{3}\1\d{4}"  # (555) 123-4567, 555-123-4567, 1-800-555-0199
    r"|0[1-9]\d{1,3}[ /-]\d{3,4}[ -]?\d{3,5})(?![\w]|[ .,-]\d)"  # 030/1234567, 0171 2345678
)
# Prefixes and lengths of issuers that many people have cards of.
_ISSUERS = re.compile(r"4\d{12}(?:\d{3}){0,2}|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3[068]\d{12}|35\d{14}|6(?:011|4[4-9]\d|5\d\d|2\d\d)\d{12,15}")
# Lengths by country, ISO 13616.
_IBAN_LENGTHS = {
    country: int(length)
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS",
        23: "AE GI IL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "PT", 26: "IS TR", 27: "FR GR IT MC MR SM", 28: "AL AZ CY DO GT HU LB PL",
        29: "BR PS QA UA", 30: "JO KW MU", 31: "MT",
    }.items()
    for country in countries.split()
}  # fmt: skip
# English swear words, turned by 13 letters so that nobody has to read them here.
_SWEARING = frozenset(
    codecs.decode(
        "nefr nefrubyr nefrubyrf onfgneq onfgneqf ovgpu ovgpurf ohyyfuvg penc pbpx phag phagf qnzavg qvpx qvpxurnq qbhpuront shpx shpxrq "
        "shpxre shpxvat shpxf tbqqnza zbgureshpxre zbgureshpxvat cvff cvffrq cevpx fuvg fuvgf fuvggl fyhg fyhgf gjng jnaxre juber juberf",
        "rot13",
    ).split()
)
_LETTERS = re.compile(r"[a-z]+")


def personal_data(text: str) -> Counter[str]:
    """How often each kind of personal data occurs; what counts as one kind is not counted as another."""
    found: Counter[str] = Counter()
    for kind, pattern, measure in _KINDS:
        if not _can_hold(kind, text):
            continue
        spans = [(match.start(), match.start() + length) for match in pattern.finditer(text) if (length := measure(match[0]))]
        if spans:
            found[kind] += len(spans)
            text = _without(text, spans)
    return found


def swear_words(text: str) -> int:
    """How many words are on the list of English swear words; whole words, in any case."""
    return sum(word in _SWEARING for word in _LETTERS.findall(text.lower()))


def luhn(digits: str) -> bool:
    """Whether digits pass the check of card numbers (Luhn, ISO/IEC 7812-1)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban(text: str) -> bool:
    """Whether text without spaces is an IBAN: length by country and remainder 1 by 97 (ISO 13616, ISO 7064)."""
    if _IBAN_LENGTHS.get(text[:2]) != len(text) or not text.isalnum():
        return False
    return int("".join(str(int(character, 36)) for character in text[4:] + text[:4])) % 97 == 1


def _iban_length(text: str) -> int:
    """Characters of the IBAN at the beginning of a match, which may run on into words after it; 0 where there is none."""
    wanted, seen = _IBAN_LENGTHS.get(text[:2], 0), 0
    for place, character in enumerate(text):
        seen += character != " "
        if seen == wanted:
            ends = place + 1 == len(text) or text[place + 1] == " "
            return place + 1 if ends and iban(text[: place + 1].replace(" ", "")) else 0
    return 0


def _card_length(text: str) -> int:
    digits = re.sub(r"\D", "", text)
    return len(text) if _ISSUERS.fullmatch(digits) and luhn(digits) else 0


def _address_length(text: str) -> int:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return 0
    return 0 if address.is_unspecified else len(text)


def _phone_length(text: str) -> int:
    return len(text) if 7 <= sum(character.isdigit() for character in text) <= 15 else 0


_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[str], int]], ...] = (
    ("email", _EMAIL, len), ("iban", _IBAN, _iban_length), ("card", _CARD, _card_length), ("ip", _IPV4, _address_length),
    ("ip", _IPV6, _address_length), ("phone", _PHONE, _phone_length),
)  # fmt: skip


def _can_hold(kind: str, text: str) -> bool:
    """A quick look that spares most texts the patterns."""
    return "@" in text if kind == "email" else any(digit in text for digit in "0123456789")


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    parts, end = [], 0
    for start, stop in spans:
        parts.append(text[end:start])
        end = stop
    return " ".join([*parts, text[end:]])
