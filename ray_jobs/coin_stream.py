"""Learn a stream of tasks: `python ray_jobs/coin_stream.py --config FILE [--key value]`."""

from __future__ import annotations

import sys

from cmoe.config import parse


def main() -> int:
    config = parse(prog="coin_stream.py")
    from cmoe.data.coin import DataError
    from cmoe.training.launch import RunError, run

    try:
        matrix = run(config)
    except (RunError, DataError) as error:
        print(f"coin_stream.py: {error}", file=sys.stderr)
        return 1
    print(matrix["metrics"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
