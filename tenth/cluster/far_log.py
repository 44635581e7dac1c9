"""What replicas have to say, in the cluster's one log: their warnings and errors go to the front, which writes them."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

from tenth.cluster.to_front import ToFront
from tenth.errors import MachineError

LOG = "/log"
_KEPT, _AT_ONCE, _LONGEST = 200, 20, 2000  # lines that wait, that go together, characters of one
_FAR = "tenth.cluster.replicas"  # the logger that writes them: what it says goes nowhere from here


class FarLog(logging.Handler):
    """Keeps lines until `send`; where too many wait, the oldest are lost. To be added to the logger `tenth`."""

    def __init__(self, replica: str) -> None:
        super().__init__(logging.WARNING)
        self._replica = replica
        self._lines = deque[dict[str, Any]](maxlen=_KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line, with its traceback."""
        if record.name != _FAR:
            self._lines.append({"level": record.levelno, "text": self.format(record)[-_LONGEST:]})

    async def send(self, front: ToFront) -> None:
        """Tell the front what waits; it waits on where the front cannot be reached."""
        lines = [self._lines.popleft() for _ in range(min(len(self._lines), _AT_ONCE))]
        if not lines:
            return
        try:
            await front.say(LOG, tries=1, replica=self._replica, lines=lines)
        except MachineError:
            self._lines.extendleft(reversed(lines))


def write(replica: str, lines: list[dict[str, Any]]) -> None:
    """In the front: into its own log."""
    for line in lines:
        logging.getLogger(_FAR).log(line["level"], "replica %s: %s", replica, line["text"])
