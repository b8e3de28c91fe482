"""Ray Serve's own file of a service. Unknown keys are refused here; Ray would ignore them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmoe.common.errors import KnownError
from cmoe.common.nearest import did_you_mean, near
from cmoe.common.parsing import parse_yaml
from cmoe.serving.known_keys import require_known
from cmoe.serving.settings import ServeConfig

if TYPE_CHECKING:
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

BUILD = "cmoe.serving.app:build"
DEPLOYMENTS = ("gateway", "locator", "executor")


class ServiceError(KnownError):
    """A service that can't be started; says why."""


class ServiceFile(NamedTuple):
    """The content of a service's file.

    Attributes:
        schema: The whole file.
        application: Its only application.
        config: The application's `args`.
    """

    schema: ServeDeploySchema
    application: ServeApplicationSchema
    config: ServeConfig


def read_file(file: Path) -> ServiceFile:
    """Read a service's file, in the format of `serve deploy`.

    Raises:
        ServiceError: The file can't be read, it has no application of ours, a key is unknown to Ray
            or to us, or a value is out of range; names the file and the key.
    """
    try:
        return _read(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ServiceError(f"{file}: {error.strerror}; --config names a service's file") from error
    except ValueError as error:
        raise ServiceError(f"{file}: {' '.join(str(error).split())}") from error


def _read(text: str) -> ServiceFile:
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    values = parse_yaml(text)
    if not isinstance(values, dict):
        raise ValueError(f"a mapping with the key applications is needed, not {values!r:.60}")
    require_known(values, ServeDeploySchema)
    several = values.get("applications")
    if not isinstance(several, list) or len(several) != 1:
        count = len(several) if isinstance(several, list) else 0
        raise ValueError(
            f"applications: there are {count}; one is served here, {BUILD}. Ray's own "
            "`serve deploy` takes several"
        )
    try:
        schema = ServeDeploySchema(**values)
    except ValidationError as error:
        raise ValueError(_first(error)) from error
    (application,) = schema.applications
    if application.import_path != BUILD:
        raise ValueError(f"applications.0.import_path is {application.import_path!r}; {BUILD}")
    at = "applications.0"
    for i, deployment in enumerate(application.deployments):
        if (name := deployment.name) not in DEPLOYMENTS:
            raise ValueError(
                f"{at}.deployments.{i}.name is {name!r}; {', '.join(DEPLOYMENTS)}"
                f"{did_you_mean(near(name, DEPLOYMENTS))}"
            )
    try:
        config = ServeConfig.of(application.args)
    except ValueError as error:
        raise ValueError(f"{at}.{error}") from error
    return ServiceFile(schema, application, config)


def _first(error: Any) -> str:
    """The first of pydantic's errors, as a sentence."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
