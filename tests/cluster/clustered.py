"""`tenth cluster` in processes of its own, and what a test may do to them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

REPLICA, CONTROLLER, FRONT = "ray::ServeReplica", "ray::ServeController", "tenth.cluster.front_process"


class Clustered:
    """One that serves; `lines` are what it has written to standard error."""

    def __init__(self, model: Path, state: Path, *options: str, replicas: int = 2) -> None:
        command = [sys.executable, "-m", "tenth", "cluster", str(model), "--port", "0", "--state", str(state)]
        self.process = subprocess.Popen(
            [*command, "--replicas", str(replicas), *options], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines = list[str]()
        threading.Thread(target=self._read, daemon=True).start()
        self.url = self._address()
        self.port = int(self.url.rpartition(":")[2])
        self.wait_ready(replicas)

    def wait_ready(self, replicas: int, seconds: float = 90) -> float:
        """Until so many take requests; how long that took."""
        begun = time.monotonic()
        while True:
            try:
                if httpx.get(self.url + "/health", timeout=10).json()["replicas"] >= replicas:
                    return time.monotonic() - begun
            except (httpx.HTTPError, ValueError):
                pass
            assert self.process.poll() is None, "".join(self.lines)
            assert time.monotonic() - begun < seconds, "".join(self.lines)
            time.sleep(0.05)

    def wait_line(self, words: str, seconds: float = 60) -> None:
        """Until it has said this."""
        end = time.monotonic() + seconds
        while not any(words in line for line in list(self.lines)):
            assert time.monotonic() < end, "".join(self.lines)
            time.sleep(0.05)

    def pids(self, kind: str) -> list[int]:
        """Of its processes of a kind."""
        return [pid for pid, words in descendants(self.process.pid).items() if kind in words]

    def kill(self, kind: str) -> int:
        """As the kernel does when memory is short; which one it was."""
        pid = self.pids(kind)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def close(self) -> int:
        """By SIGTERM; its exit code. Nothing of it may live on."""
        found = descendants(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        finally:
            self.process.kill()
            end = time.monotonic() + 10
            while (left := [pid for pid in found if _words(pid)]) and time.monotonic() < end:
                time.sleep(0.1)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        assert not left, [found[pid] for pid in left]
        return code

    def _address(self) -> str:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            for line in list(self.lines):
                if found := re.match(r"(http://127\.0\.0\.1:\d+)/v1 serves ", line):
                    return found[1]
            time.sleep(0.02)
        raise AssertionError("".join(self.lines))

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)


def descendants(pid: int) -> dict[int, str]:
    """Its children and theirs, each with its command line."""
    parents = dict[int, int]()
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has just ended
                continue
    found, level = dict[int, str](), {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found |= {child: _words(child) for child in level}
    return {child: words for child, words in found.items() if words}


def _words(pid: int) -> str:
    """Nothing for one that has ended, and waits to be noticed."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
