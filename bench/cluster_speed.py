"""What a cluster gives and costs: two replicas beside one, the way through the front beside the plain server, kills.

- `path`: `tenth serve` and a cluster of one replica, both of `--threads` threads, take turns at `--streams` streaming
  completions. The bar: the cluster gives 0.85 of the plain server's tokens a second.
- `two`: clusters of one and of two replicas, of one thread each, take turns at the same, and at twice the streams, so
  that each of two has as many as the one: half as many share less of the reading of weights. The bar: 1.6 of one's.
- `prefix`: two replicas, routed by prefix and at random; `--groups` beginnings of 512 tokens, each asked `--questions`
  times with another end, in random order, by four clients. All beginnings fit into the caches of both replicas
  together, and not into that of one. `cached_tokens` are those of the answers' usage. The bar: 1.5 of random's.
- `kill`: two replicas and one, under the load of eight clients; after five seconds a replica, Serve's controller or the
  front is killed (SIGKILL). Every answer is counted, and those that are whole are compared with the plain server's.
  The bar: none is another one's, and answers come again within 15 seconds.

`path` and `two` are of MODEL, a packed one; the others of `--small`, whose answers are short enough to count many.
Clients run on the same cores; a probe of the memory's bandwidth runs around each round.

usage: python bench/cluster_speed.py MODEL [--rows path,two,prefix,kill] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from cpu_vs_peers import PLACES, probed
from serving import Served, Taken, compared, completion, free_port, load, prompt_ids, running, servable, tenth_server

ROWS = ("path", "two", "prefix", "kill")
PLAIN, CLUSTER, ONE, TWO = "tenth serve", "one replica", "one replica", "two replicas"
TWICE = "two, twice the streams"
PROMPT, TOKENS = 64, 64  # of the rows `path` and `two`
BEGINNING, END, KEPT_KV = 512, 32, "110MB"  # of `prefix`; the cache holds about nine beginnings of the default model
KILLED = {"replica": "ray::ServeReplica", "controller": "ray::ServeController", "front": "front_process"}
CLIENTS, SECONDS, KILL_AT, ANSWER, PROMPTS = 8, 20.0, 5.0, 48, 24


@contextmanager
def cluster(model: str | Path, replicas: int, *options: str) -> Iterator[Served]:
    """`tenth cluster` on a free port, with all of its replicas ready."""
    port = free_port()
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "tenth", "cluster", model, "--port", port, "--replicas", replicas]
        address = f"http://127.0.0.1:{port}"
        with running([*command, "--state", state, *options], address, "/ready") as served:
            asyncio.run(all_ready(served.address, replicas))
            yield served


async def all_ready(address: str, replicas: int) -> float:
    """Seconds until so many take requests."""
    begun = time.monotonic()
    async with aiohttp.ClientSession() as http:
        while time.monotonic() - begun < 120:
            try:
                async with http.get(address + "/health") as reply:
                    if (await reply.json())["replicas"] >= replicas:
                        return time.monotonic() - begun
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
    sys.exit(f"{address}: {replicas} replicas did not come")


# ---- throughput


def throughput(options: argparse.Namespace, row: str, model: Path | str) -> list[Taken]:
    """All rounds of `path` or `two`: who goes first changes."""
    shared = ("--kv-memory", options.kv_memory, "--threads", "1" if row == "two" else str(options.threads))
    taken = []
    with ExitStack() as stack:
        if row == "path":
            sides = {PLAIN: tenth_server(model, *shared), CLUSTER: cluster(model, 1, *shared)}
        else:
            sides = {ONE: cluster(model, 1, *shared), TWO: cluster(model, 2, *shared)}
        servers = {name: (stack.enter_context(side), options.streams) for name, side in sides.items()}
        if row == "two":  # a replica of two as busy as the one
            servers[TWICE] = (servers[TWO][0], 2 * options.streams)
        for number in range(-1, options.rounds):  # the first one warms up
            before, round_ = probed(options.probe), dict[str, dict[str, float]]()
            for name in list(servers)[:: 1 if number % 2 == 0 else -1]:
                served, streams = servers[name]
                seed = 1000 * (3 * number + list(servers).index(name))
                bodies = [completion(seed + n, PROMPT, TOKENS) for n in range(streams)]
                found = load(served, [[body] for body in bodies]).figures()
                said = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
                print(f"{row} {number + 1}/{options.rounds} {name}: {said}", file=sys.stderr, flush=True)
                round_[name] = found
            probe = (before + probed(options.probe)) / 2
            taken += [Taken(row, number, name, probe, found) for name, found in round_.items() if number >= 0]
    return taken


# ---- beginnings


def questions(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Each group's beginning with so many ends, all in random order."""
    bodies = []
    for group in range(options.groups):
        beginning = prompt_ids(1000 * seed + group, BEGINNING)
        ends = [prompt_ids(100_000 * seed + 100 * group + n, END) for n in range(options.questions)]
        bodies += [{"prompt": beginning + end, "max_tokens": 4, "temperature": 0} for end in ends]
    random.Random(seed).shuffle(bodies)
    return bodies


