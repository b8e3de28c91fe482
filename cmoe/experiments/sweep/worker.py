"""The worker programs of a sweep, each in one process: probe a task, or learn it by a candidate.

Both start from the same prefix of the store. What they make lies in a folder as a store of one
primitive, beside a file that is written last: a folder without it isn't finished.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmoe.common.group import Group
from cmoe.common.run_files import read_object, write_json
from cmoe.config.tree import RunConfig
from cmoe.data.coin import read_tasks
from cmoe.data.loader import Loader
from cmoe.data.samples import Sample
from cmoe.evaluation.predict import alike, padded, texts
from cmoe.evaluation.references import told
from cmoe.experiments.sweep.space import Probed, Result
from cmoe.methods.cmoe import CMoE
from cmoe.methods.probe import Probing
from cmoe.modeling.primitive import Primitive
from cmoe.run.stream import load, make_method, session_of, start_store
from cmoe.store.log import Store
from cmoe.tasks.answer_files import target_of
from cmoe.tasks.registry import scored
from cmoe.training.engine import gathering
from cmoe.training.link import Link
from cmoe.training.trainer import TaskTrainer

RESULT, PRIMITIVE = "result.json", "primitive"
BUILDS_ON = "builds_on"  # in `RESULT`


class Bench:
    """One task of a sweep on one process: the method after the prefix, and the task's samples.

    Args:
        config: Of the run, with the candidate's settings; the selection split is what is judged on.
        prefix: Store with the tasks before.
        index: How many of them.
        task: One of the run's.
        where: Device to compute on.
        seed: Of the training, if not the run's, which parts the samples.
    """

    def __init__(
        self,
        config: RunConfig,
        prefix: str,
        index: int,
        task: str,
        where: str,
        seed: int | None = None,
    ) -> None:
        data = replace(config.data, tasks=(task,), evaluate_on="selection")
        device = alone(where)
        self.index, (self.task,) = index, read_tasks(data, config.seed)
        self.config = config = config if seed is None else replace(config, seed=seed)
        base, collator = load(config, device)
        self.session = session_of(config, Group(device=device), collator)
        # Judged in the middle of a training, too, which goes on with its own loader.
        self.judging = replace(self.session, loader=Loader(collator))
        method = make_method(config, base)
        assert isinstance(method, CMoE), "a sweep's configuration has no other"
        self.method = method
        store = Store.open(prefix)
        store.require_base(self.method.base_digest)
        self.method.append(*(store.read(i) for i in range(index)))

    def trainer(self, link: Link) -> TaskTrainer:
        config = self.config
        return TaskTrainer(
            self.method.module,
            self.session,
            config.training,
            link,
            seed=config.seed,
            index=self.index,
            task=self.task.name,
        )

    def keep(self, folder: Path, primitive: Primitive, values: Mapping[str, Any]) -> None:
        """Write what was made; `result.json` says that it is whole."""
        module, collator = self.method.module, self.session.collator
        primitive = told(primitive, module, collator, self.task.train)
        shutil.rmtree(folder / PRIMITIVE, ignore_errors=True)
        # Alone in its log, it can't name what it builds on there.
        alone = replace(primitive, builds_on=None)
        start_store(folder / PRIMITIVE, self.method, self.config).append(alone)
        write_json(folder / RESULT, {**values, BUILDS_ON: primitive.builds_on})

    def accuracy(self) -> float:
        """The task's figure on the selection split, in percent, by its own router."""
        samples = self.task.test
        lengths = [padded(n) for n in self._lengths(samples)]
        said: dict[int, str] = {}
        order = sorted(range(len(samples)), key=lengths.__getitem__)
        size = self.config.evaluation.batch_size
        with gathering(self.method.module, self.config.training.zero):
            for batch in alike(order, lengths.__getitem__, size):
                asked = [samples[i] for i in batch]
                said |= zip(batch, self._said(asked, lengths[batch[0]]), strict=True)
        answers, targets = [said[i] for i in range(len(samples))], [target_of(s) for s in samples]
        return scored(self.task, self.config.evaluation.scoring, answers, targets).figure

    def _said(self, asked: Sequence[Sample], length: int) -> list[str]:
        limit = self.config.evaluation.max_new_tokens
        return texts(self.method, self.judging, asked, self.index, length, limit)

    def _lengths(self, samples: Sequence[Sample]) -> list[int]:
        rows = self.judging.over(
            samples, "prompts", lambda batch: batch["attention_mask"].sum(1), lambda *_: None
        )
        return [int(n) for n in torch.cat(rows)]

    def loss(self) -> float:
        """Mean loss per answer token on the selection split, while the task is being learned."""
        module, task = self.method.module, self.task

        @torch.no_grad()
        def sums(batch: Mapping[str, Tensor]) -> Tensor:
            tokens = (batch["labels"] != -100).sum().float()
            loss = module(batch, task.name, num_items_in_batch=1).loss
            return torch.stack([loss, tokens])

        training = module.training
        module.eval()
        try:
            every = self.judging.over(task.test, "training", sums, lambda *_: None)
            loss, tokens = torch.stack(every).sum(0)
        finally:
            module.train(training)
        return float(loss / tokens)


