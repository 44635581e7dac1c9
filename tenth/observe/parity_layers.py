"""Two models over the same tokens, one layer of each at a time; logits in blocks of positions, never all at once.

T tokens of a group of windows, D model width, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tenth.model.batch import Batch
from tenth.model.decoder import Layer
from tenth.observe.parity_parts import (
    CosSin,
    LayerStates,
    NotFinite,
    PartErrors,
    add_errors,
    check_finite,
    run_layer,
    same_form,
)
from tenth.observe.parity_positions import Positions, compare
from tenth.observe.parity_sides import Side
from tenth.routing.measures import overlap
from tenth.routing.record import LayerRouting

_GROUP = 4096  # tokens that a layer takes at once: bounds the memory of its activations
_BLOCK_BYTES = 28 << 20  # of logits at once; memory of less than 32 MB is lent again without new pages
_LEAST_PROBE = 256  # tokens
_HEAD_PROBE = 128  # positions on which B's head is given A's states

Progress = Callable[[int, int], None]


@dataclass(slots=True)
class _Group:
    """Some windows, laid end to end, and where the two models have come with them.

    `probe` are rows, the beginnings of all windows; as nothing looks ahead, they are whole documents too. `x_replayed`
    is B's stream of these rows with A's routing, None as long as it is B's own.
    """

    batch: Batch
    probe: Tensor
    probe_batch: Batch
    first_window: int
    x_a: Tensor
    x_b: Tensor
    cos_sin: tuple[CosSin, CosSin]  # of A, of B
    probe_cos_sin: tuple[CosSin, CosSin]
    x_replayed: Tensor | None = None


@dataclass(slots=True)
class LayerFindings:
    """What came of a run: positions, and what each layer does; `window_N`, `place_N` say where a position lies.

    `agreement` is that of the routers by layer. `replayed` and `plain` are of the probe's positions: with A's routing
    in B, and as B routes. `parts` are the errors on A's input by layer; `ends` those of embedding and head.
    """

    positions: Positions
    window_N: npt.NDArray[np.int64]
    place_N: npt.NDArray[np.int64]
    agreement: dict[int, float]
    replayed: Positions | None
    plain: Positions
    parts: dict[int, PartErrors]
    ends: PartErrors


@dataclass(slots=True)
class _Run:
    a: Side
    b: Side
    vocabulary: int
    groups: list[_Group] = field(default_factory=list)
    agreed: dict[int, list[float]] = field(default_factory=dict)
    parts: dict[int, PartErrors] = field(default_factory=dict)
    ends: PartErrors = field(default_factory=PartErrors)
    head_probed: int = 0

    @property
    def same_shape(self) -> bool:
        """Whether a layer of one may take the other's input."""
        a, b = self.a.config, self.b.config
        return (a.num_layers, a.hidden_size) == (b.num_layers, b.hidden_size)

    @property
    def same_routing(self) -> bool:
        """Whether routing of one can be replayed in the other."""
        return self.a.config.moe is not None and routing_form(self.a) == routing_form(self.b) and self.same_shape


def routing_form(side: Side) -> tuple[object, ...]:
    """What must be equal for routing to be compared: layers with routers, experts, how many work."""
    moe = side.config.moe
    return (side.config.sparse_layers, *(() if moe is None else (moe.num_experts, moe.top_k)))


@torch.inference_mode()
def run_by_layer(
    a: Side, b: Side, windows: Sequence[list[int]], vocabulary: int, *, share: float, progress: Progress | None = None
) -> LayerFindings:
    """Both models over all windows; layers and replay on `share` of each window's tokens, from its beginning.

    NotFinite where a layer gives NaN or infinity.
    """
    run = _Run(a, b, vocabulary)
    share = min(max(share, _LEAST_PROBE / sum(map(len, windows))), 1.0)
    _embed(run, windows, share)
    layers = max(a.config.num_layers, b.config.num_layers)
    for index in range(layers):
        with ExitStack() as stack:
            for side in (a, b):
                if index < side.config.num_layers:
                    stack.enter_context(side.by_layer.part(f"layers.{index}"))
            for group in run.groups:
                _advance(run, group, index)
        if progress is not None:
            progress(index + 1, layers + 1)
    with ExitStack() as stack:
        for side in (a, b):
            stack.enter_context(side.by_layer.part("norm"))
            stack.enter_context(side.by_layer.part("head"))
        found = _judge(run)
    if progress is not None:
        progress(layers + 1, layers + 1)
    return found


