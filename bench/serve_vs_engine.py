"""What HTTP costs: `tenth serve` beside the engine alone, the same requests put to both.

A round is `--streams` streaming completions at once, each of `--prompt` token ids that generates `--generate`: by HTTP
to `tenth serve`, and straight to an `AsyncEngine` in a process that has loaded the model as the server does and has
read the bodies before the clock starts. Prompts are new in every round, so that no prefix cache helps; which goes
first changes from round to round, and a probe of the memory's bandwidth runs around each. Both processes live all the
time, for which the mapped weights are in memory once (PSS is printed); the idle one's CPU is watched.

The client runs on the same cores. `server_cpu_ms`, `client_cpu_ms` and `other_cpu_ms` are milliseconds of CPU for each
token of the server (or the engine's process), of the client, and of the process whose turn it is not.

The bar is 0.95 of the engine's tokens a second, as the median over rounds.

usage: python bench/serve_vs_engine.py MODEL [--streams 16] [--rounds 7] [--threads 2] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpu_vs_peers import PLACES, probed
from serving import (
    Heard,
    Load,
    Served,
    Taken,
    compared,
    completion,
    cpu_seconds,
    load,
    memory_gb,
    servable,
    tenth_server,
)

from tenth.serve.runner import loop_factory

BAR, WARM_UP = 0.95, 8
ENGINE, SERVER = "engine", "tenth serve"


def bodies(options: argparse.Namespace, number: int, generate: int) -> list[dict[str, Any]]:
    """Of a round; the same number gives the same prompts."""
    return [completion(1000 * number + n, options.prompt, generate) for n in range(options.streams)]


# ---- the engine, in a process of its own


async def engine_rounds(options: argparse.Namespace) -> None:
    """Load as `tenth serve` does; then a round for each line of bodies on standard input."""
    from tenth.api import load as load_model
    from tenth.api.bodies import Asked, Rules
    from tenth.engine.async_engine import AsyncEngine, AsyncStream
    from tenth.serve.cache_size import cache_options
    from tenth.weights.budget import memory_bytes

    model = load_model(str(options.model), threads=options.threads)
    engine = model.engine(cache_options(model, memory_bytes(options.kv_memory), options.streams, None))

    async def heard(stream: AsyncStream, start: float) -> Heard:
        found = Heard()
        async for update in stream:
            found.first = found.first or time.perf_counter() - start
            found.tokens += len(update.drawn)
            found.events += 1
        found.end = time.perf_counter() - start
        return found

    async with AsyncEngine(engine) as running:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            rules = Rules(model.config.context_length, fill=True)
            requests = [Asked.read(model, "text_completion", body, rules).request for body in json.loads(line)]
            cpu, start = cpu_seconds(os.getpid()), time.perf_counter()
            streams = [running.submit(request) for request in requests]
            found = await asyncio.gather(*(heard(stream, start) for stream in streams))
            taken = Load(time.perf_counter() - start, found, {"server": cpu_seconds(os.getpid()) - cpu})
            print(json.dumps(asdict(taken)), flush=True)


class EngineProcess:
    """The other end of its pipes."""

    def __init__(self, options: argparse.Namespace, model: Path) -> None:
        command = [sys.executable, __file__, model, "--alone", "--threads", options.threads]
        command += ["--kv-memory", options.kv_memory, "--streams", options.streams]
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        if self._said() != "ready":
            sys.exit("the engine's process did not begin")

    def load(self, asked: Sequence[dict[str, Any]], other: int) -> Load:
        assert self._process.stdin is not None
        before = cpu_seconds(other)
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        found = json.loads(self._said())
        if any(one["tokens"] != body["max_tokens"] for one, body in zip(found["heard"], asked, strict=True)):
            sys.exit("the engine gave other numbers of tokens than were asked for")
        cpu = {**found["cpu"], "other": cpu_seconds(other) - before}
        return Load(found["seconds"], [Heard(**one) for one in found["heard"]], cpu)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the engine's process ended with {self._process.wait()}")
        return line.strip()


# ---- both in turn


def take(options: argparse.Namespace, served: Served, engine: EngineProcess) -> list[Taken]:
    """All rounds, behind one that warms up."""

    def one(name: str, number: int, generate: int) -> Load:
        asked = bodies(options, number, generate)
        if name == ENGINE:
            return engine.load(asked, served.pid)
        return load(served, [[body] for body in asked], other=engine.pid)

    for name in (ENGINE, SERVER):
        one(name, 0, WARM_UP)
    taken = []
    for number in range(options.rounds):
        before = probed(options.probe)
        for name in (ENGINE, SERVER) if number % 2 == 0 else (SERVER, ENGINE):
            found = one(name, number + 1, options.generate).figures()
            after = probed(options.probe)
            taken.append(Taken("streams", number, name, (before + after) / 2, found))
            said = ", ".join(f"{figure} {value:.3g}" for figure, value in found.items())
            print(f"{number + 1}/{options.rounds} {name}: {said}", file=sys.stderr, flush=True)
            before = after
    return taken


def measure(options: argparse.Namespace) -> list[Taken]:
    """With both processes; says what they hold in memory."""
    with servable(options.model) as model:
        arguments = ("--threads", str(options.threads), "--kv-memory", options.kv_memory)
        with tenth_server(model, *arguments, "--max-num-seqs", str(options.streams)) as served:
            engine = EngineProcess(options, model)
            try:
                taken = take(options, served, engine)
                for name, pid in ((ENGINE, engine.pid), (SERVER, served.pid)):
                    print(name, ", ".join(f"{key} {value:.2f}" for key, value in memory_gb(pid).items()))
            finally:
                engine.close()
    return taken


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a packed model; without a tokenizer it gets one")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generate", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-memory", default="512MB", help="of each of the two")
    place = Path.home() / ".cache" / "tenth-peers" / PLACES["probe"]
    parser.add_argument("--probe", type=Path, default=place, help="prints the memory's bandwidth")
    parser.add_argument("--json", type=Path, help="write every round here")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.model = options.model.absolute()
    return options


def main() -> None:
    """Measure, print the table and the verdict, write what was asked for."""
    options = parsed()
    if options.alone:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(engine_rounds(options))
        return
    taken = measure(options)
    print(compared(taken, ENGINE))
    print(f"the bar: {BAR} of the engine's tok_s")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(one) for one in taken], indent=1) + "\n")


if __name__ == "__main__":
    main()
