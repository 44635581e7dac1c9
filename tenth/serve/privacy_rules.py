"""What the privacy filter finds, each kind by a rule of its own: e-mail, cards, IBANs, keys; more in files beside.

Every rule prefers what can be checked (check digits, issuers, structure) to what merely looks right, and looks at the
words before it where a form alone is too common.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from tenth.serve.privacy_identity import identities
from tenth.serve.privacy_phone import phones
from tenth.serve.privacy_segments import CONTEXT, Found, plain

_SUSPECT = re.compile(r"[\d@]|\S{16}|://\S+:")

_LOCAL = r"\w(?:[\w.+%'~-]{0,126}[\w+%~-])?"
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_TOP = r"(?:[^\W\d_]{2,24}|xn--[a-z0-9-]{2,40})(?![^\W\d_])"
_EMAIL = re.compile(rf"(?<!\w){_LOCAL}@(?!\d+\.\d)(?:{_LABEL}\.){{1,8}}{_TOP}")
_NO_EMAIL = re.compile(r".*@[1-9]x\.\w+|git@[\w.-]+", re.IGNORECASE)  # pictures for screens; remotes of git

_CARD = re.compile(r"(?<![\w/])(?<!\d[.,])(?<!\w-)(?:\d[ -]?){11,18}\d(?!\w)(?![.,]\d)(?!-\w)")
_CARD_GROUPS = {(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 1), (4, 4, 4)}
# first digits, and how many digits such cards have (ISO/IEC 7812, as the issuers use it)
_ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile(r"3[47]|1800|2131"), (15,)),
    (re.compile(r"6011|64[4-9]|65"), (16, 17, 18, 19)),
    (re.compile(r"35"), (16, 17, 18, 19)),
    (re.compile(r"30[0-5]|3[689]"), (14, 16, 19)),
    (re.compile(r"62|81"), (16, 17, 18, 19)),
    (re.compile(r"0604|5018|5020|5038|5[6-8]|6304|6390|6759|676[1-3]"), tuple(range(12, 20))),
    (re.compile(r"220[0-4]"), (16,)),
)
_OTHER_NUMBER = re.compile(
    r"\b(?:isbn|ean|gtin|imei|barcode|tracking|order|invoice|bestell\w*|auftrag\w*|rechnung\w*|sendung\w*|commande|pedido|ordine)"
    r"\b[^.!?\n]{0,16}$",
    re.IGNORECASE,
)

_IBAN = re.compile(r"(?<!\w)[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}(?!\w)")

_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"sk-[A-Za-z0-9_-]{20,}"
    r"|[spr]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[A-Za-z0-9+/=]{24,}"
    r"|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,}|gl(?:pat|ptt|dt)-[A-Za-z0-9_.-]{20,}"
    r"|(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])"
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{20,}|hooks\.slack\.com/services/[A-Za-z0-9/]{20,}"
    r"|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|dop_v1_[a-f0-9]{64}|dapi[a-f0-9]{32}"
    r"|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|AGE-SECRET-KEY-1[A-Z0-9]{58}|shpat_[a-fA-F0-9]{32}"
    r"|\d{8,10}:AA[A-Za-z0-9_-]{33}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"
    r")"
)
_LOGIN = re.compile(r"(?<=://)[^\s/:@?#]{1,100}:[^\s/@]{1,200}(?=@)")
_OF_LOGIN = re.compile(r"://[^\s/:@?#]+:[^\s/@]*$")  # what follows is a password, and @ a host
_NAMED = re.compile(
    r"(?:pass(?:word|wd|phrase|wort)?|pwd|passcode|secret|token|credentials?|auth(?:orization)?|kennwort|mot de passe"
    r"|contraseña|clave|senha|wachtwoord|hasło|lösenord|密码|口令|密钥"
    r"|(?:api|access|private|secret|encryption|signing|account|master)[ _-]?key)"
    r"[A-Za-z0-9_]{0,24}[\"'`*]{0,3}"
    r"(?:\s{0,3}(?::=|=>|[:=：＝])\s{0,3}|\s{1,3}(?:is|was|lautet|ist|est|es|è|é|to)[: ]\s{0,2}|[为是])"
    r"(?:bearer\s|basic\s)?[\"'`*]{0,3}(?P<value>[^\s\"'`<>{}$\[\]:=][^\s\"'`<>]{6,})"
    r"|\bbearer\s(?P<bearer>[\w.~+/-]{16,}=*)",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*[(\[].*|(?:[A-Za-z_]\w*\.)+[A-Za-z_]\w*|https?://.*|/.*|\d{4}-\d\d-\d\d.*|\d+(?:\.\d+)*"
)
_PLACEHOLDER = re.compile(
    r"(?:^|[_-])(?:your|my|some|example|changeme|placeholder|redacted|dummy|insert|test)(?:[_-]|$)|x{4}|\*{3}|\.\.\.",
    re.IGNORECASE,
)
_NEXT_FIELD = re.compile(r"[&;]\w+=.*")

KINDS = ("SECRET", "PRIVATE_KEY", "EMAIL", "IBAN", "CARD", "ID", "PHONE", "NAME", "PLACE")
"""What can be found, the surest first."""


def find(text: str, begin: int) -> list[Found]:
    """All finds from `begin` on, sorted and apart; `text` before it is context, which is not looked into again."""
    seen = plain(text)
    if not _SUSPECT.search(seen, begin):
        return []
    found = [one for rule in (_secrets, _emails, _cards, _ibans) for one in rule(seen, text, begin)]
    if any(character.isdecimal() for character in seen[begin:]):
        found += [*identities(seen, text, begin), *phones(seen, text, begin)]
    return apart(found)


def apart(found: list[Found]) -> list[Found]:
    """Finds that overlap become one, which is called by the surer kind."""
    joined: list[Found] = []
    for one in sorted(found):
        if joined and one.start < joined[-1].end:
            last = joined.pop()
            label = min(last.label, one.label, key=KINDS.index)
            one = Found(last.start, max(last.end, one.end), label)
        joined.append(one)
    return joined


def _emails(seen: str, text: str, begin: int) -> Iterator[Found]:
    for match in _EMAIL.finditer(seen, begin):
        in_address = _OF_LOGIN.search(seen, max(0, match.start() - 300), match.start())
        if not _NO_EMAIL.fullmatch(match[0]) and ".." not in match[0] and not in_address:
            yield Found(match.start(), match.end(), "EMAIL")


def _cards(seen: str, text: str, begin: int) -> Iterator[Found]:
    for match in _CARD.finditer(seen, begin):
        groups = re.split(r"[ -]", match[0])
        digits = "".join(groups)
        if len(groups) > 1 and (tuple(map(len, groups)) not in _CARD_GROUPS or len({*match[0]} & {" ", "-"}) > 1):
            continue
        if (
            _luhn(digits)
            and _issued(digits)
            and not _OTHER_NUMBER.search(text[max(0, match.start() - 32) : match.start()])
        ):
            yield Found(match.start(), match.end(), "CARD")


def _issued(digits: str) -> bool:
    known = any(first.match(digits) and len(digits) in lengths for first, lengths in _ISSUERS)
    return known and len({*digits}) > 1


def _luhn(digits: str) -> bool:
    doubled = (2 * int(digit) - 9 * (digit > "4") for digit in digits[-2::-2])
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def _ibans(seen: str, text: str, begin: int) -> Iterator[Found]:
    from stdnum import iban

    for match in _IBAN.finditer(seen, begin):
        ends = [match.end(), *(space.start() + match.start() for space in re.finditer(r"[ -]", match[0]))]
        for end in sorted(ends, reverse=True):  # words may follow that look like groups of it
            if iban.is_valid(seen[match.start() : end], check_country=False):
                yield Found(match.start(), end, "IBAN")
                break


def _secrets(seen: str, text: str, begin: int) -> Iterator[Found]:
    for pattern in (_TOKENS, _LOGIN):
        for match in pattern.finditer(seen, begin):
            if pattern is _LOGIN or _varied(match[0]):
                yield Found(match.start(), match.end(), "SECRET")
    for match in _NAMED.finditer(text, max(0, begin - CONTEXT)):
        group = "value" if match["value"] else "bearer"
        value, start = _NEXT_FIELD.sub("", match[group]).rstrip(".,;:!?)"), match.start(group)
        if start >= begin and _is_secret(value):
            yield Found(start, start + len(value), "SECRET")


def _varied(token: str) -> bool:
    """Whether a token's end is random, and no word or placeholder such as sk-xxxxxxxxxxxxxxxxxxxx."""
    tail = token[-20:]
    if not any(character.isdecimal() or character.isupper() for character in token):
        return False
    return len({*tail}) >= 7 and _bits(tail) >= 2.5


def _is_secret(value: str) -> bool:
    """Whether what a name like `password` is given looks drawn by chance: kinds of characters mixed, few repeated."""
    if len(value) < 7 or _CODE.fullmatch(value) or _PLACEHOLDER.search(value):
        return False
    kinds = (str.isdecimal, str.islower, str.isupper, lambda c: not c.isalnum())
    mixed = sum(any(kind(character) for character in value) for kind in kinds)
    digits = sum(character.isdecimal() for character in value)
    if digits == 0 or digits == len(value):
        return False
    return _bits(value) >= (2.5 if mixed >= 3 else 3.0) and (mixed >= 3 or len(value) >= 16)


def _bits(text: str) -> float:
    """Entropy of its characters, in bits a character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())
