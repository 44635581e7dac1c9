"""A recipe: everything that decides a training run, as frozen data. `tenth train --explain` prints it.

Each field carries its meaning, its limits and whether a run may be continued with another value of it.
"""

# ruff: noqa: RUF009  # `setting` is `field`

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePath
from typing import Any, Literal

from tenth.errors import RequestError
from tenth.model.config import ModelConfig
from tenth.train.balance import BalanceOptions
from tenth.train.distill import DistillOptions
from tenth.train.low_rank import LowRankOptions

_REQUIRED = object()


def setting(
    help: str,
    default: Any = _REQUIRED,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    free: bool = False,
    key: str | None = None,
) -> Any:
    """A field of a recipe: its meaning, default and limits.

    `free` says that a run may be continued with another value, `key` the name in the file where Python has no such
    name.
    """
    limits = {"least": least, "most": most, "above": above, "below": below}
    metadata = {"help": help, "free": free, "key": key, "limits": limits}
    return field(metadata=metadata) if default is _REQUIRED else field(default=default, metadata=metadata)


def refuse_unheeded(options: Any, names: Sequence[str], when: str) -> None:
    """RequestError where one of these fields, which nothing reads now, has another value than its default."""
    for part in fields(options):
        value = getattr(options, part.name)
        if part.name in names and value != part.default:
            raise RequestError(f"{part.name} is {value!r:.60}, which counts only {when}: leave it out")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What learns: a model to go on from, or a shape to start from scratch."""

    start: str = setting("model to go on from: path, hub name, `default` or `default-dense`", "", key="from")
    shape: ModelConfig | None = setting("shape of a model to start from scratch, instead of `from`", None)
    init_std: float = setting(
        "deviation of the normal distribution that starting weights are drawn from", 0.02, above=0
    )
    init_embedding_std: float = setting(
        "that of embeddings; 0: init_std. About 1, with a head of its own, keeps tokens apart in a small model's first "
        "steps: otherwise what they have in common outweighs them, and routers send all to the same experts",
        0.0,
        least=0,
    )
    tokenizer: str = setting("folder or model whose tokenizer is used; empty: that of `from`", "")

    def __post_init__(self) -> None:
        if bool(self.start) == (self.shape is not None):
            raise RequestError("model needs either `from` (a model to go on from) or a section [model.shape]")
        if self.start:
            refuse_unheeded(self, ("init_std", "init_embedding_std"), "where [model.shape] starts from scratch")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Where and how the run computes."""

    out: str = setting("folder of the run: recipe, log, checkpoints, and the model at the end", free=True)
    seed: int = setting("of starting weights, data order and noise", 0, least=0, most=2**31 - 1)
    threads: int = setting("threads that compute; 0: one a core", 0, least=0, free=True)
    device: str = setting("cpu, cuda or cuda:N", "cpu")
    recompute: bool = setting("compute layers again in the backward pass instead of keeping them: less memory", False)
    on_nan: Literal["stop", "skip"] = setting(
        "what to do where a loss or gradient is not finite: stop, or leave that batch out and go on", "stop", free=True
    )
    max_skips: int = setting("batches left out in a row before the run stops anyway", 5, least=1, free=True)
    export_dtype: Literal["bfloat16", "float32"] = setting("type of the weights in RUN/model", "bfloat16", free=True)
    packed_bits: Literal[0, 4, 8] = setting("also write RUN/packed, quantised to so many bits; 0: no", 0, free=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """Text of one kind."""

    path: tuple[str, ...] = setting("file, folder or pattern such as 'src/**/*.py', or a list of them")
    name: str = setting("what stages and logs call it; empty: the first path's name", "")
    format: Literal["auto", "text", "jsonl", "chat", "parquet", "tokens"] = setting(
        "how the files hold text; `auto` goes by their endings, `chat` is JSONL with messages", "auto"
    )
    text_key: str = setting("key or column of the text in JSONL and Parquet", "text")
    domain_key: str = setting("key or column that names a document's domain; empty: none does", "")
    domain: str = setting("domain of documents that do not name their own; empty: the source's name", "")

    def __post_init__(self) -> None:
        if not self.path or not all(self.path):
            raise RequestError("path is empty, it must name a file, a folder or a pattern")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions(TextOptions):
    """Text to learn from."""

    weight: float = setting("share of the tokens, relative to the other sources", 1.0, least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOptions:
    """A part of the run with data, length and schedule of its own."""

    name: str = setting("what logs call it", "main")
    tokens: int = setting("tokens to learn from, rounded up to whole batches; or give `steps`", 0, least=0, free=True)
    steps: int = setting("steps of the optimiser; or give `tokens`", 0, least=0, free=True)
    length: int = setting("tokens of a row; documents are packed into rows and cut at their ends", 512, least=2)
    rows: int = setting("rows of a micro-batch, which are computed together", 4, least=1)
    batch_tokens: int = setting(
        "tokens of a step, a multiple of length x rows: gradients are summed over micro-batches; 0: one micro-batch",
        0,
        least=0,
    )
    schedule: Literal["constant", "cosine", "linear", "wsd"] = setting(
        "how the learning rate falls after the warm-up; `wsd` is constant, then linear over the last `decay`", "cosine"
    )
    warmup: int = setting("steps in which the learning rate rises from nothing", 0, least=0)
    decay: float = setting("share of the stage's steps in which `wsd` falls", 0.2, above=0, most=1)
    final: float = setting("learning rate at the end of the stage, as a share of its highest", 0.1, least=0, most=1)
    lr_scale: float = setting("highest learning rate of the stage over the optimiser's", 1.0, above=0)
    rope_theta: float = setting("new base of rotary positions from this stage on; 0: as it is", 0.0, least=0)
    weights: dict[str, float] = field(
        default_factory=dict,
        metadata={"help": "shares of sources by name in this stage; empty: the sources' own; a source left out: none"},
    )

    def __post_init__(self) -> None:
        if bool(self.tokens) == bool(self.steps):
            raise RequestError(f"stage {self.name!r} needs either `tokens` or `steps`, above 0")
        if self.batch_tokens % (self.length * self.rows):
            raise RequestError(
                f"stage {self.name!r}: batch_tokens is {self.batch_tokens}, it must be a multiple of "
                f"length x rows = {self.length * self.rows}"
            )
        if self.rope_theta and self.rope_theta <= 1:
            raise RequestError(f"stage {self.name!r}: rope_theta is {self.rope_theta}, it must be above 1")
        if self.warmup >= self.total_steps:
            raise RequestError(
                f"stage {self.name!r}: warmup is {self.warmup} steps, it must be below the stage's {self.total_steps}"
            )
        if self.schedule == "constant":
            refuse_unheeded(self, ("final",), "with a schedule that falls")
        if self.schedule != "wsd":
            refuse_unheeded(self, ("decay",), "with schedule = 'wsd'")

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step."""
        return max(self.batch_tokens // (self.length * self.rows), 1)

    @property
    def step_tokens(self) -> int:
        """Tokens of a step, padding included."""
        return self.micro_batches * self.length * self.rows

    @property
    def total_steps(self) -> int:
        """Steps of the stage."""
        return self.steps or math.ceil(self.tokens / self.step_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerOptions:
    """How weights move."""

    kind: Literal["adamw", "muon"] = setting(
        "`muon`: matrices and each expert's matrices by Muon, embeddings, head, routers, norms by AdamW", "adamw"
    )
    lr: float = setting("highest learning rate", 1e-3, above=0)
    router_lr: float = setting("highest learning rate of routers; 0: `lr`", 0.0, least=0)
    betas: tuple[float, float] = setting("decay of AdamW's two averages", (0.9, 0.95), least=0, below=1)
    eps: float = setting("AdamW's guard against division by nothing", 1e-8, above=0)
    weight_decay: float = setting(
        "shrinks matrices by lr x this a step; norms, biases, router biases never", 0.1, least=0
    )
    decay_embeddings: bool = setting("whether weight decay takes embeddings and head too", False)
    clip: float = setting("largest norm of all gradients together; 0: no limit", 1.0, least=0)
    muon_lr: float = setting("Muon's learning rate; 0: `lr`", 0.0, least=0)
    muon_momentum: float = setting("decay of Muon's average", 0.95, least=0, below=1)
    muon_scale: Literal["match_rms_adamw", "original"] = setting(
        "factor on Muon's steps: 0.2 sqrt(larger side), so that AdamW's lr fits; or sqrt(rows / columns), at least 1",
        "match_rms_adamw",
    )

    def __post_init__(self) -> None:
        if self.kind != "muon":
            refuse_unheeded(self, ("muon_lr", "muon_momentum", "muon_scale"), "with kind = 'muon'")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionOptions:
    """Types of numbers; master weights, gradients' sums and averages are float32 (float64 with float64)."""

    compute: Literal["bfloat16", "float32", "float64"] = setting(
        "type of activations and of the copy of the weights that computes; norms and routers are float32 or wider",
        "bfloat16",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointOptions:
    """What a run can be continued from."""

    every: int = setting("steps between checkpoints; 0: only at the end", 200, least=0, free=True)
    keep: int = setting("newest checkpoints that are kept", 2, least=1, free=True)
    on_failure: Literal["warn", "stop"] = setting(
        "what to do where one cannot be written, as on a full disk; where it is the run's last one, the run stops",
        "warn",
        free=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOptions:
    """Held-out loss by domain."""

    every: int = setting("steps between evaluations; 0: only at the end", 100, least=0, free=True)
    tokens: int = setting("tokens of each held-out source", 50_000, least=2, free=True)
    length: int = setting("tokens of a row in evaluations, at least 2; 0: the stage's", 0, least=0, free=True)
    source: tuple[TextOptions, ...] = setting("held-out text, as [[evaluation.source]]", (), free=True)
    profile: str = setting("a routing profile that the experts' work is held against; empty: none", "", free=True)

    def __post_init__(self) -> None:
        if self.profile and not self.source:
            raise RequestError("evaluation profile is named, it needs [[evaluation.source]] to compare it with")
        if self.length == 1:
            raise RequestError("evaluation length is 1: rows of a token have no target; it must be 0 or at least 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """What the run tells."""

    every: int = setting("steps between lines of log.jsonl", 1, least=1, free=True)
    tensorboard: bool = setting("whether to write TensorBoard's event files too", True, free=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A whole run: sections are the tables of the TOML file, `source` and `stage` arrays of tables."""

    model: ModelOptions = setting("what learns")
    run: RunOptions = setting("where and how the run computes")
    source: tuple[SourceOptions, ...] = setting("text to learn from, as [[source]]")
    stage: tuple[StageOptions, ...] = setting("parts of the run, one after the other, as [[stage]]")
    optimizer: OptimizerOptions = setting("how weights move", OptimizerOptions())
    balance: BalanceOptions = setting("how experts are kept in balance", BalanceOptions())
    precision: PrecisionOptions = setting("types of numbers", PrecisionOptions())
    checkpoint: CheckpointOptions = setting("what the run can be continued from", CheckpointOptions())
    evaluation: EvaluationOptions = setting("held-out loss", EvaluationOptions())
    log: LogOptions = setting("what the run tells", LogOptions())
    distill: DistillOptions | None = setting("learn from a teacher instead of from the text alone", None)
    low_rank: LowRankOptions | None = setting("train routers and low-rank deltas of experts, all else frozen", None)

    def __post_init__(self) -> None:
        for section in ("source", "stage"):
            if not getattr(self, section):
                raise RequestError(f"the recipe has no [[{section}]], it needs at least one")
        names = [source_name(source) for source in self.source]
        for name in names:
            if names.count(name) > 1:
                raise RequestError(f"two sources are called {name!r}: give each a name of its own")
        for stage in self.stage:
            _check_weights(stage, names, self.source)

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.total_steps for stage in self.stage)


def source_name(source: TextOptions) -> str:
    """What stages and logs call a source."""
    return source.name or PurePath(source.path[0]).stem


def stage_weights(stage: StageOptions, sources: tuple[SourceOptions, ...]) -> dict[str, float]:
    """The share of each source that the stage draws from, by name."""
    own = {source_name(source): stage.weights.get(source_name(source), 0.0) for source in sources}
    weights = own if stage.weights else {source_name(source): source.weight for source in sources}
    return {name: weight for name, weight in weights.items() if weight > 0}


def _check_weights(stage: StageOptions, names: list[str], sources: tuple[SourceOptions, ...]) -> None:
    for name, weight in stage.weights.items():
        if name not in names:
            raise RequestError(
                f"stage {stage.name!r}: weights names the source {name!r}, there are: {', '.join(names)}"
            )
        if not 0 <= weight < math.inf:
            raise RequestError(f"stage {stage.name!r}: the weight of {name!r} is {weight}, it must be at least 0")
    if not stage_weights(stage, sources):
        raise RequestError(f"stage {stage.name!r}: no source has a weight above 0")
