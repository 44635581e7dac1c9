"""The engine beside llama-server and ik_llama.cpp's batched bench, on models of one shape.

Rows: `throughput`, 16 requests of 128 tokens that generate 128, all at once, generated tokens a second of the whole;
`first`, the time to the first token of prompts of 512 while 8 other requests generate, half and 99 in a hundred no
longer. llama-server has 16 slots and is asked over HTTP on this machine, without its prompt cache; ik_llama.cpp, whose
server is not at hand, reads and generates in step. The programs take turns, a probe of the memory's bandwidth runs
between them, and ratios are taken within a round.

The peers' folder is that of bench/cpu_vs_peers.py, with llama-server beside llama-bench.

usage: python bench/engine_vs_peers.py MODEL [--rows throughput,first] [--rounds 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from cpu_vs_peers import PLACES, probed, said_by
from science import markdown
from serving import Served, llama_server, spread

SLOTS, TOKENS = 16, 128
OTHERS, PROMPT, PROBES = 8, 512, 20
LLAMA, IK = "llama-server", "ik batched-bench"
ROWS = {"throughput": ("tenth", LLAMA, IK), "first": ("tenth", LLAMA)}
Figures = dict[str, float]


# ---- ours


def our_throughput(options: argparse.Namespace) -> Figures:
    """By `tenth bench`."""
    load = ["--prompt", str(TOKENS), "--generate", str(TOKENS), "--concurrency", str(SLOTS), "--requests", str(SLOTS)]
    command = [
        sys.executable,
        "-m",
        "tenth",
        "bench",
        options.model,
        *load,
        "--threads",
        str(options.threads),
        "--json",
    ]
    return {"tok_s": json.loads(said_by(command))[0]["tok_s"]}


def our_first(options: argparse.Namespace) -> Figures:
    """In a process of its own: this one holds no model."""
    command = [sys.executable, __file__, options.model, "--ours", "--threads", str(options.threads)]
    found: Figures = json.loads(said_by(command))
    return found


def measure_first(model: Path, threads: int) -> Figures:
    """Seconds from submission to the first token, beside others that generate."""
    from tenth.engine.engine import Engine, EngineOptions
    from tenth.engine.request import Request
    from tenth.engine.sampler import Sampling
    from tenth.kernels.choice import choose_kernels
    from tenth.weights.checkpoint import open_checkpoint
    from tenth.weights.load import load_decoder

    with open_checkpoint(model) as checkpoint:
        kernels = choose_kernels("cpu", packed=True, head_dim=checkpoint.config.head_dim, threads=threads)
        decoder = load_decoder(checkpoint, kernels=kernels)
    engine, chance = Engine(decoder, EngineOptions(pages=1024)), random.Random(0)

    def ask(prompt: int, generate: int) -> Request:
        ids = tuple(chance.randrange(decoder.config.vocab_size) for _ in range(prompt))
        return Request(ids, generate, Sampling(temperature=0))

    others = [engine.submit(ask(TOKENS, 2048)) for _ in range(OTHERS)]
    while not all(stream.tokens for stream in others):
        engine.step()
    seconds = []
    for number in range(PROBES + 1):
        for _ in range(chance.randrange(4)):
            engine.step()
        start = time.perf_counter()
        stream = engine.submit(ask(PROMPT, 1))
        while not stream.finished:
            engine.step()
        if number:
            seconds.append(time.perf_counter() - start)
    assert not any(stream.finished for stream in others), "the others must generate all the time"
    return spread(seconds)


# ---- llama-server


def server(options: argparse.Namespace) -> AbstractContextManager[Served]:
    """It has room for the others and for prompts beside them."""
    program, room = options.llama / "llama-server", SLOTS * (PROMPT + 2048)
    return llama_server(program, options.q4_0, slots=SLOTS, room=room, threads=options.threads)


def completion(address: str, prompt: int, generate: int, seed: int, first: Callable[[], bool] | None = None) -> int:
    """One request, read to its end or until `first`, called with each piece, says stop; the pieces read."""
    ids = random.Random(seed).choices(range(1000, 100_000), k=prompt)
    body = {
        "prompt": ids,
        "n_predict": generate,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
    }
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    pieces = 0
    with urllib.request.urlopen(request) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                pieces += 1
                if first is not None and first():
                    break
    return pieces


def their_throughput(options: argparse.Namespace) -> Figures:
    """All slots at once, once to warm up."""
    with server(options) as served:
        completion(served.address, TOKENS, 4, 0)
        start = time.perf_counter()
        together([partial(completion, served.address, TOKENS, TOKENS, n + 1) for n in range(SLOTS)])
        return {"tok_s": SLOTS * TOKENS / (time.perf_counter() - start)}


def their_first(options: argparse.Namespace) -> Figures:
    """Prompts beside others that generate until they are told to stop."""
    over, begun = threading.Event(), threading.Semaphore(0)

    def beside(address: str, seed: int) -> None:
        told: list[None] = []

        def piece() -> bool:
            if not told:
                told.append(None)
                begun.release()
            return over.is_set()

        completion(address, TOKENS, 2048, seed, piece)

    with server(options) as served:
        others = [threading.Thread(target=beside, args=(served.address, n)) for n in range(OTHERS)]
        for other in others:
            other.start()
        for _ in others:
            begun.acquire()
        seconds = []
        for number in range(PROBES + 1):
            start = time.perf_counter()
            completion(served.address, PROMPT, 1, 100 + number, lambda: True)
            if number:
                seconds.append(time.perf_counter() - start)
        over.set()
        for other in others:
            other.join()
    return spread(seconds)


def together(works: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ---- ik_llama.cpp


def ik_throughput(options: argparse.Namespace) -> Figures:
    """All tokens it generated over all the time it took."""
    command = [options.ik / "llama-batched-bench", "-m", options.q4_0, "-t", str(options.threads), "-rtr", "-fa", "off"]
    command += ["-c", str(SLOTS * 2 * TOKENS), "-b", "2048", "-ub", "512", "-npl", str(SLOTS)]
    printed = said_by([*command, "-npp", str(TOKENS), "-ntg", str(TOKENS)], errors=True)
    # | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | T s | ...
    cells = next(line.strip("| ").split("|") for line in printed.splitlines() if re.match(r"\|\s*\d+ \|", line))
    return {"tok_s": SLOTS * TOKENS / float(cells[8])}


MEASURES: dict[tuple[str, str], Callable[[argparse.Namespace], Figures]] = {
    ("throughput", "tenth"): our_throughput,
    ("throughput", LLAMA): their_throughput,
    ("throughput", IK): ik_throughput,
    ("first", "tenth"): our_first,
    ("first", LLAMA): their_first,
}


# ---- all together


def take(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rounds, the programs in turn, a probe before and behind each."""
    taken = []
    for row in options.rows:
        for number in range(options.rounds):
            before = probed(options.probe)
            for name in ROWS[row] if number % 2 == 0 else ROWS[row][::-1]:
                figures = MEASURES[row, name](options)
                after = probed(options.probe)
                taken.append({"row": row, "round": number, "name": name, "probe": (before + after) / 2, **figures})
                print(f"{row} {number + 1}/{options.rounds} {name}: {figures}", file=sys.stderr, flush=True)
                before = after
    return taken


