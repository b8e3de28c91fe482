"""CoIN's files to Parquet: `python ray_jobs/coin_prepare.py --root DIR --out DIR_OR_URL`.

The same as `cmoe prepare`.
"""

import sys

from cmoe.cli.main import execute
from cmoe.cli.prepare import main

if __name__ == "__main__":
    sys.exit(execute(main, "coin_prepare.py"))
