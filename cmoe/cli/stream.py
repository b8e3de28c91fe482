"""`cmoe run`, `cmoe compare` and `cmoe plan`: a stream of tasks, by one method or by several."""

from __future__ import annotations

from collections.abc import Sequence

from cmoe.common.command_line import refuse
from cmoe.common.log_lines import say
from cmoe.config.parse import parse, parse_job, parse_with
from cmoe.config.settings import PlanConfig
from cmoe.config.tree import RunConfig
from cmoe.experiments.comparison.settings import CompareConfig


def run(words: Sequence[str], prog: str) -> int:
    """One method learns the stream."""
    return _learn(parse(words, prog))


def compare(words: Sequence[str], prog: str) -> int:
    """Every one of `methods` learns the stream, with every one of `seeds`."""
    config, parts = parse_with({"": CompareConfig}, words, prog)
    if not parts[""].names:
        refuse(prog, ["no methods; give --methods cmoe,lora, or methods in the file of --config"])
    return _compare(config, parts[""], prog)


def plan(words: Sequence[str], prog: str) -> int:
    """What the run would need; the status is 1 if it doesn't fit."""
    return coin_stream(["--plan", *words], prog)


def coin_stream(words: Sequence[str], prog: str) -> int:
    """All three: a plan where `--plan` asks for it, a comparison where `methods` names any."""
    config, settings, parts = parse_job({"": CompareConfig}, words, prog)
    if settings is not None:
        return _plan(config, settings)
    how = parts[""]
    return _compare(config, how, prog) if how.names else _learn(config)


def _learn(config: RunConfig) -> int:
    from cmoe.evaluation.results import table
    from cmoe.folder import PAGE
    from cmoe.reports.run_page import write_run_page
    from cmoe.run import launch

    found = launch.run(config)
    write_run_page(config.url)
    say(f"\n{table(found)}")
    say(f"\n{config.url}/{PAGE}")
    return 0


def _compare(config: RunConfig, how: CompareConfig, prog: str) -> int:
    from cmoe.common.errors import RunError
    from cmoe.experiments.comparison import compare as comparison
    from cmoe.experiments.comparison.runs import require_possible
    from cmoe.experiments.comparison.summary import table
    from cmoe.reports.comparison_page import PAGE

    try:
        require_possible(config, how)
    except RunError as error:
        refuse(prog, [str(error)])
    say(f"\n{table(comparison.compare(config, how))}")
    say(f"\n{config.url}/{PAGE}")
    return 0


def _plan(config: RunConfig, settings: PlanConfig) -> int:
    from cmoe.experiments.planning.plan import lines, make_plan

    made = make_plan(config, settings)
    print("\n".join(lines(made)))
    return 0 if made.fits else 1