def table(taken: list[dict[str, Any]]) -> str:
    """Medians and ranges, and the medians of the rounds' ratios: how many times better ours is."""
    lines = [["figure", "program", "rounds", "median (range)", "ours is better by", "probe GB/s"]]
    for row, figure in dict.fromkeys((t["row"], f) for t in taken for f in ("tok_s", "p50_s", "p99_s") if f in t):
        ours = {t["round"]: t[figure] for t in taken if (t["row"], t["name"]) == (row, "tenth")}
        for name in [name for name in ROWS[row] if any((t["row"], t["name"]) == (row, name) for t in taken)]:
            mine = {t["round"]: t for t in taken if (t["row"], t["name"]) == (row, name) and figure in t}
            values = [t[figure] for t in mine.values()]
            ratios = [t[figure] / ours[n] if figure != "tok_s" else ours[n] / t[figure] for n, t in mine.items()]
            said = f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"
            ratio = "" if name == "tenth" else f"{statistics.median(ratios):.2f} x"
            probe = f"{statistics.median(t['probe'] for t in mine.values()):.1f}"
            lines.append([f"{row} {figure}", name, str(len(values)), said, ratio, probe])
    return markdown(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the packed model")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"which of {','.join(ROWS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "tenth-peers", help="their folder")
    parser.add_argument("--json", type=Path, help="write every round here")
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rows = options.rows.split(",")
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no row is named {', '.join(sorted(unknown))}: there are {', '.join(ROWS)}")
    options.model = options.model.absolute()
    for name, place in PLACES.items():
        setattr(options, name, options.peers / place)
    return options


def main() -> None:
    """Measure, print the table, write what was asked for."""
    options = parsed()
    if options.ours:
        print(json.dumps(measure_first(options.model, options.threads)))
        return
    taken = take(options)
    print(table(taken))
    if options.json is not None:
        options.json.write_text(json.dumps(taken, indent=1) + "\n")


if __name__ == "__main__":
    main()
