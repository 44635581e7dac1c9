"""The network: one decoder for every model, dense, sparse or hybrid, that serves and trains.

T tokens, D model width, N positions with logits, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from tenth.errors import RequestError
from tenth.kernels.backend import Backend
from tenth.kernels.reference import wide
from tenth.model.attention import Attention
from tenth.model.batch import Batch, Output, Want, edges
from tenth.model.cache import KVCache
from tenth.model.config import ModelConfig, RopeConfig
from tenth.model.experts import SparseMlp
from tenth.model.linear import Linear, Mlp, RMSNorm
from tenth.model.rope import Rope
from tenth.model.router import LayerChoice
from tenth.routing.limit import TokenLimits
from tenth.routing.record import LayerRouting, Routing
from tenth.routing.rule import LayerPolicy, RoutingPolicy

LayerResult = tuple[Tensor, LayerRouting | None]
"""A layer's output (T, D), and the routing of a sparse one."""


class RunLayer(Protocol):
    """What stands around every layer of a forward pass: keeps its output, or computes it again in the backward pass."""

    def __call__(
        self,
        index: int,
        layer: Callable[[Tensor, LayerRouting | None], LayerResult],
        x_TD: Tensor,
        replay: LayerRouting | None,
    ) -> LayerResult:
        """Calls `layer(x_TD, replay)`, as often as it likes, and returns what it gave."""


class Layer(nn.Module):
    """Attention, then a dense or a sparse feed-forward part, each on a normalised copy and added to the stream."""

    def __init__(self, config: ModelConfig, index: int, on: Backend) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.attention_norm = RMSNorm(width, eps, on.at("attention_norm"))
        self.attention = Attention(config, index, on.at("attention"))
        self.mlp_norm = RMSNorm(width, eps, on.at("mlp_norm"))
        self.mlp: Mlp | SparseMlp
        if config.moe is not None and config.is_sparse(index):
            self.mlp = SparseMlp(config.moe, width, on.at("mlp"))
        else:
            self.mlp = Mlp(width, config.intermediate_size, config.mlp_bias, on.at("mlp"))
        self._kernels = on.kernels

    def forward(
        self,
        x_TD: Tensor,
        batch: Batch,
        cos_sin: tuple[Tensor, Tensor],
        cache: KVCache | None,
        want: Want,
        given: LayerChoice,
    ) -> LayerResult:
        """T, D to T, D, and the routing of a sparse layer."""
        x_TD, h_TD = self.mlp_norm.after(x_TD, self.attention(self.attention_norm(x_TD), batch, cos_sin, cache))
        y_TD, routing = self.feed(h_TD, want, given, batch.limits)
        return self._kernels.add(x_TD, y_TD), routing

    def feed(
        self, h_TD: Tensor, want: Want, given: LayerChoice, limits: TokenLimits | None = None
    ) -> tuple[Tensor, LayerRouting | None]:
        """What the feed-forward part makes of the normalised stream (T, D), and the routing of a sparse one."""
        if isinstance(self.mlp, Mlp):
            return self.mlp(h_TD), None
        y_TD, routing = self.mlp(h_TD, want.routing, given, limits)
        return y_TD, routing


