"""Measure what growing and serving cost.

`gpu`, `control`, `serve` and `recovery` are asked for by name. The last two need a store, as
`make stream` leaves one.
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
CARD = {"gpu": "gpu.costs_on_a_card"}
"""The section about a whole base on a card, and its function."""
CONTROL = {"control": "control.control"}
"""The section about what isn't computing, for several numbers of workers, and its function."""
SERVING = {"serve": "bench.load", "recovery": "recovery.recovery"}
"""Sections about a service, and their functions."""


def main(words: Sequence[str], prog: str) -> int:
    parser = Parser(prog=prog, description=__doc__)
    known = (*GROWING, *CARD, *CONTROL, *SERVING)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(known))
    parser.add_argument("--device", help="by itself cuda, where there is a GPU")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="by itself float32; of gpu bfloat16"
    )
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    card = parser.add_argument_group(", ".join(CARD))
    card.add_argument("--base", help="by itself LLaVA-1.5-7B's shape with random weights")
    card.add_argument("--tiny", action="store_true", help="the mini base in float32, small batches")
    card.add_argument("--seconds", type=float, default=600, help="what would pass it is left out")
    control = parser.add_argument_group(", ".join(CONTROL))
    control.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64], help="by threads")
    serve = parser.add_argument_group(", ".join(SERVING))
    serve.add_argument("--service", default="serve_mini", help="Ray Serve's file of it")
    serve.add_argument("--store", help="instead of the service's own")
    serve.add_argument("--data", default="runs/data/coin_mini", help="CoIN, for the test samples")
    serve.add_argument("--samples", type=int, default=200, help="of each task")
    asked = parser.parse_args(words)
    if unknown := set(asked.sections) - set(known):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if (least := min(asked.workers)) < 1:
        parser.error(f"--workers is {least}; 1 or more")
    if asked.tiny:
        if asked.base is not None:
            parser.error("--tiny is the mini base; leave --base out")
        asked.base = "mini"
    if asked.dtype is None:
        whole = not asked.tiny and set(asked.sections) & set(CARD)
        asked.dtype = "bfloat16" if whole else "float32"
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
    if name in CONTROL:
        module, _, function = CONTROL[name].partition(".")
        section = getattr(import_module(f"cmoe.experiments.benchmarks.{module}"), function)
        return partial(section, asked.workers)
    import torch

    dtype = getattr(torch, asked.dtype)
    if name in CARD:
        module, _, function = CARD[name].partition(".")
        section = getattr(import_module(f"cmoe.experiments.benchmarks.{module}"), function)
        return partial(section, device, dtype, asked.base, asked.tiny, asked.seconds)
    from cmoe.experiments.benchmarks import growing

    section = getattr(growing, GROWING[name])
    return partial(section, device, dtype)


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
    cells = [names] + [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
