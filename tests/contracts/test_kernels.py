"""The contract of the kernels: every implementation against sums written out in float64.

T tokens, D model width, F expert width, E experts, K active, H query heads, G key-value heads, C head size.
"""

from __future__ import annotations

import math
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tenth.kernels import reference
from tenth.kernels.choice import describe
from tenth.kernels.contract import Kernels, KVType
from tenth.kernels.cpu.machine import instruction_sets, machine
from tenth.kernels.cpu.operations import CpuKernels
from tenth.kernels.packed import PackedExpert, PackedExpertTable, PackedFormat, PackedWeight, pack
from tenth.kernels.weight import DenseExpertTable, DenseWeight, ExpertTable, Weight
from tenth.routing.limit import ExpertLimit, TokenLimits
from tenth.routing.rule import RouteRule, Score

NATIVE = [CpuKernels(machine(instruction_set=name)) for name in instruction_sets()]
IMPLEMENTATIONS: list[Kernels] = [reference, *NATIVE]
FP32 = PackedFormat(32)
SEEDS = st.integers(0, 1 << 20)

pytestmark = pytest.mark.parametrize("kernels", IMPLEMENTATIONS, ids=describe)


def _weight(kernels: Kernels, values_OI: torch.Tensor) -> Weight:
    """A matrix as the kernels take it, every value kept."""
    rows, columns = values_OI.shape
    if isinstance(kernels, CpuKernels):
        return PackedWeight(pack(FP32, values_OI), rows, columns, FP32)
    weight = DenseWeight(rows, columns, values_OI.dtype, "cpu").requires_grad_(False)
    weight.values_OI.copy_(values_OI)
    return weight


def _table(kernels: Kernels, w13_E2FD: torch.Tensor, w2_EDF: torch.Tensor) -> ExpertTable:
    experts, width, inner = w2_EDF.shape
    if isinstance(kernels, CpuKernels):
        halves = [part for w13_2FD in w13_E2FD for part in w13_2FD.chunk(2)]
        parts = [_weight(kernels, part) for part in (*halves, *w2_EDF)]
        return PackedExpertTable(
            [PackedExpert(*parts[2 * e : 2 * e + 2], parts[2 * experts + e]) for e in range(experts)]
        )
    table = DenseExpertTable(experts, width, inner, w2_EDF.dtype, "cpu").requires_grad_(False)
    table.w13_E2FD.copy_(w13_E2FD)
    table.w2_EDF.copy_(w2_EDF)
    return table


def _drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@given(t=st.integers(1, 9), i=st.integers(1, 40), o=st.integers(1, 40), seed=SEEDS)
@settings(deadline=None)
def test_linear(kernels: Kernels, t: int, i: int, o: int, seed: int) -> None:
    values = _drawn(o, i, seed=seed)
    x, bias = _drawn(t, i, seed=seed + 1), _drawn(o, seed=seed + 2)
    expected = x.double() @ values.double().T + bias.double()
    scale = x.double().abs() @ values.double().abs().T + 1
    assert ((kernels.linear(x, _weight(kernels, values), bias) - expected).abs() / scale).max() < 1e-6


@given(t=st.integers(1, 5), d=st.integers(1, 64), seed=SEEDS)
@settings(deadline=None)
def test_rms_norm(kernels: Kernels, t: int, d: int, seed: int) -> None:
    x, weight = _drawn(t, d, seed=seed) * 50, _drawn(d, seed=seed + 1)
    expected = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5).double(), expected, atol=1e-5, rtol=1e-5)


