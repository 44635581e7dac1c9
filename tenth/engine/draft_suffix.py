"""Drafts from all places where a sequence, or an earlier answer of its tenant, read as the sequence does now.

The idea is SuffixDecoding's (arXiv 2411.04975): continuations of matching suffixes, weighed by how often they were
seen, and of all matches the one whose draft is expected to be accepted furthest. Where that keeps a suffix tree with
counts, here is an index of n-grams of a few lengths with their latest places: a tree moves a count at every depth with
every token and cannot forget a text; a place is entered once, and goes with its text.
"""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from tenth.engine.draft import Draft, matching
from tenth.errors import RequestError

GRAMS = (16, 8, 4, 2)
"""Lengths of the n-grams by which places are found."""

_PLACES = 32  # of an n-gram, the latest
_ENOUGH = 16  # places by longer n-grams, before shorter ones are asked
_NUMBER = 32  # bits of a place within its text


class _Places:
    """Behind which places of some texts an n-gram was seen: its latest ones, by the hash of its tokens.

    Hashes may collide; whoever asks looks at the text.
    """

    def __init__(self) -> None:
        self._of: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def __bool__(self) -> bool:
        return bool(self._of)

    def enter(self, number: int, text: Sequence[int], at: int) -> None:
        for key in self._keys(text, at):
            places = self._of.setdefault(key, [])
            places.append(number << _NUMBER | at)
            if len(places) > _PLACES:
                del places[0]

    def drop(self, number: int, text: Sequence[int]) -> None:
        """All places of a text."""
        for at in range(len(text)):
            for key in self._keys(text, at):
                left = [place for place in self._of.get(key, ()) if place >> _NUMBER != number]
                if left:
                    self._of[key] = left
                else:
                    self._of.pop(key, None)

    def find(self, tokens: Sequence[int], length: int) -> list[tuple[int, int]]:
        """The number of a text and the place in it, latest first, where the last `length` tokens may have been."""
        if length > len(tokens):
            return []
        places = self._of.get(hash(tuple(tokens[-length:])), [])
        return [(place >> _NUMBER, place & (1 << _NUMBER) - 1) for place in reversed(places)]

    def _keys(self, text: Sequence[int], at: int) -> Iterator[int]:
        return (hash(tuple(text[at - length : at])) for length in GRAMS if length <= at)


@dataclass(frozen=True, slots=True)
class _Answer:
    tenant: Hashable
    tokens: array[int]


class AnswerStore:
    """Earlier answers, found by the tenant whose they are: `tokens` of them in all, those unused for longest go first.

    About half a kilobyte a token.
    """

    def __init__(self, tokens: int = 100_000) -> None:
        if tokens <= GRAMS[-1]:
            raise RequestError(f"a store of {tokens} tokens of answers keeps none; it must be more than {GRAMS[-1]}")
        self._limit, self._held = tokens, 0
        self._answers: OrderedDict[int, _Answer] = OrderedDict()  # the least recently used first
        self._places: dict[Hashable, _Places] = {}
        self._numbers = count()

    def __len__(self) -> int:
        """Tokens held."""
        return self._held

    @property
    def entries(self) -> int:
        """Places in the index: at most one for each token and each length of GRAMS."""
        return sum(map(len, self._places.values()))

    def add(self, tenant: Hashable, answer: Sequence[int]) -> None:
        """Keep an answer; of one that is longer than the store, the end. One too short to be found is not kept."""
        tokens = array("i", answer[-self._limit :])
        if len(tokens) <= GRAMS[-1]:
            return
        while self._held + len(tokens) > self._limit:
            self._evict()
        number = next(self._numbers)
        self._answers[number] = _Answer(tenant, tokens)
        self._held += len(tokens)
        places = self._places.setdefault(tenant, _Places())
        for at in range(len(tokens)):
            places.enter(number, tokens, at)

    def find(self, tenant: Hashable, tokens: Sequence[int], length: int) -> list[tuple[int, Sequence[int], int]]:
        """Number, text and place where answers of the tenant may read like the last `length` tokens; latest first."""
        places = self._places.get(tenant)
        found = places.find(tokens, length) if places is not None else []
        return [(number, self._answers[number].tokens, at) for number, at in found]

    def use(self, number: int) -> None:
        """An answer has just been of use."""
        self._answers.move_to_end(number)

    def _evict(self) -> None:
        number, answer = self._answers.popitem(last=False)
        places = self._places[answer.tenant]
        places.drop(number, answer.tokens)
        self._held -= len(answer.tokens)
        if not places:
            del self._places[answer.tenant]


