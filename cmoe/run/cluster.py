"""Which Ray cluster this process works on."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cmoe.common.errors import RunError

TOKEN = "RAY_AUTH_MODE"
LEAST_FILES = 256
"""That a process may open where Ray starts: with fewer its raylet dies, and doesn't say why."""


def named_cluster(address: str | None = None) -> str | None:
    """The running cluster to join: `address`, or else `RAY_ADDRESS`; None if neither names one."""
    return address or os.environ.get("RAY_ADDRESS") or None


def may_have_gpu(asked: bool | None, address: str | None = None) -> bool:
    """Whether workers may get GPUs, before Ray is asked: nobody knows yet what a cluster has.

    Args:
        asked: What the configuration says.
        address: As of `named_cluster`.
    """
    if asked is not None:
        return asked
    if named_cluster(address) is not None:
        return True
    import torch

    return torch.cuda.is_available()


def connect(address: str | None = None, **alone: Any) -> None:
    """Join the cluster that is named, or start Ray here.

    Without a name nothing is joined: another's cluster may happen to run on this machine.

    Args:
        address: As of `named_cluster`.
        alone: Arguments of `ray.init` where it is started here; by itself without a dashboard, and
            all of its ports on loopback: nobody else joins it.

    Raises:
        RunError: The cluster that is named doesn't answer, or too few files may be open here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is there: inherited
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if (named := named_cluster(address)) is None:
        _require_files()
        here: dict[str, Any] = {"address": "local", "include_dashboard": False}
        with _on_loopback():
            ray.init(**here | alone | quiet)
        return
    try:
        ray.init(address=named, **quiet)
    except ConnectionError as error:
        raise RunError(
            f"no Ray cluster answers at {named} (cluster.address, or RAY_ADDRESS): {error}"
            f"{'' if TOKEN in os.environ else f'. If it asks for a token: {TOKEN}=token'}"
        ) from error


def _require_files() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # up to which Ray raises it itself
    if most != resource.RLIM_INFINITY and most < LEAST_FILES:
        raise RunError(
            f"processes of this machine may open {most} files each, and Ray needs {LEAST_FILES} at "
            "least: raise the hard limit (`ulimit -Hn`; LimitNOFILE of a service)"
        )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """While Ray starts here, let it and its processes listen on loopback alone.

    It listens on all addresses, and with it its metrics, unless it is told that no other machine
    will join: by this variable, whatever the system is. An address given to `ray.init` doesn't do,
    as Ray takes the network's one for 127.0.0.1.
    """
    from ray._private import ray_constants as constants

    name, before = constants.ENABLE_RAY_CLUSTERS_ENV_VAR, constants.ENABLE_RAY_CLUSTER
    said = os.environ.get(name)
    os.environ[name], constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        del os.environ[name]
        if said is not None:
            os.environ[name] = said
