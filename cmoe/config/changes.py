"""A run with other settings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from cmoe.config.tree import RunConfig

if TYPE_CHECKING:
    from cmoe.config.parser import ConfigParser


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
            within = within.setdefault(name, {})
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
