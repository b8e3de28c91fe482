"""Replay: what is kept, how it is mixed in, and that the log and the data say it all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from support.plain_trainer import PlainTrainer, make_samples
from support.rivals import CONFIG, TASKS, samples_of
from support.sequential_adapters import learns_as_lora
from support.tiny_models import make_base

from cmoe.common.errors import DataError
from cmoe.methods.baselines.replay import KEPT, Mixed, Replay, mixed, recalled
from cmoe.methods.registry import method_entry
from cmoe.methods.settings import ReplayConfig
from cmoe.modeling.primitive import Primitive
from cmoe.store.model import create_store

EARLIER = {task: samples_of(task) for task in TASKS}


def make_replay(samples: int = 3, share: float = 0.5, seed: int = 0) -> Replay:
    return Replay(make_base(), CONFIG, ReplayConfig(samples, share), seed)


def learn(method: Replay, task: str) -> tuple[Primitive, Counter[str]]:
    """A task's primitive, and how often it was trained on each sample."""
    trainer = PlainTrainer(method.module, steps=1, earlier=EARLIER)
    primitive = method.learn(task, samples_of(task), trainer)
    return primitive, Counter(sample.id for sample in trainer.seen["train"])


def kept(primitive: Primitive) -> set[str]:
    return {name for _, name in primitive.decision[KEPT]}


def test_the_first_task_is_learned_as_by_lora() -> None:
    assert learns_as_lora(make_replay(), TASKS[:1]) == [True]


def test_a_task_is_trained_on_its_own_samples_and_as_often_on_what_is_kept() -> None:
    """8 samples a task and 3 kept of each: 8 places for 3, and then for 6 of them."""
    method = make_replay()
    first, seen = learn(method, "one")
    assert seen == Counter(s.id for s in EARLIER["one"])
    assert len(kept(first)) == 3
    assert kept(first) < {s.id for s in EARLIER["one"]}
    second, seen = learn(method, "two")
    assert {seen.pop(s.id) for s in EARLIER["two"]} == {1}
    assert seen.keys() == kept(first)
    assert sorted(seen.values()) == [2, 3, 3]
    _, seen = learn(method, "three")
    assert {seen.pop(s.id) for s in EARLIER["three"]} == {1}
    assert seen.keys() == kept(first) | kept(second)
    assert sorted(seen.values()) == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(("share", "count"), [(0.2, 2), (0.5, 8), (0.75, 24)])
def test_the_share_is_that_of_the_whole(share: float, count: int) -> None:
    method = make_replay(share=share)
    learn(method, "one")
    _, seen = learn(method, "two")
    assert seen.total() == 8 + count


def test_what_is_kept_is_the_seeds_and_no_more_than_there_is() -> None:
    drawn = [kept(learn(make_replay(seed=seed), "one")[0]) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({frozenset(each) for each in drawn}) > 1
    assert kept(learn(make_replay(100), "one")[0]) == {s.id for s in EARLIER["one"]}


def test_its_record_and_the_data_are_all_that_it_needs(tmp_path: Path) -> None:
    """Whoever goes on from a log trains on the same samples, in the same order."""
    method, resumed = make_replay(7), make_replay(7)
    store = create_store(tmp_path / "log", method, name="tiny", revision="none", config={})
    store.append(learn(method, "one")[0])
    resumed.append(store.read(0))
    orders = []
    for one in (method, resumed):
        trainer = PlainTrainer(one.module, steps=1, earlier=EARLIER)
        one.learn("two", samples_of("two"), trainer)
        orders.append([s.id for s in trainer.seen["train"]])
    assert orders[0] == orders[1]


def test_data_that_has_changed_is_refused() -> None:
    samples = make_samples(4)
    assert recalled("one", samples, [(2, "2"), (0, "0")]) == [samples[2], samples[0]]
    for changed, there in ((samples[1:], "'3'"), (samples[:2], "None")):
        with pytest.raises(
            DataError, match=f"task 'one': training sample 2 was '2' when .* is {there} now"
        ):
            recalled("one", changed, [(2, "2")])


def test_a_mixture_reads_samples_when_they_are_asked_for() -> None:
    own, again = make_samples(4), make_samples(2, start=10)
    found = mixed(own, again, 0.5, Random(0))
    assert isinstance(found, Mixed)
    assert len(found) == 8
    assert list(found)[:4] == own
    assert Counter(s.id for s in found[4:]) == {"10": 2, "11": 2}
    assert found[-1] == list(found)[-1]
    with pytest.raises(IndexError):
        found[8]
    assert mixed(own, [], 0.5, Random(0)) is own


def test_it_stands_apart_by_what_it_is_told() -> None:
    entry = method_entry("replay")
    assert entry.told == "samples of earlier tasks"
    assert entry.recalls
    assert not entry.joint
    assert not method_entry("lora").recalls
