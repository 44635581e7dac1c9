"""Which format each weight gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from tenth.errors import RequestError
from tenth.quantize.policy import Policy
from tenth.weights.matrices import SourceMatrix
from tenth.weights.source import TensorInfo, TensorSource


@pytest.mark.parametrize(
    ("policy", "name", "shape", "tied", "expected"),
    [
        (Policy(), "layers.0.attention.q.weight", (512, 256), False, "int4-g16-s4"),
        (Policy(group=32), "layers.0.mlp.experts.3.up", (512, 256), False, "int4-g32"),
        (Policy(8, 128), "layers.0.mlp.down.weight", (512, 256), False, "int8-g128"),
        (Policy(4, 64, asymmetric=True), "layers.0.mlp.down.weight", (512, 256), False, "int4-g64-min"),
        (Policy(4, 128), "layers.0.mlp.down.weight", (512, 192), False, "int4-g64"),
        (Policy(4, 128), "layers.0.mlp.down.weight", (512, 576), False, "int4-g64"),
        (Policy(4, 128), "layers.0.mlp.down.weight", (512, 1504), False, "int4-g32"),
        (Policy(4, 128), "layers.0.mlp.down.weight", (512, 33), False, "int4-g64"),
        (Policy(), "layers.0.mlp.shared_gate.weight", (1, 256), False, "fp32"),
        (Policy(), "embedding", (999, 256), False, "int8-g32"),
        (Policy(), "head.weight", (999, 256), False, "int8-g32"),
        (Policy(embedding_bits=4, head_bits=16), "embedding", (999, 40), False, "int4-g16-s4"),
        (Policy(embedding_bits=4, head_bits=16), "head.weight", (999, 256), False, "bf16"),
        (Policy(embedding_bits=4, head_bits=16), "embedding", (999, 256), True, "bf16"),
        (Policy(embedding_bits=32), "embedding", (999, 256), False, "fp32"),
        (Policy(4, 64, True, 4), "embedding", (999, 96), False, "int4-g32-min"),
    ],
)
def test_formats(policy: Policy, name: str, shape: tuple[int, int], tied: bool, expected: str) -> None:
    info = TensorInfo("theirs", shape, "BF16", 2 * shape[0] * shape[1], Path("file"), 0)
    matrix = SourceMatrix(name, cast(TensorSource, None), info, *shape)
    assert policy.format_of(matrix, tied=tied).name == expected


@pytest.mark.parametrize(
    "wrong", [{"bits": 3}, {"bits": 16}, {"group": 16}, {"group": 48}, {"embedding_bits": 6}, {"head_bits": 0}]
)
def test_what_there_is_not(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(RequestError, match=f"^{name} is {value}, it must be one of [0-9, ]+$"):
        Policy(**wrong)
