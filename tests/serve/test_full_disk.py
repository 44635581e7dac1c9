"""A disk that is full under a running server, and has room again: nobody's tokens are lost, nothing hangs."""

from __future__ import annotations

import resource
from pathlib import Path

from tests.serve.asks import Ask
from tests.serve.loaded import Loaded
from tests.serve.test_kill import keys_of, put, started
from tests.serve.test_load import books


def room(running: Loaded, there: bool) -> None:
    """From now on files may, or may not, grow."""
    _, most = resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (most if there else 1, most))


def known(name: str) -> Ask:
    return Ask("chat", name, 40, more={"temperature": 0})


def test_a_full_disk(tmp_path: Path) -> None:
    keys = keys_of(tmp_path)
    running = started(tmp_path)
    try:
        assert put(running, known("a"), keys["alice"]).headers["x-tenth-cache"] == "miss"
        running.idle()  # the books are settled behind the answer
        spent, _ = books(tmp_path)
        room(running, False)
        for _ in range(3):
            refused = put(running, known("b"), keys["alice"])
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["error"]["code"] == "unavailable"
            assert str(tmp_path) not in refused.text
        for _ in range(2):  # bob has no limits, so no books; answers are computed where none can be kept
            assert put(running, known("b"), keys["bob"]).headers["x-tenth-cache"] == "miss"
        room(running, True)
        assert put(running, known("b"), keys["alice"]).headers["x-tenth-cache"] == "miss"
        assert put(running, known("a"), keys["alice"]).headers["x-tenth-cache"] == "hit"
        held = running.idle()
        assert (held["stats"]["hits"], held["stats"]["errors"] > 0) == (1, True)
        assert books(tmp_path) == ({"alice": 2 * spent["alice"]}, 0)
    finally:
        assert running.stop() == 0
