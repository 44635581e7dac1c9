"""Native kernels on packed weights: every format and instruction set, bits that do not depend on company or threads.

T tokens, I inputs, K chosen experts, A tokens of one expert, D model width, F expert width.
"""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.errors import MachineError, WeightsError
from tenth.kernels.cpu.machine import default_threads, instruction_sets, machine, usable_cpus
from tenth.kernels.cpu.operations import CpuKernels
from tenth.kernels.packed import PackedExpert, PackedExpertTable, PackedFormat, PackedWeight, pack
from tests.kernels.packed import drawn_weight

SETS = instruction_sets()
NAMES = [
    *("int4-g16-s4", "int4-g32", "int4-g64", "int4-g32-min", "int4-g128-min", "int8-g32", "int8-g128", "int8-g64-min"),
    *("int4-g32-k-min", "int4-g64-k", "int8-g16-k", "int8-g32-k-min", "bf16", "fp32"),
]

Choice = Literal["any", "the same two", "one twice"]
"""How the tokens of a batch choose their experts."""


def _all() -> list[CpuKernels]:
    """Every instruction set, on one thread, on three where there are as many cores, and on all."""
    most = len(usable_cpus())
    return [CpuKernels(machine(threads, name)) for name in SETS for threads in sorted({1, min(3, most), most})]


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
    groups = torch.nn.functional.pad(x_TI, (0, -columns % size)).view(len(x_TI), -1, size)
    most = groups.abs().amax(2, keepdim=True)
    # torch takes `127 / most` for 127 times the reciprocal, which is another number now and then
    whole = torch.where(most > 0, (groups * (torch.full_like(most, 127) / most)).round(), 0.0)
    taken: torch.Tensor = (whole.double() * (most / 127).double()).flatten(1)[:, :columns]
    return taken


def _magnitudes(weight: PackedWeight) -> torch.Tensor:
    """Of the terms that each value is the sum of: kernels sum products and minimums apart, which may cancel."""
    form, columns, dense = weight.format, weight.in_features, weight.dense().double()
    if not form.minimums:
        return dense.abs()
    data = weight.data_B.clone().view(-1, form.tile_bytes(columns))
    data[:, : form.segments(columns).scales] = 0  # all quants
    least = PackedWeight(data.flatten(), weight.out_features, columns, form).dense().double()
    return (dense - least).abs() + least.abs()


def _scaled_error(got: torch.Tensor, x: torch.Tensor, weight: PackedWeight) -> float:
    expected, scale = x @ weight.dense().double().T, x.abs() @ _magnitudes(weight).T
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
    assert _scaled_error(results[0], _as_taken(x, form), weight) < 1e-6
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
        gate, up = drawn_weight(form, inner, hidden, seed), drawn_weight(form, inner, hidden, seed + 50)
        experts.append(PackedExpert(gate, up, drawn_weight(down, hidden, inner, seed + 99)))
    return PackedExpertTable(experts)


def _routing(choice: Choice, tokens: int, experts: int, top_k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and gates of the chosen experts, (T, K)."""
    generator = torch.Generator().manual_seed(seed)
    among = 2 if choice == "the same two" else experts
    ids_TK = torch.stack([torch.randperm(among, generator=generator)[:top_k] for _ in range(tokens)])
    if choice == "one twice":
        ids_TK[:, -1] = ids_TK[:, 0]
    return ids_TK, torch.rand(ids_TK.shape, generator=generator)


def _experts_error(
    kernels: CpuKernels, x_TD: torch.Tensor, ids_TK: torch.Tensor, gates_TK: torch.Tensor, table: PackedExpertTable
) -> float:
    """The largest error of a layer of experts by these kernels, over the magnitudes that are summed.

    Hidden values are what the kernels' own products and SwiGLU make: down takes them as bytes, and a difference in
    the last bit of one may be a whole step of its byte.
    """
    sums, scales = torch.zeros(2, *x_TD.shape, dtype=torch.float64)
    for index in sorted(set(ids_TK.flatten().tolist())):
        expert = table.experts[index]
        token_A, k_A = torch.where(ids_TK == index)
        parts = [kernels.linear(x_TD[token_A], part) for part in (expert.gate, expert.up)]
        taken_AF = _as_taken(kernels.swiglu(*parts), expert.down.format)
        gate_A1 = gates_TK[token_A, k_A, None].double()
        sums.index_add_(0, token_A, gate_A1 * (taken_AF @ expert.down.dense().double().T))
        scales.index_add_(0, token_A, gate_A1 * (taken_AF.abs() @ _magnitudes(expert.down).T))
    got = kernels.expert_ffn(x_TD, ids_TK, gates_TK, table)
    return float(((got - sums).abs() / scales.clamp_min(1e-30)).max())


@given(
    name=st.sampled_from(
        ["int4-g16-s4", "int4-g32", "int8-g32", "int8-g64-min", "int4-g32-k-min", "int8-g16-k", "bf16"]
    ),
    hidden=st.sampled_from([48, 80, 256, 272, 528]),
    inner=st.sampled_from([48, 80, 256, 272, 768]),
    tokens=st.integers(1, 45),
    choice=st.sampled_from(["any", "the same two", "one twice"]),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=30)
def test_expert_ffn(name: str, hidden: int, inner: int, tokens: int, choice: Choice, seed: int) -> None:
    """Near the experts' definition; the same bits in every set, on any number of threads, for every token alone."""
    (form, hidden), (_, inner) = _fitting(name, hidden), _fitting(name, inner)
    table = _table([name] * 7, hidden, inner)
    x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed))
    ids, gates = _routing(choice, tokens, 7, 3, seed)
    first, *others = _all()
    for part in (table.experts[0].gate, table.experts[0].up):
        assert _scaled_error(first.linear(x, part), _as_taken(x, form), part) < 1e-6
    assert _experts_error(first, x, ids, gates, table) < 1e-6
    result = first.expert_ffn(x, ids, gates, table)
    sizes = first.measured_experts(x, ids, gates, table)
    assert ((sizes[1] == 0) == (gates == 0)).all()
    for kernels in (first, *others):
        assert torch.equal(kernels.expert_ffn(x, ids, gates, table), result)
        measured = kernels.measured_experts(x, ids, gates, table)
        assert all(map(torch.equal, measured, (result, *sizes[1:])))
    for kernels in (first, *others):
        # threads that share cores with other tests wait long for each other: few tokens there
        for t in range(tokens) if kernels.machine.threads == 1 else {0, seed % tokens}:
            one = slice(t, t + 1)
            assert torch.equal(kernels.expert_ffn(x[one], ids[one], gates[one], table), result[one])
            alone = kernels.measured_experts(x[one], ids[one], gates[one], table)
            assert all(torch.equal(a, b[one]) for a, b in zip(alone, (result, *sizes[1:]), strict=True))


