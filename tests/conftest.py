"""Shared by all tests: one thread for each worker, no network, the real small model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; commands they start inherit this
    os.environ["OMP_NUM_THREADS"] = "1"

from tenth.weights.bundled import bundled_gguf


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a GGUF of Q4_1 and Q8_0."""
    return bundled_gguf()
