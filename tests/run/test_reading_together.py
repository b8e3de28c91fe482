"""Rows are read by rank 0 for all, where they can be handed on."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
from PIL import Image

from cmoe.common.errors import DataError
from cmoe.common.group import Group
from cmoe.config.tree import RunConfig
from cmoe.data.coin import read_tasks
from cmoe.data.prepare import prepare
from cmoe.data.samples import Sample, Task
from cmoe.data.settings import DataConfig, OwnTask
from cmoe.data.survey import Preparation, survey
from cmoe.experiments.benchmarks.threads import Ledger, run_workers
from cmoe.run.stream import read_together

T = TypeVar("T")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A task with an image in a file, and the same with the image in its rows."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    inline = f"data:image/png;base64,{b64encode((tmp_path / 'a.png').read_bytes()).decode()}"
    for name, image in (("files", "a.png"), ("inline", inline)):
        rows = [{"question_id": str(n), "text": "?", "answer": "b", "image": image} for n in "12"]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    own = {name: OwnTask(f"{name}.json", f"{name}.json", "exact") for name in ("files", "inline")}
    return RunConfig("x", data=DataConfig(root=str(tmp_path), own=own))


def read_by(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Any], int]:
    """The tasks of two workers, and how many of them read rows."""
    reads: list[bool] = []

    def read() -> tuple[Task, ...]:
        reads.append(True)
        return read_tasks(config.data, config.seed)

    found: dict[int, Any] = {}

    def worker(group: Group, ledger: Ledger) -> None:
        found[group.rank] = read_together(group, config.data.root, cache(read))

    run_workers([Ledger(), Ledger()], worker)
    return [found[0], found[1]], len(reads)


def with_tasks(config: RunConfig, *tasks: str) -> RunConfig:
    return replace(config, data=replace(config.data, tasks=tasks))


@pytest.mark.parametrize(("tasks", "readers"), [(("files",), 1), (("files", "inline"), 2)])
def test_rows_with_images_in_files_are_read_once(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tasks: tuple[str, ...], readers: int
) -> None:
    found, count = read_by(with_tasks(config, *tasks), monkeypatch)
    assert count == readers
    assert found[0] == found[1] == read_tasks(with_tasks(config, *tasks).data, config.seed)


def test_prepared_rows_are_opened_by_each(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out, data = str(tmp_path / "out"), config.data
    job = Preparation(Path(data.root), ".", ("files",), out, own={"files": data.own["files"]})
    prepare(job, survey(job, map, keep=False), map)
    stored = replace(config, data=replace(data, root=out, tasks=("files",)))
    found, count = read_by(stored, monkeypatch)
    assert count == 2
    assert [*found[0][0].train] == [*found[1][0].train]


class Elsewhere(Group):
    """A worker on a machine that has no images."""

    def from_first(self, make: Callable[[], T]) -> T:
        image = Path("/nowhere/a.png")
        sample = Sample("7", "?", "b", (image,))
        return (Task("files", (sample,), (sample,)),)  # type: ignore[return-value]


def test_a_machine_without_the_images_is_told_when_it_opens_the_stream(config: RunConfig) -> None:
    with pytest.raises(DataError, match=r"/nowhere/a.png is missing; .*id .7."):
        read_together(Elsewhere(1, 2), config.data.root, tuple)
