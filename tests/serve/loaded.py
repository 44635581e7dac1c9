"""Starts `tests/serve/load_server.py`, and asks it what it holds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]


class Loaded:
    """A server in a process of its own, with its state in a folder; `log` is what it has written."""

    def __init__(
        self,
        state: Path,
        *,
        keys: Path | None = None,
        cache: str = "on",
        port: int = 0,
        reviews: str | None = None,
        rules: Path | None = None,
        **serve: Any,
    ):
        options = {"state": str(state), "keys": keys and str(keys), "cache": cache, "port": port, "pages": 1500}
        options |= {"reviews": reviews, "rules": rules and str(rules)}
        begun = time.monotonic()
        self._log = state / "log"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.serve.load_server", json.dumps({**options, "serve": serve})],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self._log.read_text()[-2000:]
        self.port = int(line)
        self.url = f"http://127.0.0.1:{self.port}"
        while httpx.get(self.url + "/ready", timeout=20).status_code != 200:
            assert time.monotonic() - begun < 60
            time.sleep(0.05)
        self.seconds = time.monotonic() - begun

    def held(self) -> dict[str, Any]:
        """What it holds now."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        assert "failed" not in found, found["failed"]
        return found

    def idle(self, seconds: float = 20) -> dict[str, Any]:
        """What it holds once nothing is at work; AssertionError where something stays."""
        end = time.monotonic() + seconds
        while True:
            held = self.held()
            if not (held["jobs"] or held["reading"] or held["busy"] or held["answers"]):
                return held
            assert time.monotonic() < end, held
            time.sleep(0.1)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log so far."""
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("}")]

    @property
    def requests(self) -> dict[str, list[dict[str, Any]]]:
        """The log's lines about requests, by their ids."""
        found = dict[str, list[dict[str, Any]]]()
        for line in self.lines:
            if line["message"] == "request":
                found.setdefault(line["request_id"], []).append(line)
        return found

    def kill(self) -> None:
        """As the kernel does when memory is short."""
        self.process.kill()
        self._close()

    def stop(self) -> int:
        """By SIGTERM; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._close()

    def _close(self) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        code = self.process.wait(40)
        self.process.stdin.close()
        self.process.stdout.close()
        return code
