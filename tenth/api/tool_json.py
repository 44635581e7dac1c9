"""A JSON object on its way out of a model: passed on as it comes, and closed wherever it breaks off.

What models commonly write instead of JSON is mended: line breaks and other control characters within strings, escapes
that do not exist, a comma before a bracket that closes. White space between the parts becomes what `json.dumps` writes.
"""

from __future__ import annotations

import json
import re

DEEPEST = 60  # brackets within brackets; a message may be 64 deep when it comes back
_LONGEST_NUMBER = 200  # characters; Python reads no integer of 4,300 digits

_SPACE = " \t\r\n"
_PLAIN = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]+')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_DIGITS = re.compile(r"[0-9a-fA-F]*")
_CLOSERS = {"{": "}", "[": "]"}
_ESCAPES = {letter: f"\\{letter}" for letter in '"\\/bfnrt'} | {"'": "'"}


def is_scalar(text: str) -> bool:
    """Whether this is a JSON number, true, false or null."""
    return text in ("true", "false", "null") or (len(text) <= _LONGEST_NUMBER and bool(_NUMBER.fullmatch(text)))


def escaped(text: str) -> str:
    """Text as it stands within a JSON string; what cannot be UTF-8 becomes the replacement character."""
    sound = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return json.dumps(sound, ensure_ascii=False)[1:-1]


class JsonString:
    """The inside of a JSON string, behind its opening quote, until `done`."""

    def __init__(self) -> None:
        self.done = False
        self._high = ""  # an escape that is the first half of a character

    def take(self, text: str, at: int) -> tuple[int, str]:
        """Read from `at` on: how far it came, and what may be passed on. An escape that is not whole waits."""
        out: list[str] = []
        while at < len(text) and not self.done:
            if text[at] == "\\":
                end, piece = self._escape(text, at)
                if end == at:
                    break
                out.append(piece)
                at = end
                continue
            out.append(self._lone())
            plain = _PLAIN.match(text, at)
            end = plain.end() if plain else at + 1
            self.done = text[at] == '"'
            out.append('"' if self.done else text[at:end] if plain else escaped(text[at]))
            at = end
        return at, "".join(out)

    def close(self) -> str:
        """What makes it whole where it breaks off."""
        return self._lone() + '"'

    def _lone(self) -> str:
        """The first half of a character whose second half did not come."""
        high, self._high = self._high, ""
        return "\ufffd" if high else ""

    def _escape(self, text: str, at: int) -> tuple[int, str]:
        letter = text[at + 1 : at + 2]
        digits = text[at + 2 : at + 6]
        if letter in _ESCAPES:
            return at + 2, self._lone() + _ESCAPES[letter]
        if not letter or (letter == "u" and len(digits) < 4 and _DIGITS.fullmatch(digits)):
            return at, ""
        if letter == "u" and _DIGITS.fullmatch(digits):
            return at + 6, self._unit(int(digits, 16), text[at : at + 6])
        return at + 1, self._lone() + "\\\\"  # a backslash that means itself

    def _unit(self, code: int, spelt: str) -> str:
        if 0xDC00 <= code < 0xE000:
            high, self._high = self._high, ""
            return high + spelt if high else "\ufffd"
        lone = self._lone()
        if 0xD800 <= code < 0xDC00:
            self._high = spelt
            return lone
        return lone + spelt


class JsonValue:
    """A JSON value until it is `done`, or `failed`: then `held` is the text behind what was passed on."""

    def __init__(self) -> None:
        self.done = self.failed = False
        self.kind = ""  # its first character
        self.held = ""
        self._pending = ""  # goes out with the next value: a comma, a key
        self._open: list[str] = []
        self._string: JsonString | None = None
        self._expect = "value"

    def take(self, text: str, at: int) -> tuple[int, str]:
        """Read from `at` on: how far it came, and what may be passed on; the rest must be given again with more."""
        out: list[str] = []
        while at < len(text) and not self.done and not self.failed:
            if self._string is not None:
                end, piece = self._inside(self._string, text, at)
            elif text[at] in _SPACE:
                end, piece = at + 1, ""
            else:
                end, piece = self._token(text, at)
            if end == at:
                break
            self.held = "" if piece or self._in_value else self.held + text[at:end]
            out.append(piece)
            at = end
        return at, "".join(out)

    def close(self) -> str:
        """What makes valid JSON of what was passed on."""
        tail = self._string.close() if self._string is not None and self._in_value else ""
        return (tail if self.kind else "null") + "".join(_CLOSERS[one] for one in reversed(self._open))

    @property
    def in_string(self) -> bool:
        """Whether what comes next is within a string."""
        return self._string is not None

    @property
    def _in_value(self) -> bool:
        return self._string is not None and self._expect != "key"

    def _inside(self, string: JsonString, text: str, at: int) -> tuple[int, str]:
        end, piece = string.take(text, at)
        key = self._expect == "key"
        if string.done:
            self._string = None
            self._expect = "colon" if key else self._behind()
        if not key:
            return end, piece
        self._pending += piece
        return end, ""

    def _token(self, text: str, at: int) -> tuple[int, str]:
        letter, expect = text[at], self._expect
        if expect == "colon" and letter == ":":
            self._pending += ": "
            self._expect = "value"
        elif expect == "next" and letter == ",":
            self._pending = ", "
            self._expect = "key" if self._open[-1] == "{" else "item"
        elif expect in ("next", "key", "item") and self._open and letter == _CLOSERS[self._open[-1]]:
            return at + 1, self._closed()
        elif expect == "key" and letter == '"':
            self._string = JsonString()
            self._pending += letter
        elif expect in ("value", "item"):
            return self._begun(text, at)
        else:
            self.failed = True
            return at, ""
        return at + 1, ""

    def _begun(self, text: str, at: int) -> tuple[int, str]:
        """The beginning of a value, or the whole of a number or a word."""
        letter, end = text[at], at + 1
        if letter == '"':
            self._string, self._expect = JsonString(), "value"
        elif letter in _CLOSERS and len(self._open) < DEEPEST:
            self._open.append(letter)
            self._expect = "key" if letter == "{" else "item"
        else:
            found = _SCALAR.match(text, at)
            assert found is not None
            end, letter = found.end(), found.group()
            if end == len(text) and 0 < len(letter) <= _LONGEST_NUMBER:
                return at, ""
            if not is_scalar(letter):
                self.failed = True
                return at, ""
            self._expect = self._behind()
        self.kind = self.kind or letter[0]
        pending, self._pending = self._pending, ""
        return end, pending + letter

    def _closed(self) -> str:
        self._pending = ""
        closer = _CLOSERS[self._open.pop()]
        self._expect = self._behind()
        return closer

    def _behind(self) -> str:
        self.done = not self._open
        return "next"
