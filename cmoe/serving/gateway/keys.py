"""API keys: kept as digests, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.settings import AuthConfig

VARIABLE = "CMOE_API_KEYS"
LOCALHOST = "localhost"


class Keys:
    """The API keys of a service.

    Args:
        digests: sha256 of every key, in hex; None needs no key, and lets only this machine ask.
        hosts: Where no key is needed, the names by which the service may be asked, beside this
            machine's own.
    """

    def __init__(self, digests: Sequence[str] | None, hosts: Collection[str] = ()) -> None:
        self._digests = digests
        self._hosts = {LOCALHOST, *(host.lower() for host in hosts)}

    @classmethod
    def of(cls, config: AuthConfig, environment: Mapping[str, str] = os.environ) -> Keys:
        """The keys of the configured file and of the environment.

        Raises:
            ValueError: The file can't be read, a line of it is no digest, or there is no key.
        """
        if not config.required:
            return cls(None, config.hosts)
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

    def require_host(self, hosts: Sequence[str]) -> None:
        """Refuse a request that was sent to another name, where no key is needed.

        A page of the web may let its own name stand for this machine's address (DNS rebinding); a
        browser would then take the service's answers for the page's own.

        Args:
            hosts: The request's headers of that name.

        Raises:
            RequestError: There isn't exactly one, or it names another machine.
        """
        if self._digests is not None:
            return
        name = _without_port(hosts[0]).lower() if len(hosts) == 1 else ""
        if name not in self._hosts and not is_loopback(name):
            raise RequestError(
                421,
                f"without API keys this service is asked as {LOCALHOST} or 127.0.0.1, not as "
                f"{name!r:.100}; auth.hosts lists further names",
                code="host_not_allowed",
            )


_HOST = re.compile(r"(?:\[(?P<six>[^\[\]]*)\]|(?P<name>[^:\[\]]*))(?::\d*)?")


def _without_port(host: str) -> str:
    """The name or address in a `Host` header (RFC 9110, 7.2; RFC 3986, 3.2.2); empty for none."""
    found = _HOST.fullmatch(host)
    return (found["six"] or found["name"] or "") if found else ""


def digest(key: str) -> str:
    return hashlib.sha256(key.strip().encode()).hexdigest()


def is_loopback(address: str | None) -> bool:
    """Whether an IP address is this machine's own."""
    try:
        return ip_address(address or "").is_loopback
    except ValueError:
        return False
