"""Metrics of what is behind the server: the engine, its cache of keys and values, experts and where they lie."""

from __future__ import annotations

from collections.abc import Iterator

from tenth.api.model import Model
from tenth.engine.engine import Engine
from tenth.kernels.cpu.expert_cache import ExpertCache
from tenth.model.config import MoeConfig
from tenth.routing.counts import Floats, Ints, RoutingCounts
from tenth.routing.window import RoutingWindow
from tenth.serve.drift import DriftWatch
from tenth.serve.metric_families import Families, Metric

_LAYER = ("layer",)


def engine_families(engine: Engine, model: Model, families: Families) -> Iterator[Metric]:
    """Its queues, its pages, what it computed and what it found."""
    running, waiting = engine.load
    counts, pages = engine.scheduler.counts, engine.scheduler.pages
    yield families.gauge("num_requests_running", "Answers at work.", running)
    yield families.gauge("num_requests_waiting", "Answers that wait for their turn.", waiting)
    used = "The share of the cache's pages that answers at work hold, 0 to 1."
    yield families.gauge("kv_cache_usage_perc", used, len(engine.scheduler.held_pages) / pages)
    kept = "The share of the cache's pages that hold something, kept for later prompts or at work, 0 to 1."
    yield families.gauge("kv_cache_filled_perc", kept, 1 - engine.scheduler.free_pages / pages)
    yield families.gauge("kv_cache_tokens", "Tokens that the cache has room for.", engine.tokens)
    yield families.counter("prefix_cache_queries", "Tokens looked for in the prefix cache.", counts.sought)
    yield families.counter("prefix_cache_hits", "Tokens found in the prefix cache.", counts.found)
    yield families.counter("num_preemptions", "Answers that had to wait again for lack of pages.", counts.preempted)
    yield families.counter("computed_tokens", "Tokens that went through the network.", counts.computed)
    if (drafts := engine.draft_counts) is not None:
        yield families.counter("spec_decode_num_draft_tokens", "Tokens that were guessed ahead.", drafts.drafted)
        yield families.counter("spec_decode_num_accepted_tokens", "Of these those that stood.", drafts.accepted)
    config = model.config
    dtype = str(model.decoder.dtype).removeprefix("torch.")
    shape = (str(config.num_layers), model.decoder.kernels.name, dtype, model.kv)
    names = ("layers", "kernels", "dtype", "kv")
    yield families.gauge("model_info", "Always 1: what the model is.", {shape: 1}, names)


def expert_families(window: RoutingWindow, moe: MoeConfig, families: Families) -> Iterator[Metric]:
    """What the routers decide, layer by layer: since the beginning, and over the window."""
    yield families.gauge("experts", "Experts of a layer.", moe.num_experts)
    yield families.gauge("experts_per_token", "Experts that a router chooses for a token.", moe.top_k)
    total = window.total()
    work = _by_layer(total, total.counts_LE.sum(1))
    yield families.counter("expert_assignments", "Pairs of token and expert that were computed.", work, _LAYER)
    yield families.counter("expert_tokens", "Tokens that went through the routers.", total.tokens)
    recent = window.recent()
    yield families.gauge("expert_window_seconds", "How far the window of the following reaches back.", window.seconds)
    yield families.gauge("expert_window_tokens", "Tokens in the window.", recent.tokens)
    judged = "Of these the tokens that the entropy of routers is known of."
    yield families.gauge("expert_window_judged_tokens", judged, recent.judged)
    for name, text, values in (
        ("expert_balancedness", "Mean assignments of an expert over the most in the window.", recent.balancedness_L),
        ("expert_load_entropy_ratio", "Entropy of the experts' shares of work over its most.", recent.load_entropy_L),
        ("router_entropy", "Mean entropy of a token's router scores over its most.", recent.router_entropy_L),
        ("dead_experts", "Experts without work in the window.", recent.dead_L),
    ):
        yield families.gauge(name, text, _by_layer(recent, values), _LAYER)


def drift_families(watch: DriftWatch, families: Families) -> Iterator[Metric]:
    """How far the window's routing is from the stored profile."""
    drift = watch.look()
    for name, text, values in (
        ("routing_drift_bits", "Divergence of the experts' shares of work from the profile.", drift.divergence_L),
        ("routing_drift_chance_bits", "What as many tokens of the profiled text would show.", drift.chance_L),
    ):
        found = {(str(layer),): value for layer, value in zip(drift.layers, values.tolist(), strict=True)}
        yield families.gauge(name, text, found, _LAYER)
    yield families.gauge("routing_drift_excess_bits", "Mean over layers of what is beyond chance.", drift.excess)
    yield families.gauge("routing_drift_alarm", "1 while that is above the threshold.", int(watch.alarm))


def cache_families(cache: ExpertCache, families: Families) -> Iterator[Metric]:
    """Of experts on disk: what was there, what was read, how long steps waited."""
    did = cache.statistics
    yield families.gauge("expert_cache_slots", "Experts that memory has room for.", cache.slots)
    yield families.gauge("expert_cache_experts", "Experts of the model that are on disk.", cache.experts)
    for name, text, value in (
        ("hits", "Experts that were in memory when a step asked for them.", did.hits),
        ("late", "Experts that were being read ahead when a step asked for them.", did.late),
        ("misses", "Experts that had to be read when a step asked for them.", did.misses),
        ("reads", "Experts read from disk.", did.reads),
        ("read_bytes", "Bytes read from disk.", did.bytes_read),
        ("stall_seconds", "Time that steps waited for the disk.", did.stalled_seconds),
    ):
        yield families.counter(f"expert_cache_{name}", text, value)


def _by_layer(counts: RoutingCounts, values_L: Floats | Ints) -> dict[tuple[str, ...], float]:
    return {(str(layer),): value for layer, value in zip(counts.layers, values_L.tolist(), strict=True)}
