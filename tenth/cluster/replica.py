"""What Ray Serve runs: a replica in a process of its own, its health, its load, and its end."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

from tenth.cluster.hosted import Hosted, ReplicaOptions

LOAD = "jobs"
"""The name of a replica's load among what Serve's autoscaling is told."""


class Replica:
    """The class that is deployed. Serve keeps so many of them alive; requests do not go through Serve."""

    def __init__(self, options: ReplicaOptions, *, loopback: bool) -> None:
        """Returns when the model is loaded and warm, with its server at work; raises what loading raises."""
        from ray import serve

        if loopback:
            _stay_on_loopback()
        name = serve.get_replica_context().replica_id.unique_id
        self._hosted = Hosted(options, name, "127.0.0.1" if loopback else node_address())
        self._hosted.wait_ready()

    def check_health(self) -> None:
        """For Serve, which replaces replicas that raise here."""
        self._hosted.check()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For Serve's autoscaling (`scaling.wanted`)."""
        return {LOAD: float(self._hosted.jobs)}

    async def __del__(self) -> None:
        """For Serve, when this replica is to go: what runs comes to its end first."""
        if hasattr(self, "_hosted"):
            await asyncio.to_thread(self._hosted.drain)


def node_address() -> str:
    """This machine's address, as Ray's other nodes reach it."""
    import ray

    found: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return found


def _stay_on_loopback() -> None:
    """Serve opens a port for calls between deployments on all addresses, which nobody needs here."""
    replica: Any = import_module("ray.serve._private.replica")
    opened = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: opened(server, address.replace("[::]", "127.0.0.1"))
