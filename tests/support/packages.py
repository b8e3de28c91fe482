"""Packages that bring methods or scorers, installed where a process of a test finds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.forking import PYTHONPATH
from support.paths import ROOT

PULLED = ROOT / "tests" / "support" / "pulled"


def install(package: Path, folder: Path) -> dict[str, str]:
    """Install a package into a folder, without what it needs; gives the environment to see it."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder), str(package)], check=True)
    return visible(folder)


def write_package(
    folder: Path, name: str, source: str, group: str = "cmoe.methods", points: str = ""
) -> dict[str, str]:
    """A package of one module, as if it were installed; gives the environment to see it.

    Args:
        folder: To write it to.
        name: The package's.
        source: Of its module.
        group: Of its entry points.
        points: These; without, its module is the only one.
    """
    module = name.replace("-", "_")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{points or f'{module} = {module}'}\n")
    (folder / f"{module}.py").write_text(source)
    return visible(folder)


def visible(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([PYTHONPATH, str(folder)])}
