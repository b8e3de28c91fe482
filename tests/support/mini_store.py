"""A small log on the mini base: real pictures and questions, experts of random weights."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from cmoe.data.batches import Collator
from cmoe.data.coin import read_tasks
from cmoe.data.samples import Task
from cmoe.data.settings import DataConfig
from cmoe.evaluation.references import told
from cmoe.mini.tasks import write_mini_coin
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.settings import MINI_BASE, LocatorConfig
from cmoe.store.log import Store
from cmoe.store.model import create_store

TASKS = ("ScienceQA", "VizWiz", "Grounding")
LOCATOR = LocatorConfig(layer=1, pooling="mean_text", steps=100, hidden=32, latent=8)
MAX_NEW = 12
NOISE = 0.4  # answers of 10 to more than 300 tokens


@lru_cache
def processor() -> Any:
    return load_base(MINI_BASE)[1]


def collator() -> Collator:
    return Collator(processor(), 512, MAX_NEW)


def make_data(root: Path) -> tuple[Task, ...]:
    """64 training and 24 test samples of each task."""
    if not root.is_dir():
        write_mini_coin(root, train=64, test=24)
    return read_tasks(DataConfig(root=str(root), tasks=TASKS), seed=0)


def make_model(placement: str = "front") -> GrowingVLM:
    base, _ = load_base(MINI_BASE)
    locator = LocatorConfig(**{**vars(LOCATOR), "placement": placement})
    return GrowingVLM(base, locator=locator)


def make_primitive(model: GrowingVLM, task: Task) -> Primitive:
    """What a task adds: experts in two layers that change answers, and a locator that was fit."""
    index = len(model.tasks)
    model.grow(task.name, {1 + index % 2: 1, 4: 1}, rank=4, lora_alpha=8, seed=index)
    generator = torch.Generator().manual_seed(index)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(NOISE * torch.randn(p.shape, generator=generator))
    batches = [collator().prompts(task.train[i : i + 32]) for i in range(0, len(task.train), 32)]
    features = torch.cat([model.features(b) for b in batches])
    primitive = model.commit(model.bank.fit(features, seed=index))
    return told(primitive, model, collator(), task.train)


def make_store(folder: Path, tasks: Sequence[Task], placement: str = "front") -> Store:
    model = make_model(placement)
    store = create_store(folder, model, name="mini", revision="default", config={})
    for task in tasks:
        store.append(make_primitive(model, task))
    return store


def copy_prefix(store: Store, folder: Path, count: int) -> Store:
    """The first tasks of a store, as a store of their own: a log's prefix is a log."""
    later = {f"{index:03}*" for index in range(count, len(store))}
    shutil.copytree(store.url, folder, ignore=shutil.ignore_patterns(*later))
    return Store.open(folder)
