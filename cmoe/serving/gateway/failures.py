"""Errors as HTTP responses: what a client is told of whatever went wrong."""

from __future__ import annotations

import logging

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from cmoe.common.nearest import did_you_mean, near
from cmoe.serving.gateway.errors import RequestError, too_busy

logger = logging.getLogger("ray.serve")


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
        taken = ", ".join(sorted((headers or {}).get("Allow", "").split(", ")))
        message = f"Not allowed to {method} on {path}; it takes {taken}"
        code = "method_not_supported"
    else:
        message = f"Unknown request URL: {method} {path}. {_paths(request, path)}"
        code = "unknown_url"
    told = RequestError(status, message, code=code, headers=headers)
    return await error_response(request, told)


def _paths(request: Request, path: str) -> str:
    """The service's paths, in a sentence, and the one that was probably meant."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    served = [
        f"{'/'.join(sorted((route.methods or set()) - {'HEAD'}))} {route.path}" for route in routes
    ]
    hint = did_you_mean(near(path, [route.path for route in routes]))
    return f"This service has {', '.join(served)}{hint}"
