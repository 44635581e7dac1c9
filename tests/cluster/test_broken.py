"""Replicas that break off, in every way that a connection can: played by hand, so that each byte is known."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("aiohttp", reason="the front needs aiohttp, which ray[serve] brings")

from tenth.cluster.members import SILENT_S
from tenth.cluster.wire import News
from tests.cluster.fronted import Fronted, fronted, post
from tests.serve.asks import PATHS, Ask
from tests.serve.wire import Wire, request

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer(status: int, body: Any) -> bytes:
    content = json.dumps(body).encode()
    return WHOLE % (status, b"x", len(content), content)


class Player:
    """Plays a replica: to each request it says `said`, and then closes or `hangs`; `asked` are the requests."""

    def __init__(self, said: bytes, *, hangs: bool = False) -> None:
        self.said, self.hangs, self.asked = said, hangs, list[bytes]()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        async def begin() -> None:
            self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
            self._ready.set()

        self._loop.run_until_complete(begin())
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[16:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0)
        self.asked.append(head + await reader.readexactly(length))
        writer.write(self.said)
        await writer.drain()
        if self.hangs:
            await asyncio.sleep(60)
        writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self.server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)


@contextmanager
def played(running: Fronted, *players: tuple[str, Player]) -> Iterator[None]:
    """They announce themselves once, as ready."""
    done = threading.Event()

    def announce() -> None:
        for name, player in players:
            running.life.members.heard(News(name, player.url, 1, "ready", 1000, 0, "box", 1))
        done.set()

    running.loop.call_soon_threadsafe(announce)
    assert done.wait(5)
    try:
        yield
    finally:
        for _, player in players:
            player.close()


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Fronted]:
    with fronted(tmp_path, route="load") as running:
        yield running


def events(running: Fronted, path: str, body: dict[str, Any] | None = None) -> list[tuple[str, Any]]:
    async def asked() -> list[tuple[str, Any]]:
        wire = await Wire.open(running.port)
        content = json.dumps({"prompt": "a", "stream": True} | (body or {})).encode()
        await wire.send(request("POST", path, content, name="r", key=None))
        assert await wire.head() == 200
        return await wire.events()

    return asyncio.run(asyncio.wait_for(asked(), 20))


def data(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


LAST: dict[str, Callable[[list[tuple[str, Any]]], Any]] = {
    "/v1/chat/completions": lambda found: (found[-2][1]["error"]["code"], found[-1][1]),
    "/v1/completions": lambda found: (found[-2][1]["error"]["code"], found[-1][1]),
    "/v1/messages": lambda found: (found[-1][0], found[-1][1]["type"], found[-1][1]["error"]["type"]),
    "/v1/responses": lambda found: (found[-1][0], found[-1][1]["code"], found[-1][1]["sequence_number"]),
    "/infill": lambda found: found[-1][1]["error"]["code"],
}
ENDS = {
    "/v1/chat/completions": ("replica_lost", "[DONE]"),
    "/v1/completions": ("replica_lost", "[DONE]"),
    "/v1/messages": ("error", "error", "api_error"),
    "/v1/responses": ("error", "replica_lost", 8),
    "/infill": "replica_lost",
}


@pytest.mark.parametrize("path", list(LAST))
@pytest.mark.parametrize("rest", [b"", b'data: {"half', b"5\r\nda"])
def test_a_stream_that_breaks_off_has_a_last_event(front: Fronted, path: str, rest: bytes) -> None:
    first = data({"type": "some", "sequence_number": 7, "text": "begun"})
    said = HEAD + chunk(first) + (rest if rest.startswith(b"5") else chunk(rest) if rest else b"")
    with played(front, ("one", Player(said))):
        found = events(front, path)
    assert found[0][1]["text"] == "begun"
    assert LAST[path](found) == ENDS[path]
    assert all(one == "[DONE]" or isinstance(one, dict) for _, one in found)  # no half event came through
    assert front.life.front.counts.broken == 1


BEFORE = {
    "closed": b"",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-",
    "no event yet": HEAD,
    "half an event": HEAD + chunk(b'data: {"text": "beg'),
    "half a body": b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
    "stopping": answer(503, {"error": {"code": "stopping"}}),
    "full": answer(429, {"error": {"code": "queue_full"}}),
    "no HTTP": b"what?\r\n\r\n",
}


@pytest.mark.parametrize("how", list(BEFORE))
def test_nothing_was_sent_so_another_one_is_asked(front: Fronted, how: str) -> None:
    broken, sound = Player(BEFORE[how]), Player(answer(200, {"said": "whole"}))
    with played(front, ("broken", broken), ("sound", sound)):
        for _ in range(2):
            found = post(front, "/v1/completions", {"prompt": "a"})
            assert (found.status_code, found.json()) == (200, {"said": "whole"})
    assert len(sound.asked) == 2
    assert broken.asked
    assert broken.asked[0].partition(b"\r\n\r\n")[2] == sound.asked[0].partition(b"\r\n\r\n")[2] == b'{"prompt":"a"}'


@pytest.mark.parametrize("said", [b"", HEAD + chunk(data({"text": "begun"}))])
def test_one_that_hangs_is_not_waited_for(front: Fronted, said: bytes) -> None:
    """Stopped, or cut off from the network: nothing breaks, and nothing comes."""
    members, now = front.life.members, front.life.members.clock
    with played(front, ("hangs", hangs := Player(said, hangs=True))):
        found = list[Any]()
        asking = threading.Thread(target=lambda: found.extend(events(front, "/v1/completions")))
        asking.start()
        front.until(lambda: members.by_id["hangs"].flights == 1)
        sound = Player(HEAD + chunk(data({"text": "sound"}) + b"data: [DONE]\n\n") + b"0\r\n\r\n")
        time.sleep(0.3)  # the beginning comes through
        front.loop.call_soon_threadsafe(setattr, members, "clock", lambda: now() + SILENT_S)
        with played(front, ("sound", sound)):
            asking.join(10)
        assert len(hangs.asked) == 1
        if said:
            assert (found[0][1]["text"], found[1][1]["error"]["code"]) == ("begun", "replica_lost")
        else:
            assert (found[0][1]["text"], found[1][1]) == ("sound", "[DONE]")


def test_one_that_is_not_there_is_forgotten_at_once(front: Fronted) -> None:
    gone, sound = Player(b""), Player(answer(200, {}))
    gone.close()
    gone.server.close()
    with played(front, ("sound", sound)):
        running = front.life.members
        front.loop.call_soon_threadsafe(running.heard, News("gone", gone.url, 1, "ready", 1000, 0, "box", 1))
        for _ in range(4):
            assert post(front, "/v1/completions", {"prompt": "a"}).status_code == 200
        assert [member.id for member in running.ready()] == ["sound"]


def test_what_changes_something_is_not_asked_twice(front: Fronted) -> None:
    broken, sound = Player(b""), Player(answer(201, {}))
    with played(front, ("broken", broken), ("sound", sound)):
        statuses = sorted(post(front, "/v1/reviews", {"note": "n"}).status_code for _ in range(4))
    assert len(broken.asked) + len(sound.asked) == 4
    assert set(statuses) <= {201, 502}
    assert 502 in statuses


def test_a_request_that_ends_replicas_does_not_end_all_of_them(front: Fronted) -> None:
    players = [(str(number), Player(b"")) for number in range(6)]
    with played(front, *players):
        found = post(front, "/v1/completions", {"prompt": "a"})
    assert (found.status_code, found.json()["error"]["code"]) == (502, "replica_lost")
    assert sum(len(player.asked) for _, player in players) == 3


def test_all_are_full(front: Fronted) -> None:
    full = answer(429, {"error": {"code": "queue_full", "message": "full"}})
    with played(front, ("one", Player(full)), ("two", Player(full))):
        found = post(front, "/v1/completions", {"prompt": "a"})
    assert (found.status_code, found.json()["error"]["code"]) == (429, "queue_full")


def test_limits_of_a_key_are_not_another_replicas_matter(front: Fronted) -> None:
    limited, other = Player(answer(429, {"error": {"code": "insufficient_quota"}})), Player(answer(200, {}))
    with played(front, ("one", limited), ("two", other)):
        statuses = [post(front, "/v1/completions", {"prompt": "a"}).status_code for _ in range(2)]
    assert sorted(statuses) == [200, 429]


def test_a_real_replica_that_ends_under_load_crosses_no_answer(tmp_path: Path) -> None:
    """Half of the replicas are told to stop at once, twice: their streams end with an error or come from the other."""

    async def one(running: Fronted, number: int) -> str:
        ask = Ask("chat", f"load{number}", 300, stream=True)
        wire = await Wire.open(running.port)
        await wire.send(request("POST", PATHS["chat"], ask.body(), name=ask.nonce, key=None))
        assert await wire.head() == 200
        found = await wire.events()
        text = "".join(said["choices"][0]["delta"].get("content", "") for _, said in found[:-1] if said.get("choices"))
        assert ask.text.startswith(text)
        return "told" if "error" in found[-2][1] else "whole" if text == ask.text else "short"

    async def all_of_them(running: Fronted) -> list[str]:
        tasks = [asyncio.create_task(one(running, number)) for number in range(16)]
        while running.replicas["one"].jobs < 4:
            await asyncio.sleep(0.01)
        life = running.replicas["one"]._life
        assert life is not None
        life.stop()
        await asyncio.sleep(0.12)
        life.stop()
        return await asyncio.gather(*tasks)

    with fronted(tmp_path, "one", "two") as running:
        ends = asyncio.run(asyncio.wait_for(all_of_them(running), 60))
        assert set(ends) <= {"whole", "told"}
        assert ends.count("whole") >= 8
        running.until(lambda: len(running.life.members.ready()) == 1)
        assert httpx.get(running.url + "/ready").status_code == 200
