"""A dense model carved into a sparse one: its own neurons, each in one expert, and routers that choose among them.

N calibration tokens, D model width, F dense width, E routed experts, K active, L layers.

The dense layer is the sum of all its neurons and so of all experts, and gates are about 1: a softmax over the chosen
experts, times their number, of logits that lie close together. Biases carry what of the choice does not depend on the
token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from tenth.errors import ConfigError, RequestError
from tenth.kernels.reference import wide
from tenth.kernels.weight import DenseExpertTable, DenseWeight
from tenth.model.config import ModelConfig, MoeConfig
from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp
from tenth.model.huggingface import OWN_MODEL_TYPE
from tenth.model.linear import Mlp
from tenth.train.coactivation import by_coactivation, expert_energies, moments
from tenth.train.dense_layers import calibration_batch, share_all_but_mlps, through
from tenth.train.router_fit import RouterFit, fitted_router, judged_router

Split = Literal["coactivation", "random", "prune"]
SPLITS: tuple[Split, ...] = get_args(Split)
SPREAD = 0.02
"""Standard deviation of a token's logits: gates within a few hundredths of 1. On SmolLM2 the divergence from the dense
model is that of gates of exactly 1; at 0.05 it is 7 % higher, at 0.1 30 %."""
_JUDGED = 8  # one token of so many is kept from the fit, to judge it


@dataclass(frozen=True, slots=True)
class CarveOptions:
    """`num_experts` equal slices of each dense layer: `shared` are always at work, `top_k` of the others are chosen.

    `split` says which neurons lie together: those that work together, or for comparison `random` ones; `prune` keeps
    the most important neurons, as many as would be active, as a narrower dense layer.
    """

    num_experts: int = 32
    shared: int = 8
    top_k: int = 16
    split: Split = "coactivation"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise RequestError(f"split is {self.split!r:.40}, it must be one of {', '.join(SPLITS)}")
        if not 0 <= self.shared < self.num_experts <= 1 << 16:
            raise RequestError(
                f"shared is {self.shared} of {self.num_experts} experts; it must be at least 0 and below their number"
            )
        if not 1 <= self.top_k <= self.routed:
            raise RequestError(f"top_k is {self.top_k}, it must lie between 1 and the {self.routed} experts not shared")
        if not 0 <= self.seed < 1 << 48:
            raise RequestError(f"seed is {self.seed}, it must lie between 0 and 2^48")

    @property
    def routed(self) -> int:
        """Experts that are chosen from."""
        return self.num_experts - self.shared

    @property
    def active_share(self) -> float:
        """Share of the neurons at work on a token."""
        return (self.shared + self.top_k) / self.num_experts


@dataclass(frozen=True, slots=True)
class CarvedLayer:
    """What carving decided in one layer: the source's neurons in the order of the experts, shared ones first.

    Without a router the neurons are those that a pruned layer keeps.
    """

    neurons_F: Tensor
    rows_ED: Tensor | None = None
    bias_E: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Carved:
    """A carved model, what was decided layer by layer, and how good the routers are (none in a pruned model)."""

    decoder: Decoder
    layers: tuple[CarvedLayer, ...]
    fits: tuple[RouterFit, ...]


def carved_config(dense: ModelConfig, options: CarveOptions) -> ModelConfig:
    """The config of the result: our own type, or the source's where it is pruned and stays dense."""
    if dense.sparse_layers:
        raise ConfigError(
            f"the source has {len(dense.sparse_layers)} sparse layers already; carving takes a dense model"
        )
    if dense.mlp_bias:
        raise ConfigError("the source's feed-forward layers have biases, which experts do not")
    width, rest = divmod(dense.intermediate_size, options.num_experts)
    if rest:
        raise RequestError(
            f"num_experts is {options.num_experts}, it must divide the dense width {dense.intermediate_size}"
        )
    if options.split == "prune":
        return replace(dense, intermediate_size=width * (options.shared + options.top_k))
    moe = MoeConfig(
        options.routed,
        options.top_k,
        width,
        norm_topk_prob=True,
        shared_intermediate_size=options.shared * width,
        expert_bias=True,
        routed_scale=float(options.top_k),
    )
    return replace(dense, model_type=OWN_MODEL_TYPE, moe=moe, sparse_layers=tuple(range(dense.num_layers)))


