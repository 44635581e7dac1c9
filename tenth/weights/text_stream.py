"""Text as it may be shown: ids in, text out, cut before the first stop string."""

from collections.abc import Sequence

from tenth.errors import RequestError
from tenth.weights.tokenizer import Tokenizer


class TextStream:
    """Decodes ids one at a time and holds back whatever could still turn out to be the beginning of a stop string.

    The stop that counts is the one completed first, the longest if several end on the same character; so the result
    depends on the text alone, not on how it was cut into tokens. `stopped` holds that stop, or None. An empty stop
    string, or one that is not a string, is a RequestError.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), *, skip_specials: bool = True):
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise RequestError(f"stop must be a list of strings that are not empty, not {stops!r:.80}")
        self.stopped: str | None = None
        self._detokenizer = tokenizer.stream(skip_specials=skip_specials)
        self._matchers = [_Matcher(stop) for stop in stops]
        self._held = ""

    def push(self, token_id: int) -> str:
        """Give the text that is now safe to show; nothing once a stop string is complete."""
        return "" if self.stopped is not None else self._take(self._detokenizer.push(token_id))

    def finish(self) -> str:
        """Give what was held back, now that no more ids will come."""
        if self.stopped is not None:
            return ""
        text = self._take(self._detokenizer.finish())
        held, self._held = self._held, ""
        return text + held

    def _take(self, text: str) -> str:
        for at, character in enumerate(text, start=1):
            done = [matcher.stop for matcher in self._matchers if matcher.feed(character)]
            if done:
                self.stopped = max(done, key=len)
                shown = (self._held + text[:at])[: -len(self.stopped)]
                self._held = ""
                return shown
        pending = self._held + text
        safe = len(pending) - max((matcher.matched for matcher in self._matchers), default=0)
        self._held = pending[safe:]
        return pending[:safe]


class _Matcher:
    """How much of one stop string the text so far ends with (Knuth, Morris and Pratt 1977): linear in the text."""

    def __init__(self, stop: str):
        self.stop = stop
        self.matched = 0
        self._shorter = [0]  # for each length matched, the next shorter one that the text then also ends with
        for n in range(1, len(stop)):
            self._shorter.append(self._step(self._shorter[n - 1], stop[n]))

    def feed(self, character: str) -> bool:
        """Take one character; whether the stop string is now complete."""
        self.matched = self._step(self.matched, character)
        return self.matched == len(self.stop)

    def _step(self, matched: int, character: str) -> int:
        while matched and self.stop[matched] != character:
            matched = self._shorter[matched - 1]
        return matched + (self.stop[matched] == character)
