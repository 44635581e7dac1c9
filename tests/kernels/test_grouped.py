"""The experts of a layer with their gradient: native and by torch's grouped products, against float64.

T tokens, D model width, F expert width, E experts, K active.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tenth.errors import MachineError
from tenth.kernels import reference
from tenth.kernels.choice import describe
from tenth.kernels.cpu.grouped import borrowing_machine
from tenth.kernels.cpu.machine import instruction_sets, usable_cpus
from tenth.kernels.training import TrainingKernels, grouped_ffn, training_kernels
from tenth.kernels.weight import DenseExpertTable

SETS = instruction_sets()
NATIVE = {name: TrainingKernels(borrowing_machine(1, name)) for name in SETS}
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2}  # of the largest number of each result
SEEDS = st.integers(0, 1 << 20)


@dataclass(frozen=True)
class Layer:
    """Inputs of one call, and the gradient of its output."""

    table: DenseExpertTable
    x_TD: Tensor
    experts_TK: Tensor
    gates_TK: Tensor
    dy_TD: Tensor

    def to(self, dtype: torch.dtype) -> Layer:
        """The same numbers, rounded to another type (gates stay)."""
        experts, width, inner = self.table.w2_EDF.shape
        table = DenseExpertTable(experts, width, inner, dtype, "cpu")
        with torch.no_grad():
            table.w13_E2FD.copy_(self.table.w13_E2FD)
            table.w2_EDF.copy_(self.table.w2_EDF)
        gates_TK = self.gates_TK.to(reference.wide(dtype))
        return Layer(table, self.x_TD.to(dtype), self.experts_TK, gates_TK, self.dy_TD.to(dtype))

    def results(self, kernels: object) -> list[Tensor]:
        """Output, then the gradients of x, gates, gate and up, and down."""
        x_TD, gates_TK = self.x_TD.clone().requires_grad_(), self.gates_TK.clone().requires_grad_()
        leaves = (x_TD, gates_TK, self.table.w13_E2FD, self.table.w2_EDF)
        y_TD = kernels.expert_ffn(x_TD, self.experts_TK, gates_TK, self.table)  # type: ignore[attr-defined]
        return [y_TD.detach(), *torch.autograd.grad(y_TD, leaves, self.dy_TD)]


def drawn(
    seed: int, tokens: int, width: int, inner: int, experts: int, top_k: int, dtype: torch.dtype = torch.float32
) -> Layer:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    table = DenseExpertTable(experts, width, inner, torch.float64, "cpu")
    with torch.no_grad():
        table.w13_E2FD.copy_(normal(*table.w13_E2FD.shape) / width**0.5)
        table.w2_EDF.copy_(normal(*table.w2_EDF.shape) / inner**0.5)
    order_TE = torch.rand(tokens, experts, generator=generator).argsort(dim=1)
    gates_TK = torch.rand(tokens, top_k, generator=generator, dtype=torch.float64) + 0.1
    layer = Layer(table, normal(tokens, width), order_TE[:, :top_k], gates_TK, normal(tokens, width))
    return layer.to(dtype)


def error(got: Tensor, exact: Tensor, least: float = 1e-30) -> float:
    return float((got.double() - exact).abs().max() / exact.abs().max().clamp(min=least))


def expect(got: list[Tensor], exact: list[Tensor], tolerance: float, least: float = 1e-30) -> None:
    parts = ("y", "dx", "dgates", "dw13", "dw2")
    errors = {part: error(a, b, least) for part, a, b in zip(parts, got, exact, strict=True)}
    assert max(errors.values()) < tolerance, errors


def test_reference_has_its_gradient() -> None:
    layer = drawn(3, tokens=5, width=6, inner=4, experts=3, top_k=2, dtype=torch.float64)
    kernels = training_kernels()

    def ffn(x_TD: Tensor, gates_TK: Tensor, w13_E2FD: Tensor, w2_EDF: Tensor) -> Tensor:
        table = DenseExpertTable(3, 6, 4, torch.float64, "cpu")
        del table.w13_E2FD, table.w2_EDF
        table.w13_E2FD, table.w2_EDF = w13_E2FD, w2_EDF  # type: ignore[assignment]
        return kernels.expert_ffn(x_TD, layer.experts_TK, gates_TK, table)

    leaves = (layer.x_TD, layer.gates_TK, layer.table.w13_E2FD.detach(), layer.table.w2_EDF.detach())
    assert torch.autograd.gradcheck(ffn, [leaf.clone().requires_grad_() for leaf in leaves])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SETS)
@given(
    t=st.integers(1, 90),
    d=st.integers(1, 100),
    f=st.integers(1, 70),
    e=st.integers(1, 6),
    k=st.integers(1, 6),
    seed=SEEDS,
)
@settings(deadline=None, max_examples=25)
def test_any_shape(name: str, dtype: torch.dtype, t: int, d: int, f: int, e: int, k: int, seed: int) -> None:
    layer = drawn(seed, t, d, f, e, min(k, e), dtype)
    # terms are about 1: few of them may cancel to a result that is all error
    got, exact = layer.results(NATIVE[name]), layer.to(torch.float64).results(reference)
    expect(got, exact, 3 * TOLERANCE[dtype], least=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [name for name in SETS if name != "portable"])
@pytest.mark.parametrize(
    "shape", [(900, 576, 96, 4, 3), (700, 64, 384, 1, 1), (1, 512, 256, 8, 8), (1200, 48, 48, 2, 1)]
)
def test_blocks_of_tokens(name: str, dtype: torch.dtype, shape: tuple[int, int, int, int, int]) -> None:
    """Experts of more tokens than one block has, sums of more columns than a panel has at once."""
    layer = drawn(11, *shape, dtype)
    expect(layer.results(NATIVE[name]), layer.to(torch.float64).results(reference), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_change_no_bit(dtype: torch.dtype) -> None:
    layer = drawn(5, 1500, 96, 80, 5, 3, dtype)
    once = layer.results(TrainingKernels(borrowing_machine(1)))
    for threads in (1, 2, 3):
        again = layer.results(TrainingKernels(borrowing_machine(threads)))
        assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True)), threads


@pytest.mark.parametrize("name", SETS)
def test_float32_is_not_coarser_than_torch(name: str) -> None:
    """AMX takes floats apart into three bfloat16: the error must stay that of a float32 sum.

    How torch sums differs from processor to processor; with two parts it would be a hundred times as coarse.
    """
    layer = drawn(7, 256, 512, 256, 2, 2)
    exact = layer.to(torch.float64).results(reference)
    native, plain = layer.results(NATIVE[name]), layer.results(reference)
    for got, usual, true in zip(native, plain, exact, strict=True):
        assert (got - true).norm() < 3 * (usual - true).norm()


@pytest.mark.parametrize("name", SETS)
def test_magnitudes(name: str) -> None:
    """Float32 numbers from 1e-15 to 1e15 in one product keep their relative precision."""
    layer = drawn(9, 40, 64, 32, 2, 2)
    layer.x_TD.mul_(1e-15)
    with torch.no_grad():
        layer.table.w2_EDF.mul_(1e15)
        layer.table.w13_E2FD.mul_(1e10)
    expect(layer.results(NATIVE[name]), layer.to(torch.float64).results(reference), 3e-6)


@pytest.mark.parametrize("name", SETS)
def test_left_out_assignments(name: str) -> None:
    """An assignment of gate 0 adds nothing, whatever its expert would have given."""
    layer = drawn(13, 40, 32, 32, 6, 3)
    layer.gates_TK[layer.experts_TK == 2] = 0.0
    layer.gates_TK[7] = 0.0
    exact = layer.to(torch.float64).results(reference)
    with torch.no_grad():
        layer.table.w13_E2FD[2] = torch.nan
    got = layer.results(NATIVE[name])
    left_out = layer.gates_TK == 0
    assert not got[2][left_out].any()
    exact[2][left_out] = 0.0
    expect(got, exact, TOLERANCE[torch.float32])
    assert not got[0][7].any()
    assert not got[3][2].any()
    assert not got[4][2].any()


def test_no_assignment_at_all() -> None:
    layer = drawn(15, 4, 32, 32, 3, 2)
    layer.gates_TK.zero_()
    assert not any(part.any() for part in layer.results(training_kernels()))


@pytest.mark.parametrize("top_k", [1, 4])
def test_all_tokens_to_one_expert(top_k: int) -> None:
    layer = drawn(17, 700, 64, 48, 4, top_k)
    layer.experts_TK.fill_(3)
    expect(layer.results(training_kernels()), layer.to(torch.float64).results(reference), TOLERANCE[torch.float32])


def test_gradients_of_any_stride() -> None:
    layer = drawn(19, 20, 32, 32, 4, 2)
    wide_TX = torch.randn(20, 96)
    for x_TD in (wide_TX[:, 40:72], wide_TX.T[:32, :20].T, layer.x_TD[:1].expand(20, -1)):
        ours, theirs = (x_TD.detach().clone(memory_format=torch.preserve_format) for _ in range(2))
        for x, kernels in ((ours, training_kernels()), (theirs, reference)):
            x.requires_grad_()
            # the sum's gradient has stride 0
            kernels.expert_ffn(x, layer.experts_TK, layer.gates_TK, layer.table).sum().backward()
        assert error(ours.grad, theirs.grad.double()) < TOLERANCE[torch.float32]


def test_only_what_learns_has_a_gradient() -> None:
    layer = drawn(21, 30, 32, 32, 4, 2)
    table, kernels = layer.table, training_kernels()
    expected = layer.results(kernels)
    table.w13_E2FD.requires_grad_(False)
    kernels.expert_ffn(layer.x_TD, layer.experts_TK, layer.gates_TK, table).backward(layer.dy_TD)
    assert table.w13_E2FD.grad is None
    assert torch.equal(table.w2_EDF.grad, expected[4])
    table.requires_grad_(False)
    x_TD = layer.x_TD.clone().requires_grad_()
    kernels.expert_ffn(x_TD, layer.experts_TK, layer.gates_TK, table).backward(layer.dy_TD)
    assert torch.equal(x_TD.grad, expected[1])
    y_TD = kernels.expert_ffn(layer.x_TD, layer.experts_TK, layer.gates_TK, table)
    assert not y_TD.requires_grad
    assert torch.equal(y_TD, expected[0])


@pytest.mark.skipif(not hasattr(Tensor, "grad_dtype"), reason="torch before 2.10 has no gradients of another type")
def test_float32_gradients_of_bfloat16_weights() -> None:
    layer = drawn(23, 300, 64, 48, 3, 2, torch.bfloat16)
    exact = layer.to(torch.float64).results(reference)
    rounded = layer.results(training_kernels())
    for weight in (layer.table.w13_E2FD, layer.table.w2_EDF):
        weight.grad_dtype = torch.float32
    got = layer.results(training_kernels())
    for fine, coarse, true in zip(got[3:], rounded[3:], exact[3:], strict=True):
        assert fine.dtype == torch.float32
        assert coarse.dtype == torch.bfloat16
        assert torch.equal(fine.bfloat16(), coarse)
        assert (fine - true).norm() < (coarse - true).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_grouped_products(dtype: torch.dtype) -> None:
    class Grouped:
        @staticmethod
        def expert_ffn(x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor, table: DenseExpertTable) -> Tensor:
            return grouped_ffn(x_TD, experts_TK, gates_TK, *table.stacked())

    layer = drawn(25, 50, 64, 32, 5, 3, dtype)
    expect(layer.results(Grouped), layer.to(torch.float64).results(reference), 2 * TOLERANCE[dtype])


def test_threads_that_are_not_there() -> None:
    with pytest.raises(MachineError, match="threads are not to be had"):
        training_kernels(len(usable_cpus()) + 1)
    assert describe(training_kernels()).startswith("training (")
