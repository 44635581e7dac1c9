"""A captured step gives the bits of the decoder itself, whatever came before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tenth.engine.captured import CapturedDecoder, Runner, _Copies, runner_of
from tenth.engine.generate import cached_generate, naive_generate
from tenth.engine.sampler import Sampler, Sampling
from tenth.engine.sequence import CachedSequence
from tenth.errors import MachineError, RequestError
from tenth.kernels.choice import choose_kernels
from tenth.kernels.contract import KVType
from tenth.kernels.cpu.capture import CapturedPlan
from tenth.kernels.cpu.machine import instruction_sets
from tenth.kernels.packed import PackedFormat
from tenth.model.batch import Batch, Output, Placement, Want
from tenth.model.cache import KV_TYPES, KVCache
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.model.preset import preset
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.synthetic import write_synthetic

PAGE = 64
HEADS = (16, 32)  # channels: tiles of AMX take the second


@pytest.fixture(scope="module", params=[(name, size) for name in instruction_sets() for size in HEADS], ids=str)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    folder = tmp_path_factory.mktemp("packed") / "model"
    name, size = request.param
    config = replace(preset("tiny-moe"), head_dim=size)
    write_synthetic(folder, config, PackedFormat.parse("int4-g16-s4"), seed=1)
    with open_checkpoint(folder) as checkpoint:
        yield load_decoder(checkpoint, kernels=choose_kernels("cpu", packed=True, head_dim=size, instruction_set=name))


class _Document:
    """Tokens that are shown in pieces, their pages handed out back to front."""

    def __init__(self, tokens: Sequence[int], pages: Sequence[int]) -> None:
        self.tokens, self.pages, self.seen = list(tokens), torch.tensor(pages), 0

    def take(self, count: int) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        place = torch.arange(self.seen, self.seen + count)
        piece = self.tokens[self.seen : self.seen + count]
        self.seen += count
        return piece, place, self.pages[place // PAGE] * PAGE + place % PAGE


def _step(run: Callable[..., Output], cache: KVCache, documents: Sequence[tuple[_Document, int]], want: Want) -> Output:
    bounds, tokens, places, slots = [0], [], [], []
    for document, count in documents:
        piece, place, slot = document.take(count)
        bounds.append(bounds[-1] + count)
        tokens, places, slots = tokens + piece, [*places, place], [*slots, slot]
    placement = Placement(
        torch.cat(slots),
        tuple(d.pages[: -(-d.seen // PAGE)] for d, _ in documents),
        tuple(d.seen for d, _ in documents),
    )
    batch = Batch(tuple(bounds), torch.cat(places), tokens_T=torch.tensor(tokens), placement=placement)
    return run(batch, cache, want)


def _cache(config: ModelConfig, runner: Runner, kv: KVType = "bf16") -> KVCache:
    return KVCache(config, 12, PAGE, torch.bfloat16, kernels=runner.kernels, kv=kv)


def _drawn(count: int, seed: int) -> list[int]:
    return torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("kv", KV_TYPES)
@torch.inference_mode()
def test_any_company_any_chunks_the_same_bits(decoder: Decoder, kv: KVType) -> None:
    """Two documents: whole by the decoder, then captured in pieces, alone and together, in one growing plan."""
    texts = [_drawn(70, 1), _drawn(41, 2)]
    pages = [list(range(11, 6, -1)), list(range(3))]
    whole = []
    for text, own in zip(texts, pages, strict=True):
        whole.append(
            _step(
                decoder, _cache(decoder.config, decoder, kv), [(_Document(text, own), len(text))], Want(routing="full")
            )
        )
    runner = runner_of(decoder)
    assert isinstance(runner, CapturedDecoder)
    for pieces in ([(1, 1)] * 5 + [(3, 17), (40, 1), (22, 18)], [(70, 0), (0, 41)], [(35, 41), (35, 0)]):
        documents = [_Document(text, own) for text, own in zip(texts, pages, strict=True)]
        cache = _cache(decoder.config, runner, kv)
        for counts in pieces:
            before = [document.seen for document in documents]
            now = [(document, count) for document, count in zip(documents, counts, strict=True) if count]
            out = _step(runner, cache, now, Want(routing="full", hidden=True))
            rows = [slice(b, b + n) for b, n in zip(before, counts, strict=True)]
            assert out.logits_NV is not None
            assert torch.equal(out.logits_NV, torch.cat([w.logits_NV[r] for w, r in zip(whole, rows, strict=True)]))
            assert out.routing is not None
            for index, layer in out.routing.layers.items():
                for name in ("experts_TK", "gates_TK", "logits_TE", "dropped_TK"):
                    parts = [getattr(w.routing.layers[index], name)[r] for w, r in zip(whole, rows, strict=True)]
                    assert torch.equal(getattr(layer, name), torch.cat(parts)), name


@pytest.mark.parametrize("kv", KV_TYPES)
@torch.inference_mode()
def test_a_cache_grows_and_pages_are_copied_without_a_change(decoder: Decoder, kv: KVType) -> None:
    """The end of a text in a larger cache with the beginning's page, and in a copy of that page."""
    runner, text = runner_of(decoder), _drawn(100, 5)
    whole = _step(runner, _cache(decoder.config, runner, kv), [(_Document(text, [3, 0]), 100)], Want()).logits_NV
    small = KVCache(decoder.config, 1, PAGE, torch.bfloat16, kernels=runner.kernels, kv=kv)
    document = _Document(text, [0])
    _step(runner, small, [(document, 50)], Want())
    large = KVCache(decoder.config, 1, 2 * PAGE, torch.bfloat16, kernels=runner.kernels, kv=kv)
    large.copy_from(small)
    place = torch.arange(50, 100)
    batch = Batch((0, 50), place, torch.tensor(text[50:]), placement=Placement(place, (torch.tensor([0]),), (100,)))
    assert torch.equal(runner(batch, large).logits_NV, whole[50:])
    cache, document = _cache(decoder.config, runner, kv), _Document(text, [7, 2])
    _step(runner, cache, [(document, 50)], Want())
    cache.copy_page(7, 4)
    for page in (4, 7):
        document.pages[0], document.seen = page, 50
        assert torch.equal(_step(runner, cache, [(document, 50)], Want()).logits_NV, whole[50:])


