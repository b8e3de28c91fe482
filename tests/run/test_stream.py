"""The worker program on real process groups with DeepSpeed, without a cluster."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from support.paths import ROOT
from support.workers import TASKS, FolderLink, run_group, small_config

from cmoe.common.group import Group
from cmoe.config.tree import RunConfig
from cmoe.data.coin import read_tasks, split_file
from cmoe.data.prepare import prepare
from cmoe.data.settings import DataConfig
from cmoe.data.survey import Preparation, survey
from cmoe.evaluation.predictions import read_predictions as read_all
from cmoe.evaluation.results import MEASURED
from cmoe.mini.tasks import ensure_data
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import ModelConfig
from cmoe.run.stream import load, make_method, run_stream, session_of
from cmoe.store.log import Store
from cmoe.tasks.answer_files import read_predictions, read_targets
from cmoe.tasks.judge import judge
from cmoe.training.trainer import TaskTrainer

STEPS, TESTED = 6, 9


def configured(root: Path, name: str, **changes: Any) -> RunConfig:
    """A small stream of four micro-batches a step, which two and three workers share."""
    config = small_config(root, name, **changes)
    return replace(
        config,
        data=replace(config.data, train_samples=48, test_samples=TESTED),
        training=replace(config.training, steps=STEPS, global_batch=8, micro_batch=2),
    )


def first(count: int, config: RunConfig) -> RunConfig:
    """A stream of so many tasks, which it learns as the whole one does."""
    return replace(config, data=replace(config.data, tasks=config.data.tasks[:count]))


def stream(group: Group, config: RunConfig) -> None:
    run_stream(config, group, FolderLink(group, config.folder / "checkpoint"))


def run(config: RunConfig, workers: int) -> dict[str, Any]:
    """Run a stream; its matrix, its decisions and its losses."""
    ensure_data(config.data)
    config.folder.mkdir(parents=True, exist_ok=True)
    run_group(workers, stream, config)
    stages = [
        json.loads(file.read_text()) for file in sorted((config.folder / "stages").glob("*.json"))
    ]
    return {
        "matrix": json.loads((config.folder / "matrix.json").read_text()),
        "records": Store.open(config.folder / "store").records(),
        "loss": {s["task"]: s["loss"] for s in stages if "task" in s},
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stream")


@pytest.fixture(scope="module")
def alone(root: Path) -> dict[str, Any]:
    return run(configured(root, "alone"), workers=1)


@pytest.mark.parametrize(("workers", "zero"), [(2, 0), (1, 3), (2, 2), (2, 3)])
def test_workers_and_zero_stages_decide_and_learn_alike(
    root: Path, alone: dict[str, Any], workers: int, zero: Any
) -> None:
    config = configured(root, f"{workers}-{zero}")
    config = replace(config, training=replace(config.training, zero=zero))
    alike(run(first(2, config), workers), alone, within=1e-4)


class Stops(FolderLink):
    """The group is lost right behind the n-th checkpoint that it keeps."""

    count = 0

    def save(self, folder: Path, *, wait: bool) -> None:
        super().save(folder, wait=wait)
        self.count -= 1
        if not self.count:
            raise KeyError("stopped")


def stopping(group: Group, config: RunConfig, count: int) -> None:
    link = Stops(group, config.folder / "checkpoint")
    link.count = count
    run_stream(config, group, link)


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_a_training_goes_on_with_another_number_of_workers(
    root: Path, alone: dict[str, Any], zero: Any
) -> None:
    """Within one training on 2, then 1, then 3, which can't share a step's batches evenly."""
    config = first(1, configured(root, f"regrouped-{zero}"))
    config = replace(config, training=replace(config.training, zero=zero, checkpoint_every=2))
    ensure_data(config.data)
    config.folder.mkdir(parents=True)
    for workers in (2, 1):
        with pytest.raises(mp.ProcessRaisedException, match="stopped"):
            run_group(workers, stopping, config, 1)
        progress = json.loads((config.folder / "checkpoint" / "progress.json").read_text())
        assert (progress["task"], progress["phase"]) == (TASKS[0], "train")
        assert progress["workers"] == workers
    assert progress["step"] == 4
    alike(run(config, 3), alone, within=1e-3)


def two_trainings(group: Group, config: RunConfig, count: int) -> None:
    """A task of two trainings whose first isn't kept; the group is lost behind a checkpoint."""
    link = Stops(group, config.folder / "checkpoint")
    link.count = count
    task, *_ = read_tasks(config.data, config.seed)
    base, collator = load(config, group.device)
    method: Any = make_method(config, base)
    session = session_of(config, group, collator)
    trainer = TaskTrainer(
        method.module, session, config.training, link, seed=0, index=0, task=task.name
    )
    for phase, steps in (("one", 3), ("two", 4)):
        trainer.fit(phase, task.train, method.loss, steps=steps)
    (config.folder / "losses.json").write_text(json.dumps(trainer.progress.loss))


