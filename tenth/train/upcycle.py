"""A dense model into a fine-grained mixture of experts of the same function.

D model width, F dense width, f expert width, E experts, K active, G shards, R = E / G copies, N calibration tokens.

Each copy r holds all F neurons in an order of its own, cut into G experts (r, s). All experts of a copy share one
router row, so the top K = G * T experts are T whole copies with weights w_r / G each; the experts' outputs are G times
their share of the dense layer, and sum_r w_r / G * sum_s G * f_s = f whatever the w (arXiv 2410.07524, virtual groups).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tenth.errors import ConfigError, RequestError
from tenth.kernels.reference import wide
from tenth.kernels.weight import DenseExpertTable, DenseWeight
from tenth.model.batch import Batch
from tenth.model.config import ModelConfig, MoeConfig
from tenth.model.decoder import Decoder
from tenth.model.experts import SparseMlp
from tenth.model.huggingface import OWN_MODEL_TYPE
from tenth.model.huggingface_export import exportable_as
from tenth.model.linear import Mlp
from tenth.train.dense_layers import calibration_batch, share_all_but_mlps, through
from tenth.train.router_rows import group_rows
from tenth.weights.load import check_memory


@dataclass(frozen=True, slots=True)
class UpcycleOptions:
    """`num_experts` E and `top_k` K; `shards` G (0: the rule of `default_shards`).

    `reinit` is the share of each expert's neurons that are drawn anew with the layer's own statistics (Drop-Upcycling,
    arXiv 2502.19261): with 0 the function is kept, above it is not, but experts can drift apart in training.
    """

    num_experts: int = 32
    top_k: int = 8
    shards: int = 0
    reinit: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.reinit < 1.0:
            raise RequestError(f"reinit is {self.reinit}, it must be at least 0 and below 1")
        if not 1 <= self.top_k <= self.num_experts:
            raise RequestError(f"top_k is {self.top_k}, it must lie between 1 and the {self.num_experts} experts")
        if not 0 <= self.seed < 1 << 48:
            raise RequestError(f"seed is {self.seed}, it must lie between 0 and 2^48")
        if self.num_experts > 1 << 16:
            raise RequestError(f"num_experts is {self.num_experts}, it must be at most 65,536")
        if self.shards < 0 or (self.shards and (self.top_k % self.shards or self.num_experts % self.shards)):
            raise RequestError(
                f"shards is {self.shards}, it must divide top_k {self.top_k} and num_experts {self.num_experts}"
            )


def default_shards(options: UpcycleOptions, width: int) -> int:
    """The number of shards where none is given.

    Of those that divide E, K and F: two copies a token at least (with one, no gradient reaches the choice between
    groups), then expert widths that divide by 128, 64, 32, then the most shards.
    """
    shards = [
        g for g in range(1, options.top_k + 1) if not any(n % g for n in (options.top_k, options.num_experts, width))
    ]

    def merit(g: int) -> tuple[bool, int, int]:
        return options.top_k // g >= 2, max(n for n in (128, 64, 32, 1) if width // g % n == 0), g

    return max(shards, key=merit)


def upcycled_config(dense: ModelConfig, options: UpcycleOptions) -> ModelConfig:
    """The config of the result: a Hugging Face type where one computes the same, else our own."""
    if dense.sparse_layers:
        raise ConfigError(
            f"the source has {len(dense.sparse_layers)} sparse layers already; upcycling takes a dense model"
        )
    if dense.mlp_bias:
        raise ConfigError("the source's feed-forward layers have biases, which experts do not")
    shards = options.shards or default_shards(options, dense.intermediate_size)
    if dense.intermediate_size % shards:
        raise RequestError(f"shards is {shards}, it must divide the dense width {dense.intermediate_size}")
    moe = MoeConfig(options.num_experts, options.top_k, dense.intermediate_size // shards, norm_topk_prob=True)
    config = replace(dense, model_type=OWN_MODEL_TYPE, moe=moe, sparse_layers=tuple(range(dense.num_layers)))
    try:
        return exportable_as(config, "qwen3_moe")
    except ConfigError:
        return config


@torch.no_grad()
def upcycle(
    dense: Decoder,
    calibration: Sequence[Sequence[int]],
    options: UpcycleOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Decoder:
    """Build the sparse model of the same function; routers are fitted to the hidden states of `calibration` documents.

    The memory beside both models is a few times tokens x width: layers are run one by one. RequestError where there is
    too little text, MachineError where the sparse model does not fit. The result has the dense model's type and device;
    other weights than the feed-forward ones are shared with it.
    `progress` is told the layers done, of how many.
    """
    options = options or UpcycleOptions()
    config = upcycled_config(dense.config, options)
    moe = config.moe
    assert moe is not None
    check_memory(config, dense.dtype, dense.device)
    groups = moe.num_experts * moe.intermediate_size // dense.config.intermediate_size
    batch = calibration_batch(calibration, 4 * groups, dense)
    x_ND, cos_sin = dense.embedding.rows(_tokens(batch)), dense.cos_sin(batch)
    sparse = Decoder(config, dtype=dense.dtype, device="meta")
    share_all_but_mlps(dense, sparse)
    for index, (layer, source) in enumerate(zip(sparse.blocks(), dense.blocks(), strict=True)):
        assert isinstance(source.mlp, Mlp)
        assert isinstance(layer.mlp, SparseMlp)
        # one stream of random numbers for each purpose: redrawing neurons does not change the permutations
        draws = [torch.Generator().manual_seed((options.seed * config.num_layers + index) * 3 + n) for n in range(3)]
        layer.mlp.experts = _experts(source.mlp, moe, draws[0])
        _redraw(layer.mlp.experts, round(options.reinit * moe.intermediate_size), draws[1])
        x_ND, states_ND = through(source, x_ND, batch, cos_sin)
        states_ND = states_ND.float().cpu()
        rows_RD = group_rows(states_ND, groups, moe.top_k * groups // moe.num_experts, draws[2])
        rows_ED = rows_RD.repeat_interleave(moe.num_experts // groups, dim=0)
        layer.mlp.router.weight_ED = torch.nn.Parameter(
            rows_ED.to(dense.device, wide(dense.dtype)), requires_grad=False
        )
        if progress is not None:
            progress(index + 1, config.num_layers)
    return sparse.eval()


def _tokens(batch: Batch) -> Tensor:
    assert batch.tokens_T is not None
    return batch.tokens_T


def _experts(source: Mlp, moe: MoeConfig, generator: torch.Generator) -> DenseExpertTable:
    gate_FD, up_FD, down_DF = (_values(part.weight) for part in (source.gate, source.up, source.down))
    width, f = len(gate_FD), moe.intermediate_size
    shards = width // f
    up_scale, down_scale = split_scale(shards)
    table = DenseExpertTable(moe.num_experts, gate_FD.shape[1], f, gate_FD.dtype, gate_FD.device)
    for first in range(0, moe.num_experts, shards):
        order_F = torch.randperm(width, generator=generator)
        for shard in range(shards):
            mine = order_F[shard * f : (shard + 1) * f]
            table.w13_E2FD[first + shard] = torch.cat((gate_FD[mine], up_FD[mine] * up_scale))
            table.w2_EDF[first + shard] = down_DF[:, mine] * down_scale
    return table.requires_grad_(False)


def split_scale(shards: int) -> tuple[float, float]:
    """Factors of up and down whose product is G: powers of two where G is one (exact in any float), else its root."""
    power = shards.bit_length() - 1
    if shards == 1 << power:
        return float(1 << (power - power // 2)), float(1 << (power // 2))
    return shards**0.5, shards**0.5


def _redraw(table: DenseExpertTable, units: int, generator: torch.Generator) -> None:
    """Give `units` neurons of every expert new values, normal with the mean and deviation of the matrix they are in."""
    f = table.intermediate_size
    for expert in range(table.num_experts if units else 0):
        picked = torch.randperm(f, generator=generator)[:units]
        gate_FD, up_FD = table.w13_E2FD[expert].chunk(2)
        for matrix in (gate_FD, up_FD, table.w2_EDF[expert].T):
            drawn = torch.randn(units, matrix.shape[1], generator=generator).to(matrix)
            matrix[picked] = drawn * matrix.std() + matrix.mean()


def _values(weight: torch.nn.Module) -> Tensor:
    if not isinstance(weight, DenseWeight):
        raise RequestError("upcycling takes float weights; dequantise the source first")
    return weight.values_OI
