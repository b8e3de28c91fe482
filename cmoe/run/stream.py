"""The worker program: learn every task of the stream, and answer all tests after each.

It reads as the run does. What is on the disk decides where it begins: a store with three primitives
means that the fourth task is next, whoever wrote them and however that process ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from cmoe.common.group import Group
from cmoe.common.remote.mirror import Mirror, mirrored
from cmoe.common.run_files import write_json
from cmoe.common.storage import exists
from cmoe.config.tree import RunConfig
from cmoe.data.batches import Collator
from cmoe.data.coin import lies_below, read_tasks
from cmoe.data.loader import Loader, prepare
from cmoe.data.paraphrases import instructions_of
from cmoe.data.row_rules import require_images
from cmoe.data.samples import Sample, Task
from cmoe.data.session import Session
from cmoe.evaluation.coin_predictions import write_coin
from cmoe.evaluation.costs import answer_seconds, peak_memory
from cmoe.evaluation.data_identity import require_same_rows
from cmoe.evaluation.predict import Predictor
from cmoe.evaluation.predictions import write_stage
from cmoe.evaluation.references import told
from cmoe.evaluation.results import Facts, results
from cmoe.evaluation.targets import stream_targets
from cmoe.folder import ALONE, APART, RunFolder
from cmoe.methods.method import Method
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE
from cmoe.store.export import without_paths
from cmoe.store.log import HEADER, Record, Store
from cmoe.store.model import create_store
from cmoe.training.engine import gathering
from cmoe.training.link import Link
from cmoe.training.settings import TrainingConfig
from cmoe.training.trainer import TaskTrainer

LATENCY = "latency"  # of a stage's notes

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel


def run_stream(config: RunConfig, group: Group, link: Link) -> None:
    """Carry a run to its end, from wherever its folder stands. Every worker runs this.

    Raises:
        DataError: A sample or a file of the run's folder can't be used.
        FloatingPointError: A loss isn't finite.
        StoreError: The store is damaged or another base's.
    """
    with mirrored(config.url, apart=APART) as mirror:
        Stream(config, group, link, mirror).run()


class Stream:
    """A run as one worker sees it: the method as far as it has come, and the tests.

    Rank 0 alone reads and writes files of the run's folder.
    """

    trainer = TaskTrainer

    def __init__(self, config: RunConfig, group: Group, link: Link, mirror: Mirror) -> None:
        self.config, self.group, self.link, self.mirror = config, group, link, mirror
        self.folder = RunFolder(mirror.folder, config.url)
        read: Callable[[], tuple[Task, ...]] = partial(read_tasks, config.data, config.seed)
        with ThreadPoolExecutor(1, "tasks") as beside:  # one waits for files, the other computes
            if group.first:  # which hands them on
                read = partial(beside.submit(read).result, None)
            link.reached({"phase": "loading the base"})
            with _named("while loading the base"):
                self.method, collator = self._loaded()
            link.reached({"phase": "reading the tasks"})
            self.tasks = read_together(group, config.data.root, read)
        self.targets = (
            stream_targets(self.tasks, config.data, config.evaluation) if group.first else {}
        )
        self.session = session_of(config, group, collator)
        link.reached({"phase": "opening the store"})
        self.store = group.from_first(self._opened)
        self.store.require_base(self.method.base_digest)
        self.predictor = Predictor(
            self.method,
            self.session,
            self.tasks,
            config.data.root,
            self.folder.predictions,
            config.evaluation,
            emit=self._emit_prediction,
        )
        link.reached({"phase": "the first step"})
        self._index = BASE

    def run(self) -> None:
        """Carry the run to its end."""
        self.evaluate(BASE)
        for index, task in enumerate(self.tasks):
            if index < len(self.store):
                self.recall(index)
            else:
                self.learn(index, task)
            self.evaluate(index)

    def _loaded(self) -> tuple[Method, Collator]:
        """The method with nothing learned yet, and what makes its batches."""
        base, collator = load(self.config, self.group.device)
        return make_method(self.config, base), collator

    def _opened(self) -> Store:
        """The run's store as rank 0 has read it, which all others get; its folder is ready then."""
        self.mirror.fetch()
        config, folder = self.config, self.folder
        require_same_rows(folder.path, self.tasks, self.targets, config.data, config.evaluation)
        for each in (folder.predictions, folder.stages):
            each.mkdir(parents=True, exist_ok=True)
        if not exists(f"{folder.store}/{HEADER}"):
            start_store(folder.store, self.method, config)
        return Store.open(folder.store)

    def recall(self, index: int) -> None:
        """Take a task that was learned before from the store.

        One at a time: a stage is answered by what was known then, whoever wrote the store.
        """
        self.method.append(self.group.from_first(lambda: self.store.read(index)))

    def learn(self, index: int, task: Task) -> None:
        """Learn a task and commit its primitive."""
        samples, training = self._lesson(index)
        trainer = self.trainer(
            self.method.module,
            self.session,
            training,
            self.link,
            seed=self.config.seed,
            index=index,
            task=task.name,
            earlier=self._earlier(index),
        )
        primitive = self.method.learn(task.name, samples, trainer)
        if self.method.locates:
            primitive = self._told(primitive, samples)
        self.link.reached({"index": index, "task": task.name, "phase": "committing"})
        memory = self.group.largest(peak_memory(self.group.device))

        def commit() -> Store:
            progress = trainer.progress
            spent = {"seconds": progress.seconds, "tokens": progress.tokens, "memory": memory}
            self.folder.note(index, {"task": task.name, "loss": progress.loss, **spent})
            self.mirror.flush()  # the store doesn't wait for what is carried
            self.store.append(primitive)
            return self.store

        with _named(f"while committing task {task.name!r} to {self.store.url}"):
            self.store = self.group.from_first(commit)

    def _told(self, primitive: Primitive, samples: Sequence[Sample]) -> Primitive:
        """A primitive with what a service wants to know of it."""
        module = self.method.module
        if not isinstance(module, GrowingVLM):  # whose store isn't served
            return replace(primitive, instructions=instructions_of(samples))
        with gathering(module, self.config.training.zero):
            return told(primitive, module, self.session.collator, samples)

    def _lesson(self, index: int) -> tuple[Sequence[Sample], TrainingConfig]:
        """What is learned as a stage's task, and how; the same in all for any method."""
        training = self.config.training
        if not self.method.joint:
            return self.tasks[index].train, training
        if index > 0:
            return (), training
        steps = None if training.steps is None else training.steps * len(self.tasks)
        every = [sample for task in self.tasks for sample in task.train]
        return every, replace(training, steps=steps)

    def _earlier(self, index: int) -> dict[str, Sequence[Sample]]:
        """What a method may go back to: nothing, unless it is registered as one that does."""
        if not self.config.entry.recalls:
            return {}
        return {task.name: task.train for task in self.tasks[:index]}

    def evaluate(self, stage: int) -> None:
        """Answer the tests of the tasks learned so far, unless that was done; write the matrix."""
        self.mirror.check()
        if not self.predictor.done(stage, self._digests()):
            self._answer(stage)
        if stage == len(self.tasks) - 1:
            self._time_answers(stage)
        if self.group.first:
            predictions = self.folder.predictions
            scoring = self.config.evaluation.scoring
            found = results(predictions, self.tasks, self.targets, self._facts(), scoring)
            write_coin(self.folder.path, self.tasks, self._digests(), self.config.method)
            write_json(self.folder.matrix, found)  # last: it says that the stage is done
            if stage != BASE:
                self.link.emit({"phase": "stage", "index": stage, "results": found})

    def _answer(self, stage: int) -> None:
        self._index, start = stage, time.monotonic()
        name = "the base" if stage == BASE else f"task {self.tasks[stage].name!r}"
        with (
            _named(f"while evaluating {name}"),
            gathering(self.method.module, self.config.training.zero),
        ):
            evaluated = self.predictor.evaluate(stage, self._digests())
        if self.group.first:
            self.mirror.flush()  # the answers, before the stage says that they are there
            write_stage(self.folder.predictions, stage, evaluated)
            spent = self.folder.read_notes(stage).get("seconds", {})
            self.folder.note(stage, {"seconds": spent | {"predict": time.monotonic() - start}})
        self.group.wait()  # no rank goes on before the stage is on the disk

    def _time_answers(self, stage: int) -> None:
        """Note what an answer takes in the end, unless that was done; rank 0 alone measures it.

        With sharded weights no rank can answer alone: then it isn't known.
        """
        if (
            self.group.first
            and not self.session.sharded
            and not self.folder.read_notes(stage).get(LATENCY)
        ):
            samples = [task.test[0] for task in self.tasks]
            prompts = self.session.collator.prompts
            inputs = [self.group.moved(prompts([sample])) for sample in samples]
            self.folder.note(stage, {LATENCY: answer_seconds(self.method, stage, inputs)})
        self.group.wait()

    def _records(self) -> tuple[Record, ...]:
        """Of the tasks that the method knows by now."""
        return self.store.records()[: len(self.method.tasks)]

    def _digests(self) -> dict[int, str]:
        digests = {i: record.digest for i, record in enumerate(self._records())}
        return digests | {BASE: self.method.base_digest}

    def _facts(self) -> Facts:
        records, method = self._records(), self.method
        alone, *notes = (self.folder.read_notes(i) for i in (BASE, *range(len(records))))
        return Facts(
            method=self.config.method,
            digests=self._digests(),
            parameters=[r.parameters for r in records],
            answering=sorted(method.at_work(len(records) - 1)),
            base_parameters=self.method.base_parameters,
            flops={t: self.method.flops_per_token(t) for t in (BASE, *range(len(records)))},
            similarity=self.method.expert_similarity(),
            seconds={
                name: note.get("seconds", {})
                for name, note in zip((ALONE, *method.tasks), (alone, *notes), strict=True)
            },
            locates=self.method.locates,
            told=self.config.entry.told,
            learning_flops=sum(
                method.learning_flops(index, note.get("tokens", {}))
                for index, note in enumerate(notes)
            ),
            peak_memory=max((note["memory"] for note in notes if "memory" in note), default=None),
            latency=notes[-1].get(LATENCY) if notes else None,
        )

    def _emit_prediction(self, phase: str, step: int, steps: int, **more: Any) -> None:
        task = "" if self._index == BASE else self.tasks[self._index].name
        at = {"index": self._index, "task": task, "phase": phase}
        self.link.emit(at | {"step": step, "steps": steps} | more)


