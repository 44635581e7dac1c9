"""The decoder's contract: batches, what is wanted, replay, cache pages."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch

from tenth.errors import RequestError
from tenth.kernels import reference
from tenth.kernels.choice import describe
from tenth.kernels.contract import Kernels, KVType
from tenth.kernels.cpu.machine import machine
from tenth.kernels.cpu.operations import CpuKernels
from tenth.model.batch import Batch, Placement, Want
from tenth.model.cache import KV_TYPES, KVCache, bytes_per_page
from tenth.model.decoder import Decoder, initialise
from tenth.model.preset import preset
from tenth.routing.record import Routing

CONFIG = preset("tiny-moe")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return initialise(Decoder(CONFIG), seed=1, std=0.2).requires_grad_(False)


def _random(n: int, seed: int) -> torch.Tensor:
    return torch.randint(0, CONFIG.vocab_size, (n,), generator=torch.Generator().manual_seed(seed))


def test_documents_do_not_see_each_other(decoder: Decoder) -> None:
    a, b = _random(9, 1), _random(5, 2)
    both = decoder(Batch.of([a, b])).logits_NV
    torch.testing.assert_close(both[:9], decoder(Batch.of([a])).logits_NV, atol=1e-5, rtol=0)
    torch.testing.assert_close(both[9:], decoder(Batch.of([b])).logits_NV, atol=1e-5, rtol=0)


def test_a_token_does_not_see_the_future(decoder: Decoder) -> None:
    a = _random(9, 1)
    changed = a.clone()
    changed[6:] = (changed[6:] + 1) % CONFIG.vocab_size
    one, other = decoder(Batch.of([a])).logits_NV, decoder(Batch.of([changed])).logits_NV
    torch.testing.assert_close(one[:6], other[:6], atol=1e-5, rtol=0)
    assert (one[6:] - other[6:]).abs().max() > 0.1


def test_want(decoder: Decoder) -> None:
    batch = Batch.of([_random(4, 1), _random(3, 2)])
    everything = decoder(batch, want=Want(hidden=True, routing="full"))
    last = decoder(batch, want=Want(logits="last")).logits_NV
    torch.testing.assert_close(last, everything.logits_NV[[3, 6]], atol=1e-5, rtol=0)
    some = decoder(batch, want=Want(logits=torch.tensor([5, 0]))).logits_NV
    torch.testing.assert_close(some, everything.logits_NV[[5, 0]], atol=1e-5, rtol=0)
    nothing = decoder(batch, want=Want(logits="none"))
    assert (nothing.logits_NV, nothing.hidden_TD, nothing.routing) == (None, None, None)
    torch.testing.assert_close(decoder.head(everything.hidden_TD), everything.logits_NV)


def test_the_record(decoder: Decoder) -> None:
    batch = Batch.of([_random(6, 3)])
    full = decoder(batch, want=Want(routing="full")).routing
    choice = decoder(batch, want=Want(routing="choice")).routing
    assert tuple(full.layers) == CONFIG.sparse_layers == (1, 2)
    for index, layer in full.layers.items():
        assert layer.experts_TK.shape == layer.gates_TK.shape == layer.dropped_TK.shape == (6, 2)
        assert layer.logits_TE.shape == (6, 8)
        assert not layer.dropped_TK.any()
        torch.testing.assert_close(layer.gates_TK.sum(-1), torch.ones(6))
        assert (layer.gates_TK[:, 0] >= layer.gates_TK[:, 1]).all()
        assert choice.layers[index].logits_TE is None
        assert torch.equal(choice.layers[index].experts_TK, layer.experts_TK)


def test_replay_changes_the_experts_and_recomputes_the_gates(decoder: Decoder) -> None:
    batch = Batch.of([_random(6, 3)])
    own = decoder(batch, want=Want(routing="full"))
    same = decoder(batch, want=Want(routing="full"), routing=own.routing)
    assert torch.equal(same.logits_NV, own.logits_NV)
    shifted = Routing(
        {i: replace(layer, experts_TK=(layer.experts_TK + 1) % 8) for i, layer in own.routing.layers.items()}
    )
    other = decoder(batch, want=Want(routing="full"), routing=shifted)
    assert (other.logits_NV - own.logits_NV).abs().max() > 1e-3
    for index, layer in other.routing.layers.items():
        assert torch.equal(layer.experts_TK, shifted.layers[index].experts_TK)
        chosen = layer.logits_TE.gather(-1, layer.experts_TK)
        torch.testing.assert_close(layer.gates_TK, chosen.softmax(-1))


def test_embeddings_stand_for_tokens(decoder: Decoder) -> None:
    tokens = _random(5, 4)
    batch = Batch.of([tokens])
    embedded = replace(batch, tokens_T=None, embeddings_TD=decoder.embedding.rows(tokens))
    assert torch.equal(decoder(embedded).logits_NV, decoder(batch).logits_NV)


def test_positions_are_relative(decoder: Decoder) -> None:
    batch = Batch.of([_random(7, 5)])
    far = replace(batch, positions_T=batch.positions_T + 300)
    torch.testing.assert_close(decoder(far).logits_NV, decoder(batch).logits_NV, atol=1e-4, rtol=0)


def _fill(cache: KVCache, value: float) -> None:
    for layer in range(CONFIG.num_layers):
        for pool in cache.pools(layer):
            pool.fill_(value)


def test_cache_in_scattered_pages_equals_the_whole(decoder: Decoder) -> None:
    """Two documents, five tokens a page, pages handed out back to front, chunks of any size."""
    documents = [_random(13, 6), _random(8, 7)]
    whole = decoder(Batch.of(documents)).logits_NV.split([13, 8])
    cache = KVCache(CONFIG, pages=6, page_size=5, dtype=torch.float32)
    _fill(cache, torch.nan)  # whatever is read must have been written
    tables = (torch.tensor([5, 1, 3]), torch.tensor([4, 0]))
    seen = [0, 0]
    got: list[list[torch.Tensor]] = [[], []]
    for sizes in ((4, 1), (1, 5), (8, 2)):
        batch = _step(documents, tables, seen, sizes)
        rows = decoder(batch, cache).logits_NV.split(list(sizes))
        for s in (0, 1):
            got[s].append(rows[s])
            seen[s] += sizes[s]
    for s in (0, 1):
        torch.testing.assert_close(torch.cat(got[s]), whole[s], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kv", "near"), [("bf16", 1e-5), ("int8", 0.1)])
def test_a_copied_page_is_the_page_in_all_layers(decoder: Decoder, kv: KVType, near: float) -> None:
    """A sequence that goes on in two ways: its page is copied, and each way has its own."""
    first, ways = _random(5, 6), (_random(2, 7), _random(2, 8))
    cache = KVCache(CONFIG, pages=3, page_size=7, dtype=torch.float32, kv=kv)

    def show(tokens: torch.Tensor, start: int, page: int) -> torch.Tensor:
        place = torch.arange(start, start + len(tokens))
        placement = Placement(page * 7 + place, (torch.tensor([page]),), (start + len(tokens),))
        return decoder(replace(Batch.of([tokens]), positions_T=place, placement=placement), cache).logits_NV

    show(first, 0, 1)
    cache.copy_page(1, 2)
    apart = [show(way, 5, page) for way, page in zip(ways, (1, 2), strict=True)]
    for way, logits in zip(ways, apart, strict=True):
        torch.testing.assert_close(
            logits, decoder(Batch.of([torch.cat((first, way))])).logits_NV[5:], atol=near, rtol=0
        )


@pytest.mark.parametrize("kernels", [reference, CpuKernels(machine(1))], ids=describe)
@pytest.mark.parametrize("kv", KV_TYPES)
def test_a_page_s_bytes_are_known_before_it_is_there(kernels: Kernels, kv: KVType) -> None:
    config = replace(CONFIG, head_dim=32)
    for page_size in (1, 64, 100):
        cache = KVCache(config, 3, page_size, torch.bfloat16, kernels=kernels, kv=kv)
        page = bytes_per_page(config, page_size, kv, kernels=kernels)
        assert cache.nbytes == 3 * page
        token = config.num_layers * config.num_kv_heads * 2 * (32 + 4 if kv == "int8" else 2 * 32)
        assert page == cache.page_size * token
    with pytest.raises(RequestError, match="kv is 'int4', it must be one of bf16, int8"):
        bytes_per_page(config, 64, cast(KVType, "int4"))


def _step(
    documents: list[torch.Tensor], tables: tuple[torch.Tensor, ...], seen: list[int], sizes: tuple[int, int]
) -> Batch:
    places = [torch.arange(seen[s], seen[s] + sizes[s]) for s in (0, 1)]
    slots = torch.cat([tables[s][places[s] // 5] * 5 + places[s] % 5 for s in (0, 1)])
    return Batch(
        bounds=(0, sizes[0], sum(sizes)),
        positions_T=torch.cat(places),
        tokens_T=torch.cat([documents[s][places[s]] for s in (0, 1)]),
        placement=Placement(slots, tables, tuple(seen[s] + sizes[s] for s in (0, 1))),
    )


def test_forward_touches_only_the_named_slots(decoder: Decoder) -> None:
    cache = KVCache(CONFIG, pages=2, page_size=4, dtype=torch.float32)
    _fill(cache, 7.0)
    before = [p.clone() for p in decoder.parameters()]
    batch = replace(Batch.of([_random(3, 8)]), placement=Placement(torch.tensor([4, 5, 6]), (torch.tensor([1]),), (3,)))
    decoder(batch, cache)
    for layer in range(CONFIG.num_layers):
        for pool in cache.pools(layer):
            assert (pool[0] == 7).all()
            assert (pool[1, :, 3] == 7).all()
            assert (pool[1, :, :3] != 7).all()
    assert all(torch.equal(old, new) for old, new in zip(before, decoder.parameters(), strict=True))


def test_refusals(decoder: Decoder) -> None:
    batch = Batch.of([[1, 2]])
    cache = KVCache(CONFIG, 1, 8, torch.float32)
    record = decoder(Batch.of([[1, 2, 3]]), want=Want(routing="choice")).routing
    cases = {
        "outside the vocabulary": lambda: decoder(Batch.of([[512]])),
        "-1": lambda: decoder(Batch.of([[-1]])),
        "go together": lambda: decoder(batch, cache),
        "either tokens or embeddings": lambda: replace(batch, tokens_T=None),
        "3 tokens in layer 1, the batch 2": lambda: decoder(batch, routing=record),
        "has layers": lambda: decoder(batch, routing=Routing({})),
        "at least one": lambda: Batch.of([[1], []]),
    }
    for message, call in cases.items():
        with pytest.raises(RequestError, match=message):
            call()


def test_gradients_reach_every_weight() -> None:
    """The same decoder trains: experts at work, router and attention all get a gradient."""
    decoder = initialise(Decoder(replace(CONFIG, tie_word_embeddings=True)), seed=2, std=0.2)
    out = decoder(Batch.of([_random(64, 9)]), want=Want(routing="full"))
    loss = torch.nn.functional.cross_entropy(out.logits_NV[:-1], _random(64, 9)[1:])
    loss.backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    out = decoder(Batch.of([_random(8, 9)]), want=Want(routing="choice"))
    assert out.routing.layers[1].gates_TK.requires_grad
    assert not out.routing.detach().layers[1].gates_TK.requires_grad


def test_initialise_is_repeatable() -> None:
    one, same, other = (initialise(Decoder(CONFIG), seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_dropped_assignments_do_no_work(decoder: Decoder) -> None:
    batch = Batch.of([_random(6, 3)])
    own = decoder(batch, want=Want(routing="full")).routing
    gone = Routing({i: replace(r, dropped_TK=torch.ones_like(r.dropped_TK)) for i, r in own.layers.items()})
    out = decoder(batch, want=Want(routing="full"), routing=gone)
    assert all((layer.gates_TK == 0).all() and layer.dropped_TK.all() for layer in out.routing.layers.values())
    assert (out.logits_NV - decoder(batch).logits_NV).abs().max() > 1e-2


def test_batches_and_wants_that_do_not_fit(decoder: Decoder) -> None:
    batch = Batch.of([[1, 2, 3]])
    record = decoder(batch, want=Want(routing="choice")).routing
    outside = Routing({i: replace(r, experts_TK=r.experts_TK + 8) for i, r in record.layers.items()})
    cases = {
        "must rise": lambda: replace(batch, bounds=(0, 2, 2, 3)),
        "positions_T has 1 rows": lambda: replace(batch, positions_T=torch.zeros(1, dtype=torch.int64)),
        "tokens_T has 3 rows": lambda: replace(batch, bounds=(0, 4), positions_T=torch.arange(4)),
        "width 64": lambda: decoder(replace(batch, tokens_T=None, embeddings_TD=torch.zeros(3, 63))),
        "slot a token": lambda: replace(batch, placement=Placement(torch.arange(2), (torch.tensor([0]),), (3,))),
        "logits is 'first'": lambda: Want(logits="first"),
        "routing is 'all'": lambda: Want(routing="all"),
        "outside 0 to 7": lambda: decoder(batch, routing=outside),
    }
    for message, call in cases.items():
        with pytest.raises(RequestError, match=message):
            call()