def test_a_training_behind_one_that_is_done_again_begins_at_its_beginning(root: Path) -> None:
    """Its checkpoint is gone then: the first training's has taken its place."""
    losses = {}
    for name, count in (("whole", 0), ("lost", 3)):
        config = configured(root, f"two-{name}", method="lora")
        config = replace(config, training=replace(config.training, checkpoint_every=2))
        ensure_data(config.data)
        config.folder.mkdir(parents=True)
        if count:
            with pytest.raises(mp.ProcessRaisedException, match="stopped"):
                run_group(1, two_trainings, config, count)
            progress = json.loads((config.folder / "checkpoint" / "progress.json").read_text())
            assert (progress["phase"], progress["step"]) == ("two", 2)
        run_group(1, two_trainings, config, 0)
        losses[name] = json.loads((config.folder / "losses.json").read_text())
    assert losses["lost"] == losses["whole"]
    assert [len(each) for each in losses["lost"].values()] == [3, 4]


def alike(found: dict[str, Any], alone: dict[str, Any], within: float) -> None:
    """Two runs decided alike in the tasks of the first, and their losses agree."""
    assert [record.task for record in found["records"]] == found["matrix"]["tasks"]
    assert list(found["loss"]) == found["matrix"]["tasks"]
    for mine, theirs in zip(found["records"], alone["records"], strict=False):
        assert mine.task == theirs.task
        assert mine.parameters == theirs.parameters
        for key in ("experts", "sources", "cut"):
            assert mine.decision.get(key) == theirs.decision.get(key)
        for name, scores in theirs.decision.get("scores", {}).items():
            assert mine.decision["scores"][name] == pytest.approx(scores, abs=1e-3)
    for task, phases in found["loss"].items():
        assert phases.keys() == alone["loss"][task].keys()
        for phase, losses in phases.items():
            assert losses == pytest.approx(alone["loss"][task][phase], abs=within)


def test_matrix_has_what_readers_of_it_need(alone: dict[str, Any]) -> None:
    matrix = alone["matrix"]
    assert matrix["tasks"] == list(TASKS)
    for name in ("located", "oracle"):
        for i, row in enumerate(matrix[name]):
            assert [cell is None for cell in row] == [j > i for j in range(len(TASKS))]
            assert all(0 <= cell <= 100 for cell in row[: i + 1])
    assert set(matrix["metrics"]) == {"last", "mft", "maa", "bwt", "bwt_t_minus_1", "fwt"}
    assert sum(map(sum, matrix["location"]["confusion"])) == len(TASKS) * TESTED
    assert set(matrix["parameters"]["tasks"]) == set(TASKS)
    assert set(matrix["seconds"]) == {"base", *TASKS}
    assert all(matrix["seconds"][task]["train"] > 0 for task in TASKS)
    assert len(matrix["before"]) == len(TASKS)
    assert matrix["before"][0] == matrix["zero_shot"][0], "nothing was learned before the first"


@pytest.mark.parametrize("mode", ["official", "strict"])
def test_coins_prediction_files_give_the_matrixs_last_row(
    root: Path, alone: dict[str, Any], mode: Any
) -> None:
    config, tables = configured(root, "alone"), alone["matrix"]
    row = (tables if mode == "official" else tables[mode])["located"][-1]
    for task, accuracy in zip(TASKS, row, strict=True):
        said = read_predictions(config.folder / "coin" / f"{task}.jsonl")
        targets = read_targets(task, split_file(root / "data", task, "test"))
        assert len(said) == TESTED
        assert judge(task, mode, said, targets).accuracy == pytest.approx(accuracy, abs=1e-6)


