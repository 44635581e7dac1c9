"""The privacy filter: what comes in and what goes out of a server, masked or refused.

What is found becomes `[EMAIL]`, `[PHONE]`, `[CARD]`, `[IBAN]`, `[ID]`, `[SECRET]`, `[PRIVATE_KEY]`, and, where names
are asked for, `[NAME]` and `[PLACE]`. Nothing that was found is kept, logged or said in an error: only what kind it
was.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from math import isfinite
from typing import Any, Literal

from tenth.errors import RequestError
from tenth.serve.privacy_segments import Find
from tenth.serve.privacy_text import JsonMask, PrivacyRefused, TextMask

Mode = Literal["off", "mask", "refuse"]
MODES: tuple[Mode, ...] = ("off", "mask", "refuse")

# they would show, token by token, what the text hides
_TELLTALE = ("logprobs", "top_logprobs", "prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids")
_LEAST_NUMBER = 10**11  # numbers below have too few digits for a card


class Privacy:
    """What is looked for, and what is done with it. `names` needs presidio; `find` stands for all rules in tests."""

    def __init__(self, mode: Mode = "off", *, names: bool = False, find: Find | None = None) -> None:
        if mode not in MODES:
            raise RequestError(f"privacy is {mode!r:.40}, it must be one of {', '.join(MODES)}")
        self.mode, self.names = mode, names
        self._find = (find or _rules(names)) if mode != "off" else _nothing
        self.finds: Counter[str] = Counter()  # how many of each kind
        self._counting = threading.Lock()

    @property
    def on(self) -> bool:
        """Whether anything is done at all."""
        return self.mode != "off"

    def check(self, body: Mapping[str, Any]) -> None:
        """Refuse what would go around the filter."""
        if not self.on:
            return
        for name in _TELLTALE:
            if body.get(name) is not None and body[name] is not False:  # 0 asks for the tokens too
                raise RequestError(f"{name} does not go with this server's privacy filter: it shows what a text hides")
        for name in ("prompt", "input", "tokens"):
            if _has_ids(body.get(name)):
                raise RequestError(f"{name} holds token ids, which this server's privacy filter cannot read: send text")

    def body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A request's body with all its texts masked; PrivacyRefused where that is the mode, and there is something."""
        self.check(body)
        if not self.on:
            return dict(body)
        masked = {}
        for name, value in body.items():
            shown = self._string(name, "", "the body")
            masked[shown] = self._value(value, name, shown)
        return masked

    def _value(self, value: Any, name: str, where: str) -> Any:
        """Masked, whatever it is; `name` is of the field that it is the value of, or of the list that it is in."""
        if isinstance(value, str):
            return self._string(value, name, where)
        if isinstance(value, Mapping):
            masked = {}
            for key, one in value.items():
                shown = self._string(key, "", f"{where}.") if isinstance(key, str) else key
                masked[shown] = self._value(one, key, f"{where}.{shown}")
            return masked
        if isinstance(value, list | tuple):
            return [self._value(one, name, f"{where}[{number}]") for number, one in enumerate(value)]
        if type(value) in (int, float) and isfinite(value) and abs(value) >= _LEAST_NUMBER and "." in where:
            digits = str(int(value))
            shown = self._string(digits, name, where)
            return value if shown == digits else shown
        return value

    def _string(self, text: str, name: str, where: str) -> str:
        """What is JSON stays JSON."""
        mask: TextMask | JsonMask
        if text[:1] in ("{", "[") and _is_json(text):
            mask = JsonMask(self._find, self._report(where), sentences=self.names)
        else:
            mask = TextMask(self._find, self._report(where), sentences=self.names)
            mask.note(f"\n{name}: ")
        return mask.push(text) + mask.finish()

    def answer(self) -> PrivateAnswer:
        """For one request's answer, as it comes."""
        return PrivateAnswer(self.on, self._find, self._report("the answer"), self.names)

    def _report(self, where: str) -> Callable[[str], None]:
        def report(label: str) -> None:
            with self._counting:
                self.finds[label] += 1
            if self.mode == "refuse":
                raise PrivacyRefused(f"{where} holds what this server does not let through ({label})")

        return report


class PrivateAnswer:
    """Streams of one answer, each under a key of its own: a choice's content, its reasoning, each of its tool calls."""

    def __init__(self, on: bool, find: Find, report: Callable[[str], None], names: bool) -> None:
        self._on, self._find, self._told, self._names = on, find, report, names
        self._masks: dict[Hashable, TextMask | JsonMask] = {}
        self.finds: Counter[str] = Counter()  # how many of each kind

    def _report(self, label: str) -> None:
        self.finds[label] += 1
        self._told(label)

    def push(self, key: Hashable, text: str) -> str:
        """What of a text may be shown now, maybe nothing; PrivacyRefused before any of a find is."""
        return self._pushed(key, text, TextMask)

    def push_json(self, key: Hashable, text: str) -> str:
        """The same of JSON, which stays JSON."""
        return self._pushed(key, text, JsonMask)

    def _pushed(self, key: Hashable, text: str, kind: type[TextMask] | type[JsonMask]) -> str:
        if not self._on:
            return text
        if key not in self._masks:
            self._masks[key] = kind(self._find, self._report, sentences=self._names)
        return self._masks[key].push(text)

    def finish(self, key: Hashable) -> str:
        """What was held back of a stream that has ended."""
        mask = self._masks.pop(key, None)
        return mask.finish() if mask is not None else ""


def _rules(names: bool) -> Find:
    from tenth.serve.privacy_rules import find

    if not names:
        return find
    from tenth.serve.privacy_names import with_names

    return with_names(find)


def _nothing(text: str, begin: int) -> list[Any]:
    return []


def _has_ids(value: Any) -> bool:
    """Whether a prompt holds token ids, at any depth, maybe among texts."""
    if isinstance(value, list):
        return any(map(_has_ids, value))
    return isinstance(value, int | float)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
