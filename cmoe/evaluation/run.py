"""The files of a run's folder: their names, and those of plain values read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cmoe.common.run_files import RunFileError, read_object, read_settings

CONFIG, STORE, PREDICTIONS, STAGES = "config.yaml", "store", "predictions", "stages"
MATRIX, REPORT = "matrix.json", "report.json"
COIN, TRAIN, LEASE = "coin", "train", "lease"
# Of a run's folder: the log, Ray's own part with the checkpoints, and who drives the run.
APART = (STORE, TRAIN, LEASE)
ALONE = "base"  # stands for the frozen base where tasks are named


def notes_file(folder: Path, index: int) -> Path:
    """What a task took, and how its losses went; beside the store, as times differ between runs.

    Args:
        folder: The run's.
        index: Of the task, or -1 for the base alone.
    """
    return folder / STAGES / (f"{index:03d}.json" if index >= 0 else f"{ALONE}.json")


def read_config(folder: Path) -> dict[str, Any]:
    """How a run was configured.

    Raises:
        RunFileError: `config.yaml` is damaged.
    """
    remedy = "restore it from a copy, or give the run another name"
    return read_settings(folder / CONFIG, remedy)


def read_matrix(folder: Path) -> dict[str, Any]:
    """A run's figures so far.

    Raises:
        RunFileError: `matrix.json` is damaged.
    """
    remedy = "remove it, and the same command writes it again"
    found = read_object(folder / MATRIX, remedy, "located")
    if not isinstance(found["located"], list):
        raise RunFileError(f"{folder / MATRIX}: damaged: located is no list; {remedy}")
    return found


def read_notes(folder: Path, index: int) -> dict[str, Any]:
    """What was noted of a task, or of the base alone; nothing where no file is.

    Raises:
        RunFileError: The file is damaged.
    """
    file = notes_file(folder, index)
    remedy = "restore it from a copy, or remove it: the task's times and losses are unknown then"
    return read_object(file, remedy) if file.is_file() else {}
