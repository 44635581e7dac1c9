"""API keys: files, hashes, changes while the server runs, the command."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tenth.commands import app
from tenth.errors import ConfigError, RequestError
from tenth.serve.keys import Keys, new_key, read_keys, remove_key
from tenth.serve.limits import Limits


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.toml"


def test_a_new_key_is_found_and_kept_as_a_hash(path: Path) -> None:
    limits = Limits(requests_per_minute=60, tokens_per_day=1000)
    alice, bob = new_key(path, "alice", limits), new_key(path, "bob", Limits())
    keys = Keys.from_file(path)
    found = keys.find(alice)
    assert found is not None
    assert (found.name, found.limits) == ("alice", limits)
    assert found.sha256 == hashlib.sha256(alice.encode()).hexdigest()
    assert (keys.find(bob) or found).name == "bob"
    assert re.fullmatch(r"sk-tenth-[\w-]{43}", alice)
    assert alice[9:] not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


@given(st.text(max_size=40))
def test_nothing_else_is_a_key(presented: str) -> None:
    keys = Keys.of_secret("correct horse")
    assert (keys.find(presented) is not None) == (presented == "correct horse")


def test_what_is_too_long_is_no_key() -> None:
    keys = Keys.of_secret("x" * 512)
    assert keys.find("x" * 512) is not None
    assert keys.find("x" * 513) is None
    assert keys.find("\ud800" * 9) is None


def test_every_key_is_compared(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No early exit: the number of comparisons does not tell where a key stands."""
    made = [new_key(path, f"key{number}", Limits()) for number in range(5)]
    keys, compared = Keys.from_file(path), list[str]()
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: compared.append(b) or a == b)
    for presented in (made[0], made[4], "wrong"):
        compared.clear()
        keys.find(presented)
        assert len(compared) == 5


def test_changes_are_taken_over(path: Path) -> None:
    first = new_key(path, "first", Limits())
    keys = Keys.from_file(path)
    second = new_key(path, "second", Limits())
    assert keys.find(second) is not None
    remove_key(path, "first")
    assert keys.find(first) is None
    assert keys.find(second) is not None


def test_a_file_that_cannot_be_read_changes_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = new_key(path, "first", Limits())
    keys = Keys.from_file(path)
    for spoil in (lambda: path.write_text("[[key]"), lambda: path.write_text(""), path.unlink):
        spoil()
        with caplog.at_level(logging.ERROR):
            assert keys.find(first) is not None
            assert keys.find("wrong") is None
        assert sum("stay as they were" in record.message for record in caplog.records) == 1
        caplog.clear()
    path.write_text("# nobody\n")
    assert keys.find(first) is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[key]]\nname = 'a'", "has no sha256"),
        ("[[key]]\nsha256 = 'a'", "has no name"),
        ("[[key]]\nname = 'a b'\nsha256 = 'x'", "name is 'a b'"),
        ("[[key]]\nname = 'a'\nsha256 = 'abc'", "64 hexadecimal"),
        ("[[key]]\nname = 'a'\nsha256 = '{0}'\nspeed = 1", "no limit is named 'speed'"),
        ("[[key]]\nname = 'a'\nsha256 = '{0}'\ntokens_per_day = 0", "at least 1"),
        ("[[key]]\nname = 'a'\nsha256 = '{0}'\ntokens_per_day = true", "at least 1"),
        ("[[key]]\nname = 'a'\nsha256 = '{0}'\nreviews = 1", "reviews is 1, it must be true or false"),
        ("[[key]]\nname = 'a'\nsha256 = '{0}'\n[[key]]\nname = 'b'\nsha256 = '{0}'", "same sha256"),
        ("[[key]]\nname = 'a'\nsha256 = '{0}'\n[[key]]\nname = 'a'\nsha256 = '{1}'", "same name"),
        ("[keys]\nname = 'a'", "nothing else: keys"),
        ("", "the file is empty"),
        ("x = " + "9" * 5000, "integer"),
        ("x = " + "[" * 3000, "recursion"),
        ("key = 3", "nothing else: key"),
        ("key = [1]", "nothing else"),
        ("\xff", "invalid"),
    ],
)
def test_malformed_files_are_refused_by_name(path: Path, text: str, complaint: str) -> None:
    path.write_text(text.format("0" * 64, "1" * 64), encoding="latin-1")
    with pytest.raises(ConfigError, match=re.escape(str(path))) as raised:
        Keys.from_file(path)
    assert complaint.lower() in str(raised.value).lower()


def test_comments_and_order_stay(path: Path) -> None:
    path.write_text("# ours\n" + "".join(f"\n[[key]]\nname = '{n}'  # {n}\nsha256 = '{n * 64}'\n" for n in "abc"))
    remove_key(path, "b")
    assert path.read_text() == "# ours\n" + "".join(
        f"\n[[key]]\nname = '{n}'  # {n}\nsha256 = '{n * 64}'\n" for n in "ac"
    )
    with pytest.raises(RequestError, match=r"no key b \(there are: a, c\)"):
        remove_key(path, "b")
    inline = f"key = [{{name = 'a', sha256 = '{'a' * 64}'}}]"
    path.write_text(inline)
    with pytest.raises(RequestError, match="by hand"):
        remove_key(path, "a")
    assert path.read_text() == inline


def test_names_are_taken_once(path: Path) -> None:
    new_key(path, "a", Limits())
    with pytest.raises(RequestError, match="has a key a already"):
        new_key(path, "a", Limits())
    with pytest.raises(ConfigError, match="name is"):
        new_key(path, 'a"\nx', Limits())
    assert len(read_keys(path)) == 1
    assert [one.name for one in path.parent.iterdir() if one.name.endswith("toml")] == ["keys.toml"]


@pytest.mark.parametrize("secret", ["", "short", "x" * 513, "ünicode-secret", "with\nline-break"])
def test_secrets_that_are_none(secret: str) -> None:
    with pytest.raises(ConfigError, match="API key must be"):
        Keys.of_secret(secret)


def test_the_command(path: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["key", *arguments, "--keys", str(path)])
        return result.stdout if result.exit_code == 0 else f"{result.exit_code} {result.stderr}"

    key = run("new", "alice", "--tokens-per-day", "5000").strip()
    found = Keys.from_file(path).find(key)
    assert found is not None
    assert found.limits == Limits(tokens_per_day=5000)
    assert run("list").split() == ["alice", "tokens_per_day", "5,000"]
    assert "is removed" in run("rm", "alice")
    assert run("list") == ""
    assert run("rm", "alice").startswith("2 ")
    key = run("new", "eve", "--reviewer").strip()
    found = Keys.from_file(path).find(key)
    assert found is not None
    assert found.reviews
    assert run("list").split() == ["eve", "no", "limits,", "reviewer"]
    for wrong in (["new"], ["list", "x"], ["make", "x"], ["rm", "x", "--tokens-per-day", "5"], ["list", "--reviewer"]):
        assert run(*wrong).startswith("2 ")
