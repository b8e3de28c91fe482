"""The configurations of benchmarks beside CoIN read files as their authors lay them out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.benchmark_files import (
    BENCHMARKS,
    LISTED,
    ROWS,
    UCIT,
    captions_of,
    write_benchmark,
)
from support.own_files import BASE, prepared_own, told
from support.paths import CONFIGS

from cmoe.common.errors import DataError
from cmoe.config.parse import parse
from cmoe.data.coin import read_tasks
from cmoe.data.samples import Task
from cmoe.data.settings import DataConfig
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.evaluation.targets import stream_targets
from cmoe.tasks.registry import require_judged, scored

SCORERS = {
    "ucit": {"VizWiz-Caption": "cider", "Flickr30k": "cider"},
    "mllm_dcl": {
        "RS": "dcl_words",
        "Med": "dcl_contains",
        "AD": "dcl_words",
        "Sci": "dcl_science",
        "Fin": "dcl_choice",
    },
    "trigap": dict.fromkeys(LISTED, "edit_similarity"),
}
"""What docs/benchmarks.md says judges them; all others have `upper_case`."""


def configured(name: str, root: Path) -> DataConfig:
    config = parse(["--config", str(CONFIGS / f"{name}_llava_7b.yaml")])
    return replace(config.data, root=str(root))


def read(data: DataConfig) -> tuple[Task, ...]:
    return read_tasks(data, 0, base=BASE)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_configuration_reads_its_benchmark(name: str, tmp_path: Path) -> None:
    write_benchmark(tmp_path, name)
    data = configured(name, tmp_path)
    require_judged(data)
    tasks = read(data)
    assert [task.name for task in tasks] == [*BENCHMARKS[name]]
    targets = stream_targets(tasks, data, EvaluationConfig())
    for task in tasks:
        files = BENCHMARKS[name][task.name]
        assert task.scorer == SCORERS[name].get(task.name, "upper_case")
        assert len(task.train) == len(task.test) == ROWS
        for number, (trained, tested) in enumerate(zip(task.train, task.test, strict=True)):
            picture = tmp_path / files.images / files.picture.format(number)
            assert trained.images == tested.images == (picture,)
            assert trained.text == tested.text == f"What is {number}?\nAnswer with a word."
            assert trained.answer == f"thing {number}"
            references = targets[task.name][tested.id].references
            if files.captions:
                assert references == tuple(captions_of(number))
            else:
                assert references[0] == f"thing {number}"
                several = name == "trigap" and task.name in LISTED and number
                assert len(references) == (2 if several else 1)
        if task.scorer != "dcl_choice":  # an answer with a space can't be right there
            right = [target.references[0] for target in targets[task.name].values()]
            figure = scored(task, "official", right, [*targets[task.name].values()]).figure
            assert figure > 100 if task.scorer == "cider" else figure == 100


def test_captions_are_prepared_with_their_rows(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "ucit")
    data = configured("ucit", tmp_path)
    own = replace(data.own["Flickr30k"], images="datasets")
    prepared = prepared_own(tmp_path, tmp_path / "out", own)
    tested = read(replace(data, tasks=("Flickr30k",)))[0].test
    for stored, plain in zip(prepared.test, tested, strict=True):
        assert told(stored) == told(plain)
        assert len(stored.answers) == 2


def test_science_is_judged_by_the_pictures_names_when_prepared_too(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "mllm_dcl")
    own = configured("mllm_dcl", tmp_path).own["Sci"]
    data = DataConfig(root=str(tmp_path), own={"Mine": own})
    for task in (prepared_own(tmp_path, tmp_path / "out", own), *read(data)):
        targets = stream_targets([task], data, EvaluationConfig())["Mine"]
        assert [target.image for target in targets.values()] == [
            f"AI2D_{number}.png" for number in range(ROWS)
        ]
        assert [target.question for target in targets.values()] == [s.text for s in task.test]


def changed(root: Path, found: Any) -> None:
    (root / str(UCIT["Flickr30k"].captions)).write_text(json.dumps(found), encoding="utf-8")


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        ([], 'needs "annotations", a list of captions'),
        ({"annotations": {}}, 'needs "annotations", a list of captions'),
        ({"annotations": [{"image_id": "1", "caption": "a"}]}, "annotations[0]: image_id, a whole"),
        ({"annotations": [{"image_id": 1}]}, "annotations[0]: image_id, a whole"),
        ({"annotations": [{"image_id": 1, "caption": "a"}]}, "has no caption with image_id 2"),
    ],
)
def test_captions_that_cant_be_used_are_named(found: Any, cause: str, tmp_path: Path) -> None:
    write_benchmark(tmp_path, "ucit")
    changed(tmp_path, found)
    data = replace(configured("ucit", tmp_path), tasks=("Flickr30k",))
    with pytest.raises(DataError) as refused:
        read(data)
    assert "val_coco_type_3000.json" in str(refused.value)
    assert cause in str(refused.value)


def test_captions_of_rows_of_another_format_are_refused(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "ucit")
    data = configured("ucit", tmp_path)
    own = replace(data.own["Flickr30k"], test=data.own["Flickr30k"].train)
    with pytest.raises(DataError, match="this one's format is conversations"):
        read(replace(data, own={"Mine": own}, tasks=("Mine",)))


def test_several_answers_stand_under_one_key(tmp_path: Path) -> None:
    write_benchmark(tmp_path, "trigap")
    data = replace(configured("trigap", tmp_path), tasks=("DocVQA",))
    file = tmp_path / data.own["DocVQA"].test
    rows = json.loads(file.read_text())
    rows[1]["answers"] = ["a"]
    file.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="row 1: both answers, and several under answer"):
        read(data)
