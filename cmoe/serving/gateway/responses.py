"""Errors as HTTP responses, in the form that OpenAI's clients read."""

from __future__ import annotations

import logging

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from ray.serve.exceptions import BackPressureError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cmoe.serving.gateway.errors import RequestError

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
    """The response where there is no such route, or not by that method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = f"{request.method} {request.url.path}: {error}"
    return await error_response(request, RequestError(status, message))


def too_busy() -> RequestError:
    return RequestError(429, "too many requests at a time", code="busy", retry_after=1)
