"""Measure what growing and serving cost.

`serve` and `recovery` are asked for by name: they need a store, as `make stream` leaves one.
Compare ratios of times within one run: absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from cmoe.common.command_line import Parser
from cmoe.config.shipped import find_config

GROWING = {
    "experts": "experts_of_one_ffn",
    "mixed": "mixed_batch",
    "locate": "locating",
    "placement": "placement",
}
"""Sections about the network, and their functions."""
SERVING = {"serve": "bench.load", "recovery": "recovery.recovery"}
"""Sections about a service, and their functions."""


def main(words: Sequence[str], prog: str) -> int:
    parser = Parser(prog=prog, description=__doc__)
    known = (*GROWING, *SERVING)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(known))
    parser.add_argument("--device", help="by itself cuda, where there is a GPU")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    serve = parser.add_argument_group(", ".join(SERVING))
    serve.add_argument("--service", default="serve_mini", help="Ray Serve's file of it")
    serve.add_argument("--store", help="instead of the service's own")
    serve.add_argument("--data", default="runs/data/coin_mini", help="CoIN, for the test samples")
    serve.add_argument("--samples", type=int, default=200, help="of each task")
    asked = parser.parse_args(words)
    if unknown := set(asked.sections) - set(known):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    try:
        asked.service = find_config(asked.service)
    except ValueError as error:
        parser.error(str(error))
    measure(asked)
    return 0


def measure(asked: argparse.Namespace) -> None:
    import torch

    from cmoe.common.files import whole
    from cmoe.common.storage import explained
    from cmoe.common.storage_errors import WRITTEN

    if asked.json:  # before hours of measuring
        with explained(asked.json, WRITTEN), asked.json.open("a"):
            pass
    device = asked.device or ("cuda" if torch.cuda.is_available() else "cpu")
    machine = describe(device, asked.dtype)
    print(" · ".join(f"{name} {value}" for name, value in machine.items()))
    figures: dict[str, Any] = {"machine": machine}
    with torch.no_grad():
        for name in asked.sections or GROWING:
            section = loaded(name, asked, device)
            print(f"\n{name}: {(section.func.__doc__ or '').splitlines()[0]}")
            figures[name] = section()
            print(table(figures[name]))
    if asked.json:
        with whole(asked.json) as beside:
            beside.write_text(json.dumps(figures, indent=1) + "\n")


def loaded(name: str, asked: argparse.Namespace, device: str) -> partial[list[dict[str, Any]]]:
    """A section, ready to be measured."""
    if name in SERVING:
        module, _, function = SERVING[name].partition(".")
        section = getattr(import_module(f"cmoe.serving.{module}"), function)
        return partial(section, asked.service, asked.store, asked.data, asked.samples)
    import torch

    from cmoe.experiments.benchmarks import growing

    section = getattr(growing, GROWING[name])
    return partial(section, device, getattr(torch, asked.dtype))


def describe(device: str, dtype: str) -> dict[str, str]:
    """The machine that figures are of."""
    import torch

    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": name,
        "threads": str(torch.get_num_threads()),
        "dtype": dtype,
        "torch": torch.__version__,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as an aligned text table."""
    names = list({name: None for row in rows for name in row})
    cells = [names] + [
        [f"{v:.3f}" if isinstance(v := row.get(name), float) else str(v or "-") for name in names]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells
    )
