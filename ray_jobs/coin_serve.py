"""Serve a store over HTTP: `python ray_jobs/coin_serve.py --config FILE [--store URL] [--port N]`.

The file is Ray Serve's own (`serve deploy FILE` takes it, too). Ends with Ctrl-C.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cmoe.common.command_line import Parser

CONFIG, LEARNED = "configs/serve_mini.yaml", "runs/coin_mini/store"


def main() -> int:
    parser = Parser(prog="coin_serve.py", description=__doc__)
    parser.add_argument("--config", default=CONFIG, help="Ray Serve's file of the service.")
    parser.add_argument("--store", help="Folder or s3:// prefix; else that of the file.")
    parser.add_argument("--host", help="Where to listen; else as the file says.")
    parser.add_argument("--port", type=int, help="As --host.")
    parser.add_argument(
        "--no-auth", action="store_true", help="Ask for no API key; on loopback alone."
    )
    parser.add_argument(
        "--make",
        action="store_true",
        help=f"Learn two tasks in a hurry where {LEARNED} isn't there; about two minutes.",
    )
    given = parser.parse_args()
    from cmoe.common.errors import DataError, RunError
    from cmoe.common.storage import StorageError, explained
    from cmoe.serving.launch import ServiceError, read_service, serving

    store = given.store
    try:
        with explained(None):
            if given.make and not (Path(LEARNED) / "stream.json").is_file():
                store = store or smallest_store()
            service = read_service(
                Path(given.config),
                store=store,
                host=given.host,
                port=given.port,
                auth=False if given.no_auth else None,
            )
            with serving(service):
                print(f"{service.url} answers; Ctrl-C ends it", flush=True)
                service.wait()
    except (ServiceError, RunError, DataError, StorageError) as error:
        print(f"coin_serve.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
        return 130
    return 0


def smallest_store() -> str:
    """A store to look at: two tasks of the mini stream, learned in a hurry."""
    from dataclasses import replace

    from cmoe.config.parse import parse
    from cmoe.run.launch import run

    config = parse(["--config", "configs/coin_mini.yaml", "--name", "coin_smallest"])
    data = replace(
        config.data,
        root="runs/data/coin_smallest",
        tasks=config.data.tasks[:2],
        train_samples=320,
        test_samples=20,
    )
    training = replace(config.training, steps=40)
    run(replace(config, data=data, training=training))
    return f"{config.url}/store"


if __name__ == "__main__":
    sys.exit(main())
