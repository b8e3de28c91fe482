"""`cmoe bench control`: how often workers speak to each other, by how many they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmoe.experiments.benchmarks.control import (
    LOOK,
    STEPS,
    TASKS,
    Found,
    Row,
    configured,
    local_actors,
    look,
    measured,
    row,
    with_growth,
    write_rows,
)
from cmoe.experiments.benchmarks.counted import (
    AGAIN,
    CHECKPOINT,
    COMMITTING,
    EVALUATING,
    FEATURES,
    OPENING,
    RECALLING,
    RESUMING,
    STEP,
)
from cmoe.store.log import Store

FEW, MANY = 2, 8


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("control")


@pytest.fixture(scope="module")
def found(root: Path) -> dict[int, Found]:
    data = write_rows(root / "data")
    measured(configured(root / "before", data, FEW), local_actors(FEW))  # imports what all use
    return {
        workers: measured(configured(root, data, workers), local_actors(workers))
        for workers in (FEW, MANY)
    }


@pytest.fixture(scope="module")
def rows(found: dict[int, Found]) -> dict[str, tuple[Row, Row]]:
    """By operation, what few and what many workers did."""
    few, many = (
        {name: row(name, workers, each) for name, each in of.items()}
        | {LOOK: row(LOOK, workers, [look(workers, local_actors(workers))])}
        for workers, of in found.items()
    )
    return {name: (few[name], many[name]) for name in few}


def test_what_is_measured_is_a_whole_stream(root: Path, found: dict[int, Found]) -> None:
    for workers in found:
        folder = root / "runs" / f"of-{workers}"
        assert Store.open(folder / "store").tasks == TASKS
        matrix = json.loads((folder / "matrix.json").read_text())
        assert matrix["located"] == [[100.0, None], [100.0, 100.0]]
        losses = json.loads((folder / "stages" / "001.json").read_text())["loss"]["train"]
        assert len(losses) == STEPS, "the second task went on from its checkpoint"


def test_nothing_grows_faster_than_the_number_of_workers(rows: dict[str, tuple[Row, Row]]) -> None:
    for operation, both in rows.items():
        assert [each["grows"] for each in with_growth(both)] == ["", ""], operation


def test_a_step_is_one_sum_for_each_worker_and_asks_no_actor(
    rows: dict[str, tuple[Row, Row]],
) -> None:
    few, many = rows[STEP]
    reports = 0.1  # of a step: the losses of ten are summed at once, and shown by rank 0
    for each in (few, many):
        assert each["collectives"] == pytest.approx(1 + reports)
        assert each["actor calls"] == pytest.approx(reports)
        assert each["kB of rank 0"] == each["kB of another"] == few["kB of another"]


@pytest.mark.parametrize("operation", [OPENING, AGAIN, COMMITTING, RECALLING, EVALUATING])
def test_files_are_opened_by_one_worker_whatever_their_number(
    rows: dict[str, tuple[Row, Row]], found: dict[int, Found], operation: str
) -> None:
    few, many = rows[operation]
    if operation != EVALUATING:  # its files of answers are fewer, the more workers there are
        assert few["files"] == many["files"]
    for each in found.values():
        assert all(counts.files == 0 for counts in each[operation][1:]), "rank 0 alone"


@pytest.mark.parametrize("operation", [OPENING, AGAIN, COMMITTING, RECALLING, EVALUATING])
def test_what_comes_to_a_worker_does_not_depend_on_their_number(
    rows: dict[str, tuple[Row, Row]], operation: str
) -> None:
    few, many = rows[operation]
    assert many["kB of another"] == pytest.approx(few["kB of another"], rel=0.05, abs=0.2)


@pytest.mark.parametrize("operation", [FEATURES, EVALUATING])
def test_what_rank_0_alone_needs_comes_to_no_other(
    rows: dict[str, tuple[Row, Row]], operation: str
) -> None:
    _, many = rows[operation]
    assert many["kB of another"] < many["kB of rank 0"] / 10


def test_a_worker_reads_its_own_share_of_a_checkpoint(found: dict[int, Found]) -> None:
    few, many = (of[RESUMING] for of in found.values())
    assert {counts.files for counts in many[1:]} == {few[1].files}


def test_a_checkpoint_is_as_many_calls_as_workers(rows: dict[str, tuple[Row, Row]]) -> None:
    """Ray Train's own, which names it."""
    assert [each["actor calls"] for each in rows[CHECKPOINT]] == [FEW, MANY]


def test_a_look_of_the_driver_brings_the_same_from_any_number(
    rows: dict[str, tuple[Row, Row]],
) -> None:
    few, many = rows[LOOK]
    assert few["kB of all"] == many["kB of all"]


def test_a_square_is_told() -> None:
    def of(workers: int) -> Row:
        both = {"kB of all": 3.0 * workers * (workers - 1), "files": 2.0 * workers}
        return {"operation": "x", "workers": workers, "actor calls": 0.0, **both}

    assert [each["grows"] for each in with_growth([of(1), of(8), of(64)])] == [
        "",
        "",
        "kB of all ^1.9",
    ]
