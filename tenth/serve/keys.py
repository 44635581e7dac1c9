"""API keys: who may ask, and how much.

A key is 256 random bits, of which the file keeps the SHA-256. A slow hash with salt protects what people choose from
being guessed; nobody guesses 256 bits, and a slow hash on every request would only help those who flood the server.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenth.errors import ConfigError, RequestError
from tenth.serve.limits import Limits

PREFIX = "sk-tenth-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_OWN = ("name", "sha256", "reviews")  # all others are limits
_LONGEST = 512  # characters of a key that is presented; more is not hashed
_FIRST_LINES = "# API keys of `tenth serve`: names, hashes and limits; `tenth key` adds and removes them.\n"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """A name, the SHA-256 of the key as hexadecimal digits, what it may use, and whether it may review all answers."""

    name: str
    sha256: str
    limits: Limits = field(default_factory=Limits)
    reviews: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigError(f"a key's name is {self.name!r:.80}, it must be up to 64 letters, digits, dots, - and _")
        if not isinstance(self.sha256, str) or not _HASH.fullmatch(self.sha256):
            raise ConfigError(
                f"the sha256 of key {self.name} must be 64 hexadecimal digits (`tenth key new` writes it)"
            )


class Keys:
    """The keys that are valid now: of a file, which is read again when it changes, or one secret."""

    def __init__(self, read: Callable[[], tuple[Key, ...]], changed: Callable[[], object]) -> None:
        self._read, self._changed = read, changed
        self._seen = changed()  # looked at before reading: a change between the two is then found again
        self._keys = read()

    @classmethod
    def from_file(cls, path: Path) -> Keys:
        """Keys of a TOML file; ConfigError where it is malformed, OSError where it cannot be read."""
        return cls(lambda: read_keys(path), lambda: _look(path))

    @classmethod
    def of_secret(cls, secret: str) -> Keys:
        """One key without limits, whose name is `default`."""
        if len(secret) < 8 or len(secret) > _LONGEST or not secret.isascii() or not secret.isprintable():
            raise ConfigError(f"an API key must be 8 to {_LONGEST} printable ASCII characters")
        key = Key("default", hash_of(secret), reviews=True)  # there is nobody else
        return cls(lambda: (key,), lambda: None)

    def find(self, presented: str) -> Key | None:
        """Whose key this is. All keys are compared in constant time: neither order nor likeness can be measured."""
        self._refresh()
        given = hash_of(presented[:_LONGEST]) if len(presented) <= _LONGEST else ""
        found = None
        for key in self._keys:
            if hmac.compare_digest(given, key.sha256):
                found = key
        return found

    def holds(self, sha256: str) -> bool:
        """Whether a key that was found before is still valid, by its hash."""
        self._refresh()
        return any(key.sha256 == sha256 for key in self._keys)

    def _refresh(self) -> None:
        """Read a file that has changed. One that cannot be read changes nothing: what was valid stays so, loudly."""
        seen = self._changed()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = self._read()
        except (ConfigError, OSError) as error:
            log.error("the keys stay as they were: %s", error)
        else:
            log.info("keys read again: %s", ", ".join(key.name for key in self._keys) or "none")


def hash_of(key: str) -> str:
    """Its SHA-256 as hexadecimal digits."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file; ConfigError that names the file where it is malformed."""
    try:
        text = path.read_text("utf-8")
        if not text.strip():  # half written, as some editors do; `tenth key rm` leaves a line
            raise ConfigError("the file is empty")
        return _parsed(tomllib.loads(text))
    except (ValueError, RecursionError, ConfigError) as error:  # the first of TOML, numbers, UTF-8
        raise ConfigError(f"{path}: {error}") from None


def _parsed(document: dict[str, Any]) -> tuple[Key, ...]:
    tables = document.pop("key", [])
    if document or not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(
            f"there are tables [[key]] in a file of keys and nothing else: {', '.join(document) or 'key'}"
        )
    keys = [_key(table) for table in tables]
    for one in ("name", "sha256"):
        values = [getattr(key, one) for key in keys]
        if len({*values}) < len(values):
            raise ConfigError(f"two keys have the same {one}")
    return tuple(keys)


def _key(table: dict[str, Any]) -> Key:
    for name in ("name", "sha256"):
        if name not in table:
            raise ConfigError(f"a [[key]] has no {name}")
    try:
        limits = Limits.read({name: value for name, value in table.items() if name not in _OWN})
        if type(reviews := table.get("reviews", False)) is not bool:
            raise ConfigError(f"reviews is {reviews!r:.40}, it must be true or false")
    except ConfigError as error:
        raise ConfigError(f"key {table['name']!r:.80}: {error}") from None
    return Key(table["name"], table["sha256"], limits, reviews)


def new_key(path: Path, name: str, limits: Limits, *, reviews: bool = False) -> str:
    """Add a key to the file, which is made where there is none; gives the key itself, which is kept nowhere."""
    key = PREFIX + secrets.token_urlsafe(32)
    entry = Key(name, hash_of(key), limits, reviews)
    with _only_writer(path):
        there = read_keys(path) if path.exists() else ()
        if any(one.name == name for one in there):
            raise RequestError(f"{path}: has a key {name} already; `tenth key rm {name}` removes it")
        before = path.read_text("utf-8") if path.exists() else _FIRST_LINES
        _replace(path, before.rstrip("\n") + "\n\n" + _table(entry))
    return key


def remove_key(path: Path, name: str) -> None:
    """Remove a key from the file, with whatever comments stand within its table; RequestError where there is none."""
    with _only_writer(path):
        keys = read_keys(path)
        kept = tuple(key for key in keys if key.name != name)
        if len(kept) == len(keys):
            raise RequestError(
                f"{path}: has no key {name} (there are: {', '.join(key.name for key in keys) or 'none'})"
            )
        head, *tables = re.split(r"^(?=\[\[key\]\])", path.read_text("utf-8"), flags=re.MULTILINE)
        text = head + "".join(table for key, table in zip(keys, tables, strict=False) if key.name != name)
        if len(tables) != len(keys) or _parsed(tomllib.loads(text)) != kept:
            raise RequestError(f"{path}: does not begin each key with a line [[key]]: remove {name} by hand")
        _replace(path, text)


def _table(key: Key) -> str:
    lines = [f'name = "{key.name}"', f'sha256 = "{key.sha256}"', *(["reviews = true"] if key.reviews else [])]
    return "\n".join(["[[key]]", *lines, *(f"{name} = {value}" for name, value in key.limits.given.items()), ""])


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """One writer at a time; the lock lies beside the file, which is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    """Put a whole new file in the place of the old one: no reader sees half of it. Only its owner may read it."""
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(number)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _look(path: Path) -> object:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
