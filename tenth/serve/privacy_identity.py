"""Numbers that states give to people: a form for each, and the check digits by `python-stdnum`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from tenth.serve.privacy_segments import Found

_REACH = 48  # characters before a number in which its name must stand


@dataclass(frozen=True, slots=True)
class Identity:
    """A form, the module of `stdnum` that checks it, and words of which one must stand before it if both are weak."""

    form: str
    module: str | None
    words: str = ""


IDENTITIES = (
    Identity(r"\d{3}-\d{2}-\d{4}", "us.ssn"),
    Identity(r"\d{3}[ -]?\d{2}[ -]?\d{4}", "us.ssn", r"\bssn\b|social security"),
    Identity(r"9\d{2}-\d{2}-\d{4}", "us.itin"),
    Identity(r"\d{2} ?\d{3} ?\d{3} ?\d{3}", "de.idnr"),
    Identity(r"\d{2} ?\d{6} ?[A-Z] ?\d{3}", None, r"rentenversicherung|sozialversicherung|versicherungsnummer|\brvnr"),
    Identity(r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]", None),
    Identity(r"\d{3}[ -]?\d{3}[ -]?\d{4}", "gb.nhs", r"\bnhs\b"),
    Identity(r"[1-478] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}", "fr.nir"),
    Identity(r"\d{8}[- ]?[A-Z]", "es.dni"),
    Identity(r"[XYZ][- ]?\d{7}[- ]?[A-Z]", "es.nie"),
    Identity(
        r"[A-Z]{3} ?[A-Z]{3} ?[\dL-NP-V]{2}[A-EHLMPR-T][\dL-NP-V]{2} ?[A-Z][\dL-NP-V]{3}[A-Z]", "it.codicefiscale"
    ),
    Identity(r"[1-9]\d{5} ?(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]) ?\d{3}[\dXx]", "iso7064.mod_11_2"),
    Identity(r"\d{3}\.\d{3}\.\d{3}-\d{2}|\d{11}", "br.cpf"),
    Identity(r"\d{4} \d{4} \d{4}|\d{4}-\d{4}-\d{4}", "in_.aadhaar", r"aadha?ar|uidai|\buid\b"),
    Identity(r"\d{12}", "in_.aadhaar", r"aadha?ar|uidai|\buid\b"),
    Identity(r"[A-Z]{3}[ABCFGHJLPT][A-Z]\d{4}[A-Z]", "in_.pan"),
    Identity(r"\d{4}[. ]?\d{2}[. ]?\d{3}", "nl.bsn", r"\bbsn\b|burgerservice|sofi"),
    Identity(r"\d{11}", "pl.pesel"),
    Identity(r"(?:19|20)?\d{6}[-+]\d{4}", "se.personnummer"),
    Identity(r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]", "fi.hetu"),
    Identity(r"\d{6}-\d{4}", "dk.cpr", r"\bcpr\b|personnummer"),
    Identity(r"\d{6} ?\d{5}", "no.fodselsnummer"),
    Identity(r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", "be.nn"),
    Identity(r"756[. ]?\d{4}[. ]?\d{4}[. ]?\d{2}", "ch.ssn"),
    Identity(r"\d{3} ?\d{3} ?\d{3}", "pt.nif", r"\bnif\b|contribuinte"),
    Identity(r"\d{3}[ -]?\d{3}[ -]?\d{3}", "ca.sin", r"\bsin\b|social insurance|assurance sociale"),
    Identity(r"\d{3} ?\d{3} ?\d{3}", "au.tfn", r"\btfn\b|tax file"),
    Identity(r"\d{13}", "za.idnr", r"\bid\b|identity"),
    Identity(r"\d{6}-[1-8]\d{6}", "kr.rrn"),
    Identity(r"[1-9]\d{10}", "tr.tckimlik", r"\btc\b|t\.c\.|kimlik"),
    Identity(r"[A-Z]{4}\d{6}[HM][A-Z]{5}[A-Z0-9]\d", "mx.curp"),
    Identity(r"\d{6}/\d{3,4}", "cz.rc"),
    Identity(r"[1-9]\d{12}", "ro.cnp", r"\bcnp\b|cod numeric"),
    Identity(r"\d{10}", "bg.egn", r"\begn\b|\bегн\b"),
    Identity(r"\d{7}[A-W][A-IW]?", "ie.pps"),
)
"""Of the United States, Germany, the United Kingdom, France, Spain, Italy, China, Brazil, India, the Netherlands,
Poland, Sweden, Finland, Denmark, Norway, Belgium, Switzerland, Portugal, Canada, Australia, South Africa, Korea,
Turkey, Mexico, Czechia, Romania, Bulgaria, Ireland."""

_FORMS = tuple(
    (re.compile(rf"(?<!\w)(?<!\d[.,/:])(?<!\w-)(?:{one.form})(?!\w)(?![.,/:-]\d)(?!-\w)"), one) for one in IDENTITIES
)


def identities(seen: str, text: str, begin: int) -> Iterator[Found]:
    """Identity numbers in a text; `seen` is its plain form."""
    for form, one in _FORMS:
        for match in form.finditer(seen, begin):
            if _is_named(one.words, text[max(0, match.start() - _REACH) : match.start()]) and _is_valid(one, match[0]):
                yield Found(match.start(), match.end(), "ID")


def _is_named(words: str, before: str) -> bool:
    return not words or re.search(words, before, re.IGNORECASE) is not None


def _is_valid(one: Identity, number: str) -> bool:
    return one.module is None or bool(_module(one.module).is_valid(number.upper().replace(" ", "")))


@cache
def _module(name: str) -> Any:
    return import_module(f"stdnum.{name}")
