"""Look at a cluster before a run: `python ray_jobs/check.py cluster --config FILE [--key value]`.

The same as `cmoe check`. Its status is 1 if something is wrong.
"""

import sys

from cmoe.cli.check import main
from cmoe.cli.main import execute

if __name__ == "__main__":
    sys.exit(execute(main, "check.py"))
