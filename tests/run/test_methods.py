"""Every method in the one loop: what a stream of it leaves, alone, shared, and interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from support.workers import TASKS, FolderLink, Stops, run_group, small_config

from cmoe.common.group import Group
from cmoe.config.tree import RunConfig
from cmoe.evaluation.results import MEASURED
from cmoe.methods.entry import ENTRIES
from cmoe.methods.registry import methods
from cmoe.methods.settings import EWCConfig, LoRAConfig, MoELoRAConfig, ReplayConfig
from cmoe.mini.tasks import ensure_data
from cmoe.run.stream import run_stream
from cmoe.store.log import Store

METHODS = tuple(methods())
RIVALS = tuple(m for m in METHODS if m not in ("cmoe", "expand_all", "located_lora"))
TRAINED = tuple(m for m in METHODS if m != "zero_shot")


def streams(group: Group, configs: list[RunConfig], interrupted: bool) -> None:
    """One after the other in the same processes: importing DeepSpeed takes longer than learning."""
    for config in configs:
        if interrupted:
            with pytest.raises(KeyError, match="stopped"):
                run_stream(config, group, Stops(group, config.folder / "checkpoint"))
        run_stream(config, group, FolderLink(group, config.folder / "checkpoint"))


def told_nothing(group: Group, config: RunConfig) -> None:
    """The stream of a method that is registered as one that is told nothing."""
    ENTRIES[config.method] = replace(ENTRIES[config.method], told="")
    run_stream(config, group, FolderLink(group, config.folder / "checkpoint"))


def configured(root: Path, name: str, method: Any) -> RunConfig:
    small: RunConfig = small_config(root, name, method=method, lora=LoRAConfig(8, 16))
    config = replace(
        small,
        data=replace(small.data, train_samples=48, test_samples=9),
        moelora=MoELoRAConfig(3, 4, 8),
        ewc=EWCConfig(10.0, samples=9),
        replay=ReplayConfig(samples=9),
        training=replace(small.training, steps=6, micro_batch=8, checkpoint_every=3),
        evaluation=replace(small.evaluation, max_new_tokens=3),
    )
    ensure_data(config.data)
    config.folder.mkdir(parents=True, exist_ok=True)
    return config


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("alone")
    configs = {method: configured(root, method, method) for method in METHODS}
    run_group(1, streams, list(configs.values()), False)
    return {method: read(config) for method, config in configs.items()}


def read(config: RunConfig) -> dict[str, Any]:
    store = Store.open(config.folder / "store")
    store.verify()
    return {
        "matrix": json.loads((config.folder / "matrix.json").read_text()),
        "primitives": [store.read(i) for i in range(len(store))],
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_ends_with_all_figures(alone: dict[str, Any], method: str) -> None:
    matrix = alone[method]["matrix"]
    assert (matrix["method"], matrix["told"]) == (method, methods()[method].told)
    assert len(matrix["located"]) == len(TASKS)
    assert matrix["metrics"]["last"] == pytest.approx(sum(matrix["located"][-1]) / len(TASKS))
    assert matrix["peak_memory"] > 2**20
    assert set(matrix["latency"]) == {"base", "answer"}
    assert min(matrix["latency"].values()) > 0
    assert (matrix["learning_flops"] > 0) == (method in TRAINED)
    assert (matrix["location"] is None) == (method in RIVALS)


def test_the_base_is_the_same_for_all(alone: dict[str, Any]) -> None:
    rows = {tuple(found["matrix"]["zero_shot"]) for found in alone.values()}
    assert len(rows) == 1
    assert all(
        tuple(row[: i + 1]) == rows.copy().pop()[: i + 1]
        for i, row in enumerate(alone["zero_shot"]["matrix"]["located"])
    )


def test_who_answers_says_what_is_added(alone: dict[str, Any]) -> None:
    parameters = {method: found["matrix"]["parameters"] for method, found in alone.items()}
    adapter = parameters["lora"]["added"]
    assert adapter > 0
    assert {m: p["answering"] for m, p in parameters.items()} == {
        "zero_shot": [],
        **{key: [2] for key in ("lora", "ewc", "lwf", "moelora", "replay")},
        "multitask": [0],
        **{m: [0, 1, 2] for m in ("per_task_lora", "located_lora", "expand_all", "cmoe")},
        **{m: [0, 1, 2] for m in ("olora", "hide_llava")},  # in whatever they answer
    }
    assert parameters["zero_shot"]["added"] == 0
    for method in ("ewc", "lwf", "multitask", "replay"):
        assert parameters[method]["added"] == adapter
    assert parameters["per_task_lora"]["added"] == 3 * adapter
    assert parameters["olora"]["added"] == 3 * adapter
    anchors = sum(t.numel() for p in alone["hide_llava"]["primitives"] for t in p.locator.values())
    assert parameters["hide_llava"]["added"] == 3 * adapter + anchors
    # A Fisher value for every weight and task, and it answers nothing.
    assert parameters["ewc"]["kept"] == 3 * adapter
    assert all(p["kept"] == 0 for m, p in parameters.items() if m != "ewc")


def test_what_is_kept_is_in_the_record_and_in_the_data(alone: dict[str, Any]) -> None:
    for primitive in alone["replay"]["primitives"]:
        kept = primitive.decision["kept"]
        assert len(kept) == 9
        assert len({name for _, name in kept}) == 9
        assert {place for place, _ in kept} < set(range(48))


def test_who_is_told_nothing_can_not_go_back(tmp_path: Path) -> None:
    with pytest.raises(
        mp.ProcessRaisedException, match=r"'VizWiz': samples of 'ScienceQA' can't be had"
    ):
        run_group(1, told_nothing, configured(tmp_path, "untold", "replay"))


def test_told_the_task_nothing_is_forgotten(alone: dict[str, Any]) -> None:
    located = alone["per_task_lora"]["matrix"]["located"]
    for j in range(len(TASKS)):
        assert len({row[j] for row in located[j:]}) == 1


def test_learned_at_once_every_stage_is_the_last(alone: dict[str, Any]) -> None:
    found = alone["multitask"]
    last = found["matrix"]["located"][-1]
    assert all(row[: i + 1] == last[: i + 1] for i, row in enumerate(found["matrix"]["located"]))
    assert found["matrix"]["metrics"]["fwt"] == 0
    assert [bool(p.experts) for p in found["primitives"]] == [True, False, False]


def test_all_tasks_at_once_take_as_many_steps_as_one_after_the_other(
    alone: dict[str, Any],
) -> None:
    """The same samples a step and as many steps, up to how rows are padded."""
    flops = {m: alone[m]["matrix"]["learning_flops"] for m in ("multitask", "lora")}
    assert flops["multitask"] == pytest.approx(flops["lora"], rel=0.25)


def test_what_is_measured_costs_as_well(alone: dict[str, Any]) -> None:
    """A task's 9 samples for EWC's Fisher, beside 6 steps of 16."""
    flops = {m: alone[m]["matrix"]["learning_flops"] for m in ("ewc", "lora")}
    assert flops["ewc"] / flops["lora"] == pytest.approx(1 + 9 / 96, abs=0.02)


def test_distilling_costs_a_forward_pass_more(alone: dict[str, Any]) -> None:
    flops = {m: alone[m]["matrix"]["learning_flops"] for m in ("lwf", "lora")}
    assert 1.2 * flops["lora"] < flops["lwf"] < 1.6 * flops["lora"]


def test_what_was_learned_before_changes_what_follows_the_first_task(
    alone: dict[str, Any],
) -> None:
    for method in ("ewc", "lwf", "olora", "replay"):
        mine, plain = alone[method]["primitives"], alone["lora"]["primitives"]
        assert same(mine[0].experts, plain[0].experts)
        assert not same(mine[1].experts, plain[1].experts)


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_interrupted_in_a_training_every_method_ends_the_same(
    tmp_path: Path, alone: dict[str, Any]
) -> None:
    """Bit for bit: also what a method keeps for itself (Fisher values, the adapter before), and
    what it goes back to.
    """
    again = ("ewc", "lwf", "olora", "moelora", "replay", "per_task_lora")
    configs = {method: configured(tmp_path, method, method) for method in again}
    run_group(1, streams, list(configs.values()), True)
    for method, config in configs.items():
        found = read(config)
        for mine, theirs in zip(found["primitives"], alone[method]["primitives"], strict=True):
            parts = zip(mine.parts().values(), theirs.parts().values(), strict=True)
            assert all(same(a, b) for a, b in parts), method
        kept = found["matrix"].keys() - {*MEASURED}
        assert all(found["matrix"][key] == alone[method]["matrix"][key] for key in kept), method


def test_two_workers_learn_as_one_does(tmp_path: Path, alone: dict[str, Any]) -> None:
    configs = {m: configured(tmp_path, m, m) for m in ("ewc", "lwf")}
    run_group(2, streams, list(configs.values()), False)
    for method, config in configs.items():
        for mine, theirs in zip(
            read(config)["primitives"], alone[method]["primitives"], strict=True
        ):
            for name, tensor in theirs.experts.items():
                # Gradients are summed in another order, and Adam's first steps are as large for
                # small ones.
                assert (mine.experts[name] - tensor).norm() < 0.02 * tensor.norm() + 1e-3
            for name, tensor in theirs.memory.items():
                assert (mine.memory[name] - tensor).norm() < 0.1 * tensor.norm() + 1e-3
