"""A command line and its YAML files become a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from jsonargparse import Namespace

from cmoe.common.command_line import refuse
from cmoe.config.keys import tree_of
from cmoe.config.method_sections import unusable_packages
from cmoe.config.mistakes import OTHERS
from cmoe.config.parser import ConfigError, ConfigParser
from cmoe.config.settings import PlanConfig
from cmoe.config.tree import RunConfig
from cmoe.methods.registry import methods

Made = TypeVar("Made")


def parse(arguments: Sequence[str] | None = None, prog: str | None = None) -> RunConfig:
    """The run that a command line asks for; wrong keys and values end the program with status 2.

    Args:
        arguments: Instead of the process's own.
        prog: Name in the help.
    """
    return parse_with({}, arguments, prog)[0]


def parse_job(
    parts: Mapping[str, type[Any]], arguments: Sequence[str] | None = None, prog: str | None = None
) -> tuple[RunConfig, PlanConfig | None, dict[str, Any]]:
    """As `parse_with`, and with `--plan`: what the run is to be planned for instead of started.

    A planned run has as many workers as the plan has GPUs.
    """
    parser = _command_line(prog, parts)
    # The plan alone may be bare: `--plan`, `--plan.gpus 8`.
    parser.add_argument(
        "--plan",
        type=PlanConfig | None,
        nargs="?",
        const={},
        default=None,
        help="Print what the run would need instead of starting it; see --plan.help.",
    )
    parser.tree["plan"] = tree_of(PlanConfig)
    try:
        parsed = parser.parse_args(arguments)
        asked = parsed.pop("plan")
        plan: PlanConfig | None = None
        problems: list[str] = []
        if asked is not None:
            plan = _made(PlanConfig, asked, problems)
        if plan is not None and plan.gpus is not None:
            parsed["cluster.workers"] = plan.gpus
        run, more = make_run(parser, parsed, parts, problems)
        if plan is not None and not run.entry.formula:
            planned = sorted(name for name, each in methods().items() if each.formula)
            parser.refuse([f"method is {run.method}; --plan knows {', '.join(planned)}"])
    except ConfigError as mistakes:
        refuse(parser.prog, mistakes.problems)
    return run, plan, more


def parse_with(
    parts: Mapping[str, type[Any]], arguments: Sequence[str] | None = None, prog: str | None = None
) -> tuple[RunConfig, dict[str, Any]]:
    """As `parse`, with further sections beside the run's own.

    Args:
        parts: The dataclass of each section; that of "" has its keys beside the run's own.
        arguments: Instead of the process's own.
        prog: Name in the help.
    """
    parser = _command_line(prog, parts)
    try:
        return make_run(parser, parser.parse_args(arguments), parts, [])
    except ConfigError as mistakes:
        refuse(parser.prog, mistakes.problems)


def _command_line(prog: str | None, parts: Mapping[str, type[Any]]) -> ConfigParser:
    """What reads a command line, unless an installed package of methods can't be used."""
    others = {**OTHERS, "plan": PlanConfig, **parts}
    for part in parts.values():
        others |= get_type_hints(part)
    if unusable := unusable_packages(RunConfig, others):
        refuse(prog or Path(sys.argv[0]).name, unusable)
    return parser_of(prog, parts)


def parser_of(prog: str | None, parts: Mapping[str, type[Any]]) -> ConfigParser:
    """What reads a run's keys, and those of further sections as of `parse_with`."""
    parser = ConfigParser(prog=prog, description="Learn a stream of tasks.", allow_abbrev=False)
    parser.add_argument("--config", action="config", help="A YAML file; later flags override it.")
    parser.add_settings(RunConfig)
    for name, part in parts.items():
        parser.add_settings(part, name)
    return parser


def make_run(
    parser: ConfigParser, parsed: Namespace, parts: Mapping[str, type[Any]], problems: list[str]
) -> tuple[RunConfig, dict[str, Any]]:
    """The run, and the sections beside its own.

    Args:
        parser: What read them.
        parsed: The values.
        parts: As of `parse_with`.
        problems: What is known to be wrong already.

    Raises:
        ConfigError: Some value can't be.
    """
    nulls = [k for n, kind in [("", RunConfig), *parts.items()] for k in _nulls(parsed, kind, n)]
    if nulls:
        parser.refuse([f"{key} is null; a value is needed" for key in nulls])
    more = {
        name: _made(part, parsed[name] if name else parsed, problems)
        for name, part in parts.items()
    }
    made = {}
    for name, hint in get_type_hints(RunConfig).items():
        section = isinstance(hint, type) and is_dataclass(hint)
        made[name] = _made(hint, parsed[name], problems) if section else parsed[name]
    run = None if problems else _made(RunConfig, made, problems)
    if run is None:
        parser.refuse(problems)
    return run, more


def _made(
    kind: type[Made], values: Mapping[str, Any] | Namespace, problems: list[str]
) -> Made | None:
    """Settings of such values, or else None and a problem more."""
    try:
        return kind(**{each.name: values[each.name] for each in fields(kind)})  # type: ignore[arg-type]
    except ValueError as error:
        problems.append(str(error))
        return None


def _nulls(values: Namespace, part: type[Any], section: str = "") -> Iterator[str]:
    """Keys that are null and can't be: jsonargparse takes null in a file for no value at all."""
    for name, hint in get_type_hints(part).items():
        key = f"{section}.{name}" if section else name
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _nulls(values, hint, key)
        elif values[key] is None and type(None) not in get_args(hint):
            yield key
