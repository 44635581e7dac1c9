"""Shared by all tests: one thread for each worker, no network, the real small model."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores; commands they start inherit this
    os.environ["OMP_NUM_THREADS"] = "1"

from tenth.weights.bundled import bundled_gguf

# a job in the background ignores these, and what it starts would too: tests send them
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

# `make test` draws the same examples every time: a commit passes or fails for good. `make test-slow` draws new ones.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", print_blob=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a GGUF of Q4_1 and Q8_0."""
    return bundled_gguf()
