"""Added tokens: cutting a text at them, and marking a stranger's text so that it holds none.

A control token such as `<|im_end|>` means something only where the chat template wrote it. Strings that come from
people and tools are therefore *marked* before a template sees them: a noncharacter goes in wherever an added token
could begin inside the string, or go on into it from outside. Afterwards the text is cut at the tokens that are still
whole, and the marker is taken out of the rest.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tenth.errors import RequestError

MARKERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))  # Unicode's noncharacters: never assigned, never in honest text


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text before any merging: `<|im_end|>` (special), `<think>` (not special)."""

    id: int
    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class Cutter:
    """Cuts a text at its added tokens, as Hugging Face's tokenizers do: leftmost first, then the longest."""

    def __init__(self, tokens: Sequence[AddedToken]):
        self._tokens = {token.content: token for token in tokens}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def cut(self, text: str, marker: str) -> list[str | int]:
        """Cut `text` into ids of added tokens and the text between them, which is freed of `marker`."""
        pieces: list[str | int] = []
        done = 0
        for match in self._pattern.finditer(text):
            token, start, end = self._tokens[match[0]], match.start(), match.end()
            if start < done or (end - start == 1 and text.startswith(marker, end)) or not _fits(token, text, match):
                continue
            if token.lstrip:
                start = max(done, len(text[:start].rstrip()))
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip())
            pieces += [_unmark(text[done:start], marker), token.id]
            done = end
        return [piece for piece in [*pieces, _unmark(text[done:], marker)] if piece != ""]


def _fits(token: AddedToken, text: str, match: re.Match[str]) -> bool:
    if not token.single_word:
        return True
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    return not re.match(r"\w", before) and not re.match(r"\w", after)


def fresh_marker(taken: str) -> str:
    """Choose a noncharacter that `taken`, a JSON text with ASCII escapes, does not contain."""
    marker = next((marker for marker in MARKERS if escaped(marker) not in taken), None)
    if marker is None:
        raise RequestError("the request holds all of the noncharacters U+FDD0 to U+FDEF; one must be free")
    return marker


def escaped(marker: str) -> str:
    """Spell the marker as JSON with ASCII escapes does: a template may write its data that way."""
    return f"\\u{ord(marker):04x}"


def _unmark(text: str, marker: str) -> str:
    return text.replace(marker, "").replace(escaped(marker), "")


class Marking:
    """Marks strings so that no token of `tokens` can be found in them, however a template joins them to others.

    `wary` also marks every character of punctuation that begins a token, whatever follows it: a template that deletes
    words (`content | replace("/no_think", "")`) could otherwise be made to assemble a token from two harmless halves.
    """

    def __init__(self, tokens: Iterable[str], *, wary: bool):
        contents = sorted(set(tokens))
        self._longest = max(map(len, contents), default=0)
        self._by_first = {first: tuple(t for t in contents if t[0] == first) for first in {t[0] for t in contents}}
        self._first = re.compile("|".join(map(re.escape, sorted(self._by_first))) or "(?!)")
        self._always = {c for c in self._by_first if wary and not c.isalnum() and not c.isspace()}
        self._heads = {content[:n] for content in contents for n in range(1, len(content))}
        self._tails = {content[n:] for content in contents for n in range(1, len(content))}
        self._insides = "\0".join(content[1:] for content in contents)

    def mark(self, text: str, marker: str) -> str:
        """Put `marker` after each character that could begin a token, and in front if a token could go on into it."""
        cuts = [match.end() for match in self._first.finditer(text) if self._begins(text, match.start())]
        if self._goes_on(text):
            cuts.insert(0, 0)
        if not cuts:
            return text
        bounds = [0, *cuts, len(text)]
        return marker.join(text[start:end] for start, end in pairwise(bounds))

    def _begins(self, text: str, at: int) -> bool:
        first = text[at]
        if first in self._always or text.startswith(self._by_first[first], at):
            return True
        return len(text) - at < self._longest and text[at:] in self._heads

    def _goes_on(self, text: str) -> bool:
        """Whether a token begun before `text` could end in it or run through all of it."""
        if any(text[:n] in self._tails for n in range(1, min(len(text), self._longest) + 1)):
            return True
        return 0 < len(text) < self._longest and text in self._insides