@dataclass(frozen=True, slots=True)
class _Match:
    """A text that read like the sequence's last `length` tokens before `at`; `number` is the store's, None the own."""

    text: Sequence[int]
    at: int
    length: int
    number: int | None = None

    def following(self, k: int, drafted: Sequence[int]) -> int | None:
        """The k-th token behind; the own text goes on with what is drafted."""
        place = self.at + k
        if place < len(self.text):
            return self.text[place]
        return drafted[place - len(self.text)] if self.number is None else None


class SuffixMatch:
    """Drafts what most often followed the present end, in the sequence and in its tenant's earlier answers.

    For each length p of a match the draft follows the most frequent next token among places that match p tokens or
    more; a token seen c times of n has the chance c / (n + 1 / p), so that one place alone counts the more, the longer
    it agrees. The p with the highest expected number of accepted tokens is taken.
    """

    def __init__(self, store: AnswerStore | None = None, tenant: Hashable = None) -> None:
        self._store, self._tenant = store, tenant
        self._tokens: list[int] = []
        self._places, self._prompt = _Places(), 0

    def begin(self, prompt: Sequence[int]) -> None:
        """A new sequence with this prompt."""
        self._tokens, self._places, self._prompt = [], _Places(), len(prompt)
        self.take(prompt)

    def take(self, tokens: Sequence[int]) -> None:
        """Read on; an n-gram is entered with the token behind it."""
        for token in tokens:
            self._places.enter(0, self._tokens, len(self._tokens))
            self._tokens.append(token)

    def propose(self, most: int) -> Draft:
        """The best draft of any match."""
        matches = self.matches()
        best = Draft([], [], "suffix")
        expected = 0.0
        for length in sorted({match.length for match in matches}, reverse=True):
            draft, value = _follow([match for match in matches if match.length >= length], length, most)
            if value > expected:
                best, expected = draft, value
        self._note_use(matches, best)
        return best

    def close(self) -> None:
        """The answer goes to the store."""
        answer = self._tokens[self._prompt :]
        if self._store is not None and answer:
            self._store.add(self._tenant, answer)
        self.begin([])

    def matches(self) -> list[_Match]:
        """Places that read like the present end, found by the longest n-grams first."""
        tokens, found = self._tokens, dict[tuple[int | None, int], _Match]()
        for length in GRAMS:
            if len(found) >= _ENOUGH:
                break
            places: list[tuple[int | None, Sequence[int], int]] = [
                (None, tokens, at) for _, at in self._places.find(tokens, length)
            ]
            if self._store is not None:
                places += self._store.find(self._tenant, tokens, length)
            for number, text, at in places:
                if (number, at) not in found and (agrees := matching(text, at, tokens)) >= length:
                    found[number, at] = _Match(text, at, agrees, number)
        return list(found.values())

    def _note_use(self, matches: Sequence[_Match], draft: Draft) -> None:
        if self._store is not None and draft.tokens:
            for match in matches:
                if match.number is not None and match.following(0, draft.tokens) == draft.tokens[0]:
                    self._store.use(match.number)


def _follow(matches: Sequence[_Match], length: int, most: int) -> tuple[Draft, float]:
    """The most frequent continuation of these matches, token by token, and how much of it is expected to stand."""
    draft, expected, chance = Draft([], [], "suffix"), 0.0, 1.0
    for k in range(most):
        nexts = [match.following(k, draft.tokens) for match in matches]
        seen = Counter(token for token in nexts if token is not None)
        if not seen:
            break
        token, times = seen.most_common(1)[0]
        draft.tokens.append(token)
        draft.chances.append(times / (seen.total() + 1 / length))
        chance *= draft.chances[-1]
        expected += chance
        matches = [match for match, following in zip(matches, nexts, strict=True) if following == token]
    return draft, expected
