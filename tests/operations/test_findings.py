"""What is said of machines that were looked at, on what scouts would tell of large ones."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from cmoe.common.versions import unlike
from cmoe.operations.preflight.exchange import Exchange, Link
from cmoe.operations.preflight.findings import (
    GIB,
    Needs,
    of_clocks,
    of_disks,
    of_folder,
    of_gpu_counts,
    of_gpus,
    of_group,
    of_memory,
    of_versions,
)
from cmoe.operations.preflight.machines import machines_of
from cmoe.operations.preflight.scout import parse_smi

# As nvidia-smi prints it with --format=csv,noheader,nounits.
H100 = "0, NVIDIA H100 80GB HBM3, 81559, 81034, 550.54.15, 9.0\n"
T4 = "0, Tesla T4, 15360, 15101, 550.54.15, 7.5\n"


def named(texts: Any) -> list[str]:
    return [text.partition(":")[0] for text in texts]


def test_who_differs_from_most_is_named_even_if_it_is_the_head() -> None:
    old, new = {"torch": "2.12.0"}, {"torch": "2.13.0"}
    assert unlike({"a": old, "b": new, "c": new}, "a") == [
        ("a", "torch is 2.12.0, and most have 2.13.0")
    ]
    assert unlike({"a": old, "b": new}, "a") == [("b", "torch is 2.13.0, and a has 2.12.0")]
    assert unlike({"a": new, "b": new}, "a") == []


def test_a_machine_without_cmoe_is_named() -> None:
    seen = {"a": {"versions": {"cmoe": "1"}}, "b": {"versions": {"cmoe": "missing"}}}
    (text,) = of_versions(seen, "a", {"cmoe": "1"}, "here")
    assert text.startswith("b: cmoe is missing, and a has 1")


def test_the_process_that_asks_is_compared_too() -> None:
    seen = {name: {"versions": {"torch": "2.13.0"}} for name in "ab"}
    (text,) = of_versions(seen, "a", {"torch": "2.12.0"}, "laptop")
    assert "this process on laptop: torch is 2.12.0, and the machines have 2.13.0" in text


@pytest.mark.parametrize(
    ("clocks", "wrong"),
    [
        ({"a": (0.0, 0.001), "b": (1.9, 0.001)}, []),
        ({"a": (0.0, 0.001), "b": (-2.1, 0.001)}, ["b"]),
        ({"a": (0.0, 0.001), "b": (9.0, 8.0)}, []),  # who answers so late may be right
        ({"a": (60.0, 0.001), "b": (60.1, 0.001)}, []),  # this process's own is off, not theirs
        ({"a": (60.0, 0.001), "b": (0.0, 0.001), "c": (0.1, 0.001)}, ["a"]),
    ],
)
def test_a_clock_is_off_only_if_that_is_certain(clocks: Any, wrong: list[str]) -> None:
    assert named(of_clocks({n: {"clock": c} for n, c in clocks.items()}, "a")) == wrong


def test_a_disk_lacks_what_the_plan_says_and_what_is_fetched() -> None:
    def seen(runs: float, cache: float) -> Any:
        places = {"runs": "/runs", "temp": "/tmp", "cache": "/cache"}
        sizes = {"runs": runs, "temp": 50.0, "cache": cache}
        disk = {name: (free * GIB, 100 * GIB) for name, free in sizes.items()}
        return {"a": {"places": places, "disk": disk, "base": {"bytes": 14 * GIB, "fetched": True}}}

    needs = Needs(runs=20 * GIB)
    assert [*of_disks(seen(21, 15), needs, remote=False)] == []
    (text,) = of_disks(seen(19, 15), needs, remote=False)
    assert text.startswith("a: 19.0 GiB free for runs (/runs), and 20.0 GiB are needed")
    (text,) = of_disks(seen(21, 13), needs, remote=False)
    assert "13.0 GiB free for the base that is to be fetched into the hub's cache (/cache)" in text


def test_memory_has_to_hold_the_base_once_for_each_worker() -> None:
    def seen(free: float, shared: float = 8) -> Any:
        memory = {"free": free * GIB, "total": 64 * GIB}
        base = {"bytes": 14 * GIB}
        return {"a": {"memory": memory, "base": base, "shared_memory": shared * GIB}}

    assert [*of_memory(seen(57), {"a": 4}, loaders=False, gpu=True)] == []
    assert named(of_memory(seen(55), {"a": 4}, loaders=False, gpu=True)) == ["a"]
    (text,) = of_memory(seen(57, 0.0625), {"a": 4}, loaders=False, gpu=True)
    assert "0.1 GiB free in /dev/shm, and 1.0 GiB are needed" in text
    assert [*of_memory(seen(57, 0.0625), {"a": 4}, loaders=False, gpu=False)] == []


def with_gpus(*said: str) -> dict[str, Any]:
    names = "abc"[: len(said)]
    return {
        name: {"gpus": {"gpus": parse_smi(text), "cuda": "13.0"}}
        for name, text in zip(names, said, strict=True)
    }


def gpus(*said: str, needs: Needs | None = None) -> list[str]:
    return [*of_gpus(with_gpus(*said), "a", needs or Needs(), "bfloat16")]


def test_a_machine_whose_gpus_ray_does_not_know_is_named() -> None:
    two = H100 + H100.replace("0,", "1,", 1)
    assert of_gpu_counts(with_gpus(two), {"a": 2.0}) == ([], [])
    assert of_gpu_counts(with_gpus(two), {"a": 1.0}) == ([], ["a: has 2 GPUs, and Ray knows 1"])
    ((text,), _) = of_gpu_counts(with_gpus(two), {"a": 0.0})
    assert text.startswith("a: has 2 GPUs, and Ray knows 0; restart Ray there")
    broken = {"b": {"gpus": {"gpus": [], "error": "nvidia-smi fails: No devices were found"}}}
    assert named(of_gpu_counts(broken, {})[0]) == ["b"]


def test_gpus_are_alike_and_free() -> None:
    assert gpus(H100, H100) == []
    used = H100.replace("81034", "40000")
    (text,) = gpus(H100, used)
    assert text.startswith("b: GPU 0 has 39.1 GiB of 79.6 GiB free, and 71.7 GiB are needed")
    assert gpus(H100, used, needs=Needs(gpu=30 * GIB)) == []
    old, another = gpus(H100, H100, T4)
    assert old.startswith("c: GPU 0 has compute capability 7.5, and model.dtype bfloat16 needs 8.0")
    assert "c: its GPUs are Tesla T4, CUDA 13.0, driver 550.54.15, and other" in another


def test_a_gpu_of_unknown_memory_is_no_error() -> None:
    assert gpus("0, NVIDIA GB10, [N/A], [N/A], 580.95.05, 12.1\n") == []


def test_a_copy_of_data_is_told_and_a_folder_of_runs_must_be_one() -> None:
    mine = {"there": True, "marked": True, "files": {"train.json": 9}}
    copy = {**mine, "marked": False}
    wrong, notes = of_folder("data.root", "/data", {"a": mine, "b": copy}, "a")
    assert (wrong, named(notes)) == ([], ["b"])
    wrong, notes = of_folder("runs", "/runs", {"a": mine, "b": copy}, "a")
    assert (named(wrong), notes) == (["b"], [])
    other = {**copy, "files": {"train.json": 8}}
    ((text,), _) = of_folder("data.root", "/data", {"a": mine, "b": other}, "a")
    assert "with another train.json" in text


def ring(**bandwidths: float) -> Exchange:
    """One worker a machine; each moves as much as the slower end of a link lets it."""
    names = [*bandwidths]
    pairs = [*pairwise(names), (names[-1], names[0])]
    links = [
        Link((one, other), (names.index(one), names.index(other)), min(bandwidths[n] for n in ends))
        for ends in pairs
        for one, other in [ends]
    ]
    return Exchange(links=links)


def test_the_slow_machine_of_a_ring_is_named_and_its_neighbours_are_not() -> None:
    assert [*of_group(ring(a=10e9, b=9e9, c=11e9, d=8e9))] == []
    (text,) = of_group(ring(a=10e9, b=9e9, c=1e9, d=8e9))
    assert text.startswith("c: its network moves 1.00 GB/s, and the fastest 9.00 GB/s")


def test_a_slow_way_between_two_machines_is_told_from_a_slow_machine() -> None:
    found = ring(a=10e9, b=10e9, c=10e9, d=10e9)
    found.links[1] = Link(("b", "c"), (1, 2), 1e9)
    (text,) = of_group(found)
    assert text.startswith("between b and c 1.00 GB/s are moved, and elsewhere up to 10.00 GB/s")


def test_machines_of_one_host_have_names_of_their_own() -> None:
    def node(number: int, name: str = "10.0.0.1", head: bool = False) -> dict[str, Any]:
        return {
            "NodeID": f"{number}" * 8,
            "Alive": True,
            "NodeName": name,
            "NodeManagerHostname": "host",
            "NodeManagerAddress": "10.0.0.1",
            "Resources": {"node:__internal_head__": 1.0} if head else {},
        }

    found = machines_of([node(1), node(2, head=True), node(3, "third"), node(4) | {"Alive": False}])
    assert [m.name for m in found] == ["host (node 222222)", "host (node 111111)", "third"]
