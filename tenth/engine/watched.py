"""A decoder whose routers are watched."""

from __future__ import annotations

import torch

from tenth.engine.captured import Runner
from tenth.kernels.contract import Kernels
from tenth.model.batch import Batch, Output, Want
from tenth.model.cache import KVCache
from tenth.model.config import ModelConfig
from tenth.routing.window import RoutingWindow


class WatchedRunner:
    """Runs batches as another runner does, and shows a window what the routers decided."""

    def __init__(self, runner: Runner, window: RoutingWindow) -> None:
        self._runner, self._window = runner, window

    @property
    def config(self) -> ModelConfig:
        """The shape of the network."""
        return self._runner.config

    @property
    def dtype(self) -> torch.dtype:
        """The type of activations."""
        return self._runner.dtype

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self._runner.device

    @property
    def kernels(self) -> Kernels:
        """Who lays out keys and values."""
        return self._runner.kernels

    def __call__(self, batch: Batch, cache: KVCache | None = None, want: Want | None = None, /) -> Output:
        """As the other one; a record that nobody else asked for is as full as the window wishes."""
        want = want or Want()
        if want.routing == "none":
            want = Want(want.logits, want.hidden, self._window.wish(len(batch)))
        output = self._runner(batch, cache, want)
        if output.routing is not None:
            self._window.note(output.routing)
        return output
