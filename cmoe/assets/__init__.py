"""The embedded default: a tiny vision-language model and the script that rebuilds it."""

from pathlib import Path

MINI_BASE = Path(__file__).parent / "mini_base"
"""Folder of the mini base; loads like any model of the hub."""
