"""Bodies that came before, as they were read: who asks again need not wait for template and tokenizer."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tenth.api.bodies import Asked, Kind

_LONGEST = 32_768  # characters of a body
_CHANGING = ("strftime_now", "random", "lipsum")  # what makes a template say something else the next time


@dataclass(slots=True)
class Reading:
    """What a body asks for; and, by caller, what its answers are kept by, once that is known."""

    asked: list[Asked]
    keys: dict[str, bytes] = field(default_factory=dict)


class Readings:
    """The last `most` of them, of a model with this chat template. To be used by one thread."""

    def __init__(self, template: str | None, most: int = 128) -> None:
        self._most = 0 if any(word in (template or "") for word in _CHANGING) else most
        self._found: OrderedDict[str, Reading] = OrderedDict()

    def find(self, kind: Kind, body: Mapping[str, Any]) -> tuple[str, Reading | None]:
        """What it is kept by, and how it was read; None where it has not come before."""
        key = json.dumps([kind, body])
        if key in self._found:
            self._found.move_to_end(key)
        return key, self._found.get(key)

    def keep(self, key: str, reading: Reading) -> None:
        """Remember how a body was read."""
        if len(key) <= _LONGEST and self._most:
            self._found[key] = reading
            if len(self._found) > self._most:
                self._found.popitem(last=False)
