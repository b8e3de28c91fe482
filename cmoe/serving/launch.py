"""Starting a service from Ray Serve's own file of it, and ending it."""

from __future__ import annotations

import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmoe.common.storage import StorageError, require_reachable
from cmoe.modeling.pretrained import MissingModelError, load_config
from cmoe.run.cluster import connect, named_cluster
from cmoe.serving.engines.builtin.decoding import require_servable
from cmoe.serving.engines.builtin.store_follower import model_of
from cmoe.serving.gateway.keys import Keys, is_loopback
from cmoe.serving.service_file import ServiceError, read_file
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store

LOOPBACK = "localhost"


@dataclass(frozen=True)
class Service:
    """A file of Ray Serve's with one application of ours.

    Attributes:
        config: The application's `args`.
        http: Ray's `http_options`.
        logging: Ray's `logging_config`.
        proxies: Ray's `proxy_location`.
        deployments: Ray's settings of each deployment.
        name: Of the application.
        prefix: Of its routes.
    """

    config: ServeConfig
    http: Mapping[str, Any]
    logging: Any
    proxies: str
    deployments: Mapping[str, Mapping[str, Any]]
    name: str
    prefix: str

    @property
    def url(self) -> str:
        return f"http://{self.http['host']}:{self.http['port']}{self.prefix}"

    def wait(self) -> None:
        """Until this process is told to end."""
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        while not ended.wait(1.0):
            pass


def read_service(
    file: Path,
    *,
    store: str | None = None,
    host: str | None = None,
    port: int | None = None,
    auth: bool | None = None,
) -> Service:
    """A service's file, and what is to be otherwise.

    Args:
        file: In the format of `serve deploy`.
        store: Instead of `args.store`.
        host: Instead of `http_options.host`.
        port: Instead of `http_options.port`.
        auth: Instead of `args.auth.required`.

    Raises:
        ServiceError: The file isn't such a one, a value can't be, there is no store or no key, or
            no key is asked for and the service would not listen on loopback alone.
    """
    schema, application, config = read_file(file)
    required = config.auth.required if auth is None else auth
    config = replace(
        config, store=store or config.store, auth=replace(config.auth, required=required)
    )
    http = schema.http_options.model_dump()
    http |= {n: v for n, v in (("host", host), ("port", port)) if v is not None}
    if not 0 < http["port"] < 2**16:
        raise ServiceError(f"http_options.port (--port) is {http['port']}; 1 to {2**16 - 1}")
    if not required and not loopback(http["host"]):
        raise ServiceError(
            f"without API keys the service listens on loopback alone, not on {http['host']!r}; "
            "configure keys, or set http_options.host (--host) to 127.0.0.1"
        )
    try:
        Keys.of(config.auth)
        require_reachable(config.store)
        Store.follow(config.store)
    except (ValueError, StorageError) as error:
        raise ServiceError(str(error)) from error
    return Service(
        config,
        http,
        schema.logging_config,
        str(schema.proxy_location.value),
        {d.name: d.model_dump(exclude_unset=True) for d in application.deployments},
        application.name,
        application.route_prefix or "/",
    )


def loopback(host: str) -> bool:
    """Whether a host to listen on is this machine's own."""
    return host == LOOPBACK or is_loopback(host)


def _require_port(host: str, port: int) -> None:
    """Ray's proxies share a port with whoever listens there, and get some of its requests."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(f"port {port} is taken on {host} ({error}); give --port") from error


def _require_base(config: ServeConfig) -> None:
    """Refuse at once, where its base is known here, what each replica would refuse in its turn.

    Raises:
        ServiceError: The base can't be served.
    """
    named = model_of(Store.follow(config.store), config)
    try:
        require_servable(load_config(named.path, revision=named.revision))
    except MissingModelError:
        return  # it may be there where the replicas run
    except ValueError as error:
        raise ServiceError(str(error)) from error


def _report(name: str) -> str:
    """What Ray says of the first deployment of an application that failed; empty without one."""
    from ray import serve

    application = serve.status().applications.get(name)
    deployments = application.deployments.values() if application is not None else ()
    return next((d.message for d in deployments if d.status == "DEPLOY_FAILED"), "")


def cause_of(report: str) -> str:
    """What Ray's report of a replica that failed to start ends with: the error of ours, without
    the traces that it came through.
    """
    found = list(re.finditer(r"^(?:\w+\.)*(\w+): (?=\S)", report, re.MULTILINE))
    named = [match for match in found if match[1].endswith(("Error", "Exception"))]
    if not named:
        return report
    said = " ".join(report[named[-1].end() :].split())
    ours = named[-1][0].startswith("cmoe.")
    return said if ours else f"{named[-1][1]}: {said}"


@contextmanager
def serving(service: Service, executor: type | None = None) -> Iterator[None]:
    """The service, for as long as the body runs.

    Args:
        service: What is served.
        executor: A class to answer instead of `Executor`.

    Raises:
        ServiceError: It doesn't come up.
    """
    import ray
    from ray import serve
    from ray.exceptions import RayError

    from cmoe.serving.app import Executor, bound

    _require_base(service.config)
    shared = named_cluster()
    if not shared:
        _require_port(service.http["host"], service.http["port"])
    connect()
    try:
        options = {n: service.http[n] for n in ("host", "port", "request_timeout_s", "root_path")}
        try:
            serve.start(
                proxy_location=service.proxies, http_options=options, logging_config=service.logging
            )
        except (RayError, TimeoutError) as error:
            raise ServiceError(
                f"Ray's HTTP proxy didn't start ({type(error).__name__}): this machine is busy, or "
                "its log in /tmp/ray/session_latest/logs/serve says more; try again"
            ) from error
        try:
            serve.run(
                bound(service.config, service.deployments, executor or Executor),
                name=service.name,
                route_prefix=service.prefix,
                logging_config=service.logging,
            )
        except RuntimeError as error:
            report = _report(service.name) or str(error)
            raise ServiceError(f"the service didn't come up: {cause_of(report)}") from error
        yield
    finally:
        if not shared:
            serve.shutdown()
        elif service.name in serve.status().applications:
            serve.delete(service.name)  # others may serve there, too
        ray.shutdown()
