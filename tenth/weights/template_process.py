"""The parent's side of the process that renders chat templates: start it, ask it, kill it when it takes too long."""

import atexit
import json
import os
import selectors
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from tenth.errors import MachineError, RequestError, TemplateError

_LENGTH = struct.Struct(">I")
_START_SECONDS = 60.0  # for a machine under load; a worker is started once and then reused
_INHERITED = ("TZ", "LD_LIBRARY_PATH")  # what Python itself may need; everything else is none of a template's business


@dataclass(frozen=True)
class RenderLimits:
    """What one rendering may take: wall-clock seconds, characters of JSON in, characters of text out."""

    seconds: float = 2.0
    input: int = 16 << 20
    output: int = 16 << 20


class _WorkerDiedError(Exception):
    """The worker closed its pipe."""


class TemplateWorker:
    """One worker process, started when first needed, again when it died, and shared by any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        atexit.register(self.close)

    @property
    def pid(self) -> int | None:
        """The process id of the worker, if one is running."""
        return None if self._process is None or self._process.poll() is not None else self._process.pid

    def render(self, source: str, context: str, limits: RenderLimits) -> str:
        """Render `source` with `context`, a JSON object.

        Raises TemplateError if the template fails or exceeds a limit, RequestError if the input is too long, and
        MachineError if no worker can be started.
        """
        if len(context) > limits.input:
            raise RequestError(f"the messages are {len(context)} characters of JSON, more than {limits.input}")
        head = json.dumps({"source": source, "seconds": limits.seconds, "output": limits.output})
        request = f'{head[:-1]}, "context": {context}}}'.encode()
        with self._lock:
            answer = self._ask(_LENGTH.pack(len(request)) + request, limits)
        if "text" in answer:
            return str(answer["text"])
        place = "" if answer["line"] is None else f", line {answer['line']}"
        raise TemplateError(f"chat template{place}: {' '.join(str(answer['error']).split())[:500]}")

    def close(self) -> None:
        """End the worker; the next rendering starts another."""
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    def _ask(self, request: bytes, limits: RenderLimits) -> dict[str, Any]:
        self._hand_over(request)
        try:
            answer = self._receive(limits.seconds, 12 * limits.output + 4096)  # \ud83d\ude00 is one character
        except TimeoutError:
            self.close()
            raise TemplateError(f"chat template: it does not end within {limits.seconds:g} seconds") from None
        except _WorkerDiedError:
            self.close()
            raise TemplateError("chat template: it needs too much memory or too deep a stack") from None
        except BaseException:  # an interrupt must not leave half an answer for the next request
            self.close()
            raise
        return answer

    def _hand_over(self, request: bytes) -> None:
        """Give the worker the request; one that died while idle is replaced, once."""
        for attempt in (1, 2):
            try:
                self._start()
                self._write(request)
                self._receive(_START_SECONDS, 4096)
                return
            except (_WorkerDiedError, TimeoutError, OSError) as error:
                self.close()
                if attempt == 2:
                    raise MachineError(
                        f"the process for chat templates does not start ({type(error).__name__}); "
                        f"`{sys.executable} -I -c 'import jinja2'` must work"
                    ) from None
            except BaseException:
                self.close()
                raise

    def _start(self) -> None:
        if self.pid is not None and self._owner == os.getpid():
            return
        self.close()
        self._owner = os.getpid()  # after a fork, the parent's worker is left to the parent
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).with_name("template_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _INHERITED if name in os.environ},
            cwd="/",
            start_new_session=True,
        )
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        self._receive(_START_SECONDS, 4096)

    def _write(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        pipe, deadline, rest = self._process.stdin, time.monotonic() + _START_SECONDS, memoryview(data)
        while rest:
            _wait(pipe, selectors.EVENT_WRITE, deadline)
            rest = rest[os.write(pipe.fileno(), rest) :]

    def _receive(self, seconds: float, longest: int) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        length = _LENGTH.unpack(self._read(_LENGTH.size, deadline))[0]
        if length > longest:
            raise _WorkerDiedError
        message: dict[str, Any] = json.loads(self._read(length, deadline))
        return message

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        pipe, data = self._process.stdout, bytearray()
        while len(data) < size:
            _wait(pipe, selectors.EVENT_READ, deadline)
            part = os.read(pipe.fileno(), min(size - len(data), 1 << 20))
            if not part:
                raise _WorkerDiedError
            data += part
        return bytes(data)


def _wait(pipe: IO[bytes], event: int, deadline: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, event)
        if not selector.select(max(0.0, deadline - time.monotonic())):
            raise TimeoutError


@cache
def shared_worker() -> TemplateWorker:
    """Give the worker that all templates of this process share."""
    return TemplateWorker()
