"""A stream of text, cut where nothing that the privacy filter looks for can reach across.

What is looked for either has no space in it, or is a chain of number-like words (`+49 30 901820`, `QQ 12 34 56 C`). A
segment is one word, or one such chain; it is judged when it is whole, together with the text before it. Cuts depend on
the characters alone, never on how they came in pieces, so a stream is masked exactly as the whole text is, and not even
the first half of an address is shown before the rest of it has been seen. Ordinary prose is one word late.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

LONGEST = 2048
"""Characters of a segment; a longer chain is judged through a window of so many."""
REACH = 512
"""Characters of the longest find, keys of no length apart: so many at a window's end wait for the next."""
CONTEXT = 64
"""Characters before a segment that are looked at with it."""
_PEM_LONGEST = 8192  # characters of a private key in PEM, 8192 bits of RSA with room to spare
_PEM_LINE = 64

_SPACES = "           　"
_HYPHENS = "‐‑‒–—−"
_DIGITS = {ord(zero) + n: str(n) for zero in "٠۰०" for n in range(10)}
_PLAIN = {**{0xFF01 + n: chr(0x21 + n) for n in range(94)}, **_DIGITS}
_PLAIN |= {ord(c): " " for c in _SPACES} | {ord(c): "-" for c in _HYPHENS}
# scripts written without spaces: where they begin, a word ends
_UNSPACED = re.compile("[⺀-⿿、-鿿가-퟿豈-﫿⦅-￯\U00020000-\U0003ffff]")

