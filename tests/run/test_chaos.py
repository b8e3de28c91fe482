"""A short form of `make chaos`."""

from __future__ import annotations

from pathlib import Path

from support.chaos import KINDS, chaos


def test_a_run_survives_one_kill_of_each_kind(tmp_path: Path) -> None:
    happened: list[str] = []
    chaos(tmp_path, kills=3, seed=0, show=happened.append)
    for kind in KINDS:
        assert sum(f"{kind} killed" in text for text in happened) == 1
    assert "ended as one that nothing happened to" in happened[-1]
