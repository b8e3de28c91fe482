"""Tell where a run is, from its files alone: no Ray is asked, so it works from any machine.

RUN is a run's folder, or a folder of runs, which are listed. The status is 0 if the run goes on or
is finished, and 3 if it stands still: interrupted, failed, lost (its driver has gone without a
word), stopped. Of several runs it is 3 if any stands still.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from cmoe.common.command_line import Parser

STANDS_STILL = 3


def main(words: Sequence[str], prog: str) -> int:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument(
        "run", metavar="RUN", help="a run's folder or s3://bucket/prefix, or a folder of runs"
    )
    parser.add_argument("--json", action="store_true", help="one object of JSON")
    asked = parser.parse_args(words)
    from cmoe.common.storage import require_reachable
    from cmoe.operations.runs import is_run
    from cmoe.operations.status import runs_in, status_of, statuses
    from cmoe.operations.status_text import page, table

    url = asked.run.rstrip("/") or asked.run
    require_reachable(url)
    if is_run(url):
        found = [status_of(url)]
        text, value = page(found[0]), asdict(found[0])
    else:
        found = statuses(runs_in(url))
        text, value = table(found), {"runs": [asdict(each) for each in found]}
    print(json.dumps(value, indent=1) if asked.json else text)
    return 0 if all(each.well for each in found) else STANDS_STILL
