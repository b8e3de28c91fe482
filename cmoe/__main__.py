"""`python -m cmoe`: the command `cmoe`."""

import sys

from cmoe.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
