"""Runs beside one another: one with other settings, and where two differ."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from cmoe.config.tree import RunConfig

if TYPE_CHECKING:
    from cmoe.config.parser import ConfigParser

NEUTRAL = ("runs", "cluster", "wandb")
"""What may differ when a run is resumed: it changes where and how fast, not what comes out."""


def changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """A run with other settings, by their keys as on the command line.

    Raises:
        ValueError: There is no such key, or its value is impossible.
    """
    from cmoe.config.keys import key_type, unknown_key, wrong_type
    from cmoe.config.parse import make_run
    from cmoe.config.parser import ConfigError

    parser = _changes()
    values = config.as_dict()
    for key, value in settings.items():
        hint = key_type(parser.tree, key)
        if hint is None:
            raise ValueError(unknown_key(key, parser.tree, repr(key)))
        if problem := wrong_type(key, hint, value):
            raise ValueError(problem)
        *path, last = key.split(".")
        within = values
        for name in path:
            within = within[name]
        within[last] = value
    try:
        return make_run(parser, parser.parse_object(values), {}, [])[0]
    except ConfigError as mistakes:
        raise ValueError(str(mistakes)) from mistakes


@cache
def _changes() -> ConfigParser:
    """What `changed` reads with: making it takes longer than all that it does then."""
    from cmoe.config.parse import parser_of

    return parser_of(None, {})


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys in which two runs differ, with both values; neutral parts aside."""
    old, new = by_key(before), by_key(after)
    keys = sorted({*old, *new})
    return [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]


def by_key(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings by their keys as on the command line; neutral parts aside."""
    flat = _flat(values)
    return {key: value for key, value in flat.items() if key.split(".")[0] not in NEUTRAL}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat |= _flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat
