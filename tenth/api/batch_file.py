"""A file of requests to a file of answers: the form of OpenAI's batches, one JSON object a line.

A line of the input is `{"custom_id": ..., "url": "/v1/chat/completions", "body": {...}}`, or a body alone, whose id is
then its line. Answers are written as they come, in any order. What the output holds already is not done again: an
answer carries a hash of its request and one of the settings, so that a changed request under an old id is noticed, and
another model. An error is no answer: such a line is taken out, and its request done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenth.api.answer_body import Form, Usage
from tenth.api.answer_events import AnswerEvents, Event, whole_of
from tenth.api.bodies import Asked, Kind
from tenth.api.model import Model
from tenth.engine.engine import Engine
from tenth.engine.stream import Stream
from tenth.errors import FileFormatError, RequestError, TenthError

URLS: dict[str, Kind] = {"/v1/chat/completions": "chat.completion", "/v1/completions": "text_completion"}
_ENVELOPE = {"custom_id", "method", "url", "body"}
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Line:
    """One request of the input; `digest` is of its words."""

    name: str
    digest: str
    kind: Kind
    body: Mapping[str, Any]


@dataclass(slots=True)
class Totals:
    """What a run did: answers by outcome, tokens; `skipped` were there already."""

    done: int = 0
    failed: int = 0
    skipped: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


def read_lines(path: Path) -> list[Line]:
    """All requests; FileFormatError where a line is none, or an id is there twice."""
    lines, known = list[Line](), dict[str, int]()
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                line = _read_line(f"{path}, line {number}", number, text)
                if line.name in known:
                    first = known[line.name]
                    raise FileFormatError(f"{path}, line {number}: custom_id {line.name!r:.60} is line {first}'s")
                known[line.name] = number
                lines.append(line)
    return lines


def settings_digest(model: str, **options: object) -> str:
    """A hash of what answers depend on beside their requests; a model's path counts, wherever it is seen from."""
    name = str(Path(model).resolve()) if Path(model).exists() else model
    return _digest([name, sorted((option, repr(value)) for option, value in options.items())])


def check_out(source: Path, out: Path, lines: list[Line], settings: str) -> None:
    """What `run_batch` would say of the output, and more, before a model is loaded.

    RequestError where it is the input, or no file that answers can be added to.
    """
    if not out.exists():
        if not out.parent.is_dir():
            raise RequestError(f"{out}: there is no folder {out.parent}")
    elif not out.is_file():
        raise RequestError(f"{out}: is no regular file; answers that are there are read again, so they need one")
    elif out.samefile(source):
        raise RequestError(f"{out}: is the input; the answers go to another file")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise RequestError(f"{out}: may not be written")
    _kept(out).check(out, lines, settings)


def run_batch(
    model: Model,
    engine: Engine,
    lines: list[Line],
    out: Path,
    *,
    at_once: int,
    settings: str = "",
    progress: Progress | None = None,
) -> Totals:
    """Answer what `out` does not hold yet, `at_once` requests in the engine at a time.

    FileFormatError where `out` is no output of such a batch, or of another one, or of one with other `settings`
    (`settings_digest`). A request that cannot be served gets an error in its line. `progress` is told the requests
    done, of how many.
    """
    kept = _kept(out)
    kept.check(out, lines, settings)
    todo = [line for line in lines if line.name not in kept.answered]
    totals = Totals(skipped=len(lines) - len(todo))
    if kept.failed:
        _take_out(out, kept)
    with _named(out), out.open("ab") as file:
        file.truncate(kept.size)  # a line that an interruption cut off
        for work in _served(model, engine, iter(todo), at_once, totals, settings):
            file.write(_written(work))
            file.flush()
            if progress is not None:
                progress(totals.skipped + totals.done + totals.failed, len(lines))
    return totals


