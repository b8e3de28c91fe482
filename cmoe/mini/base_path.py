"""Where the mini base lies."""

from pathlib import Path

MINI_BASE = Path(__file__).parent / "base"
"""Folder of the mini base; loads like any model of the hub."""