@pytest.mark.parametrize(("top_k", "choice"), [(64, "any"), (64, "one twice"), (65, "any"), (80, "one twice")])
def test_a_token_may_choose_many_experts(top_k: int, choice: Choice) -> None:
    """Up to 64 outputs of a lone token are summed as they come, more are kept first."""
    table = _table(["int4-g16-s4", "int8-g32", "bf16", "int4-g32"] * 20, 48, 80)
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(top_k))
    ids, gates = _routing(choice, 3, 80, top_k, top_k)
    first = _all()[0]
    assert _experts_error(first, x, ids, gates, table) < 1e-6
    result = first.expert_ffn(x, ids, gates, table)
    for kernels in _all():
        assert torch.equal(kernels.expert_ffn(x, ids, gates, table), result)
        assert torch.equal(kernels.expert_ffn(x[1:2], ids[1:2], gates[1:2], table), result[1:2])


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
        _only_spoiled(kernels.linear(x, weight), clean, row=1, integers=form != "fp32")


@pytest.mark.parametrize("form", ["int4-g16-s4", "int4-g32", "int8-g32-min", "fp32"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_stays_with_its_token_in_experts(form: str, bad: float) -> None:
    table = _table([form] * 5, 80, 48)
    for kernels in _all():
        for tokens in (1, 3, 17, 30):
            x = torch.randn(tokens, 80, generator=torch.Generator().manual_seed(tokens))
            ids, gates = _routing("any", tokens, 5, 2, tokens)
            clean = kernels.expert_ffn(x, ids, gates, table)
            x[-1, 77] = bad
            got = kernels.expert_ffn(x, ids, gates, table)
            _only_spoiled(got, clean, row=tokens - 1, integers=form != "fp32")


def _only_spoiled(got: torch.Tensor, clean: torch.Tensor, row: int, integers: bool) -> None:
    """The row is NaN beside integer weights, what IEEE makes of it beside floats; the others are as they were."""
    assert got[row].isnan().all() if integers else not got[row].isfinite().any()
    others = [other for other in range(len(got)) if other != row]
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
    table = _table(["int4-g16-s4", "int8-g32", "bf16", "int4-g32-k-min", "fp32"], 256, 512)
    x = torch.randn(30, 256, generator=torch.Generator().manual_seed(8))
    ids, gates = _routing("any", 30, 5, 3, 8)
    first = _all()[0]
    assert _experts_error(first, x, ids, gates, table) < 1e-6
    result = first.expert_ffn(x, ids, gates, table)
    for kernels in _all():
        assert torch.equal(kernels.expert_ffn(x, ids, gates, table), result)
        assert torch.equal(kernels.expert_ffn(x[7:8], ids[7:8], gates[7:8], table), result[7:8])


def test_gate_and_up_that_take_other_inputs_are_refused() -> None:
    expert = _table(["int8-g32"], 256, 256).experts[0]
    other = PackedExpert(expert.gate, drawn_weight(PackedFormat(16), 256, 256, 1), expert.down)
    kernels = CpuKernels(machine())
    with pytest.raises(WeightsError, match="expert 1 has gate in int8-g32 and up in bf16"):
        kernels.expert_ffn(
            torch.ones(1, 256), torch.zeros(1, 1).long(), torch.ones(1, 1), PackedExpertTable([expert, other])
        )
