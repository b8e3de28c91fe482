"""Which environment variables a configuration may give to workers, and which it may not."""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_SECRET = re.compile(
    r"(TOKEN|SECRET|CREDENTIAL|PASSWORD|COOKIE|KEY|PASS)S?|PASSWD|PASSPHRASE|PWD|AUTH|PAT"
    r"|\w*(TOKEN|SECRET|CREDENTIAL|PASSWORD|(API|ACCESS|ACCOUNT|PRIVATE|SSH|SIGNING)KEY)S?"
    r"|\w*PASS(WD|PHRASE)"
)
"""A part of a name, between its underscores, that tells of a secret. `PKEY` is InfiniBand's
partition, and `TOKENIZERS_PARALLELISM` has no token.
"""
_PLACE = ("FILE", "PATH", "DIR", "URI")  # last part of a name: where a secret lies, not the secret
_LOGIN = re.compile(r"\w://[^/\s]*:[^/\s]*@|(key|token|password|secret)=\S", re.I)
_OWN = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK"}
_OWN |= {"MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "PYTHONPATH"}
"""Set for each worker by Ray; another value would break the group."""


def as_environment(given: Mapping[str, str | int | float], key: str) -> dict[str, str]:
    """Variables as a process has them.

    Args:
        given: Values by name, as YAML has them.
        key: Of the configuration, for errors.

    Raises:
        ValueError: A name can't be one, or is Ray's own; or a value is a secret, or can't be one.
    """
    for name, value in given.items():
        here = f"{key}.{name}"
        if not _NAME.fullmatch(str(name)):
            raise ValueError(f"{key} names {name!r}; letters, digits and _, no digit first")
        if name in _OWN or name.startswith("RAY_"):
            raise ValueError(
                f"{here} is set by Ray for each worker; leave it out, or set it where Ray starts"
            )
        if is_secret(name) or _LOGIN.search(str(value)):
            raise ValueError(
                f"{here} holds a secret by its {'name' if is_secret(name) else 'value'}, and Ray "
                "and the run's folder show these variables in clear; set it in the environment of "
                "the machines or of their containers, as cluster/README.md shows"
            )
        if "\0" in str(value):
            raise ValueError(f"{here} holds a null character; a text without one is needed")
    return {name: str(value) for name, value in given.items()}


def is_secret(name: str) -> bool:
    """Whether a variable's name tells that its value is a key, a token or a password."""
    parts = name.upper().split("_")
    return parts[-1] not in _PLACE and any(_SECRET.fullmatch(part) for part in parts)
