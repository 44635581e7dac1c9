"""Text and JSON, masked while they come."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable

from tenth.errors import RequestError
from tenth.serve.privacy_segments import LONGEST, Find, Piece, Segments

Report = Callable[[str], None]
"""Is told the label of each find; may raise PrivacyRefused, and then nothing of it has been shown."""

_OUTSIDE = re.compile(r"[\s{}\[\]:,\"]")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class PrivacyRefused(RequestError):
    """A text holds what is not let through; says of what kind, and where, not what. `shown`: the text before it."""

    shown = ""


def mask_of(label: str) -> str:
    """What stands in the place of a find."""
    return f"[{label}]" if label else ""


class TextMask:
    """Masks a text that comes in pieces; the whole of it, however it is cut, is what the text as one piece gives."""

    def __init__(self, find: Find, report: Report, *, sentences: bool = False) -> None:
        self._segments, self._report, self._held = Segments(find, sentences=sentences), report, ""

    def note(self, text: str) -> None:
        """Context: what stood before, and is not masked."""
        self._segments.note(text)

    def push(self, text: str) -> str:
        """What may be shown now."""
        self._held += text
        return self._shown(self._segments.take(text))

    def finish(self) -> str:
        """What was held back."""
        return self._shown(self._segments.finish())

    def _shown(self, pieces: list[Piece]) -> str:
        shown, at = list[str](), 0
        for piece in pieces:
            if piece.label:
                self._tell(piece.label, shown)
            shown.append(self._held[at : at + piece.length] if piece.label is None else mask_of(piece.label))
            at += piece.length
        self._held = self._held[at:]
        return "".join(shown)

    def _tell(self, label: str, shown: list[str]) -> None:
        try:
            self._report(label)
        except PrivacyRefused as refused:
            refused.shown = "".join(shown)
            raise


class JsonMask:
    """Masks JSON that comes in pieces, so that it stays JSON: within strings by what they mean, numbers become strings.

    What does not begin like an object, an array or a string is masked as text.
    """

    def __init__(self, find: Find, report: Report, *, sentences: bool = False) -> None:
        self._segments, self._report = Segments(find, sentences=sentences), report
        self._text = TextMask(find, report, sentences=sentences)
        self._begun = self._is_text = self._in_string = False
        self._escape = self._atom = self._meaning = ""
        self._spelt: deque[str] = deque()  # how each character of a string that is held was spelt

    def push(self, text: str) -> str:
        """What may be shown now."""
        if not self._begun:
            lead = len(text) - len(text.lstrip())
            if lead == len(text):
                return text
            self._begun, self._is_text = True, text[lead] not in '{["'
        if self._is_text:
            return self._text.push(text)
        shown = [self._in(character) if self._in_string else self._out(character) for character in text]
        return "".join([*shown, self._taken()])

    def finish(self) -> str:
        """What was held back; JSON that was not whole ends where it ended."""
        if self._is_text:
            return self._text.finish()
        rest, self._escape = self._escape, ""
        return self._atom_shown() + self._shown(self._segments.finish()) + rest

    def _out(self, character: str) -> str:
        if not _OUTSIDE.match(character):
            self._atom += character
            return self._atom_shown() if len(self._atom) > LONGEST else ""
        shown = self._atom_shown() + character
        self._segments.note(character)
        self._in_string = character == '"'
        return shown

    def _atom_shown(self) -> str:
        """A number, a word, or what is no JSON: masked as a whole."""
        atom, self._atom = self._atom, ""
        self._spelt.extend(atom)
        shown = self._shown(self._segments.take(atom) + self._segments.finish()) if atom else ""
        return json.dumps(shown.lstrip("-")) if shown != atom and _NUMBER.fullmatch(atom) else shown

    def _in(self, character: str) -> str:
        if self._escape or character == "\\":
            self._escape += character
            return self._escaped()
        if character == '"':
            shown = self._taken() + self._shown(self._segments.finish())
            self._segments.note('"')
            self._in_string = False
            return shown + '"'
        return self._meant(character, character)

    def _escaped(self) -> str:
        """An escape, once it is whole; what is none counts as it stands."""
        spelt = self._escape
        if len(spelt) == 1 or (spelt[1] == "u" and len(spelt) < 6):
            return ""
        self._escape = ""
        if spelt[1] != "u":
            return self._meant(_SHORT.get(spelt[1], spelt[1]), spelt)
        try:
            return self._meant(chr(int(spelt[2:], 16)), spelt)
        except ValueError:
            return self._meant("?", spelt)

    def _meant(self, character: str, spelt: str) -> str:
        self._spelt.append(spelt)
        self._meaning += character
        return ""

    def _taken(self) -> str:
        """What the characters of a string that were read bring forth."""
        meaning, self._meaning = self._meaning, ""
        return self._shown(self._segments.take(meaning)) if meaning else ""

    def _shown(self, pieces: list[Piece]) -> str:
        shown = list[str]()
        for piece in pieces:
            if piece.label:
                self._report(piece.label)
            spelt = [self._spelt.popleft() for _ in range(piece.length)]
            shown.extend(spelt if piece.label is None else [mask_of(piece.label)])
        return "".join(shown)
