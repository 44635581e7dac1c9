"""A file of requests to a file of answers: the form of OpenAI's batches, one JSON object a line.

A line of the input is `{"custom_id": ..., "url": "/v1/chat/completions", "body": {...}}`, or a body alone, whose id is
then its line. Answers are written as they come, in any order. What the output holds already is not done again: an
answer carries a hash of its request, so that a changed request under an old id is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenth.api.answer_text import Piece
from tenth.api.bodies import Asked, Kind, answer_body
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


def run_batch(
    model: Model, engine: Engine, lines: list[Line], out: Path, *, at_once: int, progress: Progress | None = None
) -> Totals:
    """Answer what `out` does not hold yet, `at_once` requests in the engine at a time.

    FileFormatError where `out` is no output of such a batch, or of another one. A request that cannot be served gets an
    error in its line. `progress` is told the requests done, of how many.
    """
    answered, whole = _answered(out)
    for line in lines:
        if answered.get(line.name, line.digest) != line.digest:
            raise FileFormatError(f"{out}: the answer to {line.name!r:.60} is to another request: write to a new file")
    todo = [line for line in lines if line.name not in answered]
    totals = Totals(skipped=len(lines) - len(todo))
    with out.open("r+b" if out.exists() else "wb") as file:
        file.truncate(whole)  # a line that an interruption cut off
        file.seek(whole)
        for work in _served(model, engine, iter(todo), at_once, totals):
            file.write(json.dumps(work, ensure_ascii=False).encode() + b"\n")
            file.flush()
            if progress is not None:
                progress(totals.skipped + totals.done + totals.failed, len(lines))
    return totals


@dataclass(slots=True)
class _Work:
    """A request in the engine, with the text of its answers so far."""

    line: Line
    asked: Asked
    stream: Stream
    seen: list[int] = field(default_factory=list)
    pieces: list[list[Piece]] = field(default_factory=list)


def _served(
    model: Model, engine: Engine, todo: Iterator[Line], at_once: int, totals: Totals
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
                yield _failed(line, "invalid_request", str(error))
            else:
                count = len(stream.answers)
                works.append(_Work(line, asked, stream, [0] * count, [[] for _ in range(count)]))
            line = next(todo, None)
        engine.step()
        for work in works:
            _read_on(work)
        for work in [work for work in works if work.stream.finished]:
            works.remove(work)
            yield _answer(model, work, totals)


def _read_on(work: _Work) -> None:
    """Turn new tokens into text; what a stop string has ended goes no further."""
    for number, (answer, text) in enumerate(zip(work.stream.answers, work.asked.texts, strict=True)):
        new = answer.tokens[work.seen[number] :]
        if new and text.stopped is None:
            work.pieces[number].append(text.push(new))
            if text.stopped is not None:
                answer.cancel()
        work.seen[number] += len(new)


def _answer(model: Model, work: _Work, totals: Totals) -> dict[str, Any]:
    error = next((answer.error for answer in work.stream.answers if answer.error is not None), None)
    if error is not None:
        totals.failed += 1
        return _failed(work.line, "failed", str(error))
    texts = []
    for text, pieces in zip(work.asked.texts, work.pieces, strict=True):
        all_pieces = [*pieces, text.finish()]
        texts.append(("".join(p.reasoning for p in all_pieces), "".join(p.content for p in all_pieces)))
    name = f"batch-{work.line.digest}"
    body = answer_body(model, work.asked, work.stream, texts, name)
    totals.done += 1
    totals.prompt_tokens += body["usage"]["prompt_tokens"]
    totals.generated_tokens += body["usage"]["completion_tokens"]
    response = {"status_code": 200, "request_id": work.line.digest, "body": body}
    return {"id": name, "custom_id": work.line.name, "response": response, "error": None}


def _failed(line: Line, code: str, message: str) -> dict[str, Any]:
    return {
        "id": f"batch-{line.digest}",
        "custom_id": line.name,
        "response": None,
        "error": {"code": code, "message": message},
    }


def _read_line(where: str, number: int, text: bytes) -> Line:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise FileFormatError(f"{where}: is not JSON: {error}") from None
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
    if url not in URLS:
        raise FileFormatError(f"{where}: url is {url!r:.60}, it must be one of {', '.join(URLS)}")
    words = json.dumps([url, body], sort_keys=True).encode()
    return Line(name, hashlib.blake2b(words, digest_size=8).hexdigest(), URLS[url], body)


def _answered(out: Path) -> tuple[dict[str, str], int]:
    """Ids and hashes of the answers that are there, and how many bytes of whole lines."""
    found, whole = dict[str, str](), 0
    if not out.exists():
        return found, whole
    with out.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                break
            try:
                line = json.loads(text)
                found[line["custom_id"]] = line["id"].removeprefix("batch-")
            except (ValueError, TypeError, KeyError, AttributeError):
                raise FileFormatError(f"{out}, line {number}: is no answer of a batch: write to a new file") from None
            whole += len(text)
    return found, whole


def check_apart(source: Path, out: Path) -> None:
    """RequestError where the output would overwrite the input."""
    if out.exists() and out.samefile(source):
        raise RequestError(f"{out}: is the input; the answers go to another file")
