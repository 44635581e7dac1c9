"""The console: a page at `/` and its files below `/console/BUILD/`, which a browser may keep for ever.

BUILD is a hash of all files, and the page itself is asked for each time, so that after an upgrade nobody sees a page of
old and new parts. What the page may do is said in its content security policy: no script but its own files, no string
that becomes markup without DOMPurify, no connection but to this server.
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tenth.serve.guard import PublicPaths
from tenth.serve.problems import HttpProblem

router = APIRouter()
PUBLIC = PublicPaths(PublicPaths().exact | {"/"}, ("/console/",))
"""What may be seen without a key where there is a console: the page holds nothing of the server's."""

_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "vary": "accept-encoding",
}
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_EACH_TIME = "no-cache"


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file: its bytes, as they are and compressed, its type and its ETag."""

    plain: bytes
    packed: bytes
    kind: str
    tag: str

    @classmethod
    def of(cls, name: str, plain: bytes) -> PageFile:
        """From what is on disk."""
        tag = hashlib.sha256(plain).hexdigest()[:16]
        return cls(plain, gzip.compress(plain, 9, mtime=0), _TYPES[name.rpartition(".")[2]], tag)


@dataclass(frozen=True, slots=True)
class Console:
    """All files by their names below `/console/BUILD/`; the page's is `index.html`."""

    build: str
    files: dict[str, PageFile]


@cache
def console() -> Console:
    """The files of this installation, read once."""
    found = dict(_read(resources.files("tenth.serve") / "console", ""))
    digest = hashlib.sha256()
    for name in sorted(found):
        digest.update(f"{name} {len(found[name])}\n".encode() + found[name])
    build = digest.hexdigest()[:12]
    found["index.html"] = found["index.html"].replace(b"$build", build.encode())
    return Console(build, {name: PageFile.of(name, content) for name, content in found.items()})


def _read(folder: Traversable, ahead: str) -> list[tuple[str, bytes]]:
    files = list[tuple[str, bytes]]()
    for entry in folder.iterdir():
        if entry.is_dir():
            files += _read(entry, f"{ahead}{entry.name}/")
        elif entry.name.rpartition(".")[2] in _TYPES:
            files.append((ahead + entry.name, entry.read_bytes()))
    return files


async def page(request: Request) -> Response:
    """The page."""
    return _answer(request, console().files["index.html"], _ASK_EACH_TIME)


async def file(request: Request) -> Response:
    """One of its files; 404 for those of another version, whose page has to be loaded again."""
    there = console()
    found = there.files.get(request.path_params["name"])
    if found is None or request.path_params["build"] != there.build:
        raise HttpProblem(404, f"there is nothing at {request.url.path!r:.80}")
    return _answer(request, found, _FOR_EVER)


def _answer(request: Request, found: PageFile, kept: str) -> Response:
    packs = "gzip" in request.headers.get("accept-encoding", "")
    tag = f'"{found.tag}{"-gz" if packs else ""}"'
    headers = {**_HEADERS, "cache-control": kept, "etag": tag}
    seen = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    if tag in seen:
        return Response(status_code=304, headers=headers)
    if packs:
        headers["content-encoding"] = "gzip"
    return Response(found.packed if packs else found.plain, headers=headers, media_type=found.kind)


router.add_route("/", page, ["GET"], include_in_schema=False)
router.add_route("/console/{build}/{name:path}", file, ["GET"], include_in_schema=False)