def _embed(run: _Run, windows: Sequence[list[int]], share: float) -> None:
    a, b = run.a, run.b
    with a.by_layer.part("embedding"), b.by_layer.part("embedding"):
        at = 0
        while at < len(windows):
            end, tokens = at, 0
            while end < len(windows) and (not tokens or tokens + len(windows[end]) <= _GROUP):
                tokens += len(windows[end])
                end += 1
            run.groups.append(_group(run, windows[at:end], at, share))
            at = end


def _group(run: _Run, windows: Sequence[list[int]], first: int, share: float) -> _Group:
    a, b = run.a.decoder, run.b.decoder
    batch = Batch.of(windows)
    lengths = [min(max(round(len(window) * share), 1), len(window)) for window in windows]
    starts = batch.bounds[:-1]
    probe = torch.cat([torch.arange(start, start + n) for start, n in zip(starts, lengths, strict=True)])
    probe_batch = Batch.of([window[:n] for window, n in zip(windows, lengths, strict=True)])
    assert batch.tokens_T is not None
    x_a, x_b = (one.kernels.embed(batch.tokens_T, one.embedding) for one in (a, b))
    for name, x in (("A", x_a), ("B", x_b)):
        if not bool(x.isfinite().all()):
            raise NotFinite(name, None, "the embedding")
    if run.same_shape:
        kind = torch.promote_types(torch.promote_types(x_a.dtype, x_b.dtype), torch.float32)
        own_TD = x_a[probe].to(kind)
        run.ends.add("embedding", x_b[probe].to(kind) - own_TD, own_TD)
    cos_sin, probe_cos_sin = ((a.cos_sin(one), b.cos_sin(one)) for one in (batch, probe_batch))
    return _Group(batch, probe, probe_batch, first, x_a, x_b, cos_sin, probe_cos_sin)


def _advance(run: _Run, group: _Group, index: int) -> None:
    """One layer of each model, and B's layer on the probe of A's input."""
    a = _layer(run.a, index)
    b = _layer(run.b, index)
    own = other = None
    if a is not None:
        own = run_layer(a, group.x_a, group.batch, group.cos_sin[0], None)
        check_finite(own, "A", index)
    if b is not None:
        other = run_layer(b, group.x_b, group.batch, group.cos_sin[1], None)
        check_finite(other, "B", index)
    if a is not None and b is not None and own is not None and other is not None and run.same_shape:
        _compare_layers(run, group, index, (a, b), (own, other))
    group.x_a = group.x_a if own is None else own.output_TD
    group.x_b = group.x_b if other is None else other.output_TD


def _compare_layers(
    run: _Run, group: _Group, index: int, layers: tuple[Layer, Layer], states: tuple[LayerStates, LayerStates]
) -> None:
    own, other = states
    if not same_form(*layers):
        return
    probed = own.select(group.probe)
    errors = run.parts.setdefault(index, PartErrors())
    add_errors(errors, layers, probed, group.probe_batch, group.probe_cos_sin, run.b.decoder.dtype)
    if own.routing is not None and other.routing is not None:
        shared = overlap(own.routing.experts_TK, other.routing.experts_TK)
        counted = run.agreed.setdefault(index, [0.0, 0.0])
        counted[0] += shared * len(group.batch)
        counted[1] += len(group.batch)
    if run.same_routing:
        _replay(group, layers[1], probed.routing, other)


