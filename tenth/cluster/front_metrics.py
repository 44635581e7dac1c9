"""`/metrics` of all: those of each replica under a label with its name, and the front's own.

Nothing is added up here: `sum without (replica)` does, and would count twice what already is a sum.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import aiohttp
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tenth.cluster.members import Member
from tenth.cluster.wire import SECRET
from tenth.serve.metric_families import Families

if TYPE_CHECKING:
    from tenth.cluster.front import Front

_SECONDS = 5.0  # for a replica to tell its numbers: one that is stuck does not keep the others' back
log = logging.getLogger("tenth.serve")


async def merged_metrics(session: aiohttp.ClientSession, front: Front, accept: str) -> tuple[bytes, str]:
    """The text in the form that is accepted, and its content type."""
    members = list(front.members.by_id.values())
    texts = await asyncio.gather(*(_told(session, member, front.secret) for member in members))
    told = {member.id: text for member, text in zip(members, texts, strict=True) if text}
    encode, kind = choose_encoder(accept)
    registry = CollectorRegistry()
    registry.register(_Merged(front, told))
    ProcessCollector(registry=registry)
    return await asyncio.to_thread(encode, registry), kind


async def _told(session: aiohttp.ClientSession, member: Member, secret: str) -> str:
    """One replica's numbers; nothing where it does not tell them."""
    try:
        async with asyncio.timeout(_SECONDS):
            headers = {SECRET.decode(): secret, "accept": "text/plain"}
            async with session.get(f"{member.news.url}/metrics", headers=headers) as reply:
                return await reply.text() if reply.status == 200 else ""
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        log.warning("replica %s tells no metrics: %s", member.id, error or "too late")
        return ""


class _Merged(Collector):
    """All families, each once."""

    def __init__(self, front: Front, told: dict[str, str]) -> None:
        self._front, self._told = front, told

    def describe(self) -> list[Metric]:
        """Nothing that would have to be collected first."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The front's, then those of replicas; `process_*` of the replicas is theirs, of the front its own."""
        yield from front_families(self._front)
        yield from labelled(self._told)


def labelled(told: dict[str, str]) -> Iterable[Metric]:
    """Families of texts by replica, their samples with a label more; `process_*` becomes `tenth_replica_process_*`."""
    merged = dict[str, Metric]()
    for replica, text in told.items():
        for family in text_string_to_metric_families(text):
            name = f"tenth_replica_{family.name}" if family.name.startswith("process_") else family.name
            into = merged.setdefault(name, Metric(name, family.documentation, family.type))
            for sample in family.samples:
                own = sample.name.replace(family.name, name, 1)
                into.add_sample(own, {**sample.labels, "replica": replica}, sample.value, sample.timestamp)
    return merged.values()


def front_families(front: Front) -> Iterator[Metric]:
    """What the front counts by itself."""
    families, counts, members = Families(), front.counts, list(front.members.by_id.values())
    phases = {(member.id, member.news.phase): 1 for member in members}
    yield families.gauge("cluster_replicas", "1 for each replica, with its phase.", phases, ("replica", "phase"))
    flights = {(member.id,): member.flights for member in members}
    yield families.gauge("cluster_requests", "Requests that a replica works on.", flights, ("replica",))
    given = {(member.id,): member.given for member in members}
    yield families.counter("cluster_requests_given", "Requests that a replica was given.", given, ("replica",))
    decided = {(why,): counts.given[why] for why in ("prefix", "other")}
    text = "Requests by what decided: a beginning that the replica knows, or something else."
    yield families.counter("cluster_routed", text, decided, ("by",))
    yield families.counter("cluster_prefix_bytes", "Of prompts, that the replica had seen.", counts.matched_bytes)
    yield families.counter("cluster_retries", "Attempts that another one followed.", counts.retries)
    yield families.counter("cluster_broken_streams", "Streams whose replica went away.", counts.broken)
    http = {(method, str(status)): number for (method, status), number in list(counts.http.items())}
    yield families.counter("cluster_http_requests", "Answers of the front.", http, ("method", "status"))
