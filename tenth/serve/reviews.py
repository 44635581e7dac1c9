"""`/v1/reviews`: answers that a person is to look at (docs/reviews.md)."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tenth.api.message_fields import check_messages
from tenth.errors import RequestError
from tenth.serve.body import read_body
from tenth.serve.guard import caller_of
from tenth.serve.openapi import described
from tenth.serve.problems import HttpProblem
from tenth.serve.review import DECIDED, MOST_BYTES, STATES, Json, Reason, Review, State, kept_messages
from tenth.serve.review_queue import Reviews, ReviewsBusy
from tenth.serve.review_store import Page, ReviewChanged, ReviewStore, Verdict
from tenth.serve.service import service_of
from tenth.weights.template_messages import normal_messages

PATH = "/v1/reviews"
router = APIRouter()
Result = TypeVar("Result")

_ID = re.compile(r"rev_[0-9a-f]{24}")
_MOST = 200  # reviews of a page
_PAGE = 50
_LONGEST_NOTE = 10_000
_LEARNT_FROM: tuple[State, ...] = ("approved", "corrected")


@router.get(PATH, **described("reviews"))
async def listed(request: Request) -> Response:
    """Reviews, the newest last."""
    reviews, owner = _reviews(request), caller_of(request.scope).owner
    given = _query(request, "state", "limit", "after")
    states = _states(given.get("state", "waiting"), STATES)
    limit, after = _limit(given.get("limit", str(_PAGE))), given.get("after", "")
    if after and not _ID.fullmatch(after):
        raise RequestError(f"after is {after!r:.40}, it must be the id of a review")
    found, more, waiting = await _asked(reviews, lambda store: store.page(states, owner, after, limit))
    return JSONResponse({"data": [review.shown() for review in found], "has_more": more, "waiting": waiting})


@router.post(PATH, status_code=201, **described("flag"))
async def flag(request: Request) -> Response:
    """A person flags an answer."""
    reviews, body = _reviews(request), await read_body(request)
    review = _flagged(request, body)
    if len(review.packed()) > MOST_BYTES:
        raise HttpProblem(413, f"a review must be smaller than {MOST_BYTES:,} bytes, as JSON", "body_too_large")
    (kept,) = await _asked(reviews, lambda store: store.add([review]))
    reviews.flagged["person"] += 1
    return JSONResponse(kept.shown(), 201)


@router.get(f"{PATH}/export", **described("reviews_export"))
async def export(request: Request) -> Response:
    """Chats to learn from, as JSON lines."""
    reviews, owner = _reviews(request), caller_of(request.scope).owner
    states = _states(_query(request, "state").get("state", ",".join(_LEARNT_FROM)), _LEARNT_FROM)

    async def page(after: str) -> Page:
        return await _asked(reviews, lambda store: store.page(states, owner, after, _MOST))

    first = await page("")  # a database that is gone is an error, not half a file

    async def lines() -> AsyncIterator[bytes]:
        at = first
        while at.reviews:
            yield b"".join(json.dumps(one.example(), ensure_ascii=False).encode() + b"\n" for one in at.reviews)
            at = await page(at.reviews[-1].id) if at.more else Page([], False, 0)

    headers = {"content-disposition": 'attachment; filename="reviews.jsonl"'}
    return StreamingResponse(lines(), headers=headers, media_type="application/jsonl")


@router.get(PATH + "/{name}", **described("review"))
async def one(request: Request, name: str) -> Response:
    """One review."""
    reviews, owner = _reviews(request), caller_of(request.scope).owner
    return JSONResponse((await _found(reviews, name, owner)).shown())


@router.post(PATH + "/{name}", **described("decision"))
async def decide(request: Request, name: str) -> Response:
    """What a person decides."""
    reviews, caller = _reviews(request), caller_of(request.scope)
    verdict = _verdict(await read_body(request), caller.name)
    await _found(reviews, name, caller.owner)
    if not caller.reviewer:
        words = f"the key {caller.name} may not decide: `reviews = true` in the file of keys lets it"
        raise HttpProblem(403, words, "not_a_reviewer")
    try:
        decided = await _asked(reviews, lambda store: store.decide(name, verdict))
    except ReviewChanged as changed:
        raise HttpProblem(409, str(changed), "review_changed", "seen") from None
    if decided is None:
        raise _nothing(name)
    reviews.decided[verdict.decision] += 1
    return JSONResponse(decided.shown())


def _reviews(request: Request) -> Reviews:
    reviews = service_of(request).reviews
    if reviews is None:
        raise HttpProblem(404, "this server keeps no reviews: `tenth serve --reviews FILE` does", "no_reviews")
    return reviews


async def _asked(reviews: Reviews, work: Callable[[ReviewStore], Result]) -> Result:
    try:
        return await reviews.ask(work)
    except ReviewsBusy:
        words = "the reviews cannot be read or written now; the server's log says why"
        raise HttpProblem(503, words, "unavailable", retry_after=5) from None


async def _found(reviews: Reviews, name: str, owner: str | None) -> Review:
    found = await _asked(reviews, lambda store: store.get(name, owner)) if _ID.fullmatch(name) else None
    if found is None:
        raise _nothing(name)
    return found


def _nothing(name: str) -> HttpProblem:
    return HttpProblem(404, f"there is no review {name!r:.60}", "review_not_found")


def _query(request: Request, *known: str) -> dict[str, str]:
    for name in request.query_params:
        if name not in known:
            raise RequestError(f"{PATH} takes no {name!r:.40} (there are: {', '.join(known)})")
        if len(request.query_params.getlist(name)) > 1:
            raise RequestError(f"{name} is there more than once")
    return dict(request.query_params)


def _states(given: str, known: Sequence[State]) -> tuple[State, ...]:
    states = tuple(state for state in known if state in given.split(","))
    if len(states) < len(set(given.split(","))):
        raise RequestError(f"state is {given!r:.80}, it must hold some of {', '.join(known)}, with commas between")
    return states


def _limit(given: str) -> int:
    if not given.isascii() or not given.isdecimal() or len(given) > 6 or not 1 <= int(given) <= _MOST:
        raise RequestError(f"limit is {given!r:.40}, it must be a whole number from 1 to {_MOST}")
    return int(given)


def _flagged(request: Request, body: Json) -> Review:
    _check_names(body, "messages", "answer", "reasoning", "model", "note")
    service, caller = service_of(request), caller_of(request.scope)
    messages = normal_messages(body.get("messages"))
    template = service.loaded[0].template if service.loaded is not None else None
    check_messages(messages, None if template is None else template.source)
    note = _text(body, "note", _LONGEST_NOTE)
    answer, reasoning = _text(body, "answer") or "", _text(body, "reasoning") or None
    if not (answer + (reasoning or "")).strip():
        raise RequestError("answer is missing: it is what is flagged")
    return Review(
        key=caller.name,
        owner=caller.owner or "",
        model=_text(body, "model", 200) or service.options.names[0],
        messages=kept_messages(messages),
        answer=answer,
        reasons=(Reason("person", note or f"flagged by {caller.name}"),),
        reasoning=reasoning,
        note=note,
    )


def _verdict(body: Json, by: str) -> Verdict:
    _check_names(body, "decision", "correction", "note", "seen")
    decision, correction, seen = body.get("decision"), _text(body, "correction", MOST_BYTES // 8), body.get("seen")
    if not isinstance(decision, str) or decision not in DECIDED:
        raise RequestError(f"decision is {json.dumps(decision):.40}, it must be one of {', '.join(DECIDED)}")
    if (decision == "correct") != (correction is not None) or (correction is not None and not correction.strip()):
        raise RequestError("correction is the answer that is right: it goes with the decision correct, which needs it")
    if seen is not None and type(seen) is not int:
        raise RequestError(f"seen is {json.dumps(seen):.40}, it must be the version of the review that was looked at")
    return Verdict(decision, by, correction, _text(body, "note", _LONGEST_NOTE), seen)


def _check_names(body: Json, *known: str) -> None:
    for name in body:
        if name not in known:
            raise RequestError(f"a review has no {name!r:.40} (there are: {', '.join(known)})")


def _text(body: Json, name: str, most: int = MOST_BYTES) -> str | None:
    value: Any = body.get(name)
    if value is not None and not isinstance(value, str):
        raise RequestError(f"{name} must be a text")
    if value is not None and len(value) > most:
        raise RequestError(f"{name} has {len(value):,} characters, there may be {most:,}")
    return value
