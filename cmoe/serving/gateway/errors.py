"""Why a request isn't answered: OpenAI's error object and its statuses.

Decoders import this: nothing heavy is needed for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
