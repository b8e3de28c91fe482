"""The wheel holds the package with its assets, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from support.paths import ROOT


def test_the_wheel_holds_the_package_with_its_assets(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("cmoe-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "cmoe").rglob("*.py")}
    assets = {str(p.relative_to(ROOT)) for p in (ROOT / "cmoe/mini/base").iterdir() if p.is_file()}
    assert "cmoe/mini/base/model.safetensors" in assets
    assert modules | assets <= names
    assert not [n for n in names if n.endswith((".pt", ".bin", ".pkl"))]
    assert {n.split("/")[0].split("-")[0] for n in names} == {"cmoe"}
