"""`cmoe sweep`: search how much to grow, task by task.

The winners make a stream of their own in the run's folder. At the end it is judged on the test
split, beside the stream of the configuration itself and beside one that grows everywhere. With
`--task NAME --store FOLDER` one task is swept, and its winner added to a store that is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cmoe.common.command_line import refuse
from cmoe.common.log_lines import say
from cmoe.config.parse import parse_with
from cmoe.config.tree import RunConfig
from cmoe.experiments.sweep.settings import BranchConfig, BudgetConfig, SearchConfig


def main(words: Sequence[str], prog: str) -> int:
    sections = {"search": SearchConfig, "budget": BudgetConfig, "": BranchConfig}
    run, parts = parse_with(sections, words, prog)
    from cmoe.experiments.sweep.sweep import SweepConfig, sweep
    from cmoe.reports.sweep_page import write_sweep_report

    try:
        config = SweepConfig(run, parts["search"], parts["budget"], parts[""])
    except ValueError as error:
        refuse(prog, [str(error)])
    said = sweep(config)
    write_sweep_report(run.folder, said, {})
    streams = {} if config.branch.task else compared(run)
    write_sweep_report(run.folder, said, streams)
    for name, found in streams.items():
        measures, added = found["metrics"], found["parameters"]["added"]
        say(f"{name}: Last {measures['last']:.1f}, BWT {measures['bwt']:+.1f}, {added:,} added")
    say(str(run.folder / "sweep.html"))
    return 0


def compared(run: RunConfig) -> dict[str, Any]:
    """On the test split: the winners' stream, the configuration's, one that grows everywhere."""
    from cmoe.evaluation.data_identity import claim_data, trained_on
    from cmoe.folder import RunFolder
    from cmoe.reports.run_page import write_run_page
    from cmoe.run.launch import run as run_stream

    runs = {
        "winners": run,
        "default": replace(run, name=f"{run.name}_default"),
        "expand_all": replace(
            run, name=f"{run.name}_expand_all", probe=replace(run.probe, enabled=False)
        ),
    }
    for one in runs.values():  # all learn from the data that was swept
        RunFolder(one.folder, one.url).claim(one.as_dict())
        claim_data(one.folder, trained_on(run.folder))
    found = {}
    for name, one in runs.items():
        found[name] = run_stream(one)
        write_run_page(one.url)
    return found
