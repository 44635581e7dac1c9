"""A watched engine: counts are exact, whatever it computes again, guesses or drops; and no token changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tenth.engine.draft import PromptLookup
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.request import Request
from tenth.engine.sampler import Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.sequence import CachedSequence
from tenth.engine.stream import Stream
from tenth.kernels.choice import choose_kernels
from tenth.model.config import MoeConfig
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.observe.profiling import profiled_model
from tenth.routing.limit import ExpertLimit
from tenth.routing.measures import expert_counts, router_entropy
from tenth.routing.record import Routing
from tenth.routing.window import RoutingWindow
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tests.weights.packed_models import write_dense

TOP_K, EXPERTS = 3, 10
CONFIG = replace(
    preset("tiny-moe"),
    num_layers=4,
    sparse_layers=(0, 1, 3),
    moe=MoeConfig(EXPERTS, TOP_K, 32, shared_intermediate_size=16, shared_gate=True),
)


@pytest.fixture(scope="module", params=["native", "reference"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    plain = initialise(Decoder(CONFIG), seed=1, std=0.2).requires_grad_(False)
    if request.param == "reference":
        yield plain
        return
    folder: Path = tmp_path_factory.mktemp("packed") / "model"
    write_dense(folder, plain)
    with open_checkpoint(folder) as checkpoint:
        yield load_decoder(checkpoint, kernels=choose_kernels("cpu", packed=True, head_dim=16))


def watched(decoder: Decoder, options: EngineOptions | None = None, **more: object) -> tuple[Engine, RoutingWindow]:
    engine = Engine(decoder, options or EngineOptions(pages=64, page_size=16), **more)  # type: ignore[arg-type]
    window = RoutingWindow(profiled_model(decoder, "watched"))
    engine.watch(window)
    return engine, window


def served(engine: Engine, requests: Sequence[Request]) -> list[Stream]:
    streams = [engine.submit(request) for request in requests]
    while engine.busy:
        engine.step()
    return streams


def asked(seed: int, length: int, tokens: int = 12, **fields: object) -> Request:
    ids = torch.randint(0, 512, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Request(tuple(ids), tokens, Sampling(temperature=0.0), **fields)  # type: ignore[arg-type]


def sequences(streams: Sequence[Stream], decoder: Decoder) -> Iterator[Routing]:
    """What a plain sequence of each request's tokens decides; the last token is never shown."""
    for stream in streams:
        tokens = [*stream.request.prompt, *stream.tokens][:-1]
        _, routing = CachedSequence(decoder).extend(tokens, "full")
        assert routing is not None
        yield routing


def test_counts_are_those_of_the_sequences_one_by_one(decoder: Decoder) -> None:
    engine, window = watched(decoder)
    streams = served(engine, [asked(seed, 5 + 9 * seed) for seed in range(5)])
    total = window.total()
    assert total.tokens == engine.scheduler.counts.computed == sum(5 + 9 * seed + 11 for seed in range(5))
    assert (total.counts_LE.sum(1) == TOP_K * total.tokens).all()
    counts = engine.scheduler.counts
    assert (counts.prompt, counts.drawn) == (
        sum(5 + 9 * seed for seed in range(5)),
        sum(len(s.tokens) for s in streams),
    )
    routings = list(sequences(streams, decoder))
    exact = decoder.kernels.name != "reference"  # torch sums a row in another order beside other neighbours
    for at, index in enumerate(CONFIG.sparse_layers):
        expected_E = sum(expert_counts(routing.layers[index]) for routing in routings)
        differs = int(abs(total.counts_LE[at] - expected_E.numpy()).sum())  # type: ignore[union-attr]
        assert differs <= (0 if exact else 4)
        gates = sum(float(routing.layers[index].gates_TK.sum()) for routing in routings)
        assert total.gates_LE[at].sum() == pytest.approx(gates, rel=1e-5)


def test_entropy_is_of_the_tokens_that_were_judged(decoder: Decoder) -> None:
    engine, window = watched(decoder)
    (stream,) = served(engine, [asked(1, 20, 1)])
    total, (routing,) = window.total(), sequences([stream], decoder)
    assert total.judged == total.tokens == 20
    for at, index in enumerate(CONFIG.sparse_layers):
        layer = routing.layers[index]
        assert layer.logits_TE is not None
        assert total.router_entropy_L[at] == pytest.approx(router_entropy(layer.logits_TE, layer.score), abs=1e-5)


def test_what_is_computed_again_is_counted_again(decoder: Decoder) -> None:
    # 6 pages of 16 tokens for four sequences of up to 40: they push each other out
    engine, window = watched(decoder, EngineOptions(6, 16, SchedulerOptions(wait=0)))
    served(engine, [asked(seed, 20, 20) for seed in range(4)])
    counts = engine.scheduler.counts
    assert counts.preempted > 0
    assert (counts.drawn, counts.prompt > 4 * 20) == (4 * 20, True)
    total = window.total()
    assert total.tokens == counts.computed
    assert (total.counts_LE.sum(1) == TOP_K * counts.computed).all()


def test_guesses_that_were_wrong_have_been_computed(decoder: Decoder) -> None:
    # no step takes longer than another: guessing pays wherever a guess is right
    engine, window = watched(decoder, proposer=lambda _: PromptLookup(2, 1), clock=lambda: 0.0)
    served(engine, [asked(2, 8, 60, logit_bias={7: 100.0}, forbidden=frozenset({8}))])  # the same token all along
    assert engine.draft_counts is not None
    assert engine.draft_counts.drafted > 0
    assert (engine.scheduler.counts.prompt, engine.scheduler.counts.drawn) == (8, 60)
    assert engine.scheduler.counts.steps < 60
    total = window.total()
    assert total.tokens == engine.scheduler.counts.computed
    assert (total.counts_LE.sum(1) == TOP_K * total.tokens).all()


def test_dropped_experts_have_not_worked(decoder: Decoder) -> None:
    engine, window = watched(decoder)
    served(engine, [asked(3, 30, limit=ExpertLimit(cap=2)), asked(4, 30)])
    total = window.total()
    assert total.tokens == 2 * 41
    assert (total.counts_LE.sum(1) == 2 * 41 + TOP_K * 41).all()


def test_being_watched_changes_no_token_and_no_record(decoder: Decoder) -> None:
    requests = [asked(seed, 10 + seed, record="choice" if seed % 2 else "none") for seed in range(4)]
    plain = served(Engine(decoder, EngineOptions(64, 16)), requests)
    engine, _ = watched(decoder)
    for one, other in zip(plain, served(engine, requests), strict=True):
        assert one.tokens == other.tokens
        records = [Routing.join(stream.answers[0].routing) for stream in (one, other)]
        assert records[0].num_tokens == records[1].num_tokens
        for index in records[0].layers:
            assert torch.equal(records[0].layers[index].experts_TK, records[1].layers[index].experts_TK)
            assert (records[0].layers[index].logits_TE is None) == (records[1].layers[index].logits_TE is None)


def test_found_sought_and_waited(decoder: Decoder) -> None:
    engine, _ = watched(decoder)
    first, second = asked(5, 40), asked(5, 40)
    streams = [*served(engine, [first]), *served(engine, [second])]
    assert engine.scheduler.counts.sought == 39 + 39
    assert engine.scheduler.counts.found == streams[1].found == 39
    assert all(stream.waited is not None and stream.waited >= 0 for stream in streams)
    assert engine.scheduler.held_pages == set()