@given(t=st.integers(1, 5), g=st.integers(1, 2), half=st.sampled_from([8, 16, 40]), norm=st.booleans(), seed=SEEDS)
@settings(deadline=None)
def test_heads(kernels: Kernels, t: int, g: int, half: int, norm: bool, seed: int) -> None:
    """Each pair (i, i + C/2) is a complex number that is multiplied by e^(i angle)."""
    heads = [_drawn(t, g * repeat, 2 * half, seed=seed + repeat) for repeat in (3, 1)]
    weights = (_drawn(2 * half, seed=seed + 5), _drawn(2 * half, seed=seed + 6)) if norm else (None, None)
    angle = _drawn(t, half, seed=seed + 7)
    turn = torch.polar(torch.ones(()).double(), angle.double())[:, None]
    got = kernels.heads(*heads, weights, 1e-5, angle.cos(), angle.sin())
    for x, weight, turned in zip(heads, weights, got, strict=True):
        scale = 1.0 if weight is None else weight / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        z = torch.complex(*(x.double() * scale).split(half, -1)) * turn
        torch.testing.assert_close(turned.double(), torch.cat((z.real, z.imag), -1), atol=1e-5, rtol=1e-5)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.sampled_from([0, 0, 1, 7])), min_size=1, max_size=3),
    groups=st.integers(1, 3),
    repeat=st.integers(1, 3),
    c=st.sampled_from([2, 8, 16]),
    kv=st.sampled_from(["bf16", "int8"]),
    seed=SEEDS,
)
@settings(deadline=None)
def test_attention(
    kernels: Kernels, sizes: list[tuple[int, int]], groups: int, repeat: int, c: int, kv: KVType, seed: int
) -> None:
    """Documents of (new, earlier) tokens; query j of a document sees its earlier keys and its own up to j.

    Pages of three tokens (or as few as the layout allows), handed out back to front; without earlier tokens the plain
    form must give the same.
    """
    c = 16 * c if isinstance(kernels, CpuKernels) else c
    bounds = [0, *accumulate(new for new, _ in sizes)]
    lengths = [new + old for new, old in sizes]
    q = _drawn(bounds[-1], groups * repeat, c, seed=seed)
    layout = kernels.kv_layout(groups, c, kv)
    size = layout.padded(3)
    counts = [-(-length // size) for length in lengths]
    free = list(range(sum(counts)))
    pages = [torch.tensor([free.pop() for _ in range(count)]) for count in counts]
    pools = layout.pools(sum(counts), size, torch.float32)
    keys, values = ([_drawn(n, groups, c, seed=seed + s + part) for s, n in enumerate(lengths)] for part in (50, 99))
    # native caches hold bfloat16; some processors take queries and shares in it too. What is rounded to bytes, with a
    # scale of a power of two, is rounded again to the same
    keys, values = ([_as_kept(part, pools[0].dtype) for part in parts] for parts in (keys, values))
    error = {torch.bfloat16: 3e-2, torch.int8: 1e-3 if isinstance(kernels, CpuKernels) else 1e-5}
    close = dict.fromkeys(("atol", "rtol"), error.get(pools[0].dtype, 1e-5))
    for k, v, table in zip(keys, values, pages, strict=True):
        place = torch.arange(len(k))
        kernels.store(k, v, *pools, table[place // size] * size + place % size)
    got = kernels.paged_attention(q, *pools, pages, lengths, bounds)
    for s, (new, old) in enumerate(sizes):
        for j in range(new):
            for head in range(groups * repeat):
                k, v = (part[s][: old + j + 1, head // repeat].double() for part in (keys, values))
                p = (k @ q[bounds[s] + j, head].double() / math.sqrt(c)).softmax(0)
                torch.testing.assert_close(got[bounds[s] + j, head].double(), p @ v, **close)
    if kv == "bf16" and not any(old for _, old in sizes):
        plain = kernels.attention(q, torch.cat(keys), torch.cat(values), bounds)
        torch.testing.assert_close(plain, got, atol=1e-5, rtol=1e-5)


def _as_kept(x_NGC: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if dtype != torch.int8:
        return x_NGC.to(dtype).float()
    whole_NGC = (x_NGC * 30).round().clamp(-127, 127)
    whole_NGC[..., 0] = 127
    return whole_NGC / 32


@pytest.mark.parametrize("c", [16, 80])
def test_int8_pages_err_by_half_a_step(kernels: Kernels, c: int) -> None:
    """Of one token attention returns its value as it was kept: each head's, within 1/254 of its largest magnitude."""
    layout = kernels.kv_layout(3, c, "int8")
    for seed, scale in enumerate((1e-20, 1.0, 1e20)):
        k, v = _drawn(1, 3, c, seed=seed), _drawn(1, 3, c, seed=seed + 9) * scale
        page_size = layout.padded(1)
        pools = layout.pools(2, page_size)
        kernels.store(k, v, *pools, torch.tensor([page_size]))
        got = kernels.paged_attention(_drawn(1, 6, c, seed=3), *pools, [torch.tensor([1])], [1], [0, 1])
        off = (got.view(3, 2, c) - v.view(3, 1, c)).abs().amax((1, 2)) / v.abs().amax((0, 2))
        assert (off < 1 / 253).all()
        assert (off > 1 / 2000).all()


@given(t=st.integers(1, 8), e=st.integers(1, 17), data=st.data(), renormalise=st.booleans(), seed=SEEDS)
@settings(deadline=None)
def test_routing(kernels: Kernels, t: int, e: int, data: st.DataObject, renormalise: bool, seed: int) -> None:
    k = data.draw(st.integers(1, e))
    x, weight = _drawn(t, 24, seed=seed), _drawn(e, 24, seed=seed + 1)
    logits = kernels.router_logits(x, weight)
    torch.testing.assert_close(logits.double(), x.double() @ weight.double().T, atol=1e-5, rtol=1e-5)
    rule = RouteRule(k, renormalise)
    experts, gates = kernels.route(logits, rule)
    torch.testing.assert_close(kernels.gates(logits, experts, rule), gates, atol=1e-6, rtol=1e-5)
    p = logits.double().softmax(-1)
    for row in range(t):
        ranked = sorted(range(e), key=lambda expert: (-float(logits[row, expert]), expert))
        assert experts[row].tolist() == ranked[:k]
        chosen = p[row, experts[row]]
        expected = chosen / chosen.sum() if renormalise else chosen
        torch.testing.assert_close(gates[row].double(), expected, atol=1e-6, rtol=1e-5)


def _score(logit: float, bias: float, rule: RouteRule) -> float:
    return (1 / (1 + math.exp(-logit)) if rule.score == "sigmoid" else logit) + bias


def _best_groups(scores: list[float], rule: RouteRule) -> list[int]:
    size = len(scores) // rule.groups
    value = [sum(sorted(scores[g * size : (g + 1) * size])[-2:]) for g in range(rule.groups)]
    return sorted(range(rule.groups), key=lambda g: -value[g])[: rule.top_groups]


@given(t=st.integers(1, 6), size=st.integers(1, 9), data=st.data(), seed=SEEDS)
@settings(deadline=None)
def test_routing_rules(kernels: Kernels, t: int, size: int, data: st.DataObject, seed: int) -> None:
    """Sigmoids, biases, groups and a scale: what is chosen, by a loop over scores; biases leave the gates alone."""
    groups = data.draw(st.integers(1, 4))
    top_groups = data.draw(st.integers(1, groups))
    rule = RouteRule(
        data.draw(st.integers(1, top_groups * size)),
        data.draw(st.booleans()),
        data.draw(st.sampled_from(["softmax", "sigmoid"])),
        groups,
        top_groups,
        data.draw(st.sampled_from([1.0, 2.5])),
    )
    logits = _drawn(t, groups * size, seed=seed) * 3
    bias = _drawn(groups * size, seed=seed + 1) if data.draw(st.booleans()) else None
    experts, gates = kernels.route(logits, rule, bias)
    torch.testing.assert_close(kernels.gates(logits, experts, rule), gates, atol=1e-6, rtol=1e-5)
    for row, chosen, weights in zip(logits.double().tolist(), experts.tolist(), gates.tolist(), strict=True):
        scores = [_score(x, 0.0 if bias is None else float(bias[e]), rule) for e, x in enumerate(row)]
        kept = [e for g in sorted(_best_groups(scores, rule)) for e in range(g * size, (g + 1) * size)]
        assert chosen == sorted(kept, key=lambda e: -scores[e])[: rule.top_k]
        parts = [math.exp(x) / (1 + math.exp(x) if rule.score == "sigmoid" else 1) for x in row]
        whole = sum(parts) if rule.score == "softmax" else 1.0
        total = sum(parts[e] for e in chosen) if rule.renormalise else whole
        assert weights == pytest.approx([rule.scale * parts[e] / total for e in chosen], rel=2e-5, abs=1e-7)


def test_sigmoid_gates_of_extreme_logits(kernels: Kernels) -> None:
    """Where every sigmoid is 0 in float32, their ratios are still known."""
    logits = torch.tensor([[-200.0, -201.0, -500.0], [300.0, 200.0, -300.0]])
    gates = kernels.route(logits, RouteRule(2, score="sigmoid"))[1]
    torch.testing.assert_close(gates, torch.tensor([[0.7310586, 0.2689414], [0.5, 0.5]]))
    gates = kernels.route(logits, RouteRule(2, False, "sigmoid", scale=2.0))[1]
    torch.testing.assert_close(gates, torch.tensor([[0.0, 0.0], [2.0, 2.0]]))


def test_equal_groups_and_experts_go_to_the_lower_id(kernels: Kernels) -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 2.0, -1.5]])
    for score in ("softmax", "sigmoid"):
        rule = RouteRule(3, score=score, groups=4, top_groups=2)
        assert kernels.route(logits, rule)[0].tolist() == [[1, 2, 0]]
        bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 4.0, 4.0, 0.0, 0.0])
        assert kernels.route(logits, rule, bias)[0].tolist() == [[4, 5, 1]]


def test_ties_go_to_the_lower_id(kernels: Kernels) -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0]])
    assert kernels.route(logits, RouteRule(4))[0].tolist() == [[1, 2, 4, 0]]


