"""A Ray cluster that is not there is said at once, in a line."""

from __future__ import annotations

import socket
import time

import pytest

from tenth.cluster.on_ray import OnRay, Scale
from tenth.errors import MachineError


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "nonsense", "127.0.0.1:seven"])
def test_nobody_is_there(address: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray, begun = OnRay(address.format(port), "tenth", Scale(), 1.0), time.monotonic()
    with pytest.raises(MachineError, match=f"^Ray at {address.format(port)} cannot be reached: .+$"):
        ray.open()
    ray.close()
    assert time.monotonic() - begun < 10