_WORD, _GAP = re.compile(r"\S+"), re.compile(r"\s+")
_LINK = re.compile(r"[ \t]{1,3}")
_NUMBER_LIKE = re.compile(r".*\d.*|[^\w\s]*[A-Z]{1,4}[^\w\s]*|[+()./-]{1,3}", re.DOTALL)
_SENTENCE_END = re.compile(r".*[.!?:;][\"')\]]*", re.DOTALL)
_PEM_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}-----")
_PEM_END = re.compile(r"-----END [A-Z0-9 ]{0,40}-----")
_KEY_CHARACTERS = re.compile(r"[^\s\"'`<>]*")


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """What was found in a text: characters `start` to `end`, and what they are."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Piece:
    """So many characters: as they are without a label, else in place of them its mask, or nothing where it is empty."""

    length: int
    label: str | None = None


Find = Callable[[str, int], list[Found]]
"""Finds in a text from a place on, sorted and apart; what stands before that place is context."""


def plain(text: str) -> str:
    """The text with wide letters, odd spaces, hyphens and digits as ASCII, unspaced scripts as line ends; as long."""
    if text.isascii():
        return text
    return _UNSPACED.sub("\n", text.translate(_PLAIN))


class Segments:
    """Takes text, gives pieces once they are certain. With `sentences`, segments are sentences: names need them."""

    def __init__(self, find: Find, *, sentences: bool = False) -> None:
        self._find, self._sentences = find, sentences
        self._raw = self._plain = self._before = ""
        self._swallow: Callable[[bool], Iterator[Piece]] | None = None
        self._swallowed = 0
        self._known = 0, 0

    def note(self, text: str) -> None:
        """Text between what is taken: context for what follows."""
        self._before = (self._before + text)[-CONTEXT:]

    def take(self, text: str) -> list[Piece]:
        """What is certain now."""
        pieces = list[Piece]()
        for at in range(0, len(text), LONGEST):  # a cut copies the rest: of so much, not of the whole text
            self._raw += text[at : at + LONGEST]
            self._plain += plain(text[at : at + LONGEST])
            pieces += self._pieces(False)
        return pieces

    def finish(self) -> list[Piece]:
        """All the rest: a string, or the text, has ended. Another may follow."""
        pieces = list(self._pieces(True))
        self._swallow = None
        return pieces

    def _pieces(self, final: bool) -> Iterator[Piece]:
        while self._raw:
            if self._swallow is not None:
                yield from self._swallow(final)
                if self._swallow is not None:
                    return
                continue
            length = self._segment(self._plain[: LONGEST + 1], final and len(self._raw) <= LONGEST)
            if length is not None:
                yield from self._judge(length)
            elif len(self._raw) > LONGEST:
                yield from self._judge_window()
            else:
                return

    def _segment(self, text: str, final: bool) -> int | None:
        """How many characters the next segment has; None where that is not certain yet."""
        if gap := _GAP.match(text):
            return gap.end()
        at, whole = self._known  # where the next word begins; characters of the words that belong together
        while word := _WORD.match(text, at):
            if "-----BEGIN" in word[0]:
                return whole or self._pem_line(text, word, final)
            if word.end() == len(text) and not final:
                return None
            if self._sentences:
                if _SENTENCE_END.fullmatch(word[0]):
                    return word.end()
            elif not _NUMBER_LIKE.fullmatch(word[0]):
                return whole or word.end()
            whole = word.end()
            after = self._next_word(text, whole)
            if after is None or after == len(text):
                return whole if after is None or final else None
            at = after
            self._known = at, whole
        return whole

    @staticmethod
    def _next_word(text: str, end: int) -> int | None:
        """Where the word behind a small gap begins; None where the chain ends here."""
        link = _LINK.match(text, end)
        if link is None:
            return None if end < len(text) else end
        return None if link.end() < len(text) and text[link.end()].isspace() else link.end()

    def _pem_line(self, text: str, word: re.Match[str], final: bool) -> int | None:
        """The segment that ends with a line `-----BEGIN ...-----`, or, where it is none, with its first word."""
        begin = text.index("-----BEGIN", word.start())
        if line := _PEM_BEGIN.match(text, begin):
            return line.end()
        rest = text[begin : begin + _PEM_LINE]
        open_yet = (len(rest) < _PEM_LINE and "\n" not in rest) or word.end() == len(text)
        return None if open_yet and not final else word.end()

    def _judge(self, length: int) -> Iterator[Piece]:
        line = _PEM_BEGIN.search(self._plain, 0, length)
        if line is not None and line.end() == length and "PRIVATE KEY" in line[0]:
            yield from self._give(line.start(), self._found(line.start()))
            yield self._cut(length - line.start(), "PRIVATE_KEY")
            self._swallow, self._swallowed = self._swallow_pem, 0
        else:
            yield from self._give(length, self._found(length))

    def _judge_window(self) -> Iterator[Piece]:
        """Give what ends well before the window does: whatever begins there has been seen whole."""
        found = self._found(LONGEST)
        until = LONGEST - REACH
        for one in found:
            if one.start < until < one.end:
                until = one.start if one.end == LONGEST else one.end
        if until == 0:  # a key without end: all of it is one
            yield self._cut(LONGEST, found[0].label)
            self._swallow = self._swallow_key
        else:
            yield from self._give(until, [one for one in found if one.end <= until])

    def _found(self, length: int) -> list[Found]:
        begin = len(self._before)
        found = self._find(self._before + self._raw[:length], begin)
        return [Found(one.start - begin, one.end - begin, one.label) for one in found]

    def _give(self, length: int, found: list[Found]) -> Iterator[Piece]:
        done = 0
        for one in found:
            if one.start > done:
                yield self._cut(one.start - done)
            yield self._cut(one.end - one.start, one.label)
            done = one.end
        if length > done:
            yield self._cut(length - done)

    def _cut(self, length: int, label: str | None = None) -> Piece:
        self.note(self._raw[:length])
        self._raw, self._plain, self._known = self._raw[length:], self._plain[length:], (0, 0)
        return Piece(length, label)

    def _swallow_pem(self, final: bool) -> Iterator[Piece]:
        """Drop a private key to its last line, or as many characters as one may have."""
        room = _PEM_LONGEST - self._swallowed
        end = _PEM_END.search(self._plain, 0, room)
        if end is not None or len(self._raw) >= room:
            self._swallow = None
        held = 0 if final else _PEM_LINE  # may be the beginning of the last line
        length = end.end() if end is not None else min(room, len(self._raw) - (held if self._swallow else 0))
        if length > 0:
            self._swallowed += length
            yield self._cut(length, "")

    def _swallow_key(self, final: bool) -> Iterator[Piece]:
        rest = _KEY_CHARACTERS.match(self._plain)
        length = rest.end() if rest is not None else 0
        if length < len(self._raw):
            self._swallow = None
        if length:
            yield self._cut(length, "")