def test_equal_rows_get_equal_bits(kernels: Kernels) -> None:
    """Groups of experts with one row between them must tie exactly, for one token and for many."""
    rows = _drawn(4, 571, seed=3)
    weight = torch.cat([rows, rows, rows])[torch.randperm(12, generator=torch.Generator().manual_seed(1))]
    for t in (1, 2, 7, 64):
        logits = kernels.router_logits(_drawn(t, 571, seed=t), weight)
        for i in range(12):
            for j in range(12):
                if torch.equal(weight[i], weight[j]):
                    assert torch.equal(logits[:, i], logits[:, j])


def test_gates_of_extreme_logits(kernels: Kernels) -> None:
    logits = torch.tensor([[-3e38, 0.0, 3e38], [-200.0, -201.0, -500.0]])
    gates = kernels.route(logits, RouteRule(2))[1]
    torch.testing.assert_close(gates, torch.tensor([[1.0, 0.0], [0.7310586, 0.2689414]]))


@given(t=st.integers(1, 12), e=st.integers(1, 6), data=st.data(), seed=SEEDS)
@settings(deadline=None)
def test_expert_ffn(kernels: Kernels, t: int, e: int, data: st.DataObject, seed: int) -> None:
    """Experts without tokens, all tokens to one expert, odd widths: whatever is drawn."""
    k, d, f = data.draw(st.integers(1, e)), data.draw(st.integers(1, 33)), data.draw(st.integers(1, 21))
    w13, w2 = _drawn(e, 2 * f, d, seed=seed), _drawn(e, d, f, seed=seed + 1)
    table = _table(kernels, w13, w2)
    x = _drawn(t, d, seed=seed + 2)
    experts = torch.stack(
        [torch.randperm(e, generator=torch.Generator().manual_seed(seed + row))[:k] for row in range(t)]
    )
    gates = _drawn(t, k, seed=seed + 3)
    gates[0, 0] = 0.0
    got = kernels.expert_ffn(x, experts, gates, table)
    measured, norms, peaks = kernels.measured_experts(x, experts, gates, table)
    torch.testing.assert_close(measured, got, rtol=1e-5, atol=1e-5)
    assert (norms.dtype, norms[0, 0], peaks[0, 0]) == (torch.float32, 0, 0)
    for row in range(t):
        expected, scale = torch.zeros(d).double(), 1.0
        for at, (expert, gate) in enumerate(zip(experts[row].tolist(), gates[row].double(), strict=True)):
            h = w13[expert].double() @ x[row].double()
            inner = h[:f] * torch.sigmoid(h[:f]) * h[f:]
            output = w2[expert].double() @ inner
            most = float((w2[expert].double().abs() @ inner.abs()).max())
            expected += gate * output
            scale += float(abs(gate)) * most
            if gate:
                assert float(norms[row, at]) == pytest.approx(
                    float(output.norm()), rel=1e-5, abs=1e-5 * (1 + most) * d**0.5
                )
                assert float(peaks[row, at]) == pytest.approx(
                    float(output.abs().max()), rel=1e-5, abs=1e-5 * (1 + most)
                )
        assert (got[row] - expected).abs().max() / scale < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_types_are_kept(kernels: Kernels, dtype: torch.dtype) -> None:
    if isinstance(kernels, CpuKernels):
        pytest.skip("native kernels compute in float32")
    table = _table(kernels, _drawn(3, 8, 8, seed=1, dtype=dtype), _drawn(3, 8, 4, seed=2, dtype=dtype))
    x = _drawn(5, 8, seed=3, dtype=dtype)
    logits = kernels.router_logits(x, _drawn(3, 8, seed=4))
    experts = kernels.route(logits, RouteRule(2))[0]
    gates = kernels.gates(logits, experts, RouteRule(2))
    assert logits.dtype == gates.dtype == reference.wide(dtype)
    assert kernels.expert_ffn(x, experts, gates, table).dtype == dtype
    assert kernels.rms_norm(x, torch.ones(8), 1e-6).dtype == dtype


