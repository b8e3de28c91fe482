"""The folder of a short stream's answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.answers import ANSWERS, LOCATED, write_answers, write_stage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the answers, in the folder of a run called `hand`."""
    answered = tmp_path / "hand" / "predictions"
    answered.mkdir(parents=True)
    names: list[str] = []
    for stage, rows in ANSWERS.items():
        names.append(write_answers(answered, stage, rows))
        write_stage(answered, stage, LOCATED[stage], names)
    return answered
