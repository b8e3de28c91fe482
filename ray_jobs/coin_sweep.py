"""Search how much to grow, task by task: `python ray_jobs/coin_sweep.py --config FILE`.

The same as `cmoe sweep`.
"""

import sys

from cmoe.cli.main import execute
from cmoe.cli.sweep import main

if __name__ == "__main__":
    sys.exit(execute(main, "coin_sweep.py"))