@given(t=st.integers(1, 6), e=st.integers(1, 20), data=st.data(), seed=SEEDS)
@settings(deadline=None)
def test_limited_routing(kernels: Kernels, t: int, e: int, data: st.DataObject, seed: int) -> None:
    """A loop over scores says which experts are left; their gates are the rule's, those of the others exactly 0."""
    scores: Score = data.draw(st.sampled_from(["softmax", "sigmoid"]))
    top_k = data.draw(st.integers(1, e))
    rule = RouteRule(top_k, data.draw(st.booleans()), scores, scale=data.draw(st.sampled_from([1.5, top_k])))
    logits = _drawn(t, e, seed=seed) * data.draw(st.sampled_from([0.3, 4.0]))
    bias = _drawn(e, seed=seed + 1) if data.draw(st.booleans()) else None
    masses = st.sampled_from([None, 0.01, 0.4, 0.9, 1.0])
    each = [ExpertLimit(data.draw(masses), data.draw(st.sampled_from([None, 1, 2, 5]))) for _ in range(t)]
    limits = TokenLimits.of(each, [1] * t)
    experts, gates = kernels.route(logits, rule, bias)
    limited_experts, limited = kernels.route(logits, rule, bias, limits)
    assert torch.equal(limited_experts, experts)
    replayed = kernels.gates(logits, experts, rule, limited == 0)
    torch.testing.assert_close(replayed, limited, atol=1e-6, rtol=1e-5)
    for row, one in enumerate(each):
        left = _left(gates[row].tolist(), one)
        assert (limited[row] != 0).tolist() == [k < left for k in range(top_k)]
        if left == top_k:
            assert torch.equal(limited[row], gates[row])
        kept = gates[row][:left].double()
        rescaled = rule.renormalise and rule.scale != top_k
        expected = rule.scale * kept / kept.sum() if rescaled else kept
        torch.testing.assert_close(limited[row][:left].double(), expected, atol=1e-6, rtol=1e-4)


