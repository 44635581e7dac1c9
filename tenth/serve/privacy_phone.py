"""Telephone numbers, as `phonenumbers` (Google's libphonenumber) judges them.

With + or 00 before the country's code, a number must be one that exists. Written as at home, it must be named a
telephone number just before, or be grouped and valid in one of some countries.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tenth.serve.privacy_segments import Found

REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "PL", "SE", "BR", "CN", "IN", "AU", "JP", "CH", "AT", "BE")

_CANDIDATE = re.compile(
    r"(?<![\w.,/@#$€£+-])(?<!\d:)\(?(?:\+|00)?\(?\d(?:[ ]?[()./-]{0,3}[ ]?\d){5,17}"
    r"(?:[ ]?(?:x|ext\.?|#)[ ]?\d{1,6})?(?!\w)(?![.,:/-]\d)(?!-\w)"
)
_EXTENSION = re.compile(r"[ ]?(?:x|ext\.?|#)[ ]?\d{1,6}$")
_STRONG = re.compile(
    r"phone|\btel\b|\btél|\btelef|\bmobi(?:l|el)|\bcell|\bfax|whats ?app|hotline|handy|rufnummer|durchwahl|portable|"
    r"móvil|"
    r"celular|cellulare|numéro|\bsms\b|signal|telegram|komórk|电话|手机|號碼|電話|联系方式|拨打|致电",
    re.IGNORECASE,
)
_WEAK = re.compile(
    r"\bcall\b|\bcalling\b|\bring\b|\bdial|\bcontact|\breach (?:me|him|her|us|them)|\btext (?:me|him|her|us|them)|"
    r"\bruf|\banruf|erreich|"
    r"\bappele|joindre|joignable|\bllám|\bllam|\bchiam|contatt|\bligue\b|\bligar\b|\bbel\b|\bbellen|zadzwo|\bnumer\b|\bnummer|打|联系",
    re.IGNORECASE,
)
_SENTENCES = re.compile(r"(?<=\w{4})[.!?]\s|\n")  # `Tel. 030 ...` is one
_REACH = 40  # characters before a number in which it must be named
_AS_AT_HOME = re.compile(
    r"(?:1[ .-]?)?(?:\([2-9]\d{2}\)[ ]?|[2-9]\d{2}[ .-])[2-9]\d{2}[ .-]\d{4}"  # North America
    r"|0[1-9](?:[ .-]\d{2}){4}"  # France
)
_NO_PHONE = re.compile(
    r"\d{4}-\d\d?-\d\d?(?:[ T].*)?|\d\d?[./-]\d\d?[./-]\d{2,4}(?: .*)?|\d{4}[./]\d\d?[./]\d\d?(?: .*)?"  # days
    r"|\d{1,3}(?:\.\d{1,3}){3}|\d+\.\d+(?:\.\d+)?|97[89][- ]?\d.*|\d-\d{2,7}-\d{1,7}-\d"  # decimals, versions, ISBN
)
_NO_PHONE_UNNAMED = re.compile(r"\d{4} ?[-/] ?\d{4}|\d{1,3}(?:[ .]\d{3})+|\d{1,2}(?: \d{1,2})+")  # years, thousands


def phones(seen: str, text: str, begin: int) -> Iterator[Found]:
    """Telephone numbers in a text; `seen` is its plain form."""
    for match in _CANDIDATE.finditer(seen, begin):
        start, number = match.start(), _EXTENSION.sub("", match[0])
        if number.startswith("(") and number.count("(") > number.count(")"):
            start, number = start + 1, number[1:]
        if _is_phone(number, _SENTENCES.split(text[max(0, start - _REACH) : start])[-1]):
            yield Found(start, match.end(), "PHONE")


def _is_phone(number: str, before: str) -> bool:
    digits = re.sub(r"\D", "", number)
    if not 7 <= len(digits) <= 17 or len({*digits}) <= 2:
        return False
    if _AS_AT_HOME.fullmatch(number):
        return True
    if _NO_PHONE.fullmatch(number) or _is_named(before):
        return not _NO_PHONE.fullmatch(number)
    if number.lstrip("(").startswith(("+", "00")):
        return _exists(number, None)
    return _is_written_as_one(number, digits, before)


def _is_written_as_one(number: str, digits: str, before: str) -> bool:
    """Whether an unnamed number, without its country's code, is grouped like a telephone number, and exists."""
    called = _WEAK.search(before) is not None
    grouped = re.search(r"\d[ ()./-]+\d", number) is not None and number.startswith(("0", "("))
    if _NO_PHONE_UNNAMED.fullmatch(number):
        grouped = False
    return (called or grouped) and len(digits) >= 9 and any(_exists(number, region) for region in REGIONS)


def _is_named(before: str) -> bool:
    return _STRONG.search(before) is not None


def _exists(number: str, region: str | None) -> bool:
    """Whether a number is one of the region's; one with a country's code need only be as long as its numbers are."""
    import phonenumbers

    number = re.sub(r"^\(?00", "+", number) if region is None else number
    try:
        parsed = phonenumbers.parse(number.replace("(0)", ""), region)
    except phonenumbers.NumberParseException:
        return False
    return bool((phonenumbers.is_possible_number if region is None else phonenumbers.is_valid_number)(parsed))
