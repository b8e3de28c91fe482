"""Learn a stream of tasks: `python ray_jobs/coin_stream.py --config FILE [--key value]`.

With `--plan` it prints what the run would need and starts nothing, `--plan.gpus 8` for that many
GPUs; its status is 1 if the run doesn't fit. With `--methods cmoe,lora,...` every one of them
learns the stream, with every one of `seeds`, and they are compared.
"""

from __future__ import annotations

import sys

from cmoe.common.command_line import refuse
from cmoe.config.parse import parse_job
from cmoe.config.settings import PlanConfig
from cmoe.config.tree import RunConfig
from cmoe.experiments.comparison.settings import CompareConfig


def main() -> int:
    config, settings, parts = parse_job({"": CompareConfig}, prog="coin_stream.py")
    if settings is not None:
        return plan(config, settings)
    from cmoe.common.errors import DataError, RunError
    from cmoe.common.storage import StorageError, explained

    how = parts[""]
    if how.names:
        from cmoe.experiments.comparison.runs import require_possible

        try:
            require_possible(config, how)
        except RunError as error:
            refuse("coin_stream.py", [str(error)])
    try:
        with explained(None):
            page = compared(config, how) if how.names else streamed(config)
    except (RunError, DataError, StorageError) as error:
        print(f"coin_stream.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(f"\n{config.url}/{page}")
    return 0


def streamed(config: RunConfig) -> str:
    from cmoe.evaluation.results import table
    from cmoe.reports.run_page import write_run_page
    from cmoe.run.launch import run

    found = run(config)
    write_run_page(config.url)
    print(f"\n{table(found)}")
    return "report.html"


def compared(config: RunConfig, how: CompareConfig) -> str:
    from cmoe.experiments.comparison.compare import compare
    from cmoe.experiments.comparison.summary import table

    print(f"\n{table(compare(config, how))}")
    return "comparison.html"


def plan(config: RunConfig, settings: PlanConfig) -> int:
    from cmoe.common.errors import DataError
    from cmoe.common.storage import StorageError, explained
    from cmoe.experiments.planning.plan import lines, make_plan
    from cmoe.modeling.base import UnsupportedModelError
    from cmoe.modeling.pretrained import MissingModelError

    try:
        with explained(None):
            made = make_plan(config, settings)
    except (MissingModelError, UnsupportedModelError, DataError, StorageError) as error:
        print(f"coin_stream.py: {error}", file=sys.stderr)
        return 1
    print("\n".join(lines(made)))
    return 0 if made.fits else 1


if __name__ == "__main__":
    sys.exit(main())
