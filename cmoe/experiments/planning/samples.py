"""How many samples each task of a run has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from cmoe.common.errors import DataError
from cmoe.config.tree import RunConfig
from cmoe.data.coin import count_rows, held_out, require_enough
from cmoe.data.row_rules import BaseRule
from cmoe.data.shards import HUB, read_manifest
from cmoe.tasks.base_rule import base_rule

# Training samples of CoIN's tasks, rounded, as its paper reports them (arXiv 2403.08350) to our
# knowledge; neither read there nor counted by us.
COIN_SAMPLES = {
    "ScienceQA": 12_000,
    "TextVQA": 34_000,
    "ImageNet": 129_000,
    "GQA": 72_000,
    "VizWiz": 20_000,
    "Grounding": 55_000,
    "VQAv2": 82_000,
    "OCRVQA": 165_000,
}


@dataclass(frozen=True)
class Samples:
    """How many samples a task has.

    Attributes:
        train: To train on.
        test: To be answered; None where they aren't there to be counted.
        published: Whether `train` is what was published, as the files aren't there.
    """

    train: int
    test: int | None
    published: bool


def samples_of(config: RunConfig) -> dict[str, Samples]:
    """How many samples each task has: counted where the data is, else as asked for or published.

    Rows of CoIN's files are held to what a run holds them to, but their pictures needn't be there.
    A data set on the hub is not fetched to be counted.

    Raises:
        DataError: The data can't be used, or is too little.
    """
    data = config.data
    manifest = None if data.root.startswith(HUB) else read_manifest(data.root)
    found = {}

    @cache
    def base() -> BaseRule:
        return base_rule(config.model)

    for task in data.tasks:
        if manifest is not None and not (task in data.own and task not in manifest["tasks"]):
            splits = manifest["tasks"].get(task, {})
            train, test = (splits.get(s, {}).get("rows") for s in ("train", "test"))
        else:
            train = count_rows(data, task, "train", base)
            test = None if data.evaluate_on == "selection" else count_rows(data, task, "test", base)
        published = train is None
        if train is None and task not in COIN_SAMPLES:
            raise DataError(
                f"{data.root}: has no rows of {task}, and how many there are isn't published; put "
                "its files there, or name them in data.own"
            )
        if train is None:
            train = data.train_samples if data.generate else COIN_SAMPLES[task]
            test = data.test_samples if data.generate else None
        assert train is not None, "generated data says how much"
        train = min(train, data.train_samples or train)
        held = held_out(train, data, task)
        require_enough(train - held, config.least_samples, data, task)
        if held and data.evaluate_on == "selection":
            test = held
        test = test and min(test, data.test_samples or test)
        found[task] = Samples(train - held, test, published and not data.generate)
    return found
