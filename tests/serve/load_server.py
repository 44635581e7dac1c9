"""`python -m tests.serve.load_server OPTIONS`: the real server of a model that proves its prompts, in its own process.

Options are JSON; the port comes as the first line of standard output. For each line of standard input it says, in a
line of JSON, what it holds at that moment; the log is on standard error.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import sys
import threading
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from tenth.api import Model
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.scheduler import SchedulerOptions
from tenth.serve.guards import GuardOptions, open_guards
from tenth.serve.logs import log_to_stderr
from tenth.serve.review_queue import ReviewOptions, open_reviews
from tenth.serve.runner import Life, listening_socket, loop_factory
from tenth.serve.service import ServeOptions, Service
from tenth.weights.template_process import shared_worker
from tests.serve.proving import proving_model

WATCHED = (
    "Job Asked Request Stream AsyncStream Progress Record Lease Ticket BoundedProtocol RequestResponseCycle Flight"
)


def _resident(pid: int | str | None) -> int:
    """Bytes of its own that a process holds in memory."""
    if pid is None:
        return 0
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def _held(service: Service) -> dict[str, Any]:
    """What the process holds; the engine's books are looked through."""
    engine = service.engine.engine
    scheduler = engine.scheduler
    scheduler.audit()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that what is held is seen
    everything = gc.get_objects()
    ours = (type(one) for one in everything if str(type(one).__module__).startswith(("tenth.", "uvicorn.")))
    alive = Counter(kind.__name__ for kind in ours)
    return {
        "jobs": len(service.jobs),
        "reading": service.reading,
        "answers": service.admission.answers,
        "tokens": service.admission.tokens,
        "busy": engine.busy,
        "free": scheduler.free_pages,
        "kept": len(scheduler.prefix),
        "pages": engine.tokens // 16,
        "alive": {name: alive[name] for name in WATCHED.split()},
        "objects": len(everything),
        "threads": threading.active_count(),
        "memory": _resident("self"),
        "template_memory": _resident(shared_worker().pid),
        "stats": {name: getattr(service.guards.cache.stats(), name) for name in ("hits", "misses", "damaged", "errors")}
        if service.guards.cache is not None
        else {},
    }


async def _live(options: dict[str, Any], service: Service) -> bool:
    bound = listening_socket("127.0.0.1", options["port"])

    def load() -> tuple[Model, Engine]:
        model = proving_model(Path(options["state"]))
        return model, model.engine(EngineOptions(options["pages"], 16, SchedulerOptions(sequences=32, wait=0)))

    async def tell() -> None:
        try:
            held = await service.engine.between_steps(lambda: _held(service))
        except Exception:  # an audit that finds something, above all
            held = {"failed": traceback.format_exc()}
        print(json.dumps({**held, "tasks": len(asyncio.all_tasks())}), flush=True)

    tasks = set[asyncio.Task[None]]()

    def asked() -> None:
        if sys.stdin.readline():
            tasks.add(task := asyncio.get_running_loop().create_task(tell()))
            task.add_done_callback(tasks.discard)
        else:
            asyncio.get_running_loop().remove_reader(sys.stdin)

    asyncio.get_running_loop().add_reader(sys.stdin, asked)
    print(bound.getsockname()[1], flush=True)
    return await Life(service, load, bound).live()


def main(options: dict[str, Any]) -> int:
    log_to_stderr("json")
    guards = GuardOptions(
        keys=Path(options["keys"]) if options["keys"] else None, state=Path(options["state"]), cache=options["cache"]
    )
    serve = ServeOptions(**options["serve"])
    rules = options.get("rules")
    reviews = ReviewOptions(options.get("reviews"), None if rules is None else Path(rules))
    runner = asyncio.Runner(loop_factory=loop_factory())
    with open_guards(guards) as opened, open_reviews(reviews) as queue, runner:
        return 0 if runner.run(_live(options, Service(serve, opened, reviews=queue))) else 1


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
