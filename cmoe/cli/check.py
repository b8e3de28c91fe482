"""`cmoe check cluster`: look at a cluster before a run, and name what is wrong by its machine.

It reads the same configuration as `cmoe run`. Its status is 1 if something is wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cmoe.common.bounds import require
from cmoe.common.command_line import refuse, refuse_unknown
from cmoe.config.tree import RunConfig

if TYPE_CHECKING:
    from cmoe.operations.preflight.findings import Needs

SUBJECTS = {"cluster": "every machine of a Ray cluster, and what they do together"}
UNNAMED = "check"  # the run, where the configuration doesn't name it


@dataclass(frozen=True)
class CheckConfig:
    """How a cluster is looked at.

    Attributes:
        wait_s: Seconds that a machine has for each answer, and that the workers' places are waited
            for. Give more where machines are started only when they are asked for.
        json: File that gets all that was found, for a program to read; null writes none.
    """

    wait_s: float = 60.0
    json: str | None = None

    def __post_init__(self) -> None:
        require(self, "", "wait_s", above=0)


def main(words: Sequence[str], prog: str) -> int:
    if not words:
        refuse(prog, [f"no subject; {' or '.join(f'{prog} {each}' for each in SUBJECTS)}"])
    subject, *rest = words
    if subject in ("-h", "--help"):
        print(_overview(prog))
        sys.exit()
    if subject not in SUBJECTS:
        refuse_unknown(prog, "subject", subject, SUBJECTS)
    return _cluster(rest, f"{prog} {subject}")


def _overview(prog: str) -> str:
    subjects = [f"  {name:<10}{about}" for name, about in SUBJECTS.items()]
    usage = f"usage: {prog} SUBJECT [--config FILE] [--key value ...]"
    return "\n".join([usage, "", *(__doc__ or "").strip().splitlines(), "", *subjects])


def _cluster(words: Sequence[str], prog: str) -> int:
    from cmoe.config.parse import parse_with

    config, parts = parse_with({"": CheckConfig}, ["--name", UNNAMED, *words], prog)
    how: CheckConfig = parts[""]
    from cmoe.common.run_files import write_json
    from cmoe.common.storage import explained
    from cmoe.common.storage_errors import WRITTEN
    from cmoe.operations.preflight.check import check_cluster
    from cmoe.operations.preflight.page import lines

    if how.json is not None:  # before minutes of looking
        with explained(how.json, WRITTEN), open(how.json, "a"):
            pass
    report = check_cluster(config, _needs(config), how.wait_s, lambda text: print(text, flush=True))
    print("", *lines(report), sep="\n")
    if how.json is not None:
        write_json(Path(how.json), report.as_dict())
    return 1 if report.problems else 0


def _needs(config: RunConfig) -> Needs:
    """What the run needs, where a plan of it is known."""
    from cmoe.common.errors import KnownError
    from cmoe.experiments.planning.footprint import footprint
    from cmoe.operations.preflight.findings import MIN_DISK, Needs

    if not config.entry.formula:
        return Needs()
    try:
        found = footprint(config)
    except (KnownError, OSError):  # each machine says what it lacks of the base
        return Needs()
    return Needs(runs=max(found.runs, MIN_DISK), temp=max(found.temp, MIN_DISK), gpu=found.gpu)
