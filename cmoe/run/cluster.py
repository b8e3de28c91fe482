"""Which Ray cluster this process works on."""

from __future__ import annotations

import logging
import os
from typing import Any


def named_cluster(address: str | None = None) -> str | None:
    """The running cluster to join: `address`, or else `RAY_ADDRESS`; None if neither names one."""
    return address or os.environ.get("RAY_ADDRESS") or None


def connect(address: str | None = None, **alone: Any) -> None:
    """Join the cluster that is named, or start Ray here.

    Without a name nothing is joined: another's cluster may happen to run on this machine.

    Args:
        address: As of `named_cluster`.
        alone: Arguments of `ray.init` where it is started here; by itself without a dashboard.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is there: inherited
    import ray

    named = named_cluster(address)
    where = (
        {"address": named} if named else {"address": "local", "include_dashboard": False} | alone
    )
    ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
