"""Start a service from Ray Serve's own file, and end it."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmoe.common.log_lines import in_json
from cmoe.common.storage import StorageError, require_reachable
from cmoe.modeling.pretrained import MissingModelError, load_config, require_loadable
from cmoe.modeling.settings import ModelConfig
from cmoe.modeling.sources import is_mirror
from cmoe.run.cluster import connect, may_have_gpu, named_cluster
from cmoe.serving.bases import base_of
from cmoe.serving.engines.registry import executor_class
from cmoe.serving.gateway.keys import LOCALHOST, Keys, is_loopback
from cmoe.serving.service_file import ServiceError, read_file
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.schema import DeploymentSchema, LoggingConfig

LOOPBACK = "localhost"
RAY = {
    # Three failed checks, and Ray starts another proxy. By itself it checks every ten seconds.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "cmoe.serving.gateway.proxy:set_up",
    # Calls between replicas cost half of what calls of actors do, which are Ray's own choice.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""Variables of Ray Serve's that its processes need. A cluster's own are set where it is started."""


@dataclass(frozen=True)
class Service:
    """What a file of Ray Serve's says about our application.

    Attributes:
        config: The application's `args`.
        http: Ray's `http_options`.
        logging: Ray's `logging_config`.
        proxies: Ray's `proxy_location`.
        deployments: Ray's settings of each deployment.
        name: The application's name.
        prefix: The prefix of the application's routes.
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
        """Wait until this process is told to end."""
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
    """Read a service's file, and replace values of it.

    Args:
        file: A file in the format of `serve deploy`.
        store: Replaces `args.store`.
        host: Replaces `http_options.host`.
        port: Replaces `http_options.port`.
        auth: Replaces `args.auth.required`.

    Raises:
        ServiceError: The file can't be used, a value is out of range, there is no store or no API
            key, or no key is required and the service would not listen on loopback alone.
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
    if not required and not is_this_machine(http["host"]):
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
        _logging(schema.logging_config),
        str(schema.proxy_location.value),
        {d.name: _options(d) for d in application.deployments},
        application.name,
        application.route_prefix or "/",
    )


def _logging(given: LoggingConfig | None) -> LoggingConfig | None:
    """Ray Serve's settings of its logs: in JSON where all of Ray's are, if the file doesn't say."""
    said = {} if given is None else given.model_dump(exclude_unset=True)
    if not in_json() or "encoding" in said:
        return given
    from ray.serve.schema import LoggingConfig

    return LoggingConfig(**said, encoding="JSON")


def _options(deployment: DeploymentSchema) -> dict[str, Any]:
    """A deployment's settings; the Python that it names may be relative to this folder."""
    options = deployment.model_dump(exclude_unset=True)
    environment = (options.get("ray_actor_options") or {}).get("runtime_env") or {}
    if os.sep in (python := environment.get("py_executable", "")):
        environment["py_executable"] = str(Path(python).absolute())
    return options


def is_this_machine(host: str) -> bool:
    """Whether a service that listens on a host is reached from this machine alone."""
    return host == LOCALHOST or is_loopback(host)


@contextmanager
def serving(service: Service) -> Iterator[None]:
    """The service, for as long as the body runs.

    Raises:
        ServiceError: The service doesn't start.
    """
    from cmoe.serving.app import application

    _require_base(service.config)
    _require_engine(service)
    try:
        app = application(service.config, service.deployments)
    except ValueError as error:
        raise ServiceError(str(error)) from error
    with _cluster(service):
        _start_proxies(service)
        _start_application(service, app)
        yield


def _require_base(config: ServeConfig) -> None:
    """Refuse a base before Ray starts, if its configuration is on this machine.

    Raises:
        ServiceError: The executor can't serve the base.
    """
    base = base_of(Store.follow(config.store), config)
    try:
        executor = executor_class(config.engine.kind)
        known = load_config(base.path, revision=base.revision)
        executor.require_servable(known, config.limits.images)
        if config.engine.kind == "vllm":
            _require_told(base, config)
        else:
            gpu = may_have_gpu(None if config.device is None else config.device != "cpu")
            require_loadable(base, gpu=gpu)
    except MissingModelError as error:
        if is_mirror(base.path):
            raise ServiceError(str(error)) from error
        return  # the replicas may run where it is
    except ValueError as error:
        raise ServiceError(str(error)) from error


def _require_told(base: ModelConfig, config: ServeConfig) -> None:
    """Refuse to let vLLM answer, unasked, with another base than the store's.

    Raises:
        ServiceError: Says what to set.
    """
    if base.quantization is not None and config.engine.vllm.quantization is None:
        raise ServiceError(
            f"the store's base is quantised (model.quantization {base.quantization}), and vLLM "
            "quantises in its own way: set engine.vllm.quantization to the one that it is to use, "
            "or `model` of the service to the base with quantization null"
        )


def _require_engine(service: Service) -> None:
    """Refuse an engine that this machine's service would look for in vain.

    Raises:
        ServiceError: Its package isn't in the executor's environment.
    """
    if service.config.engine.kind != "vllm" or named_cluster():
        return
    options = service.deployments.get("executor", {}).get("ray_actor_options") or {}
    environment = options.get("runtime_env") or {}
    python = environment.get("py_executable", "")
    if os.sep in python and not Path(python).exists():
        missing = f"{python} isn't there"
    elif not environment and find_spec("vllm") is None:
        missing = "this environment has no vLLM"
    else:
        return
    raise ServiceError(
        f"engine.kind is vllm, and {missing}; `make vllm` builds an environment with it, which the "
        "deployment executor names: ray_actor_options.runtime_env.py_executable "
        ".venv-vllm/bin/python"
    )


@contextmanager
def _cluster(service: Service) -> Iterator[None]:
    """A Ray cluster of this process's own, or the named one; the service ends with the body."""
    import ray
    from ray import serve

    shared = named_cluster()
    if not shared:
        _require_port(service.http["host"], service.http["port"])
        for name, value in RAY.items():
            os.environ.setdefault(name, value)  # inherited
    connect()
    try:
        yield
    finally:
        if not shared:
            serve.shutdown()
        elif service.name in serve.status().applications:
            serve.delete(service.name)  # other applications stay
        ray.shutdown()


def _require_port(host: str, port: int) -> None:
    """Ray's proxies would share a port with whoever listens there, and get some of its requests."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServiceError(f"port {port} is taken on {host} ({error}); give --port") from error


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _start_proxies(service: Service) -> None:
    from ray import serve
    from ray.exceptions import RayError

    options = {n: service.http[n] for n in ("host", "port", "request_timeout_s", "root_path")}
    try:
        serve.start(
            proxy_location=service.proxies, http_options=options, logging_config=service.logging
        )
    except (RayError, TimeoutError) as error:
        raise ServiceError(
            f"Ray's HTTP proxy didn't start ({type(error).__name__}): this machine is busy, or its "
            "log in /tmp/ray/session_latest/logs/serve says more; try again"
        ) from error


def _start_application(service: Service, app: Application) -> None:
    from ray import serve

    try:
        serve.run(
            app,
            name=service.name,
            route_prefix=service.prefix,
            logging_config=service.logging,
        )
    except RuntimeError as error:
        report = _failure_report(service.name) or str(error)
        raise ServiceError(f"the service didn't come up: {cause_of(report)}") from error


def _failure_report(name: str) -> str:
    """Ray's message about the first deployment of an application that failed; empty without one."""
    from ray import serve

    application = serve.status().applications.get(name)
    deployments = application.deployments.values() if application is not None else ()
    return next((d.message for d in deployments if d.status == "DEPLOY_FAILED"), "")


def cause_of(report: str) -> str:
    """The last error in Ray's report of a replica that failed to start, without its traces."""
    found = list(re.finditer(r"^(?:\w+\.)*(\w+): (?=\S)", report, re.MULTILINE))
    named = [match for match in found if match[1].endswith(("Error", "Exception"))]
    if not named:
        return report
    message = " ".join(report[named[-1].end() :].split())
    ours = named[-1][0].startswith("cmoe.")
    return message if ours else f"{named[-1][1]}: {message}"
