"""Watches how far the experts' work has moved from a stored routing profile, and says so in the log."""

from __future__ import annotations

import asyncio
import logging
import threading

from tenth.routing.drift import Drift, drift_from
from tenth.routing.profile import ProfiledModel, RoutingProfile, check_same_shape
from tenth.routing.window import RoutingWindow

log = logging.getLogger("tenth.serve")
_EVERY_S = 10.0
_CALM = 0.8  # of the threshold: an alarm ends below it, so that it does not come and go


class DriftWatch:
    """Holds a server's window against a profile. RequestError where it is of another shape than the model.

    `alarm` is whether the mean divergence beyond chance was above `threshold` (bits, 0 to 1) at the last look.
    """

    def __init__(self, window: RoutingWindow, stored: RoutingProfile, threshold: float) -> None:
        check_same_shape(window.model, stored.model)
        self._window, self._stored, self.threshold = window, stored, threshold
        self.alarm = False
        self._lock = threading.Lock()
        if stored.model.version != window.model.version:
            log.warning("%s", _of_others(window.model, stored.model))

    def look(self) -> Drift:
        """How far it is now; the log is told where an alarm begins or ends."""
        drift = drift_from(self._stored, self._window.recent())
        with self._lock:
            self._judge(drift)
        return drift

    def _judge(self, drift: Drift) -> None:
        if not drift.judged:
            return
        beyond = f"{drift.excess:.3f} bits beyond chance over {drift.tokens} tokens"
        if not self.alarm and drift.excess > self.threshold:
            self.alarm = True
            log.warning("routing drifts from its profile: %s, most in layer %d", beyond, drift.worst)
        elif self.alarm and drift.excess < _CALM * self.threshold:
            self.alarm = False
            log.info("routing is as profiled again: %s", beyond)

    async def watch(self) -> None:
        """Look again and again, beside the event loop."""
        failed = False
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await asyncio.to_thread(self.look)
                failed = False
            except Exception:  # whatever it is: the next look may find what this one did not
                if not failed:
                    log.exception("how far routing has drifted cannot be told")
                failed = True


def _of_others(model: ProfiledModel, stored: ProfiledModel) -> str:
    return (
        f"the routing profile is of other weights ({stored.name} {stored.version[:12]}) "
        f"than the model's ({model.name} {model.version[:12]})"
    )
