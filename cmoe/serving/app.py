"""The deployments of a service: gateway -> locator -> executor, on Ray Serve.

The gateway speaks HTTP, refuses bad requests, and turns a conversation into a prompt. The locator
finds the prompt's task by the frozen base's features, many prompts at a time. Executors answer.
Where a store's locator is placed inline and its executor can locate, the executor is the locator.

A store is only appended to, so that a task answers the same in every version of the store that has
it. A request sees one version if its executor has at least the tasks that its locator had; an
executor that has fewer catches up before it answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve import Application

from cmoe.modeling.settings import LocatorConfig
from cmoe.serving.engines.executor import LocatingExecutor
from cmoe.serving.engines.registry import executor_class
from cmoe.serving.gateway.http import Gateway
from cmoe.serving.gateway.keys import Keys
from cmoe.serving.replicas import ExecutorReplica, LocatingExecutorReplica, LocatorReplica
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store


def build(args: Mapping[str, Any]) -> Application:
    """The application of a service, as Ray's file of it names it (`import_path`).

    Args:
        args: The tree of a `ServeConfig`.

    Raises:
        ValueError: A setting is wrong, or there is no API key.
        StoreError: There is no store.
    """
    return application(ServeConfig.of(args), {})


def application(config: ServeConfig, options: Mapping[str, Mapping[str, Any]]) -> Application:
    """The application of a service.

    Args:
        config: The service.
        options: Ray's settings of each deployment.

    Raises:
        ValueError: There is no API key, or no such executor.
        StoreError: There is no store.
    """

    def deployment(kind: type, name: str) -> Any:
        made: Any = serve.deployment(kind, name=name)
        return made.options(**options.get(name, {}))

    keys = Keys.of(config.auth)
    answers = executor_class(config.engine.kind)
    locator = LocatorConfig(**Store.follow(config.store).header.settings["locator"])
    if locator.inline and issubclass(answers, LocatingExecutor):
        executors = deployment(LocatingExecutorReplica, "executor").bind(config, answers)
        locators = None
    else:
        executors = deployment(ExecutorReplica, "executor").bind(config, answers)
        locators = deployment(LocatorReplica, "locator").bind(config)
    gateway: Application = deployment(Gateway, "gateway").bind(
        config, keys, executors, locators, writes=answers.WRITTEN, samples=answers.SAMPLES
    )
    return gateway
