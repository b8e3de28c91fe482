"""A run's folder: every file by one name, whose it is, and whether the run is finished.

    config.yaml              how the run is configured; written once, and the run is its own
    data.json                which data it is of (`evaluation.data_identity`)
    store/                   the log of primitives (`store.log`)
    stages/<task>.json       what a task took and how its losses went; `base.json` of the base
    predictions/             who answers which test sample, and what was said:
        answers-<stage>-<digest>.parquet, stage-<stage>.parquet, survey-<task>.safetensors
    coin/<Task>.jsonl        the latest answers as CoIN's prediction files
    matrix.json              the figures; with a row of every task the run is finished
    report.json              what its pages show; report.html and report.md are made of it
    run.log                  what the run said
    status.json              where the run is, as its driver wrote it last (`run.monitoring`)
    tracked.json             which steps trackers got; tensorboard/, wandb/: what two of them keep
    train/                   Ray Train's own part, with the checkpoints
    lease/                   who drives the run
    sweep.json, sweep/       of a sweep: what was tried, and the candidates; sweep.html shows it
    choice.json, choice/     of a study of a choice: its sets of layers; choice.html shows it

A run on S3 has the same files below its prefix. A copy on this machine is worked in; `store`,
`train` and `lease` are used in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cmoe.common.errors import RunError
from cmoe.common.files import whole
from cmoe.common.run_files import RunFileError, read_object, read_settings, write_json

CONFIG, DATA, MATRIX, LOG = "config.yaml", "data.json", "matrix.json", "run.log"
REPORT, PAGE, CARD = "report.json", "report.html", "report.md"
TRACKED, STATUS, STATUS_FORMAT = "tracked.json", "status.json", 1
STORE, STAGES, PREDICTIONS, COIN = "store", "stages", "predictions", "coin"
TRAIN, LEASE, SWEEP = "train", "lease", "sweep.json"
APART = (STORE, TRAIN, LEASE)
"""What isn't copied to the machine that works on a run."""
BEGUN = (CONFIG, DATA, MATRIX, REPORT, LOG, TRACKED, STATUS, STAGES)
"""What tells how far a run is."""
NEUTRAL = ("runs", "cluster", "trackers", "wandb", "mlflow")
"""Settings that may change when a run resumes: where and how fast, not what comes out."""
ALONE = "base"
"""Stands for the frozen base where tasks are named."""


class RunFolder:
    """The folder of one run on this machine.

    Args:
        path: Of the folder, or of the copy of one on S3; it need not be there yet.
        url: Where the run is kept.

    Attributes:
        config: `config.yaml`, and so on: paths of the files above.
        store: URL of the log of primitives.
    """

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url
        self.config, self.data = path / CONFIG, path / DATA
        self.matrix, self.report, self.log = path / MATRIX, path / REPORT, path / LOG
        self.tracked, self.status = path / TRACKED, path / STATUS
        self.stages, self.predictions, self.coin = path / STAGES, path / PREDICTIONS, path / COIN
        self.store = f"{url}/{STORE}"

    def notes(self, index: int) -> Path:
        """What a task took; beside the store, as times differ between runs.

        Args:
            index: Of the task, or -1 for the base alone.
        """
        return self.stages / (f"{index:03d}.json" if index >= 0 else f"{ALONE}.json")

    # Whose it is

    def claim(self, config: Mapping[str, Any]) -> None:
        """Make the folder, and keep the configuration there if none is."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.config.is_file():
            with whole(self.config) as beside:
                beside.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")

    def require_same(self, config: Mapping[str, Any]) -> None:
        """Refuse to resume a run of this name that was configured otherwise.

        Raises:
            RunError: Names the keys that differ, with both values.
            RunFileError: `config.yaml` is damaged.
        """
        if not self.config.is_file():
            return
        if changed := differences(self.read_config(), config):
            listed = "\n  ".join(changed)
            raise RunError(
                f"{self.config}: the run {config['name']!r} was configured otherwise; set these "
                f"back, or give this run another name:\n  {listed}"
            )

    # How far it is

    def finished(self) -> dict[str, Any] | None:
        """The figures of a run that has come to its end; None where it hasn't.

        Raises:
            RunFileError: `config.yaml` or `matrix.json` is damaged.
        """
        if not (self.matrix.is_file() and self.config.is_file()):
            return None
        found = self.read_matrix()
        tasks = self.read_config()["data"]["tasks"]
        return found if len(found["located"]) == len(tasks) else None

    def read_config(self) -> dict[str, Any]:
        """How the run was configured.

        Raises:
            RunFileError: `config.yaml` is lost or damaged.
        """
        remedy = "restore it from a copy, or give the run another name"
        return read_settings(self.config, remedy)

    def read_matrix(self) -> dict[str, Any]:
        """The run's figures so far.

        Raises:
            RunFileError: `matrix.json` is lost or damaged.
        """
        remedy = "remove it, and the same command writes it again"
        found = read_object(self.matrix, remedy, "located")
        if not isinstance(found["located"], list):
            raise RunFileError(f"{self.matrix}: damaged: located is no list; {remedy}")
        return found

    def read_notes(self, index: int) -> dict[str, Any]:
        """What was noted of a task, or of the base alone (-1); nothing where no file is.

        Raises:
            RunFileError: The file is damaged.
        """
        file = self.notes(index)
        remedy = (
            "restore it from a copy, or remove it: the task's times and losses are unknown then"
        )
        return read_object(file, remedy) if file.is_file() else {}

    def read_status(self) -> dict[str, Any]:
        """What the driver wrote last of where the run is; nothing where it wrote nothing.

        Raises:
            RunFileError: The file is damaged, or of another version.
        """
        if not self.status.is_file():
            return {}
        remedy = "remove it, and the same command writes it again"
        found = read_object(self.status, remedy, "format", "state")
        if found["format"] != STATUS_FORMAT:
            raise RunFileError(
                f"{self.status}: of format {found['format']}, not {STATUS_FORMAT}: another version "
                f"of cmoe wrote it; {remedy}"
            )
        return found

    def note(self, index: int, values: Mapping[str, Any]) -> None:
        """Add to what is noted of a task, or of the base alone (-1)."""
        write_json(self.notes(index), {**self.read_notes(index), **values})


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The keys in which two runs' configurations differ, with both values; neutral parts aside."""
    old, new = by_key(before), by_key(after)
    keys = sorted({*old, *new})
    return [f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in keys if old.get(k) != new.get(k)]


def by_key(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings by their keys as on the command line; neutral parts aside."""
    flat = _flat(values)
    return {key: value for key, value in flat.items() if key.split(".")[0] not in NEUTRAL}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        flat |= _flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat
