"""Compare the locator's features and scores: `python ray_jobs/coin_locate.py --config FILE`.

The same as `cmoe locate`.
"""

import sys

from cmoe.cli.locate import main
from cmoe.cli.main import execute

if __name__ == "__main__":
    sys.exit(execute(main, "coin_locate.py"))
