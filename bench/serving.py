"""What the benchmarks of servers share: their processes, many streams read at once, what CPU that took, tables.

Requests are token ids, so that no program's tokenizer is measured. A model of random weights has no tokenizer, and a
server needs one: `servable` gives it one in which every token is a text of its own, as the peers' models have it, so
that every token is an event.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import uvloop
from science import markdown, mean_of

from tenth.weights.tokenizer_bytes import byte_alphabet

_TICK = os.sysconf("SC_CLK_TCK")
_SPECIALS = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
_FIRST_ID, _LAST_ID = 1000, 40_000  # of prompts: ordinary tokens of every vocabulary here
_LONGEST_S = 900.0  # of a request
_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')


# ---- processes


@dataclass(frozen=True)
class Served:
    """A server that answers."""

    address: str
    pid: int


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[object], address: str, ready: str) -> Iterator[Served]:
    """A server from the moment it answers `ready` with 200 until it is left; its log goes to a file of its own."""
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, cwd=folder)
        try:
            _wait(address + ready, process, lambda: _last_words(log))
            yield Served(address, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], said: Callable[[], str]) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            sys.exit(f"{process.args!r:.200}: ended with {process.returncode}: {said()}")
        try:
            urllib.request.urlopen(url).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.25)
        else:
            return
    sys.exit(f"{url} does not answer: {said()}")


def _last_words(log: Any) -> str:
    log.seek(0)
    return (log.read().strip() or "nothing on standard error").splitlines()[-1][:400]


@contextmanager
def tenth_server(model: str | Path, *options: str) -> Iterator[Served]:
    """`tenth serve` on a free port."""
    port = free_port()
    command = [sys.executable, "-m", "tenth", "serve", model, "--port", port, *options]
    with running(command, f"http://127.0.0.1:{port}", "/ready") as served:
        yield served


@contextmanager
def llama_server(program: Path, model: Path, *, slots: int, room: int, threads: int) -> Iterator[Served]:
    """llama-server in its best setting for this shape, with `room` tokens for all slots together."""
    port = free_port()
    command = [program, "-m", model, "-t", threads, "-c", room, "-np", slots]
    command += ["--port", port, "--host", "127.0.0.1", "-fa", "off", "--no-webui"]
    with running(command, f"http://127.0.0.1:{port}", "/health") as served:
        yield served


@contextmanager
def servable(model: Path) -> Iterator[Path]:
    """The model, or links to its files beside a tokenizer where it has none."""
    if (model / "tokenizer.json").exists():
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="tenth-servable-") as folder:
        out = Path(folder)
        for path in model.iterdir():
            (out / path.name).symlink_to(path.absolute())
        write_tokenizer(out, json.loads((model / "config.json").read_text())["vocab_size"])
        yield out


def write_tokenizer(folder: Path, size: int) -> None:
    """Bytes, then `tok256`, `tok257` and so on, and Qwen's marks of turns where they belong."""
    letters = byte_alphabet()
    names = [letter for letter, _ in sorted(letters.items(), key=lambda pair: pair[1])]
    names += [f"tok{token}" for token in range(len(names), size)]
    specials = {text: token for text, token in _SPECIALS.items() if token < size}
    for text, token in specials.items():
        names[token] = text
    added = [
        {"id": token, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for text, token in specials.items()
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {name: token for token, name in enumerate(names)}, "merges": []}
    document = {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"} if specials else {}))


# ---- what they used


def own_cpu_seconds(pid: int) -> float:
    """Of a process so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def cpu_seconds(pid: int) -> float:
    """With those that it started and that live."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = {int(child) for task in tasks for child in (task / "children").read_text().split()}
    return own_cpu_seconds(pid) + sum(cpu_seconds(child) for child in children)


def memory_gb(pid: int) -> dict[str, float]:
    """Resident, and the process's part of it where pages that others map too are shared out among them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e9 for line in lines}
    return {"rss_gb": found["Rss"], "pss_gb": found["Pss"]}


# ---- requests


def prompt_ids(seed: int, count: int) -> list[int]:
    """Random ordinary tokens: no two prompts begin alike."""
    return random.Random(seed).choices(range(_FIRST_ID, _LAST_ID), k=count)


def completion(seed: int, prompt: int, generate: int, **more: Any) -> dict[str, Any]:
    """The body of a completion of random tokens that goes on to its length."""
    fixed = {"max_tokens": generate, "temperature": 0, "ignore_eos": True, "stream": True}
    return {"prompt": prompt_ids(seed, prompt), **fixed, "stream_options": {"include_usage": True}, **more}


@dataclass(slots=True)
class Heard:
    """A stream as it came: seconds from asking to the first event and to the end, events, tokens as the server says."""

    first: float = 0.0
    end: float = 0.0
    events: int = 0
    tokens: int = 0


class _Reader(asyncio.Protocol):
    """One request on a connection of its own."""

    def __init__(self, request: bytes, done: asyncio.Future[Heard]) -> None:
        self._request, self._done, self._heard = request, done, Heard()
        self._parser, self._tail = httptools.HttpResponseParser(self), b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Events, as many as have come."""
        whole, _, self._tail = (self._tail + body).rpartition(b"\n\n")
        events = whole.count(b"data: {")
        if events and not self._heard.events:
            self._heard.first = time.perf_counter()
        self._heard.events += events
        if events and (usage := _USAGE.search(whole)):
            self._heard.tokens = int(usage[1])

    def on_message_complete(self) -> None:
        self._heard.end = time.perf_counter()
        self._transport.close()
        if self._done.done():
            return
        if (status := self._parser.get_status_code()) != 200:
            self._done.set_exception(RuntimeError(f"the server answered {status}"))
        else:
            self._done.set_result(self._heard)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(RuntimeError(f"the server broke off: {exc}"))


def http_request(address: str, path: str, body: Mapping[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: {urlsplit(address).netloc}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\nconnection: close\r\n\r\n".encode() + content


def ask(address: str, path: str, clients: Sequence[Sequence[Mapping[str, Any]]]) -> list[Heard]:
    """Clients at once, each of which asks its bodies one behind the other; times count from each one's asking."""
    host, _, port = urlsplit(address).netloc.partition(":")
    requests = [[http_request(address, path, body) for body in bodies] for bodies in clients]

    async def one(request: bytes) -> Heard:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Heard] = loop.create_future()
        start = time.perf_counter()
        await loop.create_connection(lambda: _Reader(request, done), host, int(port))
        heard = await asyncio.wait_for(done, _LONGEST_S)
        heard.first -= start
        heard.end -= start
        return heard

    async def client(mine: Sequence[bytes]) -> list[Heard]:
        return [await one(request) for request in mine]

    async def everybody() -> list[Heard]:
        return [heard for mine in await asyncio.gather(*map(client, requests)) for heard in mine]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(everybody())


@dataclass(slots=True)
class Load:
    """Streams at once, what came, and what CPU it took: of the server, the client, and others that were watched."""

    seconds: float
    heard: list[Heard]
    cpu: dict[str, float] = field(default_factory=dict)

    @property
    def tok_s(self) -> float:
        return sum(one.tokens for one in self.heard) / self.seconds

    def figures(self) -> dict[str, float]:
        """By name, as rounds keep them."""
        first = spread([one.first for one in self.heard])
        tokens = sum(one.tokens for one in self.heard)
        cpu = {f"{name}_cpu_ms": 1e3 * seconds / tokens for name, seconds in self.cpu.items()}
        return {"tok_s": self.tok_s, "first_p50_ms": 1e3 * first["p50_s"], "first_p99_ms": 1e3 * first["p99_s"], **cpu}


def load(
    served: Served, clients: Sequence[Sequence[Mapping[str, Any]]], path: str = "/v1/completions", **watched: int
) -> Load:
    """Ask, and check that every answer has all its tokens; `watched` are processes whose CPU is told too."""
    used = {"server": partial(cpu_seconds, served.pid), "client": partial(own_cpu_seconds, os.getpid())}
    used |= {name: partial(cpu_seconds, pid) for name, pid in watched.items()}
    before = {name: seconds() for name, seconds in used.items()}
    start = time.perf_counter()
    heard = ask(served.address, path, clients)
    seconds = time.perf_counter() - start
    cpu = {name: now() - before[name] for name, now in used.items()}
    wanted = [body["max_tokens"] for bodies in clients for body in bodies]
    if (given := [one.tokens for one in heard]) != wanted:
        sys.exit(f"{served.address}: {wanted[:8]}... tokens were asked for, {given[:8]}... came")
    return Load(seconds, heard, cpu)


# ---- figures


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Half and 99 in a hundred (of few: the longest)."""
    return {"p50_s": statistics.median(seconds), "p99_s": sorted(seconds)[-(-99 * len(seconds) // 100) - 1]}


@dataclass(frozen=True)
class Taken:
    """The figures of a program in a round, and the mean of the probes around it."""

    row: str
    round: int
    name: str
    probe: float
    figures: dict[str, float]


def compared(taken: Sequence[Taken], base: str) -> str:
    """Medians and ranges as a table, and of each round the figure over `base`'s: median, mean and its 95 % interval."""
    lines = [["figure", "program", "rounds", "median (range)", f"over {base}", "mean, 95 %", "probe GB/s"]]
    for row, figure in dict.fromkeys((t.row, name) for t in taken for name in t.figures):
        mine = [t for t in taken if t.row == row and figure in t.figures]
        bases = {t.round: t.figures[figure] for t in mine if t.name == base}
        for name in dict.fromkeys(t.name for t in mine):
            own = [t for t in mine if t.name == name]
            values = [t.figures[figure] for t in own]
            ratios = [] if name == base else [_over(t.figures[figure], bases.get(t.round)) for t in own]
            said = f"{statistics.median(values):.4g} ({min(values):.4g}-{max(values):.4g})"
            ratio = [f"{statistics.median(ratios):.3f}", f"{mean_of(ratios):.3f}"] if any(ratios) else ["", ""]
            probe = f"{statistics.median(t.probe for t in own):.1f}"
            lines.append([f"{row} {figure}", name, str(len(own)), said, *ratio, probe])
    return markdown(lines)


def _over(value: float, base: float | None) -> float:
    return value / base if base else 0.0
