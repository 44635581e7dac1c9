"""Speed of the reference backend on the bundled models: load, prefill, decode. Prints a table and JSON.

usage: python bench/reference_speed.py [--repeat 5]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

import tenth

PROMPT, GENERATE = 512, 32


def measure(name: str, dtype: str, repeat: int) -> dict[str, object]:
    """Medians (and ranges) over `repeat` runs of one model in one type."""
    start = time.perf_counter()
    model = tenth.load(name, dtype=dtype)
    load = time.perf_counter() - start
    generator = torch.Generator().manual_seed(0)
    prefill, decode = [], []
    for _ in range(repeat + 1):
        # new random tokens each time: nothing of the prompt is kept from the run before
        prompt = torch.randint(1000, 40_000, (PROMPT,), generator=generator).tolist()
        stream = model.stream(prompt, max_tokens=GENERATE, temperature=1.0, seed=1)
        for _ in stream:
            pass
        result = stream.result
        prefill.append(PROMPT / result.prefill_seconds)
        if result.tokens_per_second:
            decode.append(result.tokens_per_second)
    row: dict[str, object] = {"model": name, "dtype": dtype, "load_s": round(load, 2)}
    for key, values in (("prefill_tok_s", prefill[1:]), ("decode_tok_s", decode[1:])):
        row |= {
            key: round(statistics.median(values), 1),
            f"{key}_range": [round(min(values), 1), round(max(values), 1)],
        }
    return row


def main() -> None:
    """Measure both bundled models in both types."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    rows = [measure(name, dtype, repeat) for name in ("default-dense", "default") for dtype in ("float32", "bfloat16")]
    table = Table(*rows[0], title=f"prompt {PROMPT}, generate {GENERATE}, {torch.get_num_threads()} threads")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
