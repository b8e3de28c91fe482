"""What a choice of layers is worth: `python ray_jobs/coin_choice.py --config FILE`.

The same as `cmoe choice`.
"""

import sys

from cmoe.cli.choice import main
from cmoe.cli.main import execute

if __name__ == "__main__":
    sys.exit(execute(main, "coin_choice.py"))
