"""Ray and Ray Serve: replicas are started, watched, replaced and stopped there.

Serve does what it is good at: placing processes on nodes, health, numbers, rolling changes. What streams through a
deployment handle costs half a millisecond of CPU for each event (`docs/cluster.md`), so no request goes that way.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tenth.cluster.hosted import ReplicaOptions
from tenth.cluster.replica import Replica, node_address
from tenth.errors import MachineError, RequestError

_STORE = 80 << 20  # bytes of Ray's object store, which nothing is put into; it takes no less
_REACHED_S = 5.0  # for a connection to a cluster that is there
_TARGET = 8.0  # requests that a replica should have, where their number is Serve's to choose
_LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the switch by which Ray's own ports stay on loopback
    "RAY_AUTH_MODE": "token",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",  # a tenth of a second costs twice the CPU
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_DEDUP_LOGS": "0",
}
log = logging.getLogger("tenth.serve")


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas, and what each takes of Ray's resources. Between two bounds their load decides."""

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    @classmethod
    def parse(cls, text: str, cpus: float, gpus: float) -> Scale:
        """Of `2` or `1:4`; RequestError for anything else."""
        first, colon, last = text.partition(":")
        if not first.isdecimal() or (colon and not last.isdecimal()):
            raise RequestError(f"--replicas is {text!r:.40}, it must be a number such as 2, or bounds such as 1:4")
        least, most = int(first), int(last or first)
        if not 1 <= least <= most <= 1000:
            raise RequestError(f"--replicas is {text!r:.40}, there must be 1 to 1000, the lower bound first")
        return cls(least, most, cpus, gpus)


class OnRay:
    """A connection to Ray, with one application of Serve's, between `open` and `close`.

    Without an `address` Ray is started for this, on this machine alone, and is gone behind it.
    """

    def __init__(self, address: str | None, name: str, scale: Scale, drain_seconds: float) -> None:
        self.address, self.name, self.scale, self._drain_seconds = address, name, scale, drain_seconds
        self._folder: Path | None = None
        self._begun = False

    @property
    def local(self) -> bool:
        """Whether all is on this machine."""
        return self.address is None

    def own_host(self) -> str:
        """This machine's address, as Ray's nodes reach it; to be asked for before or behind `open`."""
        if self.address is None:
            return "127.0.0.1"
        head = urlsplit(self.address).hostname if "://" in self.address else None
        if head is None:
            return node_address()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
            outward.connect((head, 9))  # nothing is sent: this asks which way leads there
            own: str = outward.getsockname()[0]
            return own

    def open(self) -> None:
        """Connect; MachineError where there is no Ray, or it cannot be reached."""
        try:
            if self.address is None:
                self._begin_here()
            else:
                self._check_head()
                import ray

                ray.init(self.address, configure_logging=False, log_to_driver=False)
                self._begun = True
        except (OSError, ValueError, RuntimeError) as error:
            where = f"Ray at {self.address} cannot be reached" if self.address else "Ray cannot be started here"
            raise MachineError(f"{where}: {_last_line(error)}") from None
        from ray import serve

        _ray_speaks_by_the_log()
        quiet = {"log_level": "ERROR"}  # each start and end of a replica is said by the front
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        serve.start(proxy_location="Disabled", logging_config=quiet)
        logging.getLogger("ray.serve").setLevel(logging.ERROR)

    def _check_head(self) -> None:
        """OSError, ValueError where nobody listens at the address: Ray itself tries for minutes, and then ends."""
        assert self.address is not None, "of a cluster that is there"
        if self.address == "auto":
            return
        parts = urlsplit(self.address if "://" in self.address else f"//{self.address}")
        if parts.hostname is None or parts.port is None:
            raise ValueError("an address is HOST:PORT, ray://HOST:PORT or auto")
        socket.create_connection((parts.hostname, parts.port), timeout=_REACHED_S).close()

    def _begin_here(self) -> None:
        os.environ.update({**_LOCAL, "RAY_AUTH_TOKEN": secrets.token_hex(32)})  # read when Ray is imported
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        self._begun, self._folder = True, Path(tempfile.mkdtemp(prefix="tenth-ray-"))
        places = (self.scale.most + 1) * self.scale.cpus  # one more while models change
        ray.init(
            "local",
            num_cpus=max(os.cpu_count() or 1, int(places) + 1),
            include_dashboard=False,
            object_store_memory=_STORE,
            configure_logging=False,
            log_to_driver=False,
            _temp_dir=str(self._folder),
        )

    def close(self) -> None:
        """Take the application down, and Ray too where it was started here. Again does nothing."""
        if not self._begun:
            return
        self._begun = False
        import ray
        from ray import serve

        try:
            if not self.local:
                serve.delete(self.name)
        finally:
            ray.shutdown()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)

    def deploy(self, options: ReplicaOptions) -> None:
        """So many replicas with these options, one by one in the place of those that are there.

        Returns when all are ready; MachineError where one cannot be started: those that were there work on, as far as
        their places have not been taken.
        """
        from ray import serve

        made = serve.deployment(Replica).options(  # type: ignore[attr-defined]
            **self._numbers(),
            max_surge_percent=1,  # rounded up to one replica, however few there are: it starts before an old one stops
            ray_actor_options={"num_cpus": self.scale.cpus, "num_gpus": self.scale.gpus},
            health_check_period_s=1.0,
            health_check_timeout_s=15.0,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=self._drain_seconds + 15,
            max_constructor_retry_count=2,
        )
        try:
            serve.run(made.bind(options, loopback=self.local), name=self.name, route_prefix=None)
        except RuntimeError as error:
            raise MachineError(f"no replica of {options.load.model} can be started: {_last_line(error)}") from None

    def _numbers(self) -> dict[str, Any]:
        if self.scale.least == self.scale.most:
            return {"num_replicas": self.scale.least}
        return {
            "autoscaling_config": {
                "min_replicas": self.scale.least,
                "max_replicas": self.scale.most,
                "target_ongoing_requests": _TARGET,
                "upscale_delay_s": 5.0,
                "downscale_delay_s": 120.0,
                "metrics_interval_s": 1.0,
                "look_back_period_s": 5.0,
                "policy": {"policy_function": "tenth.cluster.scaling:wanted"},
            }
        }


def _ray_speaks_by_the_log() -> None:
    """What Ray's services tell (that a worker was killed, say) is printed as it is, in colours and several lines."""

    def said(message: dict[str, Any], *_: object, **__: object) -> None:
        log.warning("Ray: %s", " ".join(" ".join(map(str, message["lines"])).split())[:300])

    worker: Any = import_module("ray._private.worker")
    worker.print_to_stdstream = said


def _last_line(error: BaseException) -> str:
    """What a traceback in text ends with: the error that was raised first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception")) and ": " in line]
    return (told or lines or [type(error).__name__])[-1][:400]
