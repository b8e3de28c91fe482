"""Another process that holds a run's lease."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from support.paths import ROOT

HOLD = (
    "import sys, time\n"
    "from cmoe.run.lease import held\n"
    "with held(sys.argv[1]):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)\n"
)


def holding(url: str) -> Iterator[subprocess.Popen[str]]:
    """One that has it until the body has ended."""
    command = [sys.executable, "-c", HOLD, url]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=-1, stderr=-1)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
