"""Paths where nothing can be kept."""

from __future__ import annotations

from pathlib import Path


def a_file(root: Path) -> Path:
    (root / "taken").write_text("")
    return root / "taken" / "runs" / "a"


def a_circle(root: Path) -> Path:
    (root / "one").symlink_to(root / "two")
    (root / "two").symlink_to(root / "one")
    return root / "one" / "a"


def a_folder(root: Path) -> Path:
    (root / "folder" / "a").mkdir(parents=True)
    return root / "folder"