def probe(bench: Bench, folder: Path, link: Link) -> None:
    """Probe a task, once for all candidates, and fit its locator."""
    start = time.monotonic()
    found = bench.method.probe_task(bench.task.name, bench.task.train, bench.trainer(link))
    bench.keep(folder, found, {"seconds": time.monotonic() - start})


def read_result(folder: Path, *keys: str) -> dict[str, Any]:
    """What a probe run or a trial came to.

    Raises:
        RunFileError: Its file is lost or damaged.
    """
    remedy = f"remove {folder} and {folder.parent}/tune-*, and the same command makes it again"
    return read_object(folder / RESULT, remedy, *keys)


def read_kept(folder: Path) -> Primitive:
    """The primitive that `Bench.keep` wrote.

    Raises:
        StoreError: It is damaged.
        RunFileError: `result.json` is lost or damaged.
    """
    primitive = Store.open(folder / PRIMITIVE).read(0)
    return replace(primitive, builds_on=read_result(folder).get(BUILDS_ON))


def read_probed(folder: Path) -> tuple[Probed, Primitive]:
    """What `probe` left in a folder: what candidates are made of, and what they start from."""
    primitive = read_kept(folder)
    found = primitive.decision
    probed = Probed(
        probing=Probing.of(found["probing"]) if found["probing"] else None,
        older=tuple(found["older"]),
        widths=tuple(found["widths"]),
        hidden=found["hidden"],
        beside=tuple(found["beside"]),
        locator=sum(t.numel() for t in primitive.locator.values()),
    )
    return probed, primitive


def train(
    bench: Bench, probed: Path, folder: Path, link: Link, rung: Callable[[float], None] | None
) -> None:
    """Learn a task by a candidate, and judge it.

    Args:
        bench: The task, with the candidate's settings.
        probed: Folder of its probe run.
        folder: Where the candidate's primitive goes; named as the candidate.
        link: To the launcher.
        rung: Told the loss on the selection split at every checkpoint within the training.
    """
    start = time.monotonic()
    _, probes = read_probed(probed)
    if rung is not None:
        link = _Rungs(link, lambda: rung(bench.loss()))
    samples = bench.task.train
    primitive = bench.method.learn(bench.task.name, samples, bench.trainer(link), probes)
    accuracy = bench.accuracy()
    result = Result(
        name=folder.name,
        accuracy=accuracy,
        samples=len(bench.task.test),
        parameters=sum(primitive.parameter_counts().values()),
        seconds=time.monotonic() - start,
    )
    bench.keep(folder, primitive, asdict(result))


class _Rungs:
    """A link that measures at every checkpoint, before it is kept."""

    def __init__(self, link: Link, measure: Callable[[], None]) -> None:
        self.emit, self.reached, self.leaving = link.emit, link.reached, link.leaving
        self.saved, self.read_saved = link.saved, link.read_saved
        self._link, self._measure = link, measure

    def save(self, folder: Path, *, wait: bool) -> None:
        self._measure()
        self._link.save(folder, wait=wait)


def device_here() -> str:
    """Where a process that Ray has started is to compute."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return "cuda" if torch.cuda.is_available() else "cpu"


def alone(where: str) -> torch.device:
    """A process group of this one process, which DeepSpeed needs, for as long as the process is.

    DeepSpeed keeps groups of its own: another default group would not be theirs.
    """
    import torch.distributed as dist

    device = torch.device(where)
    if not dist.is_initialized():
        place = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(place | {"MASTER_PORT": "0"})
        backend = "nccl" if device.type == "cuda" else "gloo"
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    return device
