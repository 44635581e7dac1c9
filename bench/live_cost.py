"""What it costs a server at work to be looked at: slices of one load with somebody who reads `/v1/live` and without.

`--streams` clients are answered `--tokens` tokens again and again. Slices of `--seconds` follow each other as with,
without, without, with, and so on, so that what drifts falls on both; behind each change the first half second belongs
to neither.
Told are tokens a second of slices with a viewer over the others', pair by pair, and the server's CPU for a token: the
median, with its 95 % interval. The bar: a difference under 2 %.

usage: python bench/live_cost.py [MODEL] [--streams 16] [--pairs 60] [--seconds 3] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import socket
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cpu_vs_peers import PLACES, probed
from serving import Served, ask, completion, cpu_seconds, servable, tenth_server

LIVE, SETTLE_S, PROMPT = "/v1/live", 0.5, 64
WITH, WITHOUT = "with", "without"
ENOUGH = 100_000  # tokens of a stream: more than come in an hour
_TOKENS = re.compile(r"^tenth_generation_tokens_total\S* (\S+)$", re.MULTILINE)


@contextmanager
def looked_at(served: Served) -> Iterator[None]:
    """A server while somebody looks on, who must be told something."""
    host, _, port = urlsplit(served.address).netloc.partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {LIVE} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
        told = list[bytes]()
        reader = threading.Thread(target=lambda: told.extend(iter(lambda: connection.recv(1 << 20)[:4], b"")))
        reader.start()
        try:
            yield
        finally:
            connection.shutdown(socket.SHUT_RDWR)
            reader.join()
    if len(told) < 2:
        sys.exit(f"{LIVE} told nothing")


def asked(served: Served, options: argparse.Namespace) -> None:
    """One answer behind the other on each stream, until the server ends; the first ones end at different times."""
    many = range(ENOUGH // options.tokens)
    clients = [[completion(ENOUGH * n + turn, PROMPT, options.tokens) for turn in many] for n in range(options.streams)]
    for n, bodies in enumerate(clients, 1):
        bodies[0]["max_tokens"] = max(options.tokens * n // options.streams, 1)
    with suppress(RuntimeError):
        ask(served.address, "/v1/completions", clients)


def generated(served: Served) -> float:
    """Tokens since the server began."""
    with urllib.request.urlopen(served.address + "/metrics") as answer:
        return sum(float(number) for number in _TOKENS.findall(answer.read().decode()))


def one_slice(served: Served, seconds: float, *, looked: bool) -> tuple[float, float]:
    """Tokens a second, and milliseconds of CPU for a token."""
    with looked_at(served) if looked else nullcontext():
        time.sleep(SETTLE_S)
        tokens, cpu, begun = generated(served), cpu_seconds(served.pid), time.perf_counter()
        time.sleep(seconds)
        tokens, cpu = generated(served) - tokens, cpu_seconds(served.pid) - cpu
        took = time.perf_counter() - begun
    if not tokens:
        sys.exit("no token came within a slice")
    return tokens / took, 1e3 * cpu / tokens


def pairs(options: argparse.Namespace, served: Served) -> list[dict[str, Any]]:
    """Of each pair both slices' figures."""
    found = list[dict[str, Any]]()
    for number in range(options.pairs):
        order = (WITH, WITHOUT)[:: 1 if number % 2 else -1]
        found.append({name: one_slice(served, options.seconds, looked=name == WITH) for name in order})
    return found


def report(found: list[dict[str, Any]], probe: float) -> str:
    """Medians, and the median of the ratios: a slice in which the host was busy elsewhere says nothing of a viewer."""
    lines = [f"{len(found)} pairs, probe {probe:.1f} GB/s"]
    for at, name in enumerate(("tokens a second", "ms of CPU a token")):
        ratios = sorted(one[WITH][at] / one[WITHOUT][at] for one in found)
        said = ", ".join(f"{statistics.median(one[side][at] for one in found):.4g} {side}" for side in (WITH, WITHOUT))
        reach = 0.98 * len(ratios) ** 0.5  # ranks: the 95 % interval of a median, whatever the distribution
        low = ratios[max(int(len(ratios) / 2 - reach), 0)]
        high = ratios[min(int(len(ratios) / 2 + reach), len(ratios) - 1)]
        lines.append(f"{name}: {said}; ratio {statistics.median(ratios):.4f} ({low:.4f} to {high:.4f})")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="default", help="a name, or a folder")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a slice")
    parser.add_argument("--tokens", type=int, default=512, help="of an answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-memory", default="1GB")
    place = Path.home() / ".cache" / "tenth-peers" / PLACES["probe"]
    parser.add_argument("--probe", type=Path, default=place, help="prints the memory's bandwidth")
    parser.add_argument("--json", type=Path, help="write every pair here")
    return parser.parse_args()


def main() -> None:
    """Measure, and print the ratios."""
    options = parsed()
    with ExitStack() as stack:
        model = options.model
        if Path(model).is_dir():
            model = stack.enter_context(servable(Path(model).absolute()))
        before = probed(options.probe)
        shared = ("--threads", str(options.threads), "--kv-memory", options.kv_memory)
        served = stack.enter_context(tenth_server(model, *shared))
        threading.Thread(target=asked, args=(served, options), daemon=True).start()
        while generated(served) < 64 * options.streams:
            time.sleep(0.1)
        one_slice(served, 1.0, looked=True)  # the speed of memory is measured once
        found = pairs(options, served)
    print(report(found, (before + probed(options.probe)) / 2))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
