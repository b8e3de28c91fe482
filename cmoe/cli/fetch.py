"""Bring the base of a run or a service to this machine: from the hub, or from a mirror on S3.

It goes where runs and services look for it (HF_HUB_CACHE), so what starts here later downloads
nothing: for images of machines, and for a job that runs once on each node.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmoe.common.command_line import Parser
from cmoe.config.shipped import find_config

if TYPE_CHECKING:
    from cmoe.modeling.settings import ModelConfig

GIB = 2**30


def main(words: Sequence[str], prog: str) -> int:
    parser = Parser(prog=prog, description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--config", help="of a run, or Ray Serve's file of a service")
    which.add_argument("--model", help="hub name, or s3://bucket/prefix")
    parser.add_argument("--revision", help="of a hub name")
    asked = parser.parse_args(words)
    if asked.revision and not asked.model:
        parser.error("--revision is of --model; a configuration has its own")
    try:
        file = None if asked.config is None else find_config(asked.config)
    except ValueError as error:
        parser.error(str(error))
    from cmoe.modeling.pretrained import fetch_base
    from cmoe.modeling.settings import ModelConfig

    model = ModelConfig(asked.model, asked.revision) if file is None else _configured(file, prog)
    folder = fetch_base(model.path, revision=model.revision)
    sizes = [each.stat().st_size for each in folder.iterdir() if each.is_file()]
    print(f"{model.name}: {len(sizes)} files, {sum(sizes) / GIB:.2f} GiB in {folder}")
    return 0


def _configured(file: Path, prog: str) -> ModelConfig:
    """The base of a configuration: a run's, a service's, or that of the service's store."""
    from cmoe.config.parse import parse

    if file.is_file() and re.search(r"^applications:", file.read_text("utf-8"), re.MULTILINE):
        from cmoe.serving.bases import base_of
        from cmoe.serving.service_file import read_file
        from cmoe.store.log import Store

        config = read_file(file).config
        return config.model or base_of(Store.follow(config.store), config)
    return parse(["--name", "fetched", "--config", str(file)], prog).model
