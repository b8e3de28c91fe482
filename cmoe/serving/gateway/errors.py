"""Why a request isn't answered: OpenAI's error object and its statuses, as HTTP responses."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from cmoe.common.nearest import did_you_mean, near

logger = logging.getLogger("ray.serve")

_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
}


class RequestError(Exception):
    """A request that isn't answered.

    Args:
        status: HTTP status.
        message: What was wrong, and what would be right.
        code: The kind of mistake, for programs.
        param: Path of the field that is wrong.
        retry_after: Seconds after which the client may try again.
        headers: Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after, self._headers = retry_after, headers or {}

    def about(self, path: str) -> RequestError:
        """The same error about a field: its message begins with the field's path."""
        message = f"{path}: {self.message}"
        return RequestError(
            self.status, message, code=self.code, param=path, retry_after=self.retry_after
        )

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, kind)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        found = dict(self._headers)
        if self.retry_after is not None:
            found["Retry-After"] = str(self.retry_after)
        if self.status == 408:  # what is still to come isn't read
            found["Connection"] = "close"
        return found


def too_busy() -> RequestError:
    return RequestError(429, "too many requests at a time", code="busy", retry_after=1)


def to_request_error(error: Exception) -> RequestError:
    """What a client is told of an error; it hears nothing of the service's inside."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, BackPressureError):
        return too_busy()
    if isinstance(error, ClientDisconnect):
        return RequestError(499, "the client has gone")
    if isinstance(error, TimeoutError):
        return RequestError(504, "the answer took too long", code="timeout")
    logger.error("a request failed: %r", error)
    return RequestError(503, "no replica could answer; try again", code="away", retry_after=5)


async def error_response(_: Request, error: Exception) -> Response:
    """The response to a request that raised an error."""
    told = to_request_error(error)
    return JSONResponse(told.body(), told.status, told.headers())


async def route_error(request: Request, error: Exception) -> Response:
    """The response where there is no such path, or not by that method: it says what there is."""
    assert isinstance(error, HTTPException)
    status, headers = error.status_code, error.headers
    method, path = request.method, f"{request.url.path:.200}"
    if status == 405:
        message = f"Not allowed to {method} on {path}; {(headers or {}).get('Allow')} is"
        code = "method_not_supported"
    else:
        message = f"Unknown request URL: {method} {path}. {_paths(request, path)}"
        code = "unknown_url"
    told = RequestError(status, message, code=code, headers=headers)
    return await error_response(request, told)


def _paths(request: Request, path: str) -> str:
    """The service's paths, in a sentence, and the one that was probably meant."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    served = [f"{'/'.join(sorted(route.methods or ()))} {route.path}" for route in routes]
    hint = did_you_mean(near(path, [route.path for route in routes]))
    return f"This service has {', '.join(served)}{hint}"
