"""`tenth serve` beside llama-server, on models of one shape, asked over HTTP by 1, 8 and 32 clients at once.

Each client asks for a streaming completion of 128 random tokens that generates 128, one behind the other until all
requests of a row are served (`--requests` at least, and one for each client). `first` is the time to the first event
of such prompts, one client alone, `--probes` of them in a round; the quantiles of all rounds together stand below the
table. Both programs have 32 slots and are asked in the same form (`/v1/completions` by token ids, greedy, without end
tokens); llama-server without its prompt cache, and no two prompts begin alike.

The programs take turns, each in a process of its own that the other does not share the memory with; a probe of the
memory's bandwidth runs between them, and ratios are of a round. The peers' folder is that of bench/cpu_vs_peers.py,
with llama-server beside llama-bench.

The bars: 1.6 times the tokens a second of 8 and of 32 clients; the first token's p99 of one client no later.

usage: python bench/serve_vs_peers.py MODEL [--clients 1,8,32] [--rounds 5] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpu_vs_peers import PLACES, probed
from serving import Served, Taken, compared, completion, llama_server, load, servable, spread, tenth_server

OURS, LLAMA = "tenth serve", "llama-server"
FIRST = "first"
TOKENS, SLOTS, ROOM = 128, 32, 512  # tokens of a slot
_EXTRA: dict[str, dict[str, Any]] = {OURS: {}, LLAMA: {"cache_prompt": False}}


def begun(options: argparse.Namespace, name: str, model: Path) -> AbstractContextManager[Served]:
    """A server with room for all clients."""
    if name == OURS:
        room = ("--max-num-seqs", str(SLOTS), "--kv-memory", options.kv_memory)
        return tenth_server(model, "--threads", str(options.threads), *room)
    program = options.llama / "llama-server"
    return llama_server(program, options.q4_0, slots=SLOTS, room=SLOTS * ROOM, threads=options.threads)


def rows(options: argparse.Namespace, served: Served, name: str, seed: int) -> dict[str, dict[str, float]]:
    """The figures of a round, behind an answer that warms up; and each first token of the probes, in seconds."""
    load(served, [[completion(seed, TOKENS, 8, **_EXTRA[name])]])
    found, seed = {}, seed + 1
    for clients in options.clients:
        each = -(-max(options.requests, clients) // clients)
        asked = [completion(seed + n, TOKENS, TOKENS, **_EXTRA[name]) for n in range(clients * each)]
        found[f"{clients} clients"] = load(served, [asked[n::clients] for n in range(clients)]).figures()
        seed += clients * each
    if options.probes:
        probes = [completion(seed + n, TOKENS, 1, **_EXTRA[name]) for n in range(options.probes)]
        heard = [one.first for one in load(served, [probes]).heard]
        found[FIRST] = {f"probe{n}_s": seconds for n, seconds in enumerate(heard)}
    return found


def take(options: argparse.Namespace) -> list[Taken]:
    """All rounds, the programs in turn."""
    taken = []
    with servable(options.model) as model:
        for number in range(options.rounds):
            before = probed(options.probe)
            for name in (OURS, LLAMA) if number % 2 == 0 else (LLAMA, OURS):
                with begun(options, name, model) as served:
                    found = rows(options, served, name, 10_000 * (number + 1))
                after = probed(options.probe)
                taken += [Taken(row, number, name, (before + after) / 2, figures) for row, figures in found.items()]
                speeds = ", ".join(f"{row} {f['tok_s']:.1f} tok/s" for row, f in found.items() if "tok_s" in f)
                print(f"{number + 1}/{options.rounds} {name}: {speeds}", file=sys.stderr, flush=True)
                before = after
    return taken


def first_tokens(taken: list[Taken]) -> list[str]:
    """A line for each program: the probes of all rounds."""
    lines = []
    for name in dict.fromkeys(t.name for t in taken):
        seconds = [one for t in taken if t.name == name and t.row == FIRST for one in t.figures.values()]
        if seconds:
            found = spread(seconds)
            half, last = 1e3 * found["p50_s"], 1e3 * found["p99_s"]
            lines.append(f"first token of one client, {name}: p50 {half:.1f} ms, p99 {last:.1f} ms of {len(seconds)}")
    return lines


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the packed model; without a tokenizer it gets one")
    parser.add_argument("--clients", default="1,8,32", help=f"how many at once, {SLOTS} at most")
    parser.add_argument("--requests", type=int, default=4, help="of a row at least")
    parser.add_argument("--probes", type=int, default=20, help="first tokens of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-memory", default="1GB", help="of tenth")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "tenth-peers", help="their folder")
    parser.add_argument("--json", type=Path, help="write every round here")
    options = parser.parse_args()
    options.clients = [int(number) for number in options.clients.split(",")]
    if not all(1 <= number <= SLOTS for number in options.clients):
        parser.error(f"clients must lie between 1 and {SLOTS}")
    options.model = options.model.absolute()
    for name, place in PLACES.items():
        setattr(options, name, options.peers / place)
    return options


def main() -> None:
    """Measure, print the table, write what was asked for."""
    options = parsed()
    taken = take(options)
    print(compared([t for t in taken if t.row != FIRST], LLAMA))
    print("\n".join(first_tokens(taken)))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in taken], indent=1) + "\n")


if __name__ == "__main__":
    main()