def test_an_answer_file_decides_what_is_right(root: Path, alone: dict[str, Any]) -> None:
    """The same answers, held against what was said at the end as the answers to one task."""
    config, task = configured(root, "judged"), TASKS[1]
    shutil.copytree(config.folder.with_name("alone"), config.folder)
    said = read_predictions(config.folder / "coin" / f"{task}.jsonl")
    rows = [{"question_id": i, "text": "?", "answer": text} for i, text in said.items()]
    file = root / "said.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    evaluation = replace(config.evaluation, answer_files={task: str(file)})
    run_group(1, stream, replace(config, evaluation=evaluation))
    found = json.loads((config.folder / "matrix.json").read_text())["located"][-1]
    before = alone["matrix"]["located"][-1]
    assert found[1] == 100 > before[1]
    assert (found[0], found[2]) == (before[0], before[2])


def test_a_store_that_was_there_before_is_answered_stage_by_stage(
    root: Path, alone: dict[str, Any]
) -> None:
    """As a sweep leaves it: all tasks are learned, and no stage knows of a later one."""
    config = configured(root, "alone")
    answered = replace(config, name="answered")
    shutil.copytree(config.folder / "store", answered.folder / "store")
    run_group(1, stream, answered)
    matrix = json.loads((answered.folder / "matrix.json").read_text())
    for name in alone["matrix"].keys() - {*MEASURED}:
        assert matrix[name] == alone["matrix"][name], name


def test_the_oracle_does_not_drift(alone: dict[str, Any]) -> None:
    oracle = alone["matrix"]["oracle"]
    for i, row in enumerate(oracle):
        assert row[: i + 1] == [oracle[j][j] for j in range(i + 1)]


def answers(found: dict[str, Any], folder: Path) -> dict[tuple[str, str, str], str]:
    """Task, question and the name of the answering task -> text."""
    names = {r.digest: r.task for r in found["records"]}
    digests = {BASE: Store.open(folder / "store").header.base.digest}
    digests |= {r.index: r.digest for r in found["records"]}
    tasks = read_tasks(first(2, configured(folder.parents[1], folder.name)).data, 0)
    every = read_all(folder / "predictions", tasks, digests).texts.items()
    return {(task, q, names.get(by, "base")): text for (task, q, by), text in every}


def test_without_the_cache_predictions_are_the_same(root: Path, alone: dict[str, Any]) -> None:
    config = first(2, configured(root, "uncached"))
    config = replace(config, evaluation=replace(config.evaluation, cache=False, batch_size=5))
    config = replace(config, training=replace(config.training, zero=2))
    kept = run(replace(config, name="cached", evaluation=replace(config.evaluation, cache=True)), 1)
    again = run(config, 1)
    # The same weights; their digests differ, as a store's header holds its run's configuration.
    assert [r.files for r in again["records"]] == [r.files for r in kept["records"]]
    assert answers(again, config.folder) == answers(kept, config.folder.with_name("cached"))
    assert sum(again["matrix"]["generated"].values()) > sum(kept["matrix"]["generated"].values())
    for name in ("located", "oracle", "metrics", "location"):
        assert again["matrix"][name] == kept["matrix"][name]


def test_recomputing_activations_changes_no_loss(root: Path, alone: dict[str, Any]) -> None:
    config = configured(root, "recomputed")
    config = replace(config, training=replace(config.training, gradient_checkpointing=True))
    found = run(first(2, config), 1)
    alike(found, alone, within=1e-4)


def test_bfloat16_learns_and_is_kept_as_bfloat16(root: Path, alone: dict[str, Any]) -> None:
    config = configured(root, "half", model=ModelConfig(dtype="bfloat16"))
    config = first(2, config)
    found = run(config, 1)
    for task in TASKS[:2]:
        losses = found["loss"][task]["train"]
        assert losses[0] == pytest.approx(alone["loss"][task]["train"][0], rel=0.2)
        assert sum(losses[-3:]) < sum(losses[:3])
    primitive = Store.open(config.folder / "store").read(1)
    assert {t.dtype for t in primitive.experts.values()} == {torch.bfloat16}
    assert {t.dtype for t in primitive.locator.values()} == {torch.float32}


