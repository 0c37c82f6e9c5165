"""A Ray cluster to work on: the one this program is on already, one that was started elsewhere, or one of this machine
that begins and ends with the work."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from interp.kernels.errors import InterpError

SECONDS = 5.0
"""How long a cluster's address may take to answer."""


class ClusterError(InterpError, ConnectionError):
    """Workers that cannot be had, or that cannot begin."""


def library() -> Any:
    """Ray, or how to get it."""
    # so often is a cluster asked whether it is one; Ray's own 20 times are a quarter of an hour
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "2")
    # pieces that are under way when the work ends are not waited for, and Ray would print what they raise
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    try:
        import ray
    except ImportError as why:
        raise ClusterError("engine='ray' needs Ray, which is not installed: pip install 'interp[dist]'.") from why
    return ray


@contextmanager
def connected(address: str | None, *, cpus: int) -> Iterator[Any]:
    """Ray, connected: to `address` ("auto": the cluster of this machine), to what `RAY_ADDRESS` says, or to a cluster
    with so many processors that is started here and is gone afterwards. A connection that is there is used and left."""
    ray = library()
    if ray.is_initialized():
        _must_be_there(ray, address)
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address in (None, "local"):
        # no usage statistics are sent to Ray's makers
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        how = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    else:
        how = {"address": _answering(str(address))}
    try:
        try:
            ray.init(log_to_driver=False, logging_level="ERROR", **how)
        except Exception as why:  # a node that is too slow is a bare Exception
            raise ClusterError(f"Ray does not begin with {how['address']!r}: {_reasons(why)}") from why
        yield ray
    finally:
        ray.shutdown()


def _reasons(why: BaseException | None) -> str:
    """What was raised, and what that came from: Ray keeps a missing token for itself."""
    said = []
    while why is not None:
        said.append(" ".join(str(why).split())[-300:])
        why = why.__cause__ or why.__context__
    return "; since ".join(dict.fromkeys(said))


def _must_be_there(ray: Any, address: str | None) -> None:
    here = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", here):
        raise ClusterError(
            f"this program is connected to the Ray cluster at {here}, and {address} was asked for: ray.shutdown()"
            " first, or leave address= out."
        )


def _answering(address: str) -> str:
    """An address where something listens: Ray itself would wait for minutes, or end the process."""
    if address == "auto":
        return address
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ClusterError(
            f"address= is 'HOST:PORT' of a cluster's head, which `ray start --head` prints, or 'auto' for the cluster"
            f" of this machine; got {address!r}. Ray's client (ray://) is not used: run on a machine of the cluster."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
    except (OSError, OverflowError) as why:
        raise ClusterError(
            f"no Ray cluster answers at {address} ({why}): start one there with `ray start --head`, or leave address="
            " out for a cluster of this machine that ends with the work."
        ) from why
    return address


def room(ray: Any, *, threads: int, gpus: float | int) -> int:
    """How many workers the nodes that are alive could hold if they did nothing else."""
    return sum(_on(node["Resources"], threads, gpus) for node in ray.nodes() if node["Alive"])


def _on(resources: dict[str, float], threads: int, gpus: float | int) -> int:
    by_cpu = resources.get("CPU", 0.0) // threads
    return int(by_cpu if not gpus else min(by_cpu, _gpus(resources.get("GPU", 0.0), gpus)))


def _gpus(there: float, each: float | int) -> float:
    """Parts of one device, or whole ones."""
    return there * (1 // each) if each < 1 else there // each


def nodes(ray: Any) -> str:
    """What the cluster has, as an error says it."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    said = [f"{n['Resources'].get('CPU', 0):g} CPUs and {n['Resources'].get('GPU', 0):g} GPUs" for n in alive]
    return f"{len(alive)} nodes ({'; '.join(said)})"