async def cached_tokens(address: str, bodies: Sequence[dict[str, Any]], clients: int = 4) -> tuple[int, float]:
    """What the answers' usage says in all, and seconds."""
    left, found = list(reversed(bodies)), 0

    async def client(http: aiohttp.ClientSession) -> None:
        nonlocal found
        while left:
            async with http.post(address + "/v1/completions", json=left.pop()) as reply:
                said = await reply.json()
                found += said["usage"]["prompt_tokens_details"]["cached_tokens"]

    begun = time.perf_counter()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return found, time.perf_counter() - begun


def prefix(options: argparse.Namespace) -> list[Taken]:
    """All rounds, each with beginnings of its own."""
    taken = []
    with ExitStack() as stack:
        shared = ("--threads", "1", "--kv-memory", KEPT_KV)
        servers = {
            route: stack.enter_context(cluster(options.small, 2, *shared, "--route", route))
            for route in ("random", "prefix")
        }
        for number in range(options.rounds):
            before, round_ = probed(options.probe), dict[str, dict[str, float]]()
            for route, served in list(servers.items())[:: 1 if number % 2 == 0 else -1]:
                bodies = questions(options, number + 1)
                cached, seconds = asyncio.run(cached_tokens(served.address, bodies))
                asked = len(bodies) * (BEGINNING + END)
                figures = {"cached_tokens": float(cached), "cached_share": cached / asked, "seconds": seconds}
                print(f"prefix {number + 1}/{options.rounds} {route}: {figures}", file=sys.stderr, flush=True)
                round_[route] = figures
            probe = (before + probed(options.probe)) / 2
            taken += [Taken("prefix", number, route, probe, found) for route, found in round_.items()]
    return taken


# ---- kills


@dataclass
class Told:
    """What came of all requests: how each ended, when whole ones began and ended, how many are not the right ones."""

    ends: Counter[str] = field(default_factory=Counter)
    whole: list[tuple[float, float]] = field(default_factory=list)
    wrong: int = 0


def body(number: int) -> dict[str, Any]:
    """One of few questions, so that each one's answer is known."""
    text = f"Question {number}: what is {17 * number + 3} plus {5 * number + 8}? Explain."
    return {"messages": [{"role": "user", "content": text}], "max_tokens": ANSWER, "temperature": 0, "stream": True}


async def answered(http: aiohttp.ClientSession, address: str, number: int) -> tuple[str, str]:
    """How a stream ended, and its text."""
    text = ""
    try:
        async with http.post(address + "/v1/chat/completions", json=body(number)) as reply:
            if reply.status != 200:
                return f"refused {reply.status}", ""
            async for line in reply.content:
                said = line.decode().removeprefix("data: ").strip()
                if said == "[DONE]":
                    return "whole", text
                event = json.loads(said) if said and not said.startswith(":") else {}
                if "error" in event:
                    return "told", text
                text += "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
    except aiohttp.ClientError:
        pass
    return "cut", text


