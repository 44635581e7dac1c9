"""Norms, rotary positions, router scores and attention with their gradients: native against the reference in float64.

T tokens, D model width, H query heads, G key-value heads, C head size, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenth.kernels import reference
from tenth.kernels.cpu.grouped import borrowing_machine
from tenth.kernels.cpu.machine import instruction_sets
from tenth.kernels.training import TrainingKernels, training_kernels

SETS = instruction_sets()
NATIVE = {name: TrainingKernels(borrowing_machine(1, name)) for name in SETS}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
SEEDS = st.integers(0, 1 << 20)
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
EVERY_SET = pytest.mark.parametrize("name", SETS)

Compute = Callable[..., tuple[Tensor, ...]]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(compute: Compute, leaves: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """What is computed, and the gradients of the leaves."""
    own = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = compute(*own)
    wanted = [gradient.to(part.dtype) for part, gradient in zip(out, gradients, strict=True)]
    return [*(part.detach() for part in out), *torch.autograd.grad(out, own, wanted)]


def expect_close(
    native: Compute, exact: Compute, leaves: Sequence[Tensor], gradients: Sequence[Tensor], tolerance: float
) -> list[Tensor]:
    got = results(native, leaves, gradients)
    true = results(exact, [leaf.double() for leaf in leaves], [gradient.double() for gradient in gradients])
    for i, (ours, theirs) in enumerate(zip(got, true, strict=True)):
        # terms are about 1: few of them may cancel to a result that is all error
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=0.5), i
    return got


@TYPES
@EVERY_SET
@given(t=st.integers(1, 200), d=st.integers(1, 70), seed=SEEDS)
@settings(deadline=None, max_examples=15)
def test_norms(name: str, dtype: torch.dtype, t: int, d: int, seed: int) -> None:
    x_TD, y_TD, dy_TD, dsum_TD = (normal(t, d, seed=seed + i).to(dtype) for i in range(4))
    weight, kernels = normal(d, seed=seed + 4).float(), NATIVE[name]
    expect_close(
        lambda x, w: (kernels.rms_norm(x, w, 0.1),),
        lambda x, w: (reference.rms_norm(x, w, 0.1),),
        (x_TD, weight),
        (dy_TD,),
        3 * TOLERANCE[dtype],
    )
    expect_close(
        lambda x, y, w: kernels.add_rms_norm(x, y, w, 0.1),
        lambda x, y, w: reference.add_rms_norm(x, y, w, 0.1),
        (x_TD, y_TD, weight),
        (dsum_TD, dy_TD),
        3 * TOLERANCE[dtype],
    )


@TYPES
@EVERY_SET
@pytest.mark.parametrize(("normed", "half"), [(True, 32), (True, 10), (False, 16)])
def test_heads(name: str, dtype: torch.dtype, normed: bool, half: int) -> None:
    tokens = 70
    q_THC, k_TGC = (normal(tokens, heads, 2 * half, seed=heads).to(dtype) for heads in (6, 2))
    weights = [normal(2 * half, seed=i).float() for i in range(2)] if normed else []
    angles_TC = normal(tokens, half, seed=3)
    cos_TC, sin_TC = angles_TC.cos().float(), angles_TC.sin().float()

    def by(kernels: object, wide: bool) -> Compute:
        turn = [part.double() if wide else part for part in (cos_TC, sin_TC)]

        def compute(q: Tensor, k: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
            pair = weights or (None, None)
            return kernels.heads(q, k, pair, 1e-6, *turn)  # type: ignore[attr-defined,no-any-return]

        return compute

    leaves, gradients = (q_THC, k_TGC, *weights), (q_THC.flip(0), k_TGC.flip(0))
    expect_close(by(NATIVE[name], False), by(reference, True), leaves, gradients, TOLERANCE[dtype])


@TYPES
@EVERY_SET
def test_router_scores(name: str, dtype: torch.dtype) -> None:
    x_TD, weight_ED = normal(700, 100, seed=1).to(dtype), normal(24, 100, seed=2).float()
    weight_ED[17] = weight_ED[3]
    got = expect_close(
        lambda x, w: (NATIVE[name].router_logits(x, w),),
        lambda x, w: (reference.router_logits(x, w),),
        (x_TD, weight_ED),
        (normal(700, 24, seed=3).float(),),
        TOLERANCE[dtype],
    )
    assert torch.equal(got[0][:, 17], got[0][:, 3])


@EVERY_SET
def test_router_scores_of_no_tokens(name: str) -> None:
    assert NATIVE[name].router_logits(torch.zeros(0, 16), torch.ones(4, 16)).shape == (0, 4)


@TYPES
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    x_TD, weight, rows_ED = (
        normal(900, 96, seed=1).to(dtype),
        normal(96, seed=2).float(),
        normal(40, 96, seed=3).float(),
    )

    def on(threads: int) -> list[Tensor]:
        kernels = TrainingKernels(borrowing_machine(threads))
        norm = results(lambda x, w: kernels.add_rms_norm(x, x.flip(0), w, 1e-6), (x_TD, weight), (x_TD, x_TD))
        norm += results(lambda x, w: (kernels.router_logits(x, w),), (x_TD, rows_ED), (normal(900, 40, seed=4),))
        heads_THC = x_TD.view(900, 6, 16)
        parts = heads_THC[:, :4], heads_THC[:, 4:5], heads_THC[:, 5:]
        return norm + results(lambda *qkv: (kernels.attention(*qkv, (0, 500, 900)),), parts, (heads_THC[:, :4],))

    once = on(1)
    for threads in (1, 2, 3):
        assert all(torch.equal(a, b) for a, b in zip(once, on(threads), strict=True)), threads


@TYPES
@pytest.mark.parametrize("name", [*SETS, "torch"])
@pytest.mark.parametrize("lengths", [(8, 8, 8), (5, 1, 18), (150, 300), (1, 1)])
def test_attention(name: str, dtype: torch.dtype, lengths: tuple[int, ...]) -> None:
    kernels = TrainingKernels(None) if name == "torch" else NATIVE[name]
    bounds = tuple(accumulate(lengths, initial=0))
    q_THC, k_TGC, v_TGC = (normal(bounds[-1], heads, 16, seed=i).to(dtype) for i, heads in enumerate((4, 2, 2)))
    expect_close(
        lambda q, k, v: (kernels.attention(q, k, v, bounds),),
        lambda q, k, v: (reference.attention(q, k, v, bounds),),
        (q_THC, k_TGC, v_TGC),
        (q_THC.flip(0),),
        2 * TOLERANCE[dtype],
    )


@TYPES
def test_attention_to_a_part_of_wider_rows(dtype: torch.dtype) -> None:
    """Queries, keys and values of one product lie side by side; the gradient of a sum has no memory of its own."""
    rows = normal(40, 4, 32, seed=1).to(dtype)
    got, exact = (part.detach().clone().requires_grad_() for part in (rows, rows.double()))
    for kernels, x in ((training_kernels(), got), (reference, exact)):
        kernels.attention(x[:, :2], x[:, 2:3], x[:, 3:], (0, 13, 40)).sum().backward()
    torch.testing.assert_close(got.grad.double(), exact.grad, rtol=0, atol=20 * TOLERANCE[dtype])


def test_nothing_is_kept_without_gradients() -> None:
    kernels, x_TD, weight = training_kernels(), normal(5, 32, seed=1).float(), torch.ones(32)
    with torch.no_grad():
        sum_TD, norm_TD = kernels.add_rms_norm(x_TD.requires_grad_(), x_TD, weight, 1e-6)
    assert not sum_TD.requires_grad
    torch.testing.assert_close(norm_TD, reference.rms_norm(2 * x_TD.detach(), weight, 1e-6))
