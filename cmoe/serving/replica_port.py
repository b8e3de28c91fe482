"""The port that Ray Serve opens in each replica, for calls from other replicas."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from cmoe.serving.gateway.keys import is_loopback


def keep_on_loopback() -> None:
    """Open this replica's port on loopback if its whole Ray is there; call it before Ray opens it.

    Ray would open it on all addresses, though nobody else can be told of it. On a cluster it stays
    so: other nodes call it.
    """
    import ray

    replica: Any = import_module("ray.serve._private.replica")
    if not is_loopback(ray.util.get_node_ip_address()):
        return
    add = replica.add_port_to_grpc_server

    def add_here(server: Any, address: str) -> Any:
        return add(server, address.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = add_here
