"""A captured step gives the bits of the decoder itself, whatever came before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tenth.engine.captured import CapturedDecoder, Runner, runner_of
from tenth.engine.generate import cached_generate, naive_generate
from tenth.engine.sampler import Sampler, Sampling
from tenth.engine.sequence import CachedSequence
from tenth.errors import RequestError
from tenth.kernels.choice import choose_kernels
from tenth.kernels.cpu.capture import CapturedPlan
from tenth.kernels.cpu.machine import instruction_sets
from tenth.kernels.packed import PackedFormat
from tenth.model.batch import Batch, Output, Placement, Want
from tenth.model.cache import KVCache
from tenth.model.config import ModelConfig
from tenth.model.decoder import Decoder
from tenth.model.preset import preset
from tenth.weights.checkpoint import open_checkpoint
from tenth.weights.load import load_decoder
from tenth.weights.synthetic import write_synthetic

PAGE = 16


@pytest.fixture(scope="module", params=instruction_sets())
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    folder = tmp_path_factory.mktemp("packed") / "model"
    write_synthetic(folder, preset("tiny-moe"), PackedFormat.parse("int4-g16-s4"), seed=1)
    with open_checkpoint(folder) as checkpoint:
        yield load_decoder(
            checkpoint, kernels=choose_kernels("cpu", packed=True, head_dim=16, instruction_set=request.param)
        )


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


def _cache(config: ModelConfig, runner: Runner) -> KVCache:
    return KVCache(config, 12, PAGE, torch.bfloat16, kernels=runner.kernels)


def _drawn(count: int, seed: int) -> list[int]:
    return torch.randint(0, 512, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def test_any_company_any_chunks_the_same_bits(decoder: Decoder) -> None:
    """Two documents: whole by the decoder, then captured in pieces, alone and together, in one growing plan."""
    texts = [_drawn(70, 1), _drawn(41, 2)]
    pages = [list(range(11, 6, -1)), list(range(3))]
    whole = []
    for text, own in zip(texts, pages, strict=True):
        whole.append(
            _step(decoder, _cache(decoder.config, decoder), [(_Document(text, own), len(text))], Want(routing="full"))
        )
    runner = runner_of(decoder)
    assert isinstance(runner, CapturedDecoder)
    for pieces in ([(1, 1)] * 5 + [(3, 17), (40, 1), (22, 18)], [(70, 0), (0, 41)], [(35, 41), (35, 0)]):
        documents = [_Document(text, own) for text, own in zip(texts, pages, strict=True)]
        cache = _cache(decoder.config, runner)
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
def test_results_are_not_overwritten_by_the_next_step(decoder: Decoder) -> None:
    runner, document = runner_of(decoder), _Document(_drawn(6, 4), [0])
    cache = _cache(decoder.config, runner)
    first = _step(runner, cache, [(document, 3)], Want()).logits_NV
    kept = first.clone()
    _step(runner, cache, [(document, 3)], Want())
    assert torch.equal(first, kept)


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


@pytest.mark.parametrize("position", [-1, 3])
def test_positions_outside_the_batch_are_refused(decoder: Decoder, position: int) -> None:
    """Native code would read there."""
    runner, document = runner_of(decoder), _Document([1, 2, 3], [0])
    with pytest.raises(RequestError, match=f"position {position}, the batch has 0 to 2"):
        _step(runner, _cache(decoder.config, runner), [(document, 3)], Want(logits=torch.tensor([0, position])))
