"""The command `cmoe`: which subcommands there are, and how each of them ends.

Nothing heavy is imported here: a subcommand's module is loaded when it is called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from cmoe import __version__
from cmoe.common.command_line import refuse_unknown
from cmoe.common.errors import KnownError
from cmoe.common.log_lines import log_line
from cmoe.common.storage import storage_error

Program = Callable[[Sequence[str], str], int]
"""Takes the words of its command line and the name that it goes by; returns its exit status."""

INTERRUPTED = 130  # what shells take an end by Ctrl-C for


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        about: What it does, in one line.
        module: Where it is.
        function: The module's `Program`.
    """

    about: str
    module: str
    function: str = "main"

    def program(self) -> Program:
        found: Program = getattr(import_module(self.module), self.function)
        return found


COMMANDS = {
    "run": Command("learn a stream of tasks", "cmoe.cli.stream", "run"),
    "compare": Command(
        "learn a stream by several methods and compare them", "cmoe.cli.stream", "compare"
    ),
    "status": Command("tell where a run is, from its files alone", "cmoe.cli.status"),
    "sweep": Command("search how much to grow for each task", "cmoe.cli.sweep"),
    "choice": Command("judge a choice of layers beside random ones", "cmoe.cli.choice"),
    "serve": Command("answer requests over HTTP from a store", "cmoe.cli.serve"),
    "prepare": Command("check CoIN's files and convert them to Parquet", "cmoe.cli.prepare"),
    "fetch": Command("bring the base of a run or a service to this machine", "cmoe.cli.fetch"),
    "plan": Command("print what a run would need, and start nothing", "cmoe.cli.stream", "plan"),
    "check": Command("look at a cluster before a run, machine by machine", "cmoe.cli.check"),
    "locate": Command("compare the locator's features and scores", "cmoe.cli.locate"),
    "phrasing": Command("ask a run's test questions as people may ask them", "cmoe.cli.phrasing"),
    "score": Command("score a file of predictions by a task's or any scorer", "cmoe.cli.score"),
    "export": Command("copy what a run has learned, for others to load", "cmoe.cli.export"),
    "store": Command("verify, copy or upgrade a store, or prune runs", "cmoe.cli.store"),
    "bench": Command("measure what growing and serving cost", "cmoe.cli.bench"),
}

FLAGS = ("--help", "--version")


def main(words: Sequence[str] | None = None) -> int:
    """The command `cmoe`; returns its exit status.

    Args:
        words: Instead of the process's own, without the program's name.
    """
    name, *rest = (sys.argv[1:] if words is None else list(words)) or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name == "--version":
        print(f"cmoe {__version__}")
        return 0
    if name not in COMMANDS:
        kind, known = ("flag", FLAGS) if name.startswith("-") else ("command", tuple(COMMANDS))
        refuse_unknown("cmoe", kind, name, known)
    return execute(COMMANDS[name].program(), f"cmoe {name}", rest)


def overview() -> str:
    """What `cmoe --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: cmoe COMMAND [--key value ...]",
            "",
            "Continual learning of vision-language models by a growing mixture of LoRA experts.",
            "",
            *lines,
            "",
            "`cmoe COMMAND --help` explains a command; `cmoe --version` prints the version.",
        ]
    )


def execute(program: Program, name: str, words: Sequence[str] | None = None) -> int:
    """Run a program to its end, and tell what ended it; returns its exit status.

    The status is 1 for an error that the user can mend, 2 for a wrong command line, and 130 for
    Ctrl-C. Errors that are nobody's but ours pass with their traceback.

    Args:
        program: What to run.
        name: What the program calls itself in messages.
        words: Of its command line; None takes the process's own.
    """
    try:
        return program(sys.argv[1:] if words is None else words, name)
    except KnownError as error:
        return failed(name, error)
    except KeyboardInterrupt:
        print(log_line("interrupted; the same command goes on"), file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if (found := storage_error(error)) is None:
            raise
        return failed(name, found)


def failed(name: str, error: KnownError) -> int:
    """Tell what a user can mend; the exit status."""
    print(log_line(f"{name}: {error}", "ERROR"), file=sys.stderr)
    return 1
