"""Serve a store over HTTP: `python ray_jobs/coin_serve.py --config FILE [--store URL] [--port N]`.

The file is Ray Serve's own (`serve deploy FILE` takes it, too). Ends with Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

CONFIG = "configs/serve_mini.yaml"


def main() -> int:
    parser = argparse.ArgumentParser(prog="coin_serve.py", description=__doc__)
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
        help="Learn the smallest stream there is (two minutes) where there is no store.",
    )
    given = parser.parse_args()
    from cmoe.serving.launch import ServiceError, read_service, serving

    try:
        service = read_service(
            Path(given.config),
            store=given.store,
            host=given.host,
            port=given.port,
            auth=False if given.no_auth else None,
        )
        if given.make:
            make_store(Path(service.config.store))
        with serving(service):
            print(f"{service.url} answers; Ctrl-C ends it", flush=True)
            service.wait()
    except ServiceError as error:
        print(f"coin_serve.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
        return 130
    return 0


def make_store(store: Path) -> None:
    """A store to look at: two tasks of the mini stream, learned badly."""
    from cmoe.store import HEADER

    if (store / HEADER).is_file():
        return
    from dataclasses import replace

    from cmoe.config import parse
    from cmoe.training.launch import run

    folder = store.parent
    config = parse(["--config", "configs/coin_mini.yaml"])
    run(
        replace(
            config,
            name=folder.name,
            runs=str(folder.parent),
            data=replace(
                config.data, tasks=config.data.tasks[:2], train_samples=320, test_samples=20
            ),
            training=replace(config.training, steps=40),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
