"""A clock that is off, and that is set while programs run: theirs alone, in Python and in C++."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("shifted_clock.c")


class Clock:
    """The time of day of programs that are started with `environment`.

    Args:
        folder: Has room for it.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or pytest.skip("no C compiler: no clock can be wrong")
        library, self._file = folder / "clock.so", folder / "clock"
        command = [compiler, "-shared", "-fPIC", "-o", library, SOURCE, "-ldl", "-lpthread"]
        subprocess.run(command, check=True)
        self._file.write_bytes(struct.pack("d", 0.0))
        self.environment = {"LD_PRELOAD": str(library), "CMOE_TEST_CLOCK": str(self._file)}

    def set(self, hours: float) -> None:
        """Set it so far off, from now on."""
        with open(self._file, "r+b") as file:
            file.write(struct.pack("d", hours * 3600))
