"""Costs of `tenth serve`: the first event of a short chat, answers that were kept, metrics (a viewer: live_cost.py).

- `first`: one client asks short chats, streaming, one behind the other; seconds until the first event. `again` is a
  chat that was asked before (its keys and values are found), `new` one whose question is new. The bar: 60 ms, half.
- `cache`: a server with `--response-cache` is asked the same chat by `wrk -t1 -c8` (Debian's package `wrk`), for a
  whole answer and for a stream; requests a second, and how long half and 99 in a hundred took at most. All answers
  must be hits. The bar: 800 a second, 99 in a hundred under 25 ms.
- `metrics`: servers with and without `--no-metrics` take turns at 16 streams; the ratios of rounds, with the 95 %
  interval of their mean. The bar: a difference under 1 %. A round has both in one order and then in the other, so
  that what drifts falls on both.

Clients run on the same cores: milliseconds of CPU for each token or request are told for both sides. A probe of the
memory's bandwidth runs around each measurement.

usage: python bench/serve_costs.py [MODEL] [--rows first,cache,metrics] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpu_vs_peers import PLACES, probed, said_by
from serving import Load, Served, Taken, compared, completion, cpu_seconds, load, servable, spread, tenth_server

ROWS = ("first", "cache", "metrics")
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CLIENTS, STREAMS, TOKENS, KEPT = 8, 16, 128, 64
OFF, ON = "without", "with"
_DONE = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\\n{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "errors": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def chat(question: str, tokens: int, *, stream: bool) -> dict[str, Any]:
    """A short chat whose answer goes on to its length; the same each time."""
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0}
    more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return {**body, "ignore_eos": True, **more}


# ---- the first event


def first(options: argparse.Namespace, number: int, served: Served) -> list[Taken]:
    """Of a round: seconds of each, known and new in turn."""
    known = chat("What is a prime number?", 2, stream=True)
    load(served, [[known, known]], CHAT)
    before, found = probed(options.probe), dict[str, list[float]](again=[], new=[])
    for n in range(options.probes):
        new = chat(f"What is {17 * n + 3} plus {options.probes * number + n}?", 2, stream=True)
        for name, body in (("again", known), ("new", new)):
            found[name].append(load(served, [[body]], CHAT).heard[0].first)
    probe = (before + probed(options.probe)) / 2
    figures = {name: {f"{key[:3]}_ms": 1e3 * value for key, value in spread(s).items()} for name, s in found.items()}
    for name, seconds in found.items():
        figures[name] |= {f"probe{n}_s": one for n, one in enumerate(seconds)}
    return [Taken("first", number, name, probe, own) for name, own in figures.items()]


def first_lines(taken: list[Taken]) -> list[str]:
    """The probes of all rounds together."""
    lines = []
    for name in ("again", "new"):
        rounds = [t for t in taken if t.row == "first" and t.name == name]
        seconds = [one for t in rounds for key, one in t.figures.items() if key.startswith("probe")]
        if seconds:
            said = ", ".join(f"{key[:3]} {1e3 * value:.1f} ms" for key, value in spread(seconds).items())
            lines.append(f"first event of a chat asked {name}: {said} of {len(seconds)} (the bar: p50 60 ms)")
    return lines


# ---- answers that were kept


def cache(options: argparse.Namespace, number: int, served: Served) -> list[Taken]:
    """Of a round: whole answers and streams."""
    taken = []
    for name, stream in (("whole", False), ("stream", True))[:: 1 if number % 2 == 0 else -1]:
        body = chat("What is a prime number?", KEPT, stream=stream)
        kept(served, body)
        before = probed(options.probe)
        cpu, own = cpu_seconds(served.pid), children_seconds()
        found = wrk(served, body, options.seconds)
        requests = found["requests"]
        figures = {"requests_s": requests / found["seconds"], "p50_ms": found["p50_ms"], "p99_ms": found["p99_ms"]}
        figures |= {"server_cpu_ms": 1e3 * (cpu_seconds(served.pid) - cpu) / requests}
        figures |= {"client_cpu_ms": 1e3 * (children_seconds() - own) / requests}
        kept(served, body)
        taken.append(Taken("cache", number, name, (before + probed(options.probe)) / 2, figures))
    return taken


def kept(served: Served, body: dict[str, Any]) -> None:
    """Ask until the answer comes from the cache, which it must the second time."""
    for _ in range(2):
        content = json.dumps(body).encode()
        request = urllib.request.Request(served.address + CHAT, content, {"content-type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            answer.read()
            mark = answer.headers.get("x-tenth-cache")
        if mark == "hit":
            return
    sys.exit(f"the answer is not kept: x-tenth-cache is {mark}")


def wrk(served: Served, body: dict[str, Any], seconds: int) -> dict[str, float]:
    """What it says at its end; no request may fail."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "post.lua"
        content = json.dumps(body)
        head = 'wrk.method = "POST"\nwrk.headers["content-type"] = "application/json"\n'
        script.write_text(f"{head}wrk.body = [==[{content}]==]\n{_DONE}")
        printed = said_by(["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "-s", script, served.address + CHAT])
    found: dict[str, float] = json.loads(printed.strip().splitlines()[-1])
    if found["errors"] or not found["requests"]:
        sys.exit(f"wrk: {found['errors']:.0f} of {found['requests']:.0f} requests failed")
    return found


def children_seconds() -> float:
    """CPU of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# ---- metrics


def paired(options: argparse.Namespace, row: str, number: int, sides: dict[str, Served]) -> list[Taken]:
    """Of a round: both sides, there and back, each one's figures the means of its two."""
    order = [OFF, ON, ON, OFF] if number % 2 == 0 else [ON, OFF, OFF, ON]
    before, found = probed(options.probe), dict[str, list[Load]]({OFF: [], ON: []})
    for at, name in enumerate(order):
        seed = 1000 * (4 * number + at)
        bodies = [completion(seed + n, TOKENS, TOKENS) for n in range(STREAMS)]
        found[name].append(load(sides[name], [[body] for body in bodies]))
    probe = (before + probed(options.probe)) / 2
    return [Taken(row, number, name, probe, means([one.figures() for one in own])) for name, own in found.items()]


def means(figures: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in figures) / len(figures) for name in figures[0]}


# ---- all together


def take(options: argparse.Namespace, row: str, model: Path | str) -> list[Taken]:
    """All rounds of a row, with the servers that it needs."""
    shared = ("--threads", str(options.threads), "--kv-memory", options.kv_memory)
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:

        def begin(*more: str) -> Served:
            return stack.enter_context(tenth_server(model, *shared, *more))

        taken = []
        one = begin("--response-cache", f"{folder}/kept.sqlite") if row == "cache" else begin()
        sides = dict[str, Served]()
        if row == "metrics":
            without = begin("--no-metrics")
            sides = {OFF: without, ON: one}
        if sides:
            paired(options, row, -1, sides)  # to warm up
        for number in range(options.rounds):
            if sides:
                found = paired(options, row, number, sides)
            else:
                found = first(options, number, one) if row == "first" else cache(options, number, one)
            for t in found:
                said = ", ".join(f"{key} {value:.4g}" for key, value in t.figures.items() if "probe" not in key)
                print(f"{row} {number + 1}/{options.rounds} {t.name}: {said}", file=sys.stderr, flush=True)
            taken += found
    return taken


def table(taken: list[Taken]) -> str:
    """Of a row."""
    base = {"first": "new", "cache": "whole", "metrics": OFF}[taken[0].row]
    shown = [
        Taken(t.row, t.round, t.name, t.probe, {key: v for key, v in t.figures.items() if "probe" not in key})
        for t in taken
    ]
    return compared(shown, base)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="default", help="a name, or a folder")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which of {','.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--probes", type=int, default=40, help="of each kind of first event, in a round")
    parser.add_argument("--seconds", type=int, default=10, help="of each run of wrk")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-memory", default="1GB", help="of each server")
    place = Path.home() / ".cache" / "tenth-peers" / PLACES["probe"]
    parser.add_argument("--probe", type=Path, default=place, help="prints the memory's bandwidth")
    parser.add_argument("--json", type=Path, help="write every round here")
    options = parser.parse_args()
    options.rows = options.rows.split(",")
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no row is named {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    if "cache" in options.rows and shutil.which("wrk") is None:
        parser.error("the row cache needs the program wrk (Debian's package of that name)")
    return options


def main() -> None:
    """Measure, print the tables, write what was asked for."""
    options = parsed()
    taken = list[Taken]()
    with ExitStack() as stack:
        model = options.model
        if Path(model).is_dir():
            model = stack.enter_context(servable(Path(model).absolute()))
        for row in options.rows:
            found = take(options, row, model)
            print(table(found), "\n".join(first_lines(found)), sep="\n")
            taken += found
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in taken], indent=1) + "\n")


if __name__ == "__main__":
    main()
