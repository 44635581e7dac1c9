"""The few endpoints of the Hugging Face hub that a download needs, on this machine, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """Files of one repository by revision's name; `main` is what is given without one."""

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        """The commit behind a name, or behind itself."""
        commits = {hashlib.sha1(name.encode()).hexdigest(): name for name in self.revisions}
        return next((commit for commit, name in commits.items() if revision in (name, commit)), None)

    def files(self, commit: str) -> dict[str, bytes]:
        """What a commit holds."""
        return next(files for name, files in self.revisions.items() if self.commit(name) == commit)


@dataclass
class FakeHub:
    """`requests` holds (method, path, Range header); `served` counts the bytes that went out for each file.

    Of the files in `cut` so many bytes go out before the line breaks; after that none at all where `stays_broken`.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    stays_broken: bool = True
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)
    url: str = ""

    def fetched(self) -> set[str]:
        """Names of the files whose bytes were asked for."""
        return {path.rsplit("/", 1)[1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path}

    def forget(self) -> None:
        """Begin the record anew."""
        self.requests.clear()
        self.served.clear()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that listens until the block is left."""
    hub = FakeHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the screen."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.state.requests.append((self.command, path, self.headers.get("Range")))
        parts = path.split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        rest = parts[4:] if api else parts[2:]
        repo = self.state.repos.get(name)
        if repo is None:
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif repo.gated:
            self._refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        elif api and not rest:
            self._info(name, repo, "main")
        elif api and rest[0] == "revision":
            self._info(name, repo, "/".join(rest[1:]))
        elif api and rest[0] == "tree":
            self._tree(repo, rest[1])
        elif rest[:1] == ["resolve"]:
            self._file(repo, rest[1], "/".join(rest[2:]))
        else:
            self._refuse(404, "EntryNotFound", "no such endpoint")

    def _info(self, name: str, repo: Repo, revision: str) -> None:
        commit = repo.commit(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [{"rfilename": file} for file in repo.files(commit)]
        return self._json({"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False})

    def _tree(self, repo: Repo, revision: str) -> None:
        commit = repo.commit(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self._json(
            [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in repo.files(commit).items()
            ]
        )

    def _file(self, repo: Repo, revision: str, file: str) -> None:
        commit = repo.commit(revision)
        data = repo.files(commit).get(file) if commit else None
        if commit is None or data is None:
            return self._refuse(404, "EntryNotFound", f"{file} is not there")
        if self.command == "GET" and self.state.cut.get(file) == 0:
            return self._refuse(500, "", "out of order")
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(data) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self._send(file, data, start)

    def _send(self, file: str, data: bytes, start: int) -> None:
        if file in self.state.cut:
            data = data[: start + self.state.cut[file]]
            self.state.cut[file] = 0
            if not self.state.stays_broken:
                del self.state.cut[file]
            self.close_connection = True
        self.wfile.write(data[start:])
        self.state.served[file] = self.state.served.get(file, 0) + len(data) - start

    def _json(self, value: Any) -> None:
        self._body(200, json.dumps(value).encode(), {})

    def _refuse(self, code: int, error: str, message: str) -> None:
        self._body(code, json.dumps({"error": message}).encode(), {"X-Error-Code": error, "X-Error-Message": message})

    def _body(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
