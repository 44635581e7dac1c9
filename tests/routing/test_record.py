"""The routing record: tokens of several records joined, some of them selected, always in step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tenth.routing.record import LayerRouting, Routing


def _record(tokens: int, *, full: bool = True, start: int = 0, layers: tuple[int, ...] = (1, 4)) -> Routing:
    """Every number in it names its token, layer and place, so that a mix-up shows."""

    def layer(index: int) -> LayerRouting:
        token_T1 = torch.arange(start, start + tokens)[:, None]
        return LayerRouting(
            num_experts=8,
            experts_TK=(token_T1 * 2 + index + torch.arange(2)) % 8,
            gates_TK=(token_T1 + torch.tensor([0.25, 0.5]) + 100 * index),
            logits_TE=(token_T1 * 8.0 + torch.arange(8)) if full else None,
            dropped_TK=(token_T1 % 2 == torch.arange(2)) if full else None,
        )

    return Routing({index: layer(index) for index in layers})


def _equal(one: Routing, other: Routing) -> bool:
    def parts(layer: LayerRouting) -> list[torch.Tensor | None]:
        return [layer.experts_TK, layer.gates_TK, layer.logits_TE, layer.dropped_TK]

    if list(one.layers) != list(other.layers):
        return False
    pairs = [
        pair for index in one.layers for pair in zip(parts(one.layers[index]), parts(other.layers[index]), strict=True)
    ]
    return all(torch.equal(a, b) if a is not None and b is not None else a is b for a, b in pairs)


def test_number_of_tokens() -> None:
    assert _record(5).num_tokens == 5
    assert _record(0).num_tokens == 0
    assert Routing({}).num_tokens == 0


@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.booleans())
def test_parts_joined_are_the_whole(lengths: list[int], full: bool) -> None:
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    parts = [_record(n, start=start, full=full) for n, start in zip(lengths, starts, strict=True)]
    whole = Routing.join(parts)
    assert _equal(whole, _record(sum(lengths), full=full))
    again = [whole.select(slice(start, start + n)) for n, start in zip(lengths, starts, strict=True)]
    assert all(_equal(a, b) for a, b in zip(again, parts, strict=True))


def test_join_of_nothing_and_of_dense_models() -> None:
    assert Routing.join([]).layers == {}
    assert Routing.join([Routing({}), Routing({})]).layers == {}


def test_a_join_holds_only_what_all_parts_hold() -> None:
    mixed = Routing.join([_record(2), _record(3, full=False, start=2)])
    assert _equal(mixed, _record(5, full=False))


@pytest.mark.parametrize("tokens", [[3, 0, 0], [], [4]])
def test_select_by_index_keeps_the_order_given(tokens: list[int]) -> None:
    whole = _record(5)
    chosen = whole.select(torch.tensor(tokens, dtype=torch.int64))
    assert chosen.num_tokens == len(tokens)
    assert _equal(chosen, Routing.join([_record(0), *(_record(1, start=token) for token in tokens)]))


def test_select_by_mask_and_from_the_end() -> None:
    whole = _record(5)
    assert _equal(whole.select(torch.tensor([False, True, False, False, True])), whole.select(slice(1, 5, 3)))
    assert _equal(whole.select(slice(-2, None)), _record(2, start=3))
    assert whole.num_tokens == 5
    assert whole.layers[1].num_experts == whole.select(slice(0, 1)).layers[1].num_experts == 8


def test_detach_leaves_no_gradient() -> None:
    layer = _record(3).layers[1]
    gates = layer.gates_TK.clone().requires_grad_()
    assert layer.logits_TE is not None
    logits = layer.logits_TE.clone().requires_grad_()
    attached = Routing({1: LayerRouting(8, layer.experts_TK, gates * 1, logits * 1, layer.dropped_TK)})
    detached = attached.detach()
    assert attached.layers[1].gates_TK.requires_grad
    assert not detached.layers[1].gates_TK.requires_grad
    assert detached.layers[1].logits_TE is not None
    assert not detached.layers[1].logits_TE.requires_grad
    assert _equal(detached, _record(3, layers=(1,)))
