"""The block formats against the `gguf` package, bit for bit."""

import gguf
import numpy as np
import pytest
import torch

from tenth.errors import TensorError, WeightsError
from tenth.weights import ggml


def random_blocks(kind: str, blocks: int, seed: int) -> torch.Tensor:
    """Random bytes in every field; then blocks of all-zero and all-one bits, which random bytes do not reach."""
    raw = torch.randint(
        0, 256, (blocks, ggml.FORMATS[kind].block_bytes), dtype=torch.uint8, generator=torch.manual_seed(seed)
    )
    raw[0], raw[1], raw[2], raw[3] = 0, 255, 128, 127
    return raw


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    nan = np.isnan(a)
    return np.array_equal(nan, np.isnan(b)) and np.array_equal(a[~nan].view(np.uint32), b[~nan].view(np.uint32))


def oracle(raw: torch.Tensor, kind: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(raw.numpy(), gguf.GGMLQuantizationType[kind])


def test_table_equals_the_gguf_package() -> None:
    ours = {form.type_id: (form.name, form.block_elements, form.block_bytes) for form in ggml.FORMATS.values()}
    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert ours == theirs
    assert set(ggml.READABLE) == {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"} | {
        f"Q{bits}_K" for bits in (2, 3, 4, 5, 6)
    }


@pytest.mark.parametrize("kind", ggml.READABLE)
def test_values_equal_the_gguf_package_on_random_bytes(kind: str) -> None:
    raw = random_blocks(kind, 4000, seed=1)
    assert same_bits(ggml.dequantize(raw, kind).numpy(), oracle(raw, kind))


@pytest.mark.parametrize("kind", ggml.READABLE)
def test_values_equal_the_gguf_package_on_ordinary_scales(kind: str) -> None:
    """Random bytes make many scales huge or NaN; here every float16 field is near 0.01, so all arithmetic shows."""
    form = ggml.FORMATS[kind]
    raw = random_blocks(kind, 500, seed=2)
    fields = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "F32": (), "F16": (), "BF16": ()}.get(kind)
    for at in (0,) if kind in ("Q4_0", "Q5_0", "Q8_0") else (0, 2) if fields is None else fields:
        raw[:, at : at + 2] = (torch.randn(500, 1) * 0.01).half().view(torch.uint8)
    got = ggml.dequantize(raw, kind)
    assert got.shape == (500, form.block_elements)
    assert same_bits(got.numpy(), oracle(raw, kind))
    if form.block_elements > 1:
        assert got.isfinite().all()
        assert got.abs().max() > 0


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "F16"])
def test_chunks_and_shapes_do_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = ggml.FORMATS[kind]
    raw = random_blocks(kind, 6 * 5, seed=3)
    whole = ggml.dequantize(raw, kind)
    monkeypatch.setattr(ggml, "_CHUNK_VALUES", 7 * form.block_elements)
    rows = raw.view(2, 3, 5 * form.block_bytes)
    out = torch.empty(2, 3, 5 * form.block_elements)
    assert ggml.dequantize(rows, kind, out) is out
    assert same_bits(out.flatten().numpy(), whole.flatten().numpy())
    assert same_bits(ggml.dequantize(raw[5], kind).numpy(), whole[5].numpy())


def test_odd_alignment_is_read() -> None:
    raw = random_blocks("Q4_1", 8, seed=4)
    shifted = torch.cat((torch.zeros(1, dtype=torch.uint8), raw.flatten()))[1:]
    assert same_bits(ggml.dequantize(shifted, "Q4_1").numpy(), ggml.dequantize(raw, "Q4_1").flatten().numpy())


def test_temporaries_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB of values come in pieces of 1 MiB, and so do the temporaries."""
    sizes: list[int] = []
    unpack = ggml._UNPACK["Q4_0"]

    def spy(raw_NB: torch.Tensor, out_NV: torch.Tensor) -> None:
        sizes.append(out_NV.nbytes)
        unpack(raw_NB, out_NV)

    monkeypatch.setattr(ggml, "_UNPACK", {"Q4_0": spy})
    ggml.dequantize(torch.zeros(1 << 19, 18, dtype=torch.uint8), "Q4_0")
    assert sizes == [1 << 20] * 64


def test_refusals() -> None:
    raw = torch.zeros(2, 18, dtype=torch.uint8)
    with pytest.raises(WeightsError, match="IQ2_XXS cannot be dequantised"):
        ggml.dequantize(raw, "IQ2_XXS")
    with pytest.raises(TensorError, match=r"Q4_1: rows of shape \(2, 18\) are not whole blocks of 20 bytes"):
        ggml.dequantize(raw, "Q4_1")
    with pytest.raises(TensorError, match="Q4_0: 2 blocks do not fill 3 blocks"):
        ggml.dequantize(raw, "Q4_0", torch.empty(96))