@torch.no_grad()
def carve(
    dense: Decoder,
    calibration: Sequence[Sequence[int]],
    options: CarveOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Carved:
    """Split every feed-forward layer by what its neurons do on `calibration` documents, and fit routers to it.

    Layers run one by one; the memory beside both models is a few times tokens x width and one layer's neurons squared.
    The result has the dense model's type and device, and shares its other weights. RequestError where there is too
    little text. `progress` is told the layers done, of how many.
    """
    options = options or CarveOptions()
    config = carved_config(dense.config, options)
    batch = calibration_batch(calibration, 2 * dense.config.hidden_size, dense)
    assert batch.tokens_T is not None
    x_ND, cos_sin = dense.kernels.embed(batch.tokens_T, dense.embedding), dense.cos_sin(batch)
    layers, fits = [], []
    for index, source in enumerate(dense.blocks()):
        assert isinstance(source.mlp, Mlp)
        generator = torch.Generator().manual_seed(options.seed * dense.config.num_layers + index)
        x_ND, inputs_ND = through(source, x_ND, batch, cos_sin)
        layer, fit = _carve_layer(source.mlp, inputs_ND, config.moe, options, generator)
        layers.append(layer)
        fits += [] if fit is None else [fit]
        if progress is not None:
            progress(index + 1, dense.config.num_layers)
    return Carved(assembled(dense, config, layers), tuple(layers), tuple(fits))


def _carve_layer(
    mlp: Mlp, x_ND: Tensor, moe: MoeConfig | None, options: CarveOptions, generator: torch.Generator
) -> tuple[CarvedLayer, RouterFit | None]:
    judged_N = torch.arange(len(x_ND)) % _JUDGED == 0
    width = mlp.gate.weight.out_features
    size = width // options.num_experts
    mean_F, gram_FF = moments(x_ND[~judged_N], mlp)
    if moe is None:
        kept = mean_F.argsort(descending=True, stable=True)[: size * (options.shared + options.top_k)]
        return CarvedLayer(kept.sort().values), None
    if options.split == "random":
        order_F = torch.randperm(width, generator=generator)
    else:
        order_F = by_coactivation(mean_F, gram_FF, options.shared * size, options.routed, generator)
    experts_EF = order_F[options.shared * size :].view(options.routed, size)
    energy_NE = expert_energies(x_ND, mlp, experts_EF)
    rows_ED, bias_E = fitted_router(x_ND[~judged_N], energy_NE[~judged_N], SPREAD)
    # as an artefact keeps them, so that what is measured here is what is rebuilt there
    rows_ED, bias_E = (part.bfloat16().to(wide(x_ND.dtype)) for part in (rows_ED, bias_E))
    fit = judged_router(x_ND[judged_N], energy_NE[judged_N], rows_ED, bias_E, moe.top_k)
    return CarvedLayer(order_F, rows_ED, bias_E), fit


@torch.no_grad()
def assembled(dense: Decoder, config: ModelConfig, layers: Sequence[CarvedLayer]) -> Decoder:
    """The decoder of `config` from a dense model's weights and what was decided in each layer."""
    carved = Decoder(config, dtype=dense.dtype, device="meta")
    share_all_but_mlps(dense, carved)
    for target, source, layer in zip(carved.blocks(), dense.blocks(), layers, strict=True):
        assert isinstance(source.mlp, Mlp)
        if isinstance(target.mlp, Mlp):
            _fill(target.mlp, source.mlp, layer.neurons_F)
        else:
            _fill_sparse(target.mlp, source.mlp, layer)
    return carved.requires_grad_(False).eval()


def _fill_sparse(target: SparseMlp, source: Mlp, layer: CarvedLayer) -> None:
    assert layer.rows_ED is not None
    assert layer.bias_E is not None
    rows, like = layer.neurons_F, _values(source, "gate")
    if target.shared is not None:
        shared = target.shared.gate.weight.out_features
        _fill(target.shared, source, rows[:shared])
        rows = rows[shared:]
    empty = target.experts
    table = DenseExpertTable(empty.num_experts, empty.hidden_size, empty.intermediate_size, like.dtype, like.device)
    gate_FD, up_FD, down_DF = (_values(source, name) for name in ("gate", "up", "down"))
    for expert, mine in enumerate(rows.view(empty.num_experts, empty.intermediate_size)):
        table.w13_E2FD[expert] = torch.cat((gate_FD[mine], up_FD[mine]))
        table.w2_EDF[expert] = down_DF[:, mine]
    target.experts = table
    target.router.weight_ED = torch.nn.Parameter(layer.rows_ED.to(like.device, wide(like.dtype)))
    target.router.bias_E = torch.nn.Parameter(layer.bias_E.to(like.device, wide(like.dtype)))


def _fill(target: Mlp, source: Mlp, neurons_F: Tensor) -> None:
    for name in ("gate", "up", "down"):
        values_OI = _values(source, name)
        part = values_OI[:, neurons_F] if name == "down" else values_OI[neurons_F]
        weight = DenseWeight(part.shape[0], part.shape[1], part.dtype, part.device)
        weight.values_OI.copy_(part)
        getattr(target, name).weight = weight


def _values(mlp: Mlp, name: str) -> Tensor:
    weight = getattr(mlp, name).weight
    if not isinstance(weight, DenseWeight):
        raise RequestError("carving takes float weights; dequantise the source first")
    return weight.values_OI
