"""Learn a stream of tasks: `python ray_jobs/coin_stream.py --config FILE [--key value]`."""

from __future__ import annotations

import sys

from cmoe.config import parse


def main() -> int:
    config = parse(prog="coin_stream.py")
    from cmoe.data.coin import DataError
    from cmoe.evaluation.results import table
    from cmoe.training.launch import RunError, run

    try:
        found = run(config)
    except (RunError, DataError) as error:
        print(f"coin_stream.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(f"\n{table(found)}\n\n{config.folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
