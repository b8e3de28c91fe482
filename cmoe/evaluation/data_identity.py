"""Which data a run is of: `data.json` in its folder, which other data is held against.

A run is its configuration and its data. Of every task it keeps a fingerprint of each split that it
reads, and of what an answer file says. What was finished stays so: its figures belong to the data
that its file names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cmoe.common.errors import DataError
from cmoe.common.run_files import RunFileError, digest_of, read_object, write_json
from cmoe.data.coin import read_tasks
from cmoe.data.fingerprint import (
    Fingerprint,
    ImageFile,
    change,
    fingerprint,
    fingerprint_of_values,
    image_files,
)
from cmoe.data.paraphrases import original
from cmoe.data.samples import Task
from cmoe.data.settings import DataConfig
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.evaluation.targets import Targets, answer_files, stream_targets

DATA = "data.json"
FORMAT = 1
TRAIN, ANSWERS = "train", "answers"

Fingerprints = Mapping[str, Mapping[str, Fingerprint]]
"""By task and part: `train`, `test` or `selection`, and `answers` where a file has them."""


def fingerprints(
    tasks: Sequence[Task], targets: Targets, data: DataConfig, evaluation: EvaluationConfig
) -> Fingerprints:
    """Of all that a stream reads.

    Args:
        tasks: The stream.
        targets: Of its test samples.
        data: Where it is from.
        evaluation: Names the files of answers.

    Raises:
        DataError: An image is missing.
    """
    splits = [split for task in tasks for split in (original(task.train), task.test)]
    files = image_files(splits, data.root)
    return _fingerprints(tasks, targets, data, evaluation, files)


def _fingerprints(
    tasks: Sequence[Task],
    targets: Targets,
    data: DataConfig,
    evaluation: EvaluationConfig,
    files: Mapping[Path, ImageFile],
) -> Fingerprints:
    found = {
        task.name: {
            TRAIN: fingerprint(original(task.train), data.root, files),
            data.evaluate_on: fingerprint(task.test, data.root, files),
        }
        for task in tasks
    }
    for name in found.keys() & answer_files(data, evaluation).keys():
        answers = {k: [t.answer, t.answers, t.size, t.choices] for k, t in targets[name].items()}
        found[name][ANSWERS] = fingerprint_of_values(answers)
    return found


def require_same_rows(
    folder: Path,
    tasks: Sequence[Task],
    targets: Targets,
    data: DataConfig,
    evaluation: EvaluationConfig,
) -> None:
    """Refuse rows that aren't those that a run was started with.

    For workers, which read them anew whenever they start again; they don't look at images.

    Raises:
        DataError: Names tasks and splits.
        RunFileError: `data.json` is damaged.
    """
    before = kept_data(folder)
    changed = [
        f"{task}, {part}"
        for task, parts in _fingerprints(tasks, targets, data, evaluation, {}).items()
        for part, now in parts.items()
        if (was := before.get(task, {}).get(part)) and was.rows != now.rows
    ]
    if changed:
        raise DataError(
            f"{data.root}: rows changed since the run was started, or are others on this machine: "
            f"{'; '.join(changed)}. Put them back, and the same command goes on"
        )


def claim_data(folder: Path, found: Fingerprints) -> None:
    """Keep what a run is of, or hold it against what was kept; parts that are new are added.

    Args:
        folder: The run's.
        found: Its data as it is now.

    Raises:
        DataError: Some of it was other data when the run began; names task, split and sample.
        RunFileError: `data.json` is damaged.
    """
    before = kept_data(folder)
    changed = [
        f"{task}, {part}: {what}"
        for task, parts in found.items()
        for part, now in parts.items()
        if (was := before.get(task, {}).get(part)) and (what := change(was, now))
    ]
    if changed:
        listed = "\n  ".join(changed)
        raise DataError(
            f"{folder / DATA}: the data isn't what this run began with; put it back, or give the "
            "run another name. To go on with the data as it is, remove this file: what is learned "
            f"stays as it is, and tests that changed are answered again:\n  {listed}"
        )
    both = {task: {**before.get(task, {}), **found.get(task, {})} for task in {**before, **found}}
    if both != before:
        plain = {t: {part: one.as_dict() for part, one in of.items()} for t, of in both.items()}
        said = {"format": FORMAT, "tasks": plain, "digest": digest_of(plain)}
        write_json(folder / DATA, said)


def read_and_claim(folder: Path, data: DataConfig, evaluation: EvaluationConfig, seed: int) -> None:
    """`claim_data` with what a configuration reads; for who needs the data for nothing else.

    Args:
        folder: Of the run, the comparison or the sweep.
        data: Which data.
        evaluation: Its answer files.
        seed: Of the split into training and selection samples.

    Raises:
        DataError: As of `read_tasks`, `stream_targets` and `claim_data`.
    """
    tasks = read_tasks(data, seed)
    targets = stream_targets(tasks, data, evaluation)
    claim_data(folder, fingerprints(tasks, targets, data, evaluation))


def kept_data(folder: Path) -> Fingerprints:
    """What a run's `data.json` says; nothing where there is none.

    Raises:
        RunFileError: It is damaged, or of another version.
    """
    file = folder / DATA
    if not file.is_file():
        return {}
    remedy = "restore it from a copy, or remove it to go on with the data as it is"
    found = read_object(file, remedy, "format", "tasks", "digest")
    if found["format"] != FORMAT:
        raise RunFileError(f"{file}: format {found['format']!r}, not {FORMAT}; {remedy}")
    if found["digest"] != digest_of(found["tasks"]):
        raise RunFileError(f"{file}: damaged: its digest is another; {remedy}")
    return {
        task: {part: Fingerprint(**values) for part, values in parts.items()}
        for task, parts in found["tasks"].items()
    }


def trained_on(folder: Path) -> Fingerprints:
    """What a run was trained on, for one that begins with what it learned."""
    return {
        task: {part: one for part, one in parts.items() if part == TRAIN}
        for task, parts in kept_data(folder).items()
    }