async def under_load(served: Served, right: Sequence[str], killed: str) -> tuple[Told, float]:
    """Clients who ask without a pause, and the kill in between; when that was."""
    told, end, at = Told(), time.monotonic() + SECONDS, 0.0

    async def client(http: aiohttp.ClientSession, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < end:
            number = chance.randrange(PROMPTS)
            begun = time.monotonic()
            how, text = await answered(http, served.address, number)
            told.ends[how] += 1
            if how == "whole":
                told.whole.append((begun, time.monotonic()))
                told.wrong += text != right[number]
            elif how != "told":
                await asyncio.sleep(0.1)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as http:
        clients = [asyncio.create_task(client(http, seed)) for seed in range(CLIENTS)]
        await asyncio.sleep(KILL_AT)
        at = time.monotonic()
        os.kill(process_of(served.pid, KILLED[killed]), signal.SIGKILL)
        await asyncio.gather(*clients)
    return told, at


def process_of(pid: int, words: str) -> int:
    """A descendant whose command line has these words."""
    level = [pid]
    while level:
        tasks = [task for one in level for task in Path(f"/proc/{one}/task").iterdir()]
        level = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        for child in level:
            if words in Path(f"/proc/{child}/cmdline").read_text(errors="replace").replace("\0", " "):
                return child
    sys.exit(f"{pid}: there is no process {words}")


async def right_answers(served: Served) -> list[str]:
    """Of the plain server."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as http:
        found = [await answered(http, served.address, number) for number in range(PROMPTS)]
    assert {how for how, _ in found} == {"whole"}
    return [text for _, text in found]


def kills(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each process of both clusters once, with what came of it."""
    with tenth_server(options.small, "--threads", "2") as plain:
        right = asyncio.run(right_answers(plain))
    found = []
    for replicas in (2, 1):
        with cluster(options.small, replicas, "--threads", "1") as served:
            for killed in KILLED:
                told, at = asyncio.run(under_load(served, right, killed))
                back = min((end - at for begun, end in told.whole if begun > at), default=float("inf"))
                line = {"replicas": replicas, "killed": killed, **dict(sorted(told.ends.items())), "wrong": told.wrong}
                line |= {"asked": told.ends.total(), "back_s": round(back, 2)}
                line |= {"all_replicas_s": round(asyncio.run(all_ready(served.address, replicas)), 2)}
                print(f"kill {line}", file=sys.stderr, flush=True)
                found.append(line)
    return found


# ---- all together


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a packed model, such as `tenth synth` writes")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which of {','.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2, help="of the row path")
    parser.add_argument("--kv-memory", default="256MB", help="of each replica")
    parser.add_argument("--small", default="default", help="the model of the rows prefix and kill")
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--questions", type=int, default=6)
    place = Path.home() / ".cache" / "tenth-peers" / PLACES["probe"]
    parser.add_argument("--probe", type=Path, default=place, help="prints the memory's bandwidth")
    parser.add_argument("--json", type=Path, help="write every round here")
    options = parser.parse_args()
    options.rows = options.rows.split(",")
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no row is named {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    return options


def main() -> None:
    """Measure, print the tables, write what was asked for."""
    options, written = parsed(), list[Any]()
    with servable(options.model.absolute()) as model:
        for row in options.rows:
            if row == "kill":
                found = kills(options)
                written += found
                print("\n".join(map(json.dumps, found)))
                continue
            taken = prefix(options) if row == "prefix" else throughput(options, row, model)
            print(compared(taken, {"path": PLAIN, "two": ONE, "prefix": "random"}[row]))
            written += [asdict(one) for one in taken]
    if options.json is not None:
        options.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
