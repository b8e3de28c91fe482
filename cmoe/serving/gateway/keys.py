"""API keys: kept as digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.settings import AuthConfig

VARIABLE = "CMOE_API_KEYS"


class Keys:
    """The API keys of a service.

    Args:
        digests: sha256 of every key, in hex; None needs no key, and lets only this machine ask.
    """

    def __init__(self, digests: Sequence[str] | None) -> None:
        self._digests = digests

    @classmethod
    def of(cls, config: AuthConfig, environment: Mapping[str, str] = os.environ) -> Keys:
        """The keys of the configured file and of the environment.

        Raises:
            ValueError: The file can't be read, a line of it is no digest, or there is no key.
        """
        if not config.required:
            return cls(None)
        digests = [digest(key) for key in environment.get(VARIABLE, "").split(",") if key.strip()]
        if config.keys_file is not None:
            try:
                lines = Path(config.keys_file).read_text(encoding="utf-8").splitlines()
            except OSError as error:
                raise ValueError(f"auth.keys_file: {error}") from error
            for number, line in enumerate(lines, 1):
                first = line.split("#")[0].split()[:1]
                if first and not re.fullmatch(r"[0-9a-f]{64}", first[0]):
                    raise ValueError(
                        f"{config.keys_file}:{number}: not a sha256 in hex; make one of a key by: "
                        "printf %s KEY | sha256sum"
                    )
                digests += first
        if not digests:
            raise ValueError(
                f"no API key: put one into {VARIABLE}, or its sha256 into auth.keys_file; or set "
                "auth.required to false (--no-auth) and listen on loopback"
            )
        return cls(tuple(digests))

    def require(self, authorization: str | None, client: str | None) -> None:
        """Refuse a request that may not ask.

        Args:
            authorization: The request's header of that name.
            client: The IP address that it came from.

        Raises:
            RequestError: The request has no key or an unknown one, or comes from another machine
                where no key is needed.
        """
        if self._digests is None:
            if not is_loopback(client):
                raise RequestError(403, "without API keys only this machine may ask")
            return
        kind, _, key = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not key:
            raise RequestError(
                401, "no API key: send Authorization: Bearer <key>", code="missing_api_key"
            )
        given = digest(key)
        # All keys are compared, each in constant time: the time tells nothing about any key.
        if not sum(hmac.compare_digest(given, known) for known in self._digests):
            raise RequestError(401, "the API key isn't known here", code="invalid_api_key")


def digest(key: str) -> str:
    return hashlib.sha256(key.strip().encode()).hexdigest()


def is_loopback(address: str | None) -> bool:
    """Whether an IP address is this machine's own."""
    try:
        return ip_address(address or "").is_loopback
    except ValueError:
        return False
