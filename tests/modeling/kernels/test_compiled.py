"""What runs in the interpreter compiles for a GPU as well."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(
    find_spec("triton") is None or sys.platform != "linux", reason="its compiler isn't here"
)
def test_all_kernels_compile_for_a_gpu() -> None:
    from support import __path__ as support

    script = Path(next(iter(support))) / "compiled_kernels.py"
    plain = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    words = [sys.executable, str(script), "80", "bf16"]
    done = subprocess.run(words, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {line.split()[0] for line in done.stdout.splitlines()}
    assert names == {"_route", "_shrink", "_expand_swiglu", "_expand_swiglu_backward"}
