"""Serve a store over HTTP. The file is Ray Serve's own; Ctrl-C ends the service."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cmoe.common.command_line import Parser
from cmoe.common.log_lines import log_line, say
from cmoe.config.shipped import find_config

CONFIG, LEARNED = "serve_mini", "runs/coin_mini/store"


def main(words: Sequence[str], prog: str) -> int:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument(
        "--config", default=CONFIG, help=f"Ray Serve's file of the service; {CONFIG} by itself."
    )
    parser.add_argument("--store", help="Folder, s3:// prefix or hf://owner/name; else the file's.")
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
    given = parser.parse_args(words)
    try:
        file = find_config(given.config)
    except ValueError as error:
        parser.error(str(error))
    from cmoe.serving.launch import read_service, serving
    from cmoe.store.log import HEADER

    store = given.store
    if given.make and not (Path(LEARNED) / HEADER).is_file():
        store = store or smallest_store()
    try:
        service = read_service(
            file,
            store=store,
            host=given.host,
            port=given.port,
            auth=False if given.no_auth else None,
        )
        with serving(service):
            say(f"{service.url} answers; Ctrl-C ends it")
            service.wait()
    except KeyboardInterrupt:
        print(log_line("ended"), file=sys.stderr)
        return 130
    return 0


def smallest_store() -> str:
    """A store to look at: two tasks of the mini stream, learned in a hurry."""
    from cmoe.config.parse import parse
    from cmoe.run.launch import run

    config = parse(["--config", "coin_mini", "--name", "coin_smallest"])
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