def _left(gates: list[float], limit: ExpertLimit) -> int:
    """How many experts stay, by adding up gates: they are the scores up to a factor."""
    for left in range(1, len(gates)):
        enough = limit.mass is not None and limit.mass < 1 and sum(gates[:left]) >= limit.mass * sum(gates)
        if enough or left == limit.cap:
            return left
    return len(gates)


@pytest.mark.parametrize("renormalise", [True, False])
def test_a_cap_is_a_model_with_fewer_experts_a_token(kernels: Kernels, renormalise: bool) -> None:
    """Bit for bit; a token beside it has its own limit."""
    logits, bias = _drawn(5, 40, seed=3), _drawn(40, seed=4)
    logits[1] = logits[1].round()
    for cap in (1, 3, 16, 17, 19):
        limits = TokenLimits.of([None, ExpertLimit(cap=cap), ExpertLimit(1.0)], [1, 3, 1])
        experts, gates = kernels.route(logits, RouteRule(20, renormalise), bias, limits)
        fewer, wanted = kernels.route(logits, RouteRule(cap, renormalise), bias)
        assert torch.equal(experts[1:4, :cap], fewer[1:4])
        if isinstance(kernels, CpuKernels):
            assert torch.equal(gates[1:4, :cap], wanted[1:4])
        torch.testing.assert_close(gates[1:4, :cap], wanted[1:4])
        assert not gates[1:4, cap:].any()
        assert torch.equal(gates[[0, 4]], kernels.route(logits, RouteRule(20, renormalise), bias)[1][[0, 4]])


