"""Judges of documents: `jsonschema`, with formats that it has no library for here, and the schemas in `schemas/`."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

_FOLDER = Path(__file__).with_name("schemas")
REAL_SCHEMAS = sorted(path.stem for path in _FOLDER.glob("*.json"))
"""Twenty that describe files and messages as they are met: names of `real_schema`."""

_LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
# RFC 3986, RFC 1123 and ISO 8601 as JSON schema names them
_FORMATS = {
    "uri": re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:([A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"),
    "hostname": re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*"),
    "duration": re.compile(r"P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)"),
}


@cache
def real_schema(name: str) -> dict[str, Any]:
    """One of `REAL_SCHEMAS`."""
    found: dict[str, Any] = json.loads((_FOLDER / f"{name}.json").read_text())
    return found


def check_document(schema: dict[str, Any] | bool, text: str) -> None:
    """An error where a text is no JSON, or the schema does not accept it."""
    kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    formats = jsonschema.FormatChecker()
    for name, pattern in _FORMATS.items():
        formats.checks(name)(
            lambda value, pattern=pattern: not isinstance(value, str) or bool(pattern.fullmatch(value))
        )
    assert {"date", "date-time", "time", "email", "ipv4", "ipv6", "uuid", *_FORMATS} <= set(formats.checkers)
    kind(schema, format_checker=formats).validate(json.loads(text, parse_constant=_no_number))


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
