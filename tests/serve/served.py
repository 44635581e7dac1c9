"""A server of a scripted model in this process: answers are known, and each proves its own prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from tenth.api import Model
from tenth.api.drafts import DraftKind
from tenth.engine.async_engine import AsyncEngine
from tenth.engine.engine import EngineOptions
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.scripted import Script, ScriptedModel
from tenth.routing.profile import RoutingProfile
from tenth.serve.app import create_app
from tenth.serve.guards import Guards
from tenth.serve.review_queue import Reviews
from tenth.serve.runner import warm_up
from tenth.serve.service import ServeOptions, Service
from tenth.weights.tokenizer import Tokenizer
from tests.weights.vocabularies import qwen

VOCABULARY = 151_936
END = 151_645


def said(answers: Callable[[str], str | None], tokenizer: Tokenizer | None = None) -> Script:
    """A script by text: what is answered to a prompt, of which it is given all the text, tags and all."""
    tokenizer = tokenizer or qwen()
    coming = dict[tuple[int, ...], list[int]]()  # what follows a sequence

    def script(seen: Sequence[int]) -> int | None:
        whole = tuple(seen)
        if whole not in coming:
            text = answers(tokenizer.decode(whole, skip_specials=False))
            coming[whole] = [] if text is None else tokenizer.encode(text, specials=True)
        if not (rest := coming[whole]):
            return None
        coming[(*whole, rest[0])] = rest[1:]
        return rest[0]

    return script


def scripted(
    answers: Callable[[str], str | None],
    *,
    context: int = 4096,
    template: str | None = None,
    identity: str | None = None,
) -> Model:
    """A model with Qwen's vocabulary and template that answers so."""
    decoder: Any = ScriptedModel(VOCABULARY, [said(answers)], END, margin=40.0, context_length=context)
    return Model(decoder, qwen(), chat_template=template, identity=identity)


@asynccontextmanager
async def serving(
    model: Model,
    options: ServeOptions | None = None,
    guards: Guards | None = None,
    *,
    pages: int = 600,
    sequences: int = 16,
    draft: DraftKind = "off",
    profile: RoutingProfile | None = None,
    reviews: Reviews | None = None,
) -> AsyncIterator[tuple[Service, httpx.AsyncClient]]:
    """A service and a client of it; no network."""
    service = Service(options or ServeOptions(), guards, profile=profile, reviews=reviews)
    engine = model.engine(EngineOptions(pages, 16, SchedulerOptions(sequences=sequences, wait=0)), draft=draft)
    async with AsyncEngine(engine) as running:
        service.begin(model, running)
        await warm_up(service)
        service.phase = "ready"
        transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            yield service, client


def within(seconds: float, work: Any) -> Any:
    """Run it to its end."""
    return asyncio.run(asyncio.wait_for(work, seconds))
