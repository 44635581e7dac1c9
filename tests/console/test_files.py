"""How the page is served, and what its files hold; no browser is needed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

pytest.importorskip("starlette")
from tenth.serve.console_page import console
from tenth.serve.guards import Guards
from tenth.serve.keys import Keys
from tenth.serve.limits import Limiter
from tenth.serve.service import ServeOptions
from tests.serve.served import scripted, serving, within

FOLDER = Path(__file__).parents[2] / "tenth" / "serve" / "console"
MOST_BYTES = 400_000
LATER = {"vendor/highlight.min.js"}  # comes with the first block of code


async def _get(paths: list[str], headers: dict[str, str] | None = None, **options: object) -> list[httpx.Response]:
    async with serving(scripted(lambda text: None), **options) as (_, client):  # type: ignore[arg-type]
        return [await client.get(path, headers=headers) for path in paths]


def test_the_page_is_strict_and_asked_for_each_time() -> None:
    (page,) = within(20, _get(["/"]))
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert page.headers["cache-control"] == "no-cache"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|style=", page.text)


def test_files_may_be_kept_for_ever_under_their_build_alone() -> None:
    ours, other = (f"/console/{build}/main.js" for build in (console().build, "000000000000"))
    found, foreign, absent = within(20, _get([ours, other, ours.replace("main.js", "../service.py")]))
    assert (found.status_code, foreign.status_code, absent.status_code) == (200, 404, 404)
    assert "immutable" in found.headers["cache-control"]
    assert found.headers["content-type"] == "text/javascript; charset=utf-8"
    assert found.content == (FOLDER / "main.js").read_bytes()


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_an_unchanged_page_is_not_sent_again(coding: str) -> None:
    async def twice() -> tuple[httpx.Response, httpx.Response]:
        async with serving(scripted(lambda text: None)) as (_, client):
            first = await client.get("/", headers={"accept-encoding": coding})
            headers = {"accept-encoding": coding, "if-none-match": f'"x", W/{first.headers["etag"]}'}
            return first, await client.get("/", headers=headers)

    first, again = within(20, twice())
    assert first.headers.get("content-encoding", "identity") == coding
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]


def test_the_page_needs_no_key_and_everything_else_does(tmp_path: Path) -> None:
    limiter = Limiter(tmp_path / "limits.db")
    file = f"/console/{console().build}/vendor/purify.min.js"
    paths = ["/", file, "/v1/models", f"/console/{console().build}/..%2fmain.js", "/console/../v1/models"]
    answers = within(20, _get(paths, guards=Guards(keys=Keys.of_secret("s" * 20), limiter=limiter)))
    limiter.close()
    assert [answer.status_code for answer in answers] == [200, 200, 401, 401, 401]


def test_it_can_be_left_out(tmp_path: Path) -> None:
    answers = within(20, _get(["/", f"/console/{console().build}/main.js"], options=ServeOptions(console=False)))
    assert [answer.status_code for answer in answers] == [404, 404]
    limiter = Limiter(tmp_path / "limits.db")
    guards = Guards(keys=Keys.of_secret("s" * 20), limiter=limiter)
    (page,) = within(20, _get(["/"], options=ServeOptions(console=False), guards=guards))
    limiter.close()
    assert page.status_code == 401


def test_the_command_has_the_option() -> None:
    command = [sys.executable, "-m", "tenth", "serve", "--no-console", "--port", "0", "no-such-model-here"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "console at" not in done.stderr
    assert "No such option" not in done.stderr


def test_its_weight() -> None:
    first = sum(len(file.plain) for name, file in console().files.items() if name not in LATER)
    assert first < MOST_BYTES
    assert sum(len(file.packed) for name, file in console().files.items() if name not in LATER) < MOST_BYTES / 3


def test_vendored_scripts_have_their_licences() -> None:
    vendored = sorted(path.name.partition(".")[0] for path in (FOLDER / "vendor").glob("*.*js"))
    assert vendored == ["highlight", "marked", "purify"]
    for licence in ("highlight.LICENSE", "marked.LICENSE", "dompurify.LICENSE"):
        assert len((FOLDER / "vendor" / licence).read_text()) > 500


def _words() -> dict[str, list[str]]:
    text = (FOLDER / "words.js").read_text().partition("WORDS = ")[2].rstrip().removesuffix(";")
    text = re.sub(r"^\s*(\w+): \[", r'"\1": [', text, flags=re.M)  # the few keys without quotes
    words: dict[str, list[str]] = json.loads(re.sub(r",(\s*[\]}])", r"\1", text))
    return words


def test_both_languages_say_everything() -> None:
    names = re.compile(r"\{(\w+)\}")
    for key, pair in _words().items():
        assert len(pair) == 2, key
        assert all(pair), key
        assert set(names.findall(pair[0])) == set(names.findall(pair[1])), key


def test_no_word_is_missing_or_left_over() -> None:
    scripts = [path.read_text() for path in FOLDER.glob("*.js") if path.name != "words.js"]
    used = {key for text in scripts for key in re.findall(r'"([a-z]+\.[a-z_0-9]+)"', text)}
    used -= {key for key in used if key.startswith("tenth.") or key.endswith((".json", ".jsonl"))}
    plain = {"skip", "tabs", "close", "cancel"}
    assert used | plain == set(_words())


def test_scripts_make_no_markup_and_run_no_text() -> None:
    """What trusted types refuse in a browser is not in the sources either."""
    for path in FOLDER.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", path.read_text()
        ), path


def test_every_import_is_there() -> None:
    for path in FOLDER.glob("*.js"):
        for name in re.findall(r'(?:from|import|import\() ?"\./([^"]+)"', path.read_text()):
            assert (FOLDER / name).is_file(), f"{path.name} imports {name}"