def test_limits_of_tokens_that_are_not_numbers(kernels: Kernels) -> None:
    """No mass is known there, a cap still counts."""
    logits = torch.tensor([[1.0, torch.nan, 3.0, 2.0]] * 2)
    limits = TokenLimits.of([ExpertLimit(0.01), ExpertLimit(0.01, 2)], [1, 1])
    gates = kernels.route(logits, RouteRule(3), None, limits)[1]
    assert gates[0].isnan().all()
    assert (gates[1] == 0).sum() == 1
    assert gates[1].isnan().sum() == 2


def test_what_is_dropped_is_not_computed(kernels: Kernels) -> None:
    """An expert of infinities spoils a token that hears it with any gate but 0; a token may hear none."""
    w13, w2 = _drawn(4, 2 * 16, 32, seed=1), _drawn(4, 32, 16, seed=2)
    table, broken = _table(kernels, w13, w2), w13.clone()
    broken[3] = torch.inf
    x, experts = _drawn(3, 32, seed=3), torch.tensor([[0, 3, 1], [3, 2, 0], [3, 1, 2]])
    gates = torch.tensor([[0.6, 0.0, 0.4], [0.0, 0.0, 0.0], [-0.0, 1e-30, 1.0]])
    whole = kernels.expert_ffn(x, experts, gates, table)
    got = kernels.expert_ffn(x, experts, gates, _table(kernels, broken, w2))
    assert torch.equal(got, whole)
    assert not got[1].any()
    fewer = kernels.expert_ffn(x[:1], experts[:1, [0, 2]], gates[:1, [0, 2]], table)
    torch.testing.assert_close(got[:1], fewer)
    for row in range(3):
        alone = kernels.expert_ffn(x[row : row + 1], experts[row : row + 1], gates[row : row + 1], table)
        torch.testing.assert_close(alone, got[row : row + 1])
        assert not isinstance(kernels, CpuKernels) or torch.equal(alone, got[row : row + 1])
    gates[1, 0] = 1e-3
    spoiled = kernels.expert_ffn(x, experts, gates, _table(kernels, broken, w2))
    assert not spoiled[1].isfinite().all()