def _replay(group: _Group, b: Layer, routing: LayerRouting | None, other: LayerStates) -> None:
    """B's stream with A's routing: it is B's own up to the first layer where a token is routed otherwise."""
    if group.x_replayed is None:
        if routing is None or other.routing is None:
            return
        if torch.equal(routing.experts_TK, other.routing.experts_TK[group.probe]):
            return
        group.x_replayed = group.x_b[group.probe]
    states = run_layer(b, group.x_replayed, group.probe_batch, group.probe_cos_sin[1], routing)
    group.x_replayed = states.output_TD


def _layer(side: Side, index: int) -> Layer | None:
    return side.decoder.blocks()[index] if index < side.config.num_layers else None


# ---- the head


def _judge(run: _Run) -> LayerFindings:
    parts, replayed, plain = list[Positions](), list[Positions](), list[Positions]()
    windows, places = list[npt.NDArray[np.int64]](), list[npt.NDArray[np.int64]]()
    for group in run.groups:
        spans = [(n, start, end) for n, (start, end) in enumerate(pairwise(group.batch.bounds))]
        rows = torch.cat([torch.arange(start, end - 1) for _, start, end in spans])  # the last has no next token
        windows.append(np.concatenate([np.full(end - start - 1, group.first_window + n) for n, start, end in spans]))
        places.append(np.concatenate([np.arange(end - start - 1) for _, start, end in spans]))
        at_probe = torch.full((len(group.batch),), -1)
        at_probe[group.probe] = torch.arange(len(group.probe))
        size = max(_BLOCK_BYTES // (4 * run.vocabulary), 1)
        for block in torch.split(rows, size):
            own, with_a, without = _judge_block(run, group, block, at_probe[block])
            parts.append(own)
            replayed.append(with_a)
            plain.append(without)
    positions = Positions.join(parts)
    for side, values in (("A", positions.loss_a_N), ("B", positions.loss_b_N), ("B", positions.kl_N)):
        if not np.isfinite(values).all():
            raise NotFinite(side, None, "the head")
    return LayerFindings(
        positions,
        np.concatenate(windows),
        np.concatenate(places),
        {index: agreed / tokens for index, (agreed, tokens) in run.agreed.items()},
        Positions.join(replayed) if run.same_routing else None,
        Positions.join(plain),
        run.parts,
        run.ends,
    )


def _judge_block(run: _Run, group: _Group, rows: Tensor, at_probe: Tensor) -> tuple[Positions, Positions, Positions]:
    """Some positions: of both models; and those in the probe with A's routing replayed in B, and without."""
    assert group.batch.tokens_T is not None
    a_NV = _logits(run.a, group.x_a[rows], run.vocabulary)
    targets_N = group.batch.tokens_T[rows + 1]
    own = compare(a_NV, _logits(run.b, group.x_b[rows], run.vocabulary), targets_N)
    probed = (at_probe >= 0).nonzero()[:, 0]
    plain = _select(own, probed)
    if not len(probed):
        return own, plain, plain
    if run.same_shape and run.head_probed < _HEAD_PROBE:
        b_NV = _logits(run.b, group.x_a[rows[probed]].to(run.b.decoder.dtype), run.vocabulary)
        kind = torch.promote_types(torch.promote_types(a_NV.dtype, b_NV.dtype), torch.float32)
        difference_NV, own_NV = b_NV.to(kind) - a_NV[probed].to(kind), a_NV[probed].to(kind)
        run.ends.add("head", *(x - x.mean(-1, keepdim=True) for x in (difference_NV, own_NV)))
        run.head_probed += len(probed)
    if group.x_replayed is None:
        return own, plain, plain
    with_a_NV = _logits(run.b, group.x_replayed[at_probe[probed]], run.vocabulary)
    return own, compare(a_NV[probed], with_a_NV, targets_N[probed]), plain


def _logits(side: Side, x_ND: Tensor, vocabulary: int) -> Tensor:
    logits_NV: Tensor = side.decoder.head(side.decoder.norm(x_ND))
    return logits_NV[:, :vocabulary]


def _select(positions: Positions, rows: Tensor) -> Positions:
    at = rows.numpy()
    return Positions(positions.kl_N[at], positions.same_N[at], positions.loss_a_N[at], positions.loss_b_N[at])
