"""Real, small runs with their reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from support.plain_trainer import PlainTrainer
from torch import Tensor

from cmoe.common.group import Group
from cmoe.common.run_files import write_json
from cmoe.config.tree import RunConfig
from cmoe.data.batches import Collator
from cmoe.data.coin import read_tasks
from cmoe.data.loader import Loader
from cmoe.data.samples import Sample, Task
from cmoe.data.session import Session
from cmoe.data.settings import DataConfig
from cmoe.evaluation.coin_predictions import write_coin
from cmoe.evaluation.predict import Predictor
from cmoe.evaluation.predictions import read_predictions, write_stage
from cmoe.evaluation.report_data import report_data
from cmoe.evaluation.results import Facts, results
from cmoe.evaluation.settings import EvaluationConfig
from cmoe.evaluation.targets import Targets, stream_targets
from cmoe.folder import MATRIX, RunFolder
from cmoe.methods.cmoe import CMoE
from cmoe.methods.lora import SequentialLoRA
from cmoe.methods.method import Method
from cmoe.methods.settings import ExpertsConfig, LoRAConfig, ProbeConfig
from cmoe.mini.tasks import write_mini_coin
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import MINI_BASE, LocatorConfig
from cmoe.reports.run_page import write_run_page
from cmoe.store.log import Store
from cmoe.store.model import create_store

TASKS = ("VizWiz", "Grounding", "ScienceQA")
TESTED = 4  # samples of each task: the page shows them all
ATTACK = "<script>alert(1)</script>"

Stream = tuple[RunConfig, tuple[Task, ...]]


def make_stream(root: Path) -> Stream:
    """Three tasks with data in a folder, and what a run on them is configured by."""
    write_mini_coin(root, train=16, test=TESTED)
    config = RunConfig(
        "small",
        data=DataConfig(root=str(root), tasks=TASKS),
        experts=ExpertsConfig(rank=2, usage_samples=4, attention=2),
        probe=ProbeConfig(
            fraction=0.25, gain_samples=2, steps=2, max_layers=2, rule="relative", init="used"
        ),
        locator=LocatorConfig(layer=1, pooling="mean_text", steps=20, hidden=8, latent=2),
        lora=LoRAConfig(rank=2, lora_alpha=4),
        evaluation=EvaluationConfig(batch_size=4, max_new_tokens=8),
    )
    first, *others = read_tasks(config.data, 0)
    asked = tuple(replace(s, text=f"{ATTACK} {s.text}") for s in first.test)
    return config, (replace(first, test=asked), *others)


def run(folder: Path, config: RunConfig, tasks: Sequence[Task], learned: int) -> Path:
    """A run's folder after so many tasks of the stream, and its report."""
    base, processor = load_base(str(MINI_BASE), dtype=torch.float32)
    method: Method
    if config.method == "lora":
        method = SequentialLoRA(base, config.lora, 0)
    else:
        method = CMoE(base, config.experts, config.probe, config.locator, 0)
    collator = Collator(processor, 256, config.evaluation.max_new_tokens)

    def collate(samples: Sequence[Sample], *, answers: bool) -> dict[str, Tensor]:
        return collator.training(samples) if answers else collator.prompts(samples)

    (folder / "predictions").mkdir(parents=True)
    (folder / "stages").mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config.as_dict(), sort_keys=False))
    store = create_store(folder / "store", method, name="mini", revision="r1", config={})
    predictor = Predictor(
        method,
        Session(Group(), collator, Loader(collator), config.evaluation.batch_size),
        tasks,
        config.data.root,
        folder / "predictions",
        config.evaluation,
        emit=lambda **_: None,
    )
    digests, seconds = {BASE: method.base_digest}, {"base": {"predict": 0.5}}
    write_stage(folder / "predictions", BASE, predictor.evaluate(BASE, digests))
    for index, task in enumerate(tasks[:learned]):
        trainer = PlainTrainer(method.module, steps=2, learning_rate=1e-3, collate=collate)
        digests[index] = store.append(method.learn(task.name, task.train, trainer)).digest
        seconds[task.name] = dict.fromkeys(trainer.seen, 1.5)
        noted = {"seconds": seconds[task.name], "loss": trainer.curves}
        write_json(folder / "stages" / f"{index:03d}.json", noted)
        write_stage(folder / "predictions", index, predictor.evaluate(index, digests))
    facts = Facts(
        method=config.method,
        digests=digests,
        parameters=[record.parameters for record in store.records()],
        answering=range(learned) if method.locates else [learned - 1],
        base_parameters=method.base_parameters,
        flops={t: method.flops_per_token(t) for t in (BASE, *range(learned))},
        similarity=method.expert_similarity(),
        seconds=seconds,
        locates=method.locates,
    )
    targets = agreed(config, tasks, folder)
    found = results(folder / "predictions", tasks, targets, facts, "official")
    write_json(folder / MATRIX, found)
    write_report_data(folder, tasks, targets)
    write_run_page(folder)
    write_coin(folder, tasks, digests, config.method)
    return folder


def write_report_data(folder: Path, tasks: Sequence[Task], targets: Targets) -> None:
    run = RunFolder(folder, str(folder))
    write_json(run.report, report_data(run, tasks, targets))


def agreed(config: RunConfig, tasks: Sequence[Task], folder: Path) -> Targets:
    """What is right: an answer file has half of the first task's answers as they were said."""
    file = answer_file(folder, tasks[0].name)
    if not file.exists():
        said = answered(folder, tasks)
        half = TESTED // 2
        for task in tasks:
            right = half if task is tasks[0] else 0
            rows = [
                {
                    "question_id": sample.id,
                    "text": sample.text,
                    "answer": (said[sample.id] or "nothing") if n < right else sample.answer,
                    "size": sample.size,
                }
                for n, sample in enumerate(task.test)
            ]
            answer_file(folder, task.name).write_text(json.dumps(rows), encoding="utf-8")
    evaluation = replace(config.evaluation, answer_files={tasks[0].name: str(file)})
    return stream_targets(tasks, config.data, evaluation)


def answered(folder: Path, tasks: Sequence[Task]) -> dict[str, str]:
    """Some answer to each question."""
    log = Store.open(folder / "store")
    digests = {BASE: log.header.base.digest} | {r.index: r.digest for r in log.records()}
    found = read_predictions(folder / "predictions", tasks, digests)
    return {id_: text for (_, id_, _), text in found.texts.items()}


def answer_file(folder: Path, task: str) -> Path:
    """CoIN's test file of a task, beside the run's folder."""
    return folder.parent / f"{task}.json"