def test_real_pictures_give_the_same_from_files_from_shards_and_from_s3(
    root: Path, bucket: str
) -> None:
    found = sorted(ROOT.parent.glob("*/data/coin_real"))
    if not found:
        pytest.skip("no folder data/coin_real beside the project: real pictures are not tested")
    config = configured(root, "real")
    tasks = ("ImageNet", "Grounding")
    data = DataConfig(
        root=str(found[0]), images="images", tasks=tasks, train_samples=16, test_samples=5
    )
    config = replace(config, data=data, training=replace(config.training, steps=2))
    matrix = run(config, 1)["matrix"]
    for name, out in (("shards", str(root / "shards")), ("s3", bucket)):
        job = Preparation(found[0], "images", tasks, out)
        prepare(job, survey(job, map, keep=True), map)
        stored = replace(config, name=name, data=replace(data, root=out, images="."))
        again = run(stored, 1)["matrix"]
        assert again.keys() == matrix.keys()
        for key in again.keys() - {*MEASURED}:
            assert again[key] == matrix[key], key
    assert all(cell is not None for cell in matrix["located"][-1])
    assert sum(map(sum, matrix["location"]["confusion"])) == 2 * 5
    images = [
        i for t in read_tasks(data, 0) for s in t.train for i in s.images if isinstance(i, Path)
    ]
    sizes = {Image.open(file).size for file in images}
    assert len({w > h for w, h in sizes}) == 2, "landscape and portrait pictures"


# What goes wrong is named, and what was committed stays good


def one_task(root: Path, name: str, **changes: Any) -> RunConfig:
    config = configured(root, name, **changes)
    return replace(config, data=replace(config.data, tasks=TASKS[1:]))


def fails(config: RunConfig, work: Any = stream) -> str:
    ensure_data(config.data)
    config.folder.mkdir(parents=True)
    with pytest.raises(mp.ProcessRaisedException) as raised:
        run_group(1, work, config)
    return str(raised.value)


def test_a_loss_that_is_not_finite_names_task_phase_and_step(root: Path) -> None:
    config = one_task(root, "nan")
    wild = replace(config.training, learning_rate=1e30, clip=1e30)
    message = fails(replace(config, training=wild))
    assert re.search(
        rf"FloatingPointError: task 'VizWiz', phase 'train', step \d+ of {STEPS}", message
    )
    assert len(Store.open(config.folder / "store")) == 0


def test_an_answer_longer_than_the_context_names_its_sample(root: Path) -> None:
    config = configured(root, "long")
    data = replace(config.data, root=str(root / "long-data"), tasks=("VizWiz",))
    ensure_data(data)
    file = root / "long-data" / "Instructions_Original" / "VizWiz" / "train.json"
    rows = json.loads(file.read_text())
    rows[3]["conversations"][1]["value"] = "word " * 600
    file.write_text(json.dumps(rows))
    message = fails(replace(config, data=data))
    assert "DataError: sample 'VizWiz-train-00003'" in message
    assert "in task 'VizWiz', phase 'train'" in message


def test_a_broken_picture_is_named(root: Path) -> None:
    config = configured(root, "broken")
    data = replace(config.data, root=str(root / "broken-data"), tasks=("VizWiz",))
    ensure_data(data)
    picture = root / "broken-data" / "images" / "VizWiz" / "train" / "00007.png"
    picture.write_bytes(picture.read_bytes()[:100])
    message = fails(replace(config, data=data))
    assert re.search(r"DataError: .*VizWiz-train-00007", message)
    assert str(picture) in message


class FillsUp(FolderLink):
    """The disk takes no file of any size once the first task is committed."""

    def emit(self, event: Mapping[str, Any]) -> None:
        if event["phase"] == "stage" and event["index"] == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def filling_up(group: Group, config: RunConfig) -> None:
    run_stream(config, group, FillsUp(group, config.folder / "checkpoint"))


def test_a_full_disk_ends_the_run_and_costs_nothing_committed(root: Path) -> None:
    config = one_task(root, "full")
    message = fails(config, filling_up)
    assert "StorageError: the checkpoint of step" in message
    assert "in task 'Grounding', phase 'probe'" in message
    store = Store.open(config.folder / "store")
    assert store.tasks == ("VizWiz",)
    store.verify()
    run_group(1, stream, config)  # with room again, the same run goes on
    assert Store.open(config.folder / "store").tasks == ("VizWiz", "Grounding")
