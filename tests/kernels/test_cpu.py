"""Native kernels on packed weights: every format and instruction set, bits that do not depend on company or threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.errors import MachineError, WeightsError
from tenth.kernels import reference
from tenth.kernels.cpu.machine import default_threads, instruction_sets, machine, usable_cpus
from tenth.kernels.cpu.operations import CpuKernels
from tenth.kernels.packed import PackedExpert, PackedExpertTable, PackedFormat, PackedWeight, pack
from tests.kernels.packed import drawn_weight

SETS = instruction_sets()
NAMES = [
    *("int4-g16-s4", "int4-g32", "int4-g64", "int4-g32-min", "int4-g128-min", "int8-g32", "int8-g128", "int8-g64-min"),
    *("int4-g32-k-min", "int4-g64-k", "int8-g16-k", "int8-g32-k-min", "bf16", "fp32"),
]


def _all() -> list[CpuKernels]:
    """Every instruction set, on one thread and on all."""
    most = len(usable_cpus())
    return [CpuKernels(machine(threads, name)) for name in SETS for threads in sorted({1, most})]


def _fitting(name: str, columns: int) -> tuple[PackedFormat, int]:
    form = PackedFormat.parse(name)
    if form.superblock and form.step_bits == 8:
        return form, 256 * (1 + columns // 256)
    return (form if form.superblock else form.fitted(columns)), columns


def _as_taken(x_TI: torch.Tensor, form: PackedFormat) -> torch.Tensor:
    """The activations that integer weights meet: signed bytes by groups of 32, or of 256 under integer steps."""
    if not form.group:
        return x_TI.double()
    size, columns = 256 if form.step_bits == 4 else 32, x_TI.shape[1]
    groups = torch.nn.functional.pad(x_TI, (0, -columns % size)).unflatten(1, (-1, size))
    most = groups.abs().amax(2, keepdim=True)
    whole = torch.where(most > 0, (groups * (127 / most)).round(), 0.0)
    return (whole.double() * (most / 127).double()).flatten(1)[:, :columns]


def _scaled_error(got: torch.Tensor, x: torch.Tensor, dense: torch.Tensor) -> float:
    expected, scale = x @ dense.double().T, x.abs() @ dense.double().abs().T
    return float(((got - expected).abs() / scale.clamp_min(1e-30)).max())


@given(
    name=st.sampled_from(NAMES),
    rows=st.integers(1, 150),
    columns=st.integers(1, 520),
    tokens=st.integers(1, 40),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=40)
def test_linear(name: str, rows: int, columns: int, tokens: int, seed: int) -> None:
    """Near the dense product; the same bits in every set, on any number of threads, for a row alone."""
    form, columns = _fitting(name, columns)
    weight = drawn_weight(form, rows, columns, seed)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))
    results = [kernels.linear(x, weight) for kernels in _all()]
    assert _scaled_error(results[0], _as_taken(x, form), weight.dense()) < 1e-6
    assert all(torch.equal(result, results[0]) for result in results)
    row = seed % tokens
    for kernels in _all():
        assert torch.equal(kernels.linear(x[row : row + 1], weight), results[0][row : row + 1])


@pytest.mark.parametrize("name", ["int8-g32", "int8-g32-k-min", "int4-g16-s4", "int4-g32"])
def test_extreme_integers_do_not_saturate(name: str) -> None:
    """Weights and activations at the ends of their ranges: where a 16-bit sum of two products would overflow."""
    form = PackedFormat.parse(name)
    top = (1 << form.bits) - 1
    for quants in (
        torch.zeros(16, 256),
        torch.full((16, 256), float(top)),
        torch.arange(256).expand(16, 256) % 2 * top,
    ):
        parts = {"scales": torch.ones(16, form.shared(256))}
        if form.superblock:
            least = -(1 << (form.step_bits - 1))
            parts["group_scales_OG"] = torch.full((16, form.groups(256)), least, dtype=torch.int8)
        if form.minimums:
            parts |= {"minimums": torch.ones(16, 1), "group_minimums_OG": parts["group_scales_OG"]}
        weight = PackedWeight(pack(form, quants.to(torch.uint8), **parts), 16, 256, form)
        for x in (torch.full((13, 256), 127.0), torch.full((13, 256), -127.0)):
            expected = x.double() @ weight.dense().double().T
            for kernels in _all():
                torch.testing.assert_close(kernels.linear(x, weight).double(), expected, rtol=1e-6, atol=0)


def _table(names: list[str], hidden: int, inner: int) -> PackedExpertTable:
    """Experts of several formats in one layer."""
    experts = []
    for seed, name in enumerate(names):
        form, _ = _fitting(name, hidden)
        down, _ = _fitting(name, inner)
        parts = [drawn_weight(form, inner, hidden, seed), drawn_weight(form, inner, hidden, seed + 50)]
        experts.append(PackedExpert(*parts, drawn_weight(down, hidden, inner, seed + 99)))
    return PackedExpertTable(experts)


@given(
    name=st.sampled_from(["int4-g16-s4", "int4-g32", "int8-g32", "int4-g32-k-min", "bf16"]),
    tokens=st.integers(1, 45),
    crowd=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=15)
def test_expert_ffn(name: str, tokens: int, crowd: bool, seed: int) -> None:
    """Experts without tokens, all tokens to two experts: near the reference, and the same bits for every company."""
    hidden, inner, experts = 256, 256, 7
    table = _table([name] * experts, hidden, inner)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=generator)
    ids = torch.stack([torch.randperm(2 if crowd else experts, generator=generator)[:2] for _ in range(tokens)])
    gates = torch.rand(tokens, 2, generator=generator)
    expected = reference.expert_ffn(x, ids, gates, table)
    results = [kernels.expert_ffn(x, ids, gates, table) for kernels in _all()]
    assert float((results[0] - expected).norm() / expected.norm()) < (1e-4 if name == "bf16" else 3e-2)
    assert all(torch.equal(result, results[0]) for result in results)
    for kernels in _all()[:2]:
        alone = [kernels.expert_ffn(x[t : t + 1], ids[t : t + 1], gates[t : t + 1], table) for t in range(tokens)]
        assert torch.equal(torch.cat(alone), results[0])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", ["int4-g16-s4", "int4-g32", "int8-g32-min", "fp32"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_stays_with_its_token(name: str, form: str, bad: float) -> None:
    kernels = CpuKernels(machine(instruction_set=name))
    weight = drawn_weight(PackedFormat.parse(form), 40, 256, 1)
    for tokens in (3, 17, 30):
        x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(2))
        clean = kernels.linear(x, weight)
        x[1, 77] = bad
        got = kernels.linear(x, weight)
        assert not got[1].isfinite().any()
        others = [row for row in range(tokens) if row != 1]
        assert torch.equal(got[others], clean[others])


def test_rows_of_an_embedding() -> None:
    ids = torch.tensor([0, 49, 7, 7])
    for name in NAMES:
        weight = drawn_weight(_fitting(name, 96)[0], 50, _fitting(name, 96)[1], 3)
        for kernels in _all():
            assert torch.equal(kernels.embed(ids, weight), weight.rows(ids)), name


@pytest.mark.parametrize(("threads", "name"), [(0, None), (10_000, None), (1, "sse9")])
def test_machines_that_there_are_not(threads: int, name: str | None) -> None:
    with pytest.raises(MachineError):
        machine(threads, name)


def test_threads_follow_what_the_process_may_use() -> None:
    cpus = usable_cpus()
    assert 1 <= default_threads(cpus) <= len(cpus)
    assert machine().threads == default_threads(cpus)
    assert default_threads(cpus[:1]) == 1


def test_experts_of_one_layer_in_several_formats() -> None:
    table = _table(["int4-g16-s4", "int8-g32", "bf16", "int4-g32-k-min", "fp32"], 256, 256)
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(30, 256, generator=generator)
    ids = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in range(30)])
    gates = torch.rand(30, 3, generator=generator)
    expected = reference.expert_ffn(x, ids, gates, table)
    for kernels in _all():
        got = kernels.expert_ffn(x, ids, gates, table)
        assert float((got - expected).norm() / expected.norm()) < 3e-2
        assert torch.equal(kernels.expert_ffn(x[7:8], ids[7:8], gates[7:8], table), got[7:8])


def test_gate_and_up_that_take_other_inputs_are_refused() -> None:
    expert = _table(["int8-g32"], 256, 256).experts[0]
    other = PackedExpert(expert.gate, drawn_weight(PackedFormat(16), 256, 256, 1), expert.down)
    kernels = CpuKernels(machine())
    with pytest.raises(WeightsError, match="expert 1 has gate in int8-g32 and up in bf16"):
        kernels.expert_ffn(
            torch.ones(1, 256), torch.zeros(1, 1).long(), torch.ones(1, 1), PackedExpertTable([expert, other])
        )