@torch.inference_mode()
def test_every_kind_of_result(decoder: Decoder) -> None:
    runner, text = runner_of(decoder), _drawn(9, 3)
    everything = _step(runner, _cache(decoder.config, runner), [(_Document(text, [2]), 9)], Want(hidden=True))
    assert everything.logits_NV is not None
    assert everything.hidden_TD is not None
    for wanted, rows in (("last", [8]), (torch.tensor([0, 7, 7]), [0, 7, 7])):
        out = _step(runner, _cache(decoder.config, runner), [(_Document(text, [2]), 9)], Want(logits=wanted))
        assert torch.equal(out.logits_NV, everything.logits_NV[rows])
        assert out.hidden_TD is None
        assert out.routing is None
    out = _step(runner, _cache(decoder.config, runner), [(_Document(text, [2]), 9)], Want(logits="none", hidden=True))
    assert out.logits_NV is None
    assert torch.equal(out.hidden_TD, everything.hidden_TD)


@torch.inference_mode()
def test_outputs_of_experts_are_measured(decoder: Decoder) -> None:
    """Captured and not the same sizes, and the same logits as without them."""
    text = _drawn(9, 3)
    records, logits = [], []
    for runner, kind in ((runner_of(decoder), "outputs"), (decoder, "outputs"), (runner_of(decoder), "none")):
        out = _step(runner, _cache(decoder.config, runner), [(_Document(text, [2]), 9)], Want(routing=kind))
        records.append(out.routing)
        logits.append(out.logits_NV)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    captured, plain, _ = records
    assert captured is not None
    assert plain is not None
    for index, layer in captured.layers.items():
        other = plain.layers[index]
        assert layer.logits_TE is not None
        for name in ("norms_TK", "peaks_TK"):
            sizes = getattr(layer, name)
            assert torch.equal(sizes, getattr(other, name))
            assert (sizes > 0).all()
        assert layer.norms_TK is not None
        assert layer.peaks_TK is not None
        assert (layer.peaks_TK <= layer.norms_TK * (1 + 1e-6)).all()


@torch.inference_mode()
def test_results_are_not_overwritten_by_the_next_step(decoder: Decoder) -> None:
    runner, document = runner_of(decoder), _Document(_drawn(6, 4), [0])
    cache = _cache(decoder.config, runner)
    first = _step(runner, cache, [(document, 3)], Want()).logits_NV
    kept = first.clone()
    _step(runner, cache, [(document, 3)], Want())
    assert torch.equal(first, kept)


def test_memory_of_large_copies_is_used_again_once_nobody_looks_at_it() -> None:
    copies, source = _Copies(), np.arange(40_000, dtype=np.float32)
    first = copies(source)
    view, where = first[5:], first.data_ptr()
    del first
    second = copies(source + 1)  # the view still looks at the first
    assert second.data_ptr() != where
    assert torch.equal(view, torch.arange(5.0, 40_000.0))
    del view
    assert copies(source[:30_000]).data_ptr() == where
    held = [copies(source + n) for n in range(5)]
    assert all(torch.equal(copy, torch.arange(40_000.0) + n) for n, copy in enumerate(held))


def test_a_step_that_has_no_memory_is_refused_in_one_line(decoder: Decoder) -> None:
    runner = CapturedDecoder(decoder)
    cache, document = _cache(decoder.config, runner), _Document([1, 2, 3], [0])
    _step(runner, cache, [(document, 2)], Want())
    (step,) = runner._steps.values()
    with pytest.raises(MachineError, match=r"needs \d+\.\d GB of memory: show fewer at once"):
        runner._room(step, {"tokens": 1 << 44, "logits": 1, "documents": 1})
    _step(runner, cache, [(document, 1)], Want())


