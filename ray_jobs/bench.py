"""Measure what growing and serving cost: `python ray_jobs/bench.py [SECTION ...] [--json FILE]`.

The same as `cmoe bench`.
"""

import sys

from cmoe.cli.bench import main
from cmoe.cli.main import execute

if __name__ == "__main__":
    sys.exit(execute(main, "bench.py"))
