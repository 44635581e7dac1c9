"""Limits of experts: a request's tokens are its own in any company, after any preemption, with any beginning found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.engine.captured import CapturedDecoder, runner_of
from tenth.engine.engine import Engine, EngineOptions
from tenth.engine.generate import cached_generate, naive_generate
from tenth.engine.request import Request
from tenth.engine.sampler import Sampler, Sampling
from tenth.engine.scheduler import SchedulerOptions
from tenth.engine.sequence import CachedSequence
from tenth.errors import RequestError
from tenth.kernels.choice import choose_kernels
from tenth.kernels.cpu.machine import instruction_sets
from tenth.model.batch import Batch, Want
from tenth.model.config import ModelConfig, MoeConfig
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.routing.limit import ExpertLimit
from tenth.routing.record import Routing
from tenth.routing.rule import RoutingPolicy
from tenth.weights.budget import Budget, budget_decoder, expert_cache
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tests.weights.packed_models import write_dense

TOP_K = 4
# a carved layer's rule (scale = top_k: gates stay), and one that rescales; both with biases, one with a shared expert
CARVED = MoeConfig(10, TOP_K, 32, shared_intermediate_size=24, expert_bias=True, routed_scale=float(TOP_K))
MIXTURE = MoeConfig(10, TOP_K, 32, score="sigmoid", expert_bias=True, routed_scale=2.5)
CONFIG = replace(preset("tiny-moe"), model_type="tenth", head_dim=32)
GREEDY = Sampling(temperature=0)
LIMITS = [None, ExpertLimit(0.6), ExpertLimit(0.3, 3), ExpertLimit(cap=1), ExpertLimit(1.0)]
PROMPT = torch.randint(0, 512, (40,), generator=torch.Generator().manual_seed(7)).tolist()


@pytest.fixture(scope="module", params=[CARVED, MIXTURE], ids=["carved", "mixture"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(CONFIG, moe=request.param)
    decoder = initialise(Decoder(config), seed=1, std=0.3).requires_grad_(False)
    for layer in config.sparse_layers:
        generator = torch.Generator().manual_seed(layer)
        decoder.get_parameter(f"layers.{layer}.mlp.router.bias_E").normal_(0, 0.2, generator=generator)
    path = tmp_path_factory.mktemp("packed") / "model"
    write_dense(path, decoder)
    return path


def _loaded(folder: Path, instruction_set: str | None = None) -> Decoder:
    with open_checkpoint(folder) as checkpoint:
        kernels = choose_kernels("cpu", packed=True, head_dim=32, instruction_set=instruction_set)
        return load_decoder(checkpoint, kernels=kernels)


@pytest.fixture(scope="module")
def packed(folder: Path) -> Decoder:
    return _loaded(folder)


def alone(decoder: Decoder, request: Request) -> list[int]:
    sampler = Sampler(request.sampling, request.prompt, 512)
    sequence = CachedSequence(runner_of(decoder))
    steps = cached_generate(
        sequence, request.prompt, sampler, max_tokens=request.max_tokens, limit=request.limit, record="none"
    )
    return [step.token for step in steps]


def served(engine: Engine, requests: list[Request]) -> list[list[int]]:
    streams = [engine.submit(request) for request in requests]
    while engine.busy:
        engine.step()
        engine.scheduler.audit()
    assert all(answer.error is None for stream in streams for answer in stream.answers)
    return [[one.token for one in stream.answers[0].drawn] for stream in streams]


@given(
    asked=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from(LIMITS), st.integers(1, 6), st.integers(0, 2)),
        min_size=1,
        max_size=6,
    ),
    pages=st.integers(2, 6),
    tokens=st.integers(5, 60),
)
@settings(deadline=None, max_examples=15)
def test_tokens_do_not_depend_on_the_company(
    packed: Decoder, asked: list[tuple[int, ExpertLimit | None, int, int]], pages: int, tokens: int
) -> None:
    """One beginning for all, few pages: limits meet in a batch, preemptions happen, what is found has their limit."""
    requests = [
        Request(tuple(PROMPT[:length]), most, Sampling(0.7, seed=seed) if seed else GREEDY, limit=limit)
        for length, limit, most, seed in asked
    ]
    options = EngineOptions(pages, 32, SchedulerOptions(tokens, 4, wait=0))
    assert served(Engine(packed, options), requests) == [alone(packed, request) for request in requests]


def test_limits_change_tokens_and_pages_are_not_shared(packed: Decoder) -> None:
    engine = Engine(packed, EngineOptions(40, 32, SchedulerOptions(wait=0)))
    first = [Request(tuple(PROMPT), 8, GREEDY, limit=limit) for limit in (None, ExpertLimit(cap=1))]
    whole, fewer = served(engine, first)
    assert whole != fewer
    found = []
    for limit in (None, ExpertLimit(cap=1), ExpertLimit(cap=2), ExpertLimit(1.0, TOP_K)):
        stream = engine.submit(Request(tuple(PROMPT), 1, GREEDY, limit=limit))
        while engine.busy:
            engine.step()
        found.append(stream.found)
    known = len(PROMPT) - 1
    assert found == [known, known, 0, known]  # what drops nothing finds the pages of no limit


def test_the_engines_own_limit(packed: Decoder) -> None:
    """It is for requests that have none; one that drops nothing takes it off."""
    limit = ExpertLimit(cap=1)
    engine = Engine(packed, EngineOptions(40, 32, SchedulerOptions(wait=0), limit=limit))
    plain = Request(tuple(PROMPT), 8, GREEDY)
    got = served(engine, [plain, replace(plain, limit=ExpertLimit(1.0)), replace(plain, limit=ExpertLimit(0.5))])
    wanted = [replace(plain, limit=limit), plain, replace(plain, limit=ExpertLimit(0.5))]
    assert got == [alone(packed, request) for request in wanted]


def test_beams_and_guesses_under_a_limit(packed: Decoder) -> None:
    from tenth.engine.draft_suffix import AnswerStore, SuffixMatch

    plain = Request(tuple(PROMPT[:20] * 2), 12, GREEDY, limit=ExpertLimit(0.4, 2))
    store = AnswerStore()
    guessing = Engine(packed, EngineOptions(40, 32), proposer=lambda r: SuffixMatch(store, r.tenant))
    for _ in range(2):  # the second time the first answer is guessed
        assert served(guessing, [plain, replace(plain, limit=None)]) == [
            alone(packed, plain),
            alone(packed, replace(plain, limit=None)),
        ]
    searching = replace(plain, beams=3, max_tokens=6)
    wide = served(Engine(packed, EngineOptions(40, 32)), [searching])
    company = [replace(plain, limit=limit) for limit in LIMITS]
    narrow = Engine(packed, EngineOptions(12, 32, SchedulerOptions(30, 8, wait=0)))
    assert served(narrow, [*company, searching])[-1:] == wide


@pytest.mark.parametrize("name", instruction_sets())
@torch.inference_mode()
def test_one_plan_for_all_limits(folder: Path, name: str) -> None:
    """Captured steps of changing limits are the decoder's; a limit that drops nothing changes no bit."""
    decoder = _loaded(folder, name)
    runner = runner_of(decoder)
    assert isinstance(runner, CapturedDecoder)
    sequences = {limit: (CachedSequence(decoder), CachedSequence(runner)) for limit in LIMITS}
    for limit, (eager, captured) in sequences.items():
        for one in (eager, captured):
            one.restart(PROMPT, limit)
        for piece in (PROMPT[:17], PROMPT[17:18], PROMPT[18:]):
            (logits, record), (other, copied) = (one.extend(piece, "choice") for one in (eager, captured))
            assert torch.equal(logits, other)
            assert record is not None
            assert copied is not None
            for index, layer in record.layers.items():
                assert torch.equal(layer.gates_TK, copied.layers[index].gates_TK)
                if limit is not None and limit.fitted(TOP_K):
                    assert layer.dropped_TK is not None
                    assert copied.layers[index].dropped_TK is not None
                    assert torch.equal(layer.dropped_TK, copied.layers[index].dropped_TK)
                    assert int((~layer.dropped_TK).sum(-1).max()) <= (limit.cap or TOP_K)
    assert len(runner._steps) == 1


