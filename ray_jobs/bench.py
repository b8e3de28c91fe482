"""Measure what growing costs: `python ray_jobs/bench.py [SECTION ...] [--json FILE]`.

Every figure is a ratio of times within one run; absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cmoe.benchmarks.modeling import SECTIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    asked = parser.parse_args()
    if unknown := set(asked.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")

    machine = describe(asked.device, asked.dtype)
    print(" · ".join(f"{name} {value}" for name, value in machine.items()))
    figures: dict[str, Any] = {"machine": machine}
    with torch.no_grad():
        for name in asked.sections or SECTIONS:
            section = SECTIONS[name]
            print(f"\n{name}: {(section.__doc__ or '').splitlines()[0]}")
            figures[name] = section(asked.device, getattr(torch, asked.dtype))
            print(table(figures[name]))
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=1) + "\n")


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
    """Rows with the same keys as an aligned text table."""
    cells = [list(rows[0])] + [
        [f"{v:.3f}" if isinstance(v, float) else str(v or "-") for v in row.values()]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells
    )


if __name__ == "__main__":
    main()
