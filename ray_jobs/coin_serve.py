"""Serve a store over HTTP: `python ray_jobs/coin_serve.py --config FILE [--store URL] [--port N]`.

The same as `cmoe serve`.
"""

import sys

from cmoe.cli.main import execute
from cmoe.cli.serve import main

if __name__ == "__main__":
    sys.exit(execute(main, "coin_serve.py"))
