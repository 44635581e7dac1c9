"""`GET /metrics`: what the server counts, in the text form of Prometheus (docs/metrics.md).

Everything is read when somebody asks; nothing is registered globally, so that a process may have several services.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterator
from typing import get_args

import torch
from fastapi import APIRouter
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from tenth import __version__
from tenth.api.model import Model
from tenth.serve.metric_families import Families, Metric
from tenth.serve.metrics_engine import cache_families, drift_families, engine_families, expert_families
from tenth.serve.review_queue import Reviews
from tenth.serve.service import Phase, Service

router = APIRouter()


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Numbers of the server for Prometheus, in its text form or in OpenMetrics', as `accept` says."""
    encode, kind = choose_encoder(request.headers.get("accept", ""))
    content = await asyncio.to_thread(encode, request.app.state.metrics)
    return Response(content, headers={"content-type": kind})


def registry_of(service: Service) -> CollectorRegistry:
    """All metrics of one service, and of its process."""
    registry = CollectorRegistry()
    registry.register(_Collected(service))
    ProcessCollector(registry=registry)
    return registry


class _Collected(Collector):
    """A service's numbers as they are now."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        """Nothing that would have to be collected first."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        service = self._service
        families = Families(service.options.names[0])
        yield from _server_families(service)
        yield from _request_families(service, families)
        yield from _guard_families(service, families)
        if service.reviews is not None:
            yield from _review_families(service.reviews)
        if service.loaded is not None:
            model, engine = service.loaded
            yield from engine_families(engine.engine, model, families)
            if model.config.moe is not None:
                yield from _expert_families(service, model, families)


def _expert_families(service: Service, model: Model, families: Families) -> Iterator[Metric]:
    if service.meter is not None and service.meter.experts is not None and model.config.moe is not None:
        yield from expert_families(service.meter.experts, model.config.moe, families)
    if service.drift is not None:
        yield from drift_families(service.drift, families)
    if model.expert_cache is not None:
        yield from cache_families(model.expert_cache, families)


def _server_families(service: Service) -> Iterator[Metric]:
    families = Families()
    build = {(__version__, platform.python_version(), torch.__version__): 1}
    yield families.gauge("build_info", "Always 1: the versions.", build, ("version", "python", "torch"))
    phases = {(phase,): int(service.phase == phase) for phase in get_args(Phase)}
    yield families.gauge("server_phase", "1 for the phase that the server is in.", phases, ("phase",))


def _request_families(service: Service, families: Families) -> Iterator[Metric]:
    meter = service.meter
    assert meter is not None, "without metrics there is no path to them"
    plain = Families()
    http = {(path, str(status)): count for (path, status), count in list(meter.http.items())}
    yield plain.counter("http_requests", "Requests of HTTP, by path template and status.", http, ("path", "status"))
    refused = {(code,): count for code, count in list(meter.refused.items())}
    yield plain.counter("requests_refused", "Requests that were not let in.", refused, ("code",))
    ended = {(reason,): count for reason, count in list(meter.succeeded.items())}
    yield families.counter("request_success", "Answers that came to their end.", ended, ("finished_reason",))
    failed = {(reason,): count for reason, count in list(meter.failed.items())}
    yield families.counter("request_failure", "Answers that did not come to their end.", failed, ("reason",))
    yield families.counter("prompt_tokens", "Tokens of prompts that were answered.", meter.prompt_tokens)
    yield families.counter("generation_tokens", "Tokens that were generated.", meter.generation_tokens)
    yield families.counter("reasoning_tokens", "Of the generated tokens those of thinking.", meter.reasoning_tokens)
    for name, text, histogram in (
        ("time_to_first_token_seconds", "From the request's arrival to an answer's first token.", meter.first_token),
        ("inter_token_latency_seconds", "Between two tokens of an answer.", meter.between_tokens),
        ("e2e_request_latency_seconds", "From a request's arrival to its end, of those that succeed.", meter.whole),
        ("request_queue_time_seconds", "That a prompt waited for its turn in the engine.", meter.queued),
        ("request_prompt_tokens", "Tokens of a prompt.", meter.prompt_length),
        ("request_generation_tokens", "Tokens of an answer.", meter.generation_length),
    ):
        yield families.histogram(name, text, histogram)


def _review_families(reviews: Reviews) -> Iterator[Metric]:
    families = Families()
    for name, text, label, counts in (
        ("flagged", "Reasons for which answers were flagged, by kind.", "kind", reviews.flagged),
        ("decided", "What people decided.", "decision", reviews.decided),
        ("lost", "Flagged answers that were not kept.", "reason", reviews.lost),
        ("errors", "Times that the reviews' database failed, for rules or for people.", "of", reviews.errors),
    ):
        values = {(value,): count for value, count in list(counts.items())}
        yield families.counter(f"reviews_{name}", text, values, (label,))


def _guard_families(service: Service, families: Families) -> Iterator[Metric]:
    if (cache := service.guards.cache) is not None:
        stats = cache.stats()
        for name, text, value in (
            ("hits", "Questions whose answer had been kept.", stats.hits),
            ("misses", "Questions whose answer had not been kept.", stats.misses),
            ("tokens_saved", "Tokens of prompts and answers that were not computed.", stats.tokens_saved),
            ("stored", "Answers that were kept.", stats.stored),
            ("evicted", "Answers that went for others.", stats.evicted),
            ("errors", "Times that the store failed.", stats.errors + stats.damaged),
        ):
            yield families.counter(f"response_cache_{name}", text, value)
    if (privacy := service.guards.privacy).on:
        finds = {(kind,): count for kind, count in list(privacy.finds.items())}
        yield families.counter("privacy_finds", "What the privacy filter found, by kind.", finds, ("kind",))