def read_together(
    group: Group, root: str, read: Callable[[], tuple[Task, ...]]
) -> tuple[Task, ...]:
    """A run's tasks, on every worker those of rank 0, which alone reads rows that can be handed on.

    Prepared rows are mapped into memory from each machine's disk, and images within rows lie there:
    these every worker reads itself. Of images in files the others look for the first of each split.

    Args:
        group: The workers.
        root: What images in files lie below.
        read: Gives this machine's.

    Raises:
        DataError: Rows can't be used, or this machine lacks their images.
    """

    def handed_on() -> tuple[Task, ...] | None:
        tasks = read()
        return tasks if all(lies_below(task, root) for task in tasks) else None

    tasks = group.from_first(handed_on)
    if tasks is None:
        return read()
    if not group.first:
        require_images(split[0] for task in tasks for split in (task.train, task.test))
    return tasks


def load(config: RunConfig, device: torch.device) -> tuple[PreTrainedModel, Collator]:
    """The base that a run names, on a device, and what makes its batches."""
    prepare(config.data.loader_workers)
    base, processor = load_base(
        config.model.path,
        revision=config.model.revision,
        dtype=getattr(torch, config.model.dtype),
        device=device,
        pad=config.model.pad,
        quantization=config.model.quantization,
        attention=config.model.attention,
    )
    limit = config.data.max_length or base.config.get_text_config().max_position_embeddings
    return base, Collator(processor, limit, config.evaluation.max_new_tokens)


def session_of(config: RunConfig, group: Group, collator: Collator) -> Session:
    """What all passes of a run's worker share."""
    return Session(
        group,
        collator,
        Loader(collator, config.data.loader_workers),
        config.evaluation.batch_size,
        sharded=config.training.zero == 3,
    )


def make_method(config: RunConfig, base: PreTrainedModel) -> Method:
    """The method that a run is configured for, with nothing learned yet."""
    method = config.entry.create(base, config.seed, config.method_sections)
    if isinstance(method.module, GrowingVLM):
        method.module.use_kernels(config.model.kernels)
    if config.training.gradient_checkpointing:
        method.enable_gradient_checkpointing(config.training.checkpointed_layers)
    return method


def start_store(url: str | Path, method: Method, config: RunConfig) -> Store:
    """The log of a run's method that has learned nothing yet.

    Whoever gets a copy of it isn't told this machine's folders, but for the base's: it is loaded
    from there.
    """
    values = config.as_dict()
    return create_store(
        url,
        method,
        name=config.model.name,
        revision=config.model.revision or "default",
        config=without_paths(values) | {"model": values["model"]},
    )


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say in an error what was under way."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise
