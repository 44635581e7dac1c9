"""The native module; addresses are plain numbers, a row of numbers is its address and the elements to the next row."""

from collections.abc import Sequence
from typing import overload

Row = tuple[int, int]
LinearOut = tuple[Matrix, int, int, int]
KvView = tuple[int, int, bool, int, int, int, int]
Heads = tuple[int, int, int, int, int, int]

def instruction_sets() -> list[str]: ...

class Machine:
    @overload
    def __init__(self, set: str, cpus: Sequence[int]) -> None: ...
    @overload
    def __init__(self, set: str, threads: int, runtime: tuple[int, int, int]) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def set(self) -> str: ...

class Matrix:
    def __init__(
        self,
        data: int,
        rows: int,
        columns: int,
        padded: int,
        bits: int,
        group: int,
        step_bits: int,
        tile_bytes: int,
        segments: tuple[int, int, int, int],
    ) -> None: ...

class Experts:
    def __init__(self, experts: Sequence[tuple[Matrix, Matrix, Matrix]]) -> None: ...

class StoreCounts:
    steps: int
    hits: int
    late: int
    misses: int
    expected: int
    right: int
    ahead: int
    reads: int
    bytes: int
    stalled: float

class ExpertStore:
    def __init__(self, slots: int, slot_bytes: int, readers: int) -> None: ...
    def add_layer(self, path: str, experts: Experts, places: Sequence[tuple[int, int]], /) -> int: ...
    def read(self, layer: int, expert: int, to: int, /) -> None: ...
    def seed(self, seeds: Sequence[tuple[int, int, float]], /) -> None: ...
    def steps(self, layer: int, /) -> int: ...
    def uses(self, layer: int, /) -> list[int]: ...
    @property
    def indirect(self) -> str: ...
    @property
    def slots(self) -> int: ...
    @property
    def slot_bytes(self) -> int: ...
    def counts(self) -> StoreCounts: ...

class ReadError(Exception): ...

class Plan:
    def __init__(self, machine: Machine) -> None: ...
    def __len__(self) -> int: ...
    def run(self, tokens: int, logits: int, documents: int, /) -> None: ...
    def linear(self, kind: int, x: int, x_stride: int, outs: Sequence[LinearOut], /) -> None: ...
    def expert_ffn(
        self,
        x: int,
        x_stride: int,
        experts: int,
        gates: int,
        top_k: int,
        table: Experts,
        y: int,
        y_stride: int,
        norms: int,
        peaks: int,
        /,
    ) -> None: ...
    def stored_experts(
        self,
        x: int,
        x_stride: int,
        experts: int,
        gates: int,
        top_k: int,
        store: ExpertStore,
        layer: int,
        next: int,
        next_k: int,
        y: int,
        y_stride: int,
        norms: int,
        peaks: int,
        /,
    ) -> None: ...
    def gather(
        self,
        kind: int,
        ids: int,
        w: Matrix | None,
        table: int,
        table_stride: int,
        columns: int,
        y: int,
        y_stride: int,
        /,
    ) -> None: ...
    def rms_norm(
        self,
        kind: int,
        columns: int,
        x: int,
        x_stride: int,
        plus: int,
        plus_stride: int,
        sum: int,
        sum_stride: int,
        weight: int,
        eps: float,
        y: int,
        y_stride: int,
        /,
    ) -> None: ...
    def add(
        self, kind: int, columns: int, x: int, x_stride: int, z: int, z_stride: int, y: int, y_stride: int, /
    ) -> None: ...
    def silu_mul(
        self, kind: int, columns: int, gate: int, gate_stride: int, up: int, up_stride: int, y: int, y_stride: int, /
    ) -> None: ...
    def add_scaled(
        self, columns: int, gate: int, gate_stride: int, z: int, z_stride: int, y: int, y_stride: int, /
    ) -> None: ...
    def heads(self, head_size: int, q: Heads, k: Heads, eps: float, cos: int, sin: int, /) -> None: ...
    def store_kv(self, k: int, k_stride: int, v: int, v_stride: int, slots: int, kv: KvView, /) -> None: ...
    def attention(
        self,
        heads: int,
        q: int,
        q_stride: int,
        kv: KvView,
        bounds: int,
        lengths: int,
        pages: int,
        pages_stride: int,
        scale: float,
        y: int,
        y_stride: int,
        /,
    ) -> None: ...
    def route(
        self,
        experts: int,
        top_k: int,
        renormalise: bool,
        sigmoid: bool,
        groups: int,
        top_groups: int,
        scale: float,
        bias: int,
        logits: int,
        logits_stride: int,
        mass: int,
        cap: int,
        rescale: bool,
        ids: int,
        gates: int,
        /,
    ) -> None: ...

SampleRow = tuple[float, float, float, float, int, float, float, float, int, int, int, int]
Drawn = tuple[int, int, int, float, list[tuple[int, float]]]

def sample(
    machine: Machine,
    logits: int,
    stride: int,
    vocabulary: int,
    rows: Sequence[SampleRow],
    logprobs: bool,
    top: int,
    count_kept: bool,
) -> list[Drawn]: ...

Bytes = tuple[int, int, int]

class Walk:
    def __init__(self, machine: Machine) -> None: ...
    @property
    def bytes(self) -> int: ...
    def matrices(self, list: Sequence[Bytes], /) -> None: ...
    def experts(self, list: Sequence[tuple[Bytes, Bytes, Bytes]], tokens: int, /) -> None: ...
    def run(self) -> float: ...

def products(machine: Machine, type: str, seconds: float, /) -> float: ...

TrainedExperts = tuple[bool, int, int, int, int]
WeightGradient = tuple[int, bool]

class Assignments:
    def __init__(self, tokens: int, top_k: int, experts: int, ids: int, gates: int, /) -> None: ...
    @property
    def rows(self) -> int: ...

def train_forward(
    machine: Machine,
    assignments: Assignments,
    table: TrainedExperts,
    x: int,
    x_stride: int,
    gates: int,
    gate_up: int,
    y: int,
    /,
) -> None: ...
def train_backward(
    machine: Machine,
    assignments: Assignments,
    table: TrainedExperts,
    x: int,
    x_stride: int,
    gates: int,
    gate_up: int,
    dy: int,
    dx: int,
    dgates: int,
    dw13: WeightGradient,
    dw2: WeightGradient,
    /,
) -> None: ...
def train_attention(
    machine: Machine,
    documents: tuple[bool, int, int, int, int, int],
    scale: float,
    q: int,
    k: int,
    v: int,
    y: int,
    log_sum: int,
    dy: int,
    product: int,
    dq: int,
    dk: int,
    dv: int,
    /,
) -> None: ...
def train_linear(
    machine: Machine,
    kind: int,
    half: bool,
    rows: int,
    inputs: int,
    outputs: int,
    x: int,
    x_stride: int,
    w: int,
    dy: int,
    y: int,
    dw: WeightGradient,
    /,
) -> None: ...
def train_rows(
    machine: Machine,
    shape: tuple[bool, int, int, int],
    x: int,
    plus: int,
    sum: int,
    norm: tuple[int, float],
    turn: tuple[int, int],
    y: int,
    /,
) -> None: ...
def train_rows_backward(
    machine: Machine,
    shape: tuple[bool, int, int, int],
    x: int,
    norm: tuple[int, float],
    turn: tuple[int, int],
    dy: int,
    dsum: int,
    dx: int,
    dweight: int,
    /,
) -> None: ...
