"""What an event of a stream costs through a deployment handle of Ray Serve: why requests of a cluster do not go there.

A deployment yields small pieces of bytes at a steady pace, and `--streams` of them are read at once through its handle.
The CPU that all of Ray's processes and this one take, less what they take when nobody asks, is divided by the pieces.
There is no HTTP in it yet.

usage: python bench/serve_handle_cost.py [--streams 16] [--events 200] [--rate 20]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from serving import cpu_seconds

from tenth.cluster.on_ray import OnRay, Scale

_IDLE_S = 10.0


class Pieces:
    async def __call__(self, count: int, rate: float) -> AsyncIterator[bytes]:
        for _ in range(count):
            await asyncio.sleep(1 / rate)
            yield b'data: {"choices": [{"index": 0, "text": "word"}]}\n\n' * 2


async def read(handle: Any, options: argparse.Namespace) -> int:
    """All streams to their ends; how many pieces came."""

    async def one() -> int:
        return len([piece async for piece in handle.options(stream=True).remote(options.events, options.rate)])

    return sum(await asyncio.gather(*(one() for _ in range(options.streams))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--rate", type=float, default=20.0, help="of a stream, a second")
    options = parser.parse_args()
    ray = OnRay(None, "pieces", Scale(), 1.0)
    ray.open()
    try:
        from ray import serve

        deployed = serve.deployment(Pieces).options(max_ongoing_requests=2 * options.streams)
        handle = serve.run(deployed.bind(), name="pieces", route_prefix=None)
        asyncio.run(read(handle, options))  # to warm up
        before = cpu_seconds(os.getpid())
        time.sleep(_IDLE_S)
        idle = (cpu_seconds(os.getpid()) - before) / _IDLE_S
        before, begun = cpu_seconds(os.getpid()), time.perf_counter()
        count = asyncio.run(read(handle, options))
        seconds = time.perf_counter() - begun
        used = cpu_seconds(os.getpid()) - before - idle * seconds
        each = 1e3 * used / count
        print(f"{count} events in {seconds:.1f} s: {each:.2f} ms of CPU each; idle {100 * idle:.1f} % of a core")
    finally:
        ray.close()


if __name__ == "__main__":
    main()
