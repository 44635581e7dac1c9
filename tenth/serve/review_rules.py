"""Rules that flag answers for a person to look at, as a TOML file says them.

All that a rule names must hold. Patterns are the operator's, the texts strangers': a pattern that goes back and forth
over a text that was made for it would take for ever, so each search has a bound of time, and runs without Python's
lock. What was not done in time is flagged: a person can tell.
"""

from __future__ import annotations

import math
import random
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import regex  # type: ignore[import-untyped]

from tenth.errors import ConfigError
from tenth.serve.review import MOST_REASONS, Reason

PATTERN_SECONDS = 0.25
FINISHES = ("stop", "length", "tool_calls", "content_filter")
PRIVACY = ("found", "refused")
_MOST_RULES = 100
_LONGEST_NAME = 64
_LONGEST_PATTERN = 10_000
_WIDEST = 4096
_LARGEST = 1 << 20  # bytes of a file


@dataclass(frozen=True, slots=True)
class Seen:
    """What rules look at: texts as the client was shown them, and the log-probability of each token of the answer.

    `prompt` is what has come since the answer before, `finds` how often the privacy filter found what in the answer.
    """

    prompt: str
    answer: str
    finish: str
    logprobs: Sequence[float] = ()
    finds: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression in the syntax of the `regex` library, which has that of `re`."""

    compiled: Any

    def search(self, text: str, what: str) -> str | None:
        """Where it matches, in words; None where it does not."""
        try:
            found = self.compiled.search(text, timeout=PATTERN_SECONDS, concurrent=True)
        except TimeoutError:
            return f"{what} takes the pattern longer than {PATTERN_SECONDS:g} s"
        return None if found is None else f"{what} has {found[0][:80]!r}"


@dataclass(frozen=True, slots=True)
class Rule:
    """A name, and what must hold, None where it does not matter.

    `mean_logprob` and `worst_logprob` are what the mean log-probability of all tokens, and of `window` tokens in a row,
    lies below; `share` of all others that hold is drawn by chance.
    """

    name: str
    answer: Pattern | None = None
    prompt: Pattern | None = None
    finish: tuple[str, ...] | None = None
    privacy: Literal["found", "refused"] | None = None
    mean_logprob: float | None = None
    worst_logprob: float | None = None
    window: int | None = None
    share: float | None = None

    @property
    def scored(self) -> bool:
        """Whether it needs log-probabilities."""
        return self.mean_logprob is not None or self.worst_logprob is not None

    def reason(self, seen: Seen, chance: Callable[[], float]) -> Reason | None:
        """Why it flags an answer; None where it does not. What is quick is looked at first."""
        words = list[str]()
        for look in (self._finish, self._privacy, self._scores, self._patterns):
            found = look(seen)
            if found is None:
                return None
            words += found
        if self.share is not None:
            if chance() >= self.share:
                return None
            words.append(f"drawn by chance, {100 * self.share:g} % of answers")
        return Reason("confidence" if self.scored else "rule", f"{self.name}: {'; '.join(words)}")

    def _finish(self, seen: Seen) -> list[str] | None:
        if self.finish is None:
            return []
        return [f"it ended by {seen.finish}"] if seen.finish in self.finish else None

    def _privacy(self, seen: Seen) -> list[str] | None:
        if self.privacy is None:
            return []
        if self.privacy == "refused":
            return ["the privacy filter ended it"] if seen.finish == "content_filter" else None
        return [f"the privacy filter found {', '.join(sorted(seen.finds))}"] if seen.finds else None

    def _scores(self, seen: Seen) -> list[str] | None:
        words = list[str]()
        if self.mean_logprob is not None:
            mean = mean_of(seen.logprobs)
            if mean is None or mean >= self.mean_logprob:
                return None
            words.append(f"mean log-probability {mean:.2f}, below {self.mean_logprob:g}")
        if self.worst_logprob is not None and self.window is not None:
            worst = worst_window(seen.logprobs, self.window)
            if worst is None or worst[0] >= self.worst_logprob:
                return None
            where = f"over {min(self.window, len(seen.logprobs))} tokens from token {worst[1] + 1}"
            words.append(f"mean log-probability {worst[0]:.2f} {where}, below {self.worst_logprob:g}")
        return words

    def _patterns(self, seen: Seen) -> list[str] | None:
        words = list[str]()
        for pattern, text, what in ((self.answer, seen.answer, "the answer"), (self.prompt, seen.prompt, "the prompt")):
            if pattern is not None:
                if (found := pattern.search(text, what)) is None:
                    return None
                words.append(found)
        return words


class Rules:
    """All rules of a server; `chance` draws numbers from 0 to 1."""

    def __init__(self, rules: Sequence[Rule] = (), chance: Callable[[], float] = random.random) -> None:
        self._rules, self._chance = tuple(rules), chance

    def __len__(self) -> int:
        return len(self._rules)

    @property
    def scored(self) -> bool:
        """Whether any needs log-probabilities."""
        return any(rule.scored for rule in self._rules)

    def reasons(self, seen: Seen) -> tuple[Reason, ...]:
        """Why an answer is flagged; none where it is not."""
        found = (rule.reason(seen, self._chance) for rule in self._rules)
        return tuple(reason for reason in found if reason is not None)[:MOST_REASONS]


def mean_of(logprobs: Sequence[float]) -> float | None:
    """Their mean; None where there are none."""
    return math.fsum(logprobs) / len(logprobs) if logprobs else None


def worst_window(logprobs: Sequence[float], window: int) -> tuple[float, int] | None:
    """The lowest mean of so many in a row (of all, where there are fewer), and where it begins."""
    width = min(window, len(logprobs))
    if not width:
        return None
    total = worst = math.fsum(logprobs[:width])
    begin = 0
    for end in range(width, len(logprobs)):
        total += logprobs[end] - logprobs[end - width]
        if total < worst:
            worst, begin = total, end - width + 1
    return worst / width, begin


def read_rules(path: Path) -> Rules:
    """The rules of a file; ConfigError that names file and rule where it is malformed, OSError where there is none."""
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            raise ConfigError(f"is larger than {_LARGEST:,} bytes")
        return Rules(_parsed(tomllib.loads(raw.decode())))
    except (ValueError, RecursionError) as error:  # no UTF-8, no TOML, too many digits, too deep
        raise ConfigError(f"{path}: is no TOML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _parsed(document: dict[str, Any]) -> list[Rule]:
    tables = document.pop("rule", None)
    if document or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"there are tables [[rule]] in a file of rules and nothing else: {', '.join(document)}")
    if not 0 < len(tables) <= _MOST_RULES:
        raise ConfigError(f"there are {len(tables)} rules, there may be 1 to {_MOST_RULES}")
    rules = [_rule(table) for table in tables]
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two rules have the name {name!r}")
    return rules


def _rule(table: Mapping[str, Any]) -> Rule:
    name = table.get("name")
    if not isinstance(name, str) or not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise ConfigError(f"the name of a [[rule]] is {name!r:.80}, it must be 1 to {_LONGEST_NAME} characters")
    conditions = {key: value for key, value in table.items() if key != "name"}
    try:
        for key in conditions:
            if key not in _READERS:
                raise ConfigError(f"a rule has no {key!r:.40} (there are: name, {', '.join(_READERS)})")
        if not conditions:
            raise ConfigError(f"says nothing that must hold (there are: {', '.join(_READERS)})")
        if ("worst_logprob" in conditions) != ("window" in conditions):
            raise ConfigError("worst_logprob and window (in tokens) go together")
        return Rule(name, **{key: _READERS[key](key, value) for key, value in conditions.items()})
    except ConfigError as error:
        raise ConfigError(f"rule {name!r}: {error}") from None


def _pattern(key: str, value: object) -> Pattern:
    if not isinstance(value, str) or not value or len(value) > _LONGEST_PATTERN:
        raise ConfigError(f"{key} must be a regular expression of 1 to {_LONGEST_PATTERN:,} characters")
    try:
        return Pattern(regex.compile(value))
    except (regex.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{key} is no regular expression: {error}") from None


def _finishes(key: str, value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or any(one not in FINISHES for one in values):
        raise ConfigError(f"{key} is {value!r:.80}, it must hold some of {', '.join(FINISHES)}")
    return tuple(values)


def _privacy(key: str, value: object) -> object:
    if value not in PRIVACY:
        raise ConfigError(f"{key} is {value!r:.80}, it must be one of {', '.join(PRIVACY)}")
    return value


def _logprob(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -math.inf < value < 0:
        raise ConfigError(f"{key} is {value!r:.40}, it must be a number below 0 (the logarithm of a probability)")
    return float(value)


def _window(key: str, value: object) -> int:
    if type(value) is not int or not 1 <= value <= _WIDEST:
        raise ConfigError(f"{key} is {value!r:.40}, it must be a whole number from 1 to {_WIDEST:,}")
    return value


def _share(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"{key} is {value!r:.40}, it must be a number above 0 and at most 1")
    return float(value)


_READERS: dict[str, Callable[[str, object], Any]] = {
    "answer": _pattern,
    "prompt": _pattern,
    "finish": _finishes,
    "privacy": _privacy,
    "mean_logprob": _logprob,
    "worst_logprob": _logprob,
    "window": _window,
    "share": _share,
}
