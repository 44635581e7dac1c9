"""Roles and fields of a chat's messages: what is mistyped the model would never see, and nobody would know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from tenth.errors import RequestError

ROLES = ("system", "developer", "user", "assistant", "tool")
_READ = "role content name tool_calls tool_call_id reasoning_content reasoning thinking".split()
# what answers of this and other servers hold, and clients send back with them
_PASSED_OVER = set(
    "refusal annotations parsed id index finish_reason stop_reason logprobs token_ids metadata cache_control prefix "
    "citations phase reasoning_details thinking_blocks provider_specific_fields context executed_tools "
    "extra_content".split()
)
_EMPTY = ("audio", "function_call", "images")  # which may be there, and hold nothing: this model would not see it
FIELDS = frozenset({*_READ, *_PASSED_OVER, *_EMPTY})


def check_messages(messages: Sequence[Mapping[str, Any]], template: str | None) -> None:
    """RequestError for a role or a field that neither the API nor the model's template knows."""
    for number, message in enumerate(messages):
        _check_role(message.get("role"), f"messages[{number}]", template or "")
        for name, value in message.items():
            _check_field(name, value, f"messages[{number}]", template or "")


def _check_role(role: object, where: str, template: str) -> None:
    if role is None:
        raise RequestError(f"{where}.role is missing, it must be one of {', '.join(ROLES)}")
    named = isinstance(role, str) and (f"'{role}'" in template or f'"{role}"' in template)
    if role not in ROLES and not named:
        raise RequestError(f"{where}.role is {role!r:.40}, it must be one of {', '.join(ROLES)}")


def _check_field(name: object, value: object, where: str, template: str) -> None:
    if value is None:
        return
    if name in _EMPTY and value:
        raise RequestError(f"{where}.{name} must be null: this model reads text, and calls as tool_calls")
    known = name in FIELDS or (isinstance(name, str) and re.search(rf"\b{re.escape(name)}\b", template))
    if not known:
        near = get_close_matches(str(name), sorted(FIELDS), 1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(_READ)}"
        raise RequestError(f"{where} has {name!r:.40}, which is no field of a message ({hint})")