@torch.inference_mode()
def test_threads_take_turns(decoder: Decoder) -> None:
    runner = runner_of(decoder)

    def logits(seed: int) -> torch.Tensor:
        with torch.inference_mode():
            cache, document = _cache(decoder.config, runner), _Document(_drawn(40, seed), [4, 9, 1])
            return torch.cat([_step(runner, cache, [(document, n)], Want()).logits_NV for n in (20, 1, 1, 18)])

    alone = [logits(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(logits, range(4)), alone))


def test_bad_tokens_are_refused_and_change_nothing(decoder: Decoder) -> None:
    runner, document = runner_of(decoder), _Document([1, 2, 512], [0])
    with pytest.raises(RequestError, match="outside the vocabulary"):
        _step(runner, _cache(decoder.config, runner), [(document, 3)], Want())


def test_cached_generation_is_naive_generation_but_for_the_cache_s_own_rounding(decoder: Decoder) -> None:
    """Without a cache keys are rounded the same way, so even the sampled tokens agree."""
    prompt = _drawn(30, 7)
    options = Sampling(temperature=0.8, seed=3)

    def tokens(steps: Iterator[object]) -> list[int]:
        return [step.token for step in steps]  # type: ignore[attr-defined]

    naive = tokens(naive_generate(decoder, prompt, Sampler(options, prompt, 512), max_tokens=20))
    cached = tokens(
        cached_generate(CachedSequence(runner_of(decoder)), prompt, Sampler(options, prompt, 512), max_tokens=20)
    )
    assert cached == naive


@torch.inference_mode()
def test_only_the_wanted_rows_go_through_the_head(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of each kind are counted apart: the head of a long prompt sees one row, not all."""
    seen: list[tuple[int, int, int]] = []
    run = CapturedPlan.run

    def noted(plan: CapturedPlan, tokens: int, logits: int, documents: int) -> None:
        seen.append((tokens, logits, documents))
        run(plan, tokens, logits, documents)

    monkeypatch.setattr(CapturedPlan, "run", noted)
    runner, document = CapturedDecoder(decoder), _Document(_drawn(14, 9), [1])
    cache = _cache(decoder.config, runner)
    before = _step(runner, cache, [(document, 14)], Want(logits="last"))
    assert seen == [(14, 1, 1)]
    (step,) = runner._steps.values()
    assert step.plan is not None
    logits_NV = step.plan.view(step.output.logits_NV)
    logits_NV[1:] = 7.0
    document.seen = 0
    after = _step(runner, cache, [(document, 14)], Want(logits="last"))
    assert torch.equal(before.logits_NV, after.logits_NV)
    assert (logits_NV[1:] == 7.0).all()


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("names slots outside the cache's, 0 to 767", {"slots_T": torch.tensor([0, 1, 768])}),
        ("names slots outside", {"slots_T": torch.tensor([0, -1, 2])}),
        ("names pages outside the cache's, 0 to 11", {"pages": (torch.tensor([12]),)}),
        ("a document of 65 tokens is placed in 1 pages of 64", {"lengths": (65,)}),
        ("slots_T is int32, it must be int64", {"slots_T": torch.tensor([0, 1, 2], dtype=torch.int32)}),
        ("pages is int16, it must be int64", {"pages": (torch.tensor([0], dtype=torch.int16),)}),
    ],
)
def test_placements_outside_the_cache_are_refused(decoder: Decoder, words: str, change: dict[str, Any]) -> None:
    """Native code would read and write there."""
    runner, good = runner_of(decoder), Placement(torch.arange(3), (torch.tensor([0]),), (3,))

    def step(place: Placement) -> None:
        batch = Batch((0, 3), torch.arange(3), tokens_T=torch.tensor([1, 2, 3]), placement=place)
        runner(batch, _cache(decoder.config, runner), Want())

    step(good)
    with pytest.raises(RequestError, match=words):
        step(replace(good, **change))


def test_ids_of_another_type_are_refused() -> None:
    """Native code would read twice as far."""
    with pytest.raises(RequestError, match="tokens_T is int32, it must be int64"):
        Batch((0, 2), torch.arange(2), tokens_T=torch.tensor([1, 2], dtype=torch.int32))
    with pytest.raises(RequestError, match="logits is int32, it must be int64"):
        Want(logits=torch.tensor([0], dtype=torch.int32))


@pytest.mark.parametrize("position", [-1, 3])
def test_positions_outside_the_batch_are_refused(decoder: Decoder, position: int) -> None:
    """Native code would read there."""
    runner, document = runner_of(decoder), _Document([1, 2, 3], [0])
    with pytest.raises(RequestError, match=f"position {position}, the batch has 0 to 2"):
        _step(runner, _cache(decoder.config, runner), [(document, 3)], Want(logits=torch.tensor([0, position])))
