"""What a model is, as frozen data: its shape, and the parameters, operations and bytes that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from tenth.errors import ConfigError
from tenth.routing.limit import ExpertLimit
from tenth.routing.rule import SCORES, RouteRule, Score

RopeKind = Literal["default", "linear", "yarn", "llama3"]
ROPE_KINDS: tuple[RopeKind, ...] = get_args(RopeKind)


def _mlp(width: int, inner: int, bias: bool) -> int:
    return 3 * width * inner + bias * (2 * inner + width)


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ConfigError(f"{name} is {value}, it must be positive")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary positions: the base and how it is stretched beyond the trained context.

    `yarn` is arXiv 2309.00071 (with DeepSeek's two `mscale` factors), `llama3` the piecewise rule of Llama 3.1,
    `linear` divides every position by `factor`. Lengths are tokens.
    """

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            raise ConfigError(f"rope kind {self.kind!r} is not supported (supported: {', '.join(ROPE_KINDS)})")
        if not (1 < self.theta < math.inf):
            raise ConfigError(f"rope theta is {self.theta}, it must be above 1")
        for name in ("factor", "beta_fast", "beta_slow"):
            _positive(f"rope {name}", getattr(self, name))
        if self.attention_factor is not None:
            _positive("rope attention_factor", self.attention_factor)
        if self.kind in ("yarn", "llama3"):
            _positive(f"rope original_context (needed by {self.kind})", self.original_context)
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope low_freq_factor {self.low_freq_factor} must be positive and below "
                f"high_freq_factor {self.high_freq_factor}"
            )


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """The sparse feed-forward layers: `num_experts` SwiGLU experts of width `intermediate_size`, `top_k` at work.

    `shared_intermediate_size` is the width of one expert that is always on (0: none), weighed by a sigmoid of its own
    where `shared_gate` is set. `score`, `num_groups`, `top_groups` and `routed_scale` are the router's (`RouteRule`);
    `expert_bias` gives it a bias for every expert, which counts for the choice alone.
    """

    num_experts: int
    top_k: int
    intermediate_size: int
    norm_topk_prob: bool = True
    shared_intermediate_size: int = 0
    shared_gate: bool = False
    score: Score = "softmax"
    expert_bias: bool = False
    num_groups: int = 1
    top_groups: int = 1
    routed_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("num_experts", "top_k", "intermediate_size", "num_groups", "top_groups", "routed_scale"):
            _positive(f"moe {name}", getattr(self, name))
        if self.top_k > self.num_experts:
            raise ConfigError(f"moe top_k {self.top_k} is above num_experts {self.num_experts}")
        if self.shared_intermediate_size < 0:
            raise ConfigError(f"moe shared_intermediate_size {self.shared_intermediate_size} is negative")
        if self.shared_gate and not self.shared_intermediate_size:
            raise ConfigError("moe shared_gate is set but shared_intermediate_size is 0")
        if self.score not in SCORES:
            raise ConfigError(f"moe score {self.score!r} is not supported (supported: {', '.join(SCORES)})")
        self._check_groups()

    def _check_groups(self) -> None:
        if self.num_experts % self.num_groups:
            raise ConfigError(f"moe num_experts {self.num_experts} is not a multiple of num_groups {self.num_groups}")
        if self.top_groups > self.num_groups:
            raise ConfigError(f"moe top_groups {self.top_groups} is above num_groups {self.num_groups}")
        within = self.top_groups * self.num_experts // self.num_groups
        if self.top_k > within:
            raise ConfigError(f"moe top_k {self.top_k} is above the {within} experts of {self.top_groups} top_groups")

    @property
    def rule(self) -> RouteRule:
        """How its routers choose."""
        return RouteRule(
            top_k=self.top_k,
            renormalise=self.norm_topk_prob,
            score=self.score,
            groups=self.num_groups,
            top_groups=self.top_groups,
            scale=self.routed_scale,
        )


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One decoder. `sparse_layers` lists the layers whose feed-forward part is `moe`; the others are dense.

    `model_type` is the Hugging Face name of the mathematics (`qwen3_moe`, `llama`, ...), or `tenth` where no class
    there computes the same.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    moe: MoeConfig | None = None
    sparse_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        names = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "context_length")
        for name in names:
            _positive(name, getattr(self, name))
        if not 0 <= self.rms_norm_eps < 1:
            raise ConfigError(f"rms_norm_eps {self.rms_norm_eps} must lie in [0, 1)")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs")
        self._check_layers()

    def _check_layers(self) -> None:
        if list(self.sparse_layers) != sorted({i for i in self.sparse_layers if 0 <= i < self.num_layers}):
            raise ConfigError(f"sparse_layers {list(self.sparse_layers)} must rise within 0..{self.num_layers - 1}")
        if self.sparse_layers and self.moe is None:
            raise ConfigError("sparse_layers are named but there is no moe section")
        if len(self.sparse_layers) < self.num_layers:
            _positive("intermediate_size (of the dense layers)", self.intermediate_size)

    def is_sparse(self, layer: int) -> bool:
        """Whether this layer's feed-forward part is a mixture of experts."""
        return layer in self.sparse_layers

    @property
    def parameters(self) -> ParameterCount:
        """Parameters by part, whole and at work on one token."""
        return ParameterCount.of(self)

    def kv_bytes_per_token(self, bytes_per_value: float = 2) -> int:
        """Bytes that one token adds to the key-value cache (2 bytes a value: bf16)."""
        return math.ceil(2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value)

    def flops_per_token(self, context: int = 0) -> int:
        """Forward floating-point operations of one token that attends to `context` tokens (a multiply-add is two).

        Every active matrix counts twice its size, the head included, the embedding look-up not; attention adds
        4 * heads * head size a layer for each token it sees.
        """
        p = self.parameters
        head = self.vocab_size * self.hidden_size
        matrices = p.attention + p.active_mlp + p.router + head
        return 2 * matrices + 4 * self.num_layers * self.num_heads * self.head_dim * context


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Parameters by part; `mlp` holds dense layers, shared and routed experts, `active_mlp` what one token uses."""

    embedding: int
    head: int
    attention: int
    mlp: int
    active_mlp: int
    router: int
    norms: int

    @property
    def total(self) -> int:
        """All parameters; a tied head counts once."""
        return self.embedding + self.head + self.attention + self.mlp + self.router + self.norms

    @property
    def active(self) -> int:
        """Parameters at work on one token, embeddings included as the field counts them."""
        return self.total - self.mlp + self.active_mlp

    @classmethod
    def of(cls, config: ModelConfig) -> ParameterCount:
        """Count from the shape alone."""
        width, layers = config.hidden_size, config.num_layers
        sparse = len(config.sparse_layers)
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        attention = width * (q_size + 2 * kv_size) + q_size * width
        attention += config.qkv_bias * (q_size + 2 * kv_size) + config.o_bias * width
        embedding = config.vocab_size * width
        dense = (layers - sparse) * _mlp(width, config.intermediate_size, config.mlp_bias)
        router = routed = shared = active = 0
        if config.moe is not None:
            moe = config.moe
            router = sparse * ((moe.num_experts + moe.shared_gate) * width + moe.expert_bias * moe.num_experts)
            expert = _mlp(width, moe.intermediate_size, False)
            routed, active = sparse * moe.num_experts * expert, sparse * moe.top_k * expert
            shared = sparse * _mlp(width, moe.shared_intermediate_size, False)
        return cls(
            embedding=embedding,
            head=0 if config.tie_word_embeddings else embedding,
            attention=layers * attention,
            mlp=dense + shared + routed,
            active_mlp=dense + shared + active,
            router=router,
            norms=width + layers * (2 * width + 2 * config.head_dim * config.qk_norm),
        )


def fitted_limit(limit: ExpertLimit | None, config: ModelConfig) -> ExpertLimit | None:
    """A limit as it acts on the model, None where it drops nothing; RequestError where the model cannot have it."""
    return None if limit is None else limit.fitted(None if config.moe is None else config.moe.top_k)
