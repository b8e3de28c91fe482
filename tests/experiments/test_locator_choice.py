"""The comparison of features is made of the very features that a model locates by."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cmoe.data.batches import Collator
from cmoe.data.coin import read_tasks
from cmoe.data.settings import DataConfig
from cmoe.experiments.locator_choice import accuracies, chosen, features
from cmoe.mini.tasks import write_mini_coin
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE, LocatorConfig

TASKS = ("ScienceQA", "Grounding")  # their questions end in instructions of their own


def test_all_features_of_one_pass_are_the_models_own_and_tell_tasks_apart(tmp_path: Path) -> None:
    write_mini_coin(tmp_path, train=40, test=1)
    data = DataConfig(
        root=str(tmp_path), tasks=TASKS, selection=0.25, evaluate_on="selection", test_samples=1
    )
    tasks = read_tasks(data, 0)
    base, processor = load_base(str(MINI_BASE), dtype=torch.float32)
    collator = Collator(processor, 256, 8)
    samples = tasks[0].train[:4]
    found = features(base, collator, samples, 4)
    assert len(found) == 7 * 3, "six layers and the decoder's output, by three poolings"
    for (layer, pooling), rows_nd in found.items():
        if (layer, pooling) in ((-1, "last"), (0, "mean"), (3, "mean_text")):
            model = GrowingVLM(
                load_base(str(MINI_BASE), dtype=torch.float32)[0],
                locator=LocatorConfig(layer=layer, pooling=pooling),
            )
            torch.testing.assert_close(rows_nd, model.features(collator.prompts(samples)))

    config = LocatorConfig(steps=30, hidden=16, latent=4)
    rows = {(r["layer"], r["pooling"]): r for r in accuracies(base, collator, tasks, config, 8, 0)}
    assert len(rows) == len(found)
    assert rows[0, "last"]["z"] == pytest.approx(50, abs=1), "before any layer all end alike"
    best = rows[2, "mean_text"]
    assert min(best["z"], best["raw"], best["mahalanobis"]) > 90


def rows_of(*accuracies: tuple[int, str, float, float, float]) -> list[dict[str, Any]]:
    names = ("layer", "pooling", "z", "raw", "mahalanobis")
    return [dict(zip(names, row, strict=True)) for row in accuracies]


def test_the_choice_is_inline_where_that_loses_less_than_a_point() -> None:
    """By the first layer's input alone: no layer below it can have experts."""
    near = rows_of((0, "mean", 98.0, 99.2, 97.0), (1, "mean", 99.5, 99.9, 99.0))
    assert str(chosen(near)) == (
        "--locator.layer 0 --locator.pooling mean --locator.score raw  (99.2)"
    )
    far = rows_of(
        (0, "mean", 98.0, 98.9, 97.0), (1, "mean", 99.5, 99.9, 99.0), (2, "last", 9, 9, 9)
    )
    assert chosen(far) == (1, "mean", "raw", 99.9)