@contextmanager
def _named(out: Path) -> Iterator[None]:
    """A full disk is told without the name of the file that was written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(out)) from None


def _written(answer: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(answer, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, in an id or a label: JSON may name it, UTF-8 has none
        return json.dumps(answer).encode() + b"\n"


@dataclass(slots=True)
class _Work:
    """A request in the engine, with the events of its answers so far."""

    line: Line
    asked: Asked
    stream: Stream
    readers: list[AnswerEvents]
    seen: list[int] = field(default_factory=list)
    events: list[list[Event]] = field(default_factory=list)


def _served(
    model: Model, engine: Engine, todo: Iterator[Line], at_once: int, totals: Totals, settings: str
) -> Iterator[dict[str, Any]]:
    works = list[_Work]()
    line = next(todo, None)
    while works or line is not None:
        while line is not None and len(works) < at_once:
            try:
                asked = Asked.read(model, line.kind, line.body)
                stream = engine.submit(asked.request)
            except TenthError as error:
                totals.failed += 1
                yield _failed(line, "invalid_request", str(error), settings)
            else:
                count = len(stream.answers)
                works.append(_Work(line, asked, stream, asked.events(), [0] * count, [[] for _ in range(count)]))
            line = next(todo, None)
        engine.step()
        for work in works:
            _read_on(work)
        for work in [work for work in works if work.stream.finished]:
            works.remove(work)
            yield _answer(model, work, totals, settings)


def _read_on(work: _Work) -> None:
    """Turn new tokens into events; what a stop string has ended goes no further."""
    for number, (answer, reader) in enumerate(zip(work.stream.answers, work.readers, strict=True)):
        new = answer.drawn[work.seen[number] :]
        work.events[number] += reader.push(new, work.stream.prompt)
        work.seen[number] += len(new)
        if reader.over:
            answer.cancel()


def _answer(model: Model, work: _Work, totals: Totals, settings: str) -> dict[str, Any]:
    error = next((answer.error for answer in work.stream.answers if answer.error is not None), None)
    if error is not None:
        totals.failed += 1
        return _failed(work.line, "failed", str(error), settings)
    wholes = [
        whole_of([*events, *reader.finish(answer.finish_reason or "error")])
        for events, reader, answer in zip(work.events, work.readers, work.stream.answers, strict=True)
    ]
    name = _id(work.line, settings)
    form = Form(work.line.kind, name, int(time.time()), work.asked.label, model.tokenizer)
    body = form.body([work.asked], wholes, Usage.of([work.stream]))
    totals.done += 1
    totals.prompt_tokens += body["usage"]["prompt_tokens"]
    totals.generated_tokens += body["usage"]["completion_tokens"]
    response = {"status_code": 200, "request_id": work.line.digest, "body": body}
    return {"id": name, "custom_id": work.line.name, "response": response, "error": None}


def _id(line: Line, settings: str) -> str:
    return f"batch-{line.digest}-{settings}"


def _failed(line: Line, code: str, message: str, settings: str) -> dict[str, Any]:
    return {
        "id": _id(line, settings),
        "custom_id": line.name,
        "response": None,
        "error": {"code": code, "message": message},
    }


def _read_line(where: str, number: int, text: bytes) -> Line:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise FileFormatError(f"{where}: is not JSON: {error}") from None
    except RecursionError:
        raise FileFormatError(f"{where}: is nested too deep") from None
    if not isinstance(line, dict):
        raise FileFormatError(f"{where}: must be an object")
    body, name, url = line, f"line-{number}", None
    if "body" in line:
        unknown = sorted(line.keys() - _ENVELOPE)
        if unknown:
            raise FileFormatError(f"{where}: {unknown[0]!r:.40} is none of {', '.join(sorted(_ENVELOPE))}")
        body, name, url = line["body"], line.get("custom_id", name), line.get("url")
    if not isinstance(body, dict) or not isinstance(name, str) or not name:
        raise FileFormatError(f"{where}: needs a body that is an object, and a custom_id that is a text")
    if url is None:
        url = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    if not isinstance(url, str) or url not in URLS:
        raise FileFormatError(f"{where}: url is {url!r:.60}, it must be one of {', '.join(URLS)}")
    return Line(name, _digest([url, body]), URLS[url], body)


def _digest(value: object) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


@dataclass(slots=True)
class _Kept:
    """What an output holds: ids of its answers with the hashes of request and settings, and lines with errors.

    `failed` are the lines' numbers; `size` is bytes of whole lines, those apart.
    """

    answered: dict[str, tuple[str, str]] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)
    size: int = 0

    def check(self, out: Path, lines: list[Line], settings: str) -> None:
        """FileFormatError where an answer is to another request, or was given with other settings."""
        for line in lines:
            request, under = self.answered.get(line.name, (line.digest, settings))
            wrong = "to another request" if request != line.digest else "of another model or with other options"
            if (request, under) != (line.digest, settings):
                raise FileFormatError(f"{out}: the answer to {line.name!r:.60} is {wrong}: write to a new file")


def _kept(out: Path) -> _Kept:
    kept = _Kept()
    if not out.exists():
        return kept
    with out.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                break
            try:
                line = json.loads(text)
                name, digests = line["custom_id"], line["id"].removeprefix("batch-").partition("-")
                failed = line["error"] is not None
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                raise FileFormatError(f"{out}, line {number}: is no answer of a batch: write to a new file") from None
            if failed:
                kept.failed.add(number)
            else:
                kept.answered[name], kept.size = (digests[0], digests[2]), kept.size + len(text)
    return kept


def _take_out(out: Path, kept: _Kept) -> None:
    """Write the output without lines that hold errors: whole, or not at all."""
    beside = out.with_name(out.name + ".part")
    with out.open("rb") as old, beside.open("wb") as new:
        new.writelines(text for number, text in enumerate(old, 1) if number not in kept.failed and text[-1:] == b"\n")
        new.flush()
        os.fsync(new.fileno())
    shutil.copymode(out, beside)
    beside.replace(out)
