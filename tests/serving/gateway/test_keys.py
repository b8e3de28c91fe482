"""API keys: those of file and environment are known, and without keys only this machine may ask."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.keys import Keys
from cmoe.serving.settings import AuthConfig


def refusal(keys: Keys, header: str | None, client: str | None = "8.8.8.8") -> int | None:
    try:
        keys.require(header, client)
    except RequestError as error:
        return error.status
    return None


def test_keys_of_file_and_environment_are_known(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    lines = [hashlib.sha256(k.encode()).hexdigest() for k in ("one", "two")]
    file.write_text(f"# ours\n{lines[0]}  alice\n\n{lines[1]} # bob\n")
    keys = Keys.of(AuthConfig(keys_file=str(file)), {"CMOE_API_KEYS": "three, four"})
    for key in ("one", "two", "three", "four"):
        assert refusal(keys, f"Bearer {key}") is None
        assert refusal(keys, f"bearer {key}") is None
    for header in (None, "", "Bearer", "Bearer five", f"Bearer {lines[0]}", "Basic one", "one"):
        assert refusal(keys, header) == 401
    assert b"one" not in b"".join(str(v).encode() for v in vars(keys).values())
    file.write_text("one\n")
    with pytest.raises(ValueError, match=r"keys:1: not a sha256 in hex"):
        Keys.of(AuthConfig(keys_file=str(file)), {})


def test_without_keys_only_this_machine_may_ask() -> None:
    keys = Keys.of(AuthConfig(required=False), {})
    assert refusal(keys, None, "127.0.0.1") is refusal(keys, None, "::1") is None
    for client in ("10.0.0.2", "8.8.8.8", None, "unix"):
        assert refusal(keys, None, client) == 403