class Decoder(nn.Module):
    """The whole network. A forward pass changes nothing but the cache pages that the batch names.

    Weights come from `on`; the usual one leaves dense parameters uninitialised until they are loaded
    (`tenth.weights.load`) or drawn (`initialise`). The type is chosen here: `.to(device)` moves a decoder, `.to(dtype)`
    would narrow norms and router rows too.

    `dtype` is the type of activations, and of all dense weights but norms and router rows, which are float32 or wider.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        on: Backend | None = None,
    ) -> None:
        """`on` stands for `dtype` and `device` where it is given."""
        super().__init__()
        on = on or Backend(dtype, device)
        self.config, self.dtype, self.kernels = config, on.dtype, on.kernels
        self.embedding = on.at("embedding").matrix(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i, on.at(f"layers.{i}")) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, on.at("norm"))
        tied = self.embedding if config.tie_word_embeddings else None
        self.head = Linear(config.hidden_size, config.vocab_size, False, on.at("head"), tied)
        self._rope = Rope(config.rope, config.head_dim)

    def blocks(self) -> list[Layer]:
        """The layers, first to last, by their own type."""
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    @property
    def device(self) -> torch.device:
        """Where activations are: the final norm's."""
        return self.norm.weight.device

    def forward(
        self,
        batch: Batch,
        cache: KVCache | None = None,
        want: Want | None = None,
        routing: Routing | RoutingPolicy | None = None,
        run: RunLayer | None = None,
    ) -> Output:
        """Run a batch; see `Want` for what comes back.

        With a cache, `batch.placement` says where its keys and values go. A given `routing` is replayed: its expert ids
        and drops are used, gates are recomputed from this model's router; or it is a policy that routers choose by.
        `run` stands around every layer (see `RunLayer`).
        RequestError where the pieces do not fit together.
        """
        self.check(batch, cache, routing, want)
        return self.compute(batch, self.cos_sin(batch), cache, want or Want(), routing, run)

    def compute(
        self,
        batch: Batch,
        cos_sin: tuple[Tensor, Tensor],
        cache: KVCache | None,
        want: Want,
        routing: Routing | RoutingPolicy | None = None,
        run: RunLayer | None = None,
    ) -> Output:
        """What `forward` does with a batch that was checked: nothing but a chain of the kernels' operations."""
        x_TD = batch.embeddings_TD if batch.tokens_T is None else self.kernels.embed(batch.tokens_T, self.embedding)
        assert x_TD is not None, "checked"
        record: dict[int, LayerRouting] = {}
        for index, layer in enumerate(self.layers):
            replay = routing.layers.get(index) if isinstance(routing, Routing) else None
            policy = routing.at(index) if isinstance(routing, RoutingPolicy) else None

            def forward(
                x_TD: Tensor,
                replay: LayerRouting | None,
                layer: nn.Module = layer,
                policy: LayerPolicy | None = policy,
            ) -> LayerResult:
                decided: LayerResult = layer(x_TD, batch, cos_sin, cache, want, replay or policy)
                return decided

            x_TD, decided = forward(x_TD, replay) if run is None else run(index, forward, x_TD, replay)
            if decided is not None and want.routing != "none":
                record[index] = decided
        hidden_TD = self.norm(x_TD)
        return Output(
            self._logits(hidden_TD, batch, want),
            hidden_TD if want.hidden else None,
            Routing(record) if want.routing != "none" else None,
        )

    def set_rope(self, rope: RopeConfig, context_length: int) -> None:
        """Other rotary positions, and another context that they are good for, from the next forward pass on."""
        self.config = replace(self.config, rope=rope, context_length=context_length)
        self._rope = Rope(rope, self.config.head_dim)

    def cos_sin(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the batch's rotary positions, which every layer takes."""
        return self._rope.cos_sin(batch.positions_T, wide(self.dtype))

    def _logits(self, hidden_TD: Tensor, batch: Batch, want: Want) -> Tensor | None:
        if isinstance(want.logits, Tensor):
            hidden_TD = self.kernels.take(hidden_TD, want.logits)
        elif want.logits == "last":
            hidden_TD = self.kernels.take(hidden_TD, batch.last_T)
        elif want.logits == "none":
            return None
        logits_NV: Tensor = self.head(hidden_TD)
        return logits_NV

    def check(
        self,
        batch: Batch,
        cache: KVCache | None,
        routing: Routing | RoutingPolicy | None = None,
        want: Want | None = None,
    ) -> None:
        """RequestError where batch, cache, routing and what is wanted do not fit the model or each other.

        Native kernels rely on it: they read where an index says.
        """
        config = self.config
        if want is not None and isinstance(want.logits, Tensor) and len(want.logits):
            low, high = edges(want.logits)
            if low < 0 or high >= len(batch):
                bad = low if low < 0 else high
                raise RequestError(f"logits are wanted of position {bad}, the batch has 0 to {len(batch) - 1}")
        if (cache is None) != (batch.placement is None):
            raise RequestError("a cache and the batch's placement in it go together")
        if cache is not None and batch.placement is not None:
            cache.check(batch.placement)
        if batch.tokens_T is not None:
            low, high = edges(batch.tokens_T)
            if low < 0 or high >= config.vocab_size:
                bad = low if low < 0 else high
                raise RequestError(f"token id {bad} is outside the vocabulary, 0 to {config.vocab_size - 1}")
        if batch.embeddings_TD is not None and batch.embeddings_TD.shape[1:] != (config.hidden_size,):
            raise RequestError(f"embeddings have shape {tuple(batch.embeddings_TD.shape)}, width {config.hidden_size}")
        if batch.limits is not None and config.moe is None:
            raise RequestError("the batch limits experts, this model is dense")
        if batch.limits is not None and routing is not None:
            raise RequestError("a batch with limits of experts goes without a routing that is given")
        if isinstance(routing, Routing):
            self._check_replay(batch, routing)
        elif routing is not None:
            self._check_policy(batch, routing)

    def _check_replay(self, batch: Batch, routing: Routing) -> None:
        if tuple(routing.layers) != self.config.sparse_layers:
            raise RequestError(
                f"the routing to replay has layers {list(routing.layers)}, the model {list(self.config.sparse_layers)}"
            )
        experts = self.config.moe.num_experts if self.config.moe else 0
        for index, layer in routing.layers.items():
            ids_TK = layer.experts_TK
            if len(ids_TK) != len(batch):
                raise RequestError(
                    f"the routing to replay has {len(ids_TK)} tokens in layer {index}, the batch {len(batch)}"
                )
            if ids_TK.dim() != 2 or int(ids_TK.min()) < 0 or int(ids_TK.max()) >= experts:
                raise RequestError(f"the routing to replay names experts in layer {index} outside 0 to {experts - 1}")

    def _check_policy(self, batch: Batch, policy: RoutingPolicy) -> None:
        for layer, factor in policy.capacity.items():
            if not self.config.is_sparse(layer) or not 0 < factor < math.inf:
                raise RequestError(f"capacity {factor} of layer {layer}: it is for sparse layers, positive and finite")
        if not 0 <= policy.noise < math.inf:
            raise RequestError(f"the noise of routing is {policy.noise}, it must be finite and not negative")
        moe = self.config.moe
        for layer, removed_E in policy.removed.items():
            if moe is None or not self.config.is_sparse(layer) or removed_E.shape != (moe.num_experts,):
                raise RequestError(f"removed experts of layer {layer}: they are of sparse layers, one bool an expert")
            if removed_E.dtype != torch.bool or int((~removed_E).sum()) < moe.top_k:
                raise RequestError(f"removed experts of layer {layer} must be bool and leave at least {moe.top_k}")
        real_T = policy.real_T
        if real_T is not None and (real_T.dtype != torch.bool or real_T.shape != (len(batch),)):
            raise RequestError(f"real_T must be bool, one for each of the batch's {len(batch)} tokens")


@torch.no_grad()
def initialise(decoder: Decoder, seed: int, std: float = 0.02) -> Decoder:
    """Draw all weights from a normal distribution (norms 1, biases 0), the same for the same seed; returns it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith(("bias", "bias_E")) else 1.0)
        else:
            parameter.copy_(torch.empty(parameter.shape).normal_(0, std, generator=generator))
    return decoder
