"""A run takes what another has learned: all of it, once, and on S3 as on a disk."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from fsspec.core import url_to_fs

from cmoe.common.errors import DataError, RunError
from cmoe.common.remote.mirror import mirrored
from cmoe.common.storage import exists
from cmoe.config.tree import RunConfig
from cmoe.data.samples import Sample, Task
from cmoe.data.settings import DataConfig
from cmoe.evaluation.data_identity import claim_data, fingerprints
from cmoe.evaluation.targets import stream_targets
from cmoe.experiments.comparison.parallel_runs import run_parallel
from cmoe.experiments.comparison.reuse import reuse_primitives
from cmoe.folder import APART, DATA
from cmoe.modeling.primitive import Primitive
from cmoe.store.log import BaseId, Store

BASE = BaseId("mini", "default", "b" * 64)
TASKS = ("GQA", "VizWiz", "OCRVQA")


@pytest.fixture(params=["disk", "s3"])
def runs(request: pytest.FixtureRequest) -> str:
    if request.param == "disk":
        return str(request.getfixturevalue("tmp_path") / "runs")
    return str(request.getfixturevalue("bucket"))


def primitive(task: str) -> Primitive:
    weight = torch.randn(3, 2, generator=torch.Generator().manual_seed(len(task)))
    kept = {"layers.0": weight.square()}
    return Primitive(task, 2, 4.0, {"layers.0.up.A": weight}, {}, {}, {"why": [0.1]}, kept)


def write(url: str, text: str) -> None:
    fs, path = url_to_fs(url)
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(path, text.encode())


def read(url: str) -> str:
    fs, path = url_to_fs(url, use_listings_cache=False)
    return str(fs.cat_file(path).decode())


def learned(config: RunConfig, tasks: tuple[str, ...]) -> Store:
    """What a run leaves of its tasks, but for its answers."""
    settings = {"method": "lora"}
    store = Store.create(
        f"{config.url}/store", base=BASE, settings=settings, config=config.as_dict()
    )
    for index, task in enumerate(tasks):
        write(f"{config.url}/stages/{index:03d}.json", f'{{"task": "{task}"}}')
        store.append(primitive(task))
    return store


def pair(runs: str) -> tuple[RunConfig, RunConfig]:
    """A run, and one that has learned its first two tasks on the selection split."""
    data = DataConfig(tasks=TASKS, selection=0.1)
    run = RunConfig("lora-0", runs=runs, method="lora", data=data)
    short = replace(data, tasks=TASKS[:2], evaluate_on="selection")
    return run, replace(run, name="tune-lora-1", data=short)


def test_a_run_begins_with_what_another_has_learned(runs: str) -> None:
    run, other = pair(runs)
    theirs = learned(other, TASKS[:2])
    assert reuse_primitives(run, other) == 2
    mine = Store.open(f"{run.url}/store")
    mine.verify()
    assert mine.header.base == BASE
    assert mine.header.settings == theirs.header.settings
    assert mine.header.config["data"]["evaluate_on"] == "test"
    for index, (one, its) in enumerate(zip(mine.records(), theirs.records(), strict=True)):
        assert (one.task, one.files, one.decision) == (its.task, its.files, its.decision)
        assert TASKS[index] in read(f"{run.url}/stages/{index:03d}.json")
    assert "name: lora-0" in read(f"{run.url}/config.yaml")


def test_what_is_there_already_stays(runs: str) -> None:
    """Begun by itself, or cut off while it took the rest."""
    run, other = pair(runs)
    learned(other, TASKS[:2])
    learned(run, TASKS[:1])
    before = Store.open(f"{run.url}/store")
    assert reuse_primitives(run, other) == 1
    after = Store.open(f"{run.url}/store")
    assert after.tasks == TASKS[:2]
    assert after.records()[:1] == before.records()
    assert reuse_primitives(run, other) == 0
    assert Store.open(f"{run.url}/store").records() == after.records()


def test_a_finished_run_needs_nothing_of_what_it_began_with(runs: str) -> None:
    run, other = pair(runs)
    learned(other, TASKS[:2])
    reuse_primitives(run, other)
    matrix = {"located": [[1], [1, 1], [1, 1, 1]]}
    write(f"{run.url}/matrix.json", json.dumps(matrix))
    write(f"{run.url}/report.json", "{}")
    write(f"{run.url}/report.html", sha256(b"{}").hexdigest())
    write(f"{other.url}/store/001.json", "damaged")
    never = partial(pytest.fail, "it is begun again")
    found = run_parallel([run], at_once=1, show=never, begin=never, learned={0: other})
    assert dict(found) == {0: matrix}


def test_a_run_that_was_configured_otherwise_takes_nothing(tmp_path: Path) -> None:
    run, other = pair(str(tmp_path))
    learned(other, TASKS[:2])
    reuse_primitives(run, other)
    with pytest.raises(RunError, match="seed: 0 -> 1"):
        reuse_primitives(replace(run, seed=1), other)


def claims(config: RunConfig, task: str, question: str) -> None:
    """What a run says that a task's training samples are."""
    asked = replace(config, data=replace(config.data, root="nowhere"))
    tasks = (Task(task, (Sample("1", question, "x"),), (Sample("2", "?", "x"),)),)
    targets = stream_targets(tasks, asked.data, asked.evaluation)
    with mirrored(config.url, apart=APART) as mirror:
        mirror.fetch(DATA)
        mirror.folder.mkdir(parents=True, exist_ok=True)
        found = fingerprints(tasks, targets, asked.data, asked.evaluation)
        claim_data(mirror.folder, found)


def test_what_is_taken_over_brings_the_data_that_it_was_learned_from(runs: str) -> None:
    run, other = pair(runs)
    learned(other, TASKS[:2])
    claims(other, "GQA", "before?")
    assert reuse_primitives(run, other) == 2
    parts = json.loads(read(f"{run.url}/{DATA}"))["tasks"]["GQA"]
    assert [*parts] == ["train"], "what it was judged on stays its own"
    with pytest.raises(DataError, match="GQA, train: 1 of 1 samples differ"):
        claims(run, "GQA", "after?")


def test_what_was_learned_from_other_data_is_not_taken_over(runs: str) -> None:
    run, other = pair(runs)
    learned(other, TASKS[:2])
    claims(other, "GQA", "before?")
    claims(run, "GQA", "after?")
    with pytest.raises(DataError, match="GQA, train: 1 of 1 samples differ"):
        reuse_primitives(run, other)
    assert not exists(f"{run.url}/store/000.json")


def test_damaged_notes_are_not_taken_over(tmp_path: Path) -> None:
    run, other = pair(str(tmp_path))
    learned(other, TASKS[:2])
    write(f"{other.url}/stages/001.json", "{")
    with pytest.raises(DataError, match=r"001\.json: damaged"):
        reuse_primitives(run, other)
    assert Store.open(f"{run.url}/store").tasks == TASKS[:1]
