"""Measure what growing and serving cost: `python ray_jobs/bench.py [SECTION ...] [--json FILE]`.

`serve` is asked for by its name: it needs a store, as `make stream` leaves one.

Every figure is a ratio of times within one run; absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cmoe.common.command_line import Parser
from cmoe.common.files import whole
from cmoe.common.storage import WRITTEN, StorageError, explained
from cmoe.experiments.benchmarks.modeling import SECTIONS


def main() -> int:
    parser = Parser(description=__doc__)
    known = (*SECTIONS, "serve")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(known))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    serve = parser.add_argument_group("serve")
    serve.add_argument("--service", type=Path, default=Path("configs/serve_mini.yaml"))
    serve.add_argument("--store", help="instead of the service's own")
    serve.add_argument("--data", default="runs/data/coin_mini", help="CoIN, for the test samples")
    serve.add_argument("--samples", type=int, default=200, help="of each task")
    asked = parser.parse_args()
    if unknown := set(asked.sections) - set(known):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    from cmoe.common.errors import DataError
    from cmoe.serving.launch import ServiceError

    try:
        with explained(None):
            measure(asked)
    except (ServiceError, DataError, StorageError) as error:
        print(f"bench.py: {error}", file=sys.stderr)
        return 1
    return 0


def measure(asked: argparse.Namespace) -> None:
    if asked.json:  # before hours of measuring
        with explained(asked.json, WRITTEN), asked.json.open("a"):
            pass
    machine = describe(asked.device, asked.dtype)
    print(" · ".join(f"{name} {value}" for name, value in machine.items()))
    figures: dict[str, Any] = {"machine": machine}
    with torch.no_grad():
        for name in asked.sections or SECTIONS:
            if name == "serve":
                from cmoe.serving.bench import load

                section = partial(load, asked.service, asked.store, asked.data, asked.samples)
            else:
                section = partial(SECTIONS[name], asked.device, getattr(torch, asked.dtype))
            print(f"\n{name}: {(section.func.__doc__ or '').splitlines()[0]}")
            figures[name] = section()
            print(table(figures[name]))
    if asked.json:
        with whole(asked.json) as beside:
            beside.write_text(json.dumps(figures, indent=1) + "\n")


def describe(device: str, dtype: str) -> dict[str, str]:
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


if __name__ == "__main__":
    sys.exit(main())