@torch.inference_mode()
def test_the_references_choice(folder: Path, packed: Decoder) -> None:
    """The first layer drops what the reference drops, with its gates; a record with drops is replayed to the same."""
    with open_checkpoint(folder) as checkpoint:
        reference = load_decoder(checkpoint)
    first = CONFIG.sparse_layers[0]
    for limit in LIMITS[1:4]:
        batch, want = Batch.of([PROMPT], limit=limit), Want(routing="full")
        ours, theirs = packed(batch, want=want), reference(batch, want=want)
        one, other = ours.routing.layers[first], theirs.routing.layers[first]
        same = (one.experts_TK == other.experts_TK).all(-1) & (one.dropped_TK == other.dropped_TK).all(-1)
        assert same.float().mean() > 0.85  # attention in bfloat16 moves a choice now and then
        torch.testing.assert_close(one.gates_TK[same], other.gates_TK[same], atol=3e-2, rtol=0)
        assert bool(one.dropped_TK.any())
        again = reference(Batch.of([PROMPT]), want=want, routing=theirs.routing)
        torch.testing.assert_close(again.logits_NV, theirs.logits_NV, atol=1e-5, rtol=1e-5)
        assert torch.equal(again.routing.layers[first].dropped_TK, other.dropped_TK)


@torch.inference_mode()
def test_experts_on_disk(folder: Path, packed: Decoder) -> None:
    """The bits of the model in memory, and fewer reads: what is dropped is not read."""
    reads = {}
    for limit in (None, ExpertLimit(cap=1), ExpertLimit(0.5)):
        with open_checkpoint(folder) as checkpoint:
            assert checkpoint.packed is not None
            sizes = [t.nbytes for t in checkpoint.packed.index.tensors.values() if len(t.formats) == 3]
            kernels = choose_kernels("cpu", packed=True, head_dim=32)
            budget = Budget(0, TOP_K, -(-max(sizes) // 4096) * 4096)
            stored = budget_decoder(checkpoint.packed, checkpoint.config, kernels, budget)
        request = Request(tuple(PROMPT[:9]), 12, GREEDY, limit=limit)
        assert alone(stored, request) == alone(packed, request)
        cache = expert_cache(stored)
        assert cache is not None
        reads[limit] = cache.statistics.reads
    assert reads[ExpertLimit(cap=1)] < 0.5 * reads[None]
    assert reads[ExpertLimit(0.5)] < reads[None]


def _dense() -> ModelConfig:
    return replace(CONFIG, moe=None, sparse_layers=())


def test_what_cannot_be(packed: Decoder) -> None:
    dense, limit = Decoder(_dense()), ExpertLimit(0.5)
    for refused in (
        lambda: Engine(dense, EngineOptions(8, 32, limit=limit)),
        lambda: Engine(dense, EngineOptions(8, 32)).submit(Request((1,), 2, limit=limit)),
        lambda: cached_generate(CachedSequence(dense), [1], Sampler(GREEDY, [1], 512), max_tokens=1, limit=limit),
        lambda: naive_generate(dense, [1], Sampler(GREEDY, [1], 512), max_tokens=1, limit=limit),
        lambda: dense(Batch.of([[1]], limit=limit)),
    ):
        with pytest.raises(RequestError, match="this model is dense"):
            refused()
    with pytest.raises(RequestError, match="max_experts is 5, this model has 4"):
        Engine(packed, EngineOptions(8, 32)).submit(Request((1,), 2, limit=ExpertLimit(cap=5)))
    for given_routing in (RoutingPolicy(), Routing({})):
        with pytest.raises(RequestError, match="without a routing that is given"):
            packed(Batch.of([[1]], limit=limit), routing=given_routing)
