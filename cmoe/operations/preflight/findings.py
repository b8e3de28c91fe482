"""What is wrong with a cluster, in sentences that name the machine.

What was seen of a machine is a mapping, as its scout told it; machines go by their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from cmoe.common.versions import unlike, usual
from cmoe.operations.preflight.exchange import Exchange

GIB = 2**30
CLOCK_S = 2.0  # that clocks may differ by: logs of several machines are put in order by them
MIN_DISK = 2 * GIB  # where a plan doesn't say more
MIN_MEMORY = 2 * GIB  # of each worker, where the base's size doesn't say more
MIN_SHARED = GIB  # of /dev/shm: NCCL's guide and PyTorch's loaders want as much
FULL = 0.95  # of a disk, beyond which Ray refuses objects
FREE = 0.9  # of a GPU's memory, where a plan doesn't say how much is needed
BFLOAT16 = 8.0  # compute capability that has it
SLOW = 0.5  # of the fastest machine's bandwidth

Seen = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Needs:
    """What a run needs at most, in bytes.

    Attributes:
        runs: Where runs are kept.
        temp: Where each worker's machine has temporary files.
        gpu: Of each GPU; None where no plan says it.
    """

    runs: float = MIN_DISK
    temp: float = MIN_DISK
    gpu: float | None = None


def of_versions(seen: Seen, head: str, driver: Mapping[str, str], where: str) -> Iterator[str]:
    """Machines, or the process that asks, with other versions than most."""
    found = {name: each["versions"] for name, each in seen.items()}
    for name, text in unlike(found, head):
        yield f"{name}: {text}; install the same on all machines"
    for what, value in driver.items():
        right = usual({name: each.get(what, "") for name, each in found.items()}, head)
        if value != right:
            yield (
                f"this process on {where}: {what} is {value}, and the machines have {right}; start "
                "it in their environment"
            )


def of_clocks(seen: Seen, head: str) -> Iterator[str]:
    """Clocks that are certainly off by more than `CLOCK_S`.

    The head's is the measure, or where others agree against it, theirs.
    """
    ahead = {name: each["clock"] for name, each in seen.items() if "clock" in each}
    if not ahead:
        return
    middle = median(offset for offset, _ in ahead.values())
    base = ahead.get(head, (middle, 0.0))
    against = len(ahead) > 2 and abs(base[0] - middle) - base[1] > CLOCK_S
    zero, of = (middle, "most others'") if against else (base[0], f"that of {head}")
    for name, (offset, bound) in ahead.items():
        off, unsure = offset - zero, bound + base[1]
        if abs(off) - unsure > CLOCK_S:
            way = "ahead of" if off > 0 else "behind"
            yield (
                f"{name}: its clock is {abs(off):.1f} s {way} {of} (± {unsure:.3f} s); let it be "
                f"set by NTP (chrony), to within {CLOCK_S:g} s"
            )


def of_disks(seen: Seen, needs: Needs, remote: bool) -> Iterator[str]:
    """Disks without the room that is needed."""
    for name, each in seen.items():
        base = each.get("base", {})
        fetched = (base.get("bytes") or 0) if base.get("fetched") else 0
        wanted = {
            "runs": (needs.runs, "for runs"),
            "temp": (needs.temp + (needs.runs if remote else 0), "for temporary files"),
            "cache": (fetched, "for the base that is to be fetched into the hub's cache"),
        }
        for place, (free, total) in each.get("disk", {}).items():
            need, what = wanted[place]
            if free < need:
                yield (
                    f"{name}: {_gib(free)} free {what} ({each['places'][place]}), and "
                    f"{_gib(need)} are needed; free some space there, or use another path"
                )
            elif place == "temp" and free < (1 - FULL) * total:
                yield (
                    f"{name}: the disk of {each['places'][place]} is more than {FULL:.0%} full, "
                    "where Ray refuses objects; free some space there"
                )


def of_memory(seen: Seen, workers: Mapping[str, int], loaders: bool, gpu: bool) -> Iterator[str]:
    """Machines with too little memory, or shared memory, for their workers."""
    for name, each in seen.items():
        count = workers.get(name, 0)
        least = max(each.get("base", {}).get("bytes") or 0, MIN_MEMORY)
        if each["memory"]["free"] < count * least:
            yield (
                f"{name}: {_gib(each['memory']['free'])} of memory free, and {count} workers load "
                f"{_gib(least)} each; end what else runs there, or use fewer workers"
            )
        shared = each["shared_memory"]
        if (
            count
            and shared is not None
            and (loaders or (gpu and count > 1))
            and shared < MIN_SHARED
        ):
            yield (
                f"{name}: {_gib(shared)} free in /dev/shm, and {_gib(MIN_SHARED)} are needed by "
                "NCCL and loaders; give its container more (docker's --shm-size, or on Kubernetes "
                "an emptyDir of medium Memory)"
            )


def of_gpu_counts(seen: Seen, known: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """GPUs that don't answer, or that Ray doesn't know.

    Args:
        seen: By machine.
        known: By machine, how many GPUs Ray has there.

    Returns:
        What is wrong; and what is only to be known: machines of which Ray has a part.
    """
    wrong: list[str] = []
    notes: list[str] = []
    for name, each in seen.items():
        told = each.get("gpus", {})
        if "error" in told:
            wrong.append(f"{name}: {told['error']}; look at its driver")
        count, has = len(told.get("gpus", [])), known.get(name, 0)
        if has < count:
            text = f"{name}: has {count} GPU{'s' if count > 1 else ''}, and Ray knows {has:g}"
            remedy = "; restart Ray there, or set cluster.gpu false" if not has else ""
            (notes if has else wrong).append(text + remedy)
    return wrong, notes


def of_gpus(seen: Seen, head: str, needs: Needs, dtype: str) -> Iterator[str]:
    """GPUs that others use, that are too old, or of another kind than most machines'.

    Args:
        seen: By machine.
        head: Whose kind counts where none is more frequent.
        needs: What a run needs of each.
        dtype: Of the run's weights.
    """
    kinds = {}
    for name, each in seen.items():
        told = each.get("gpus", {})
        found = told.get("gpus", [])
        if found:
            kinds[name] = f"{found[0]['name']}, CUDA {told['cuda']}, driver {found[0]['driver']}"
        for one in found:
            yield from _of_gpu(name, one, needs, dtype)
    if kinds:
        right = usual(kinds, head)
        for name, kind in kinds.items():
            if kind != right:
                yield f"{name}: its GPUs are {kind}, and other machines have {right}; use one kind"


def _of_gpu(name: str, one: Mapping[str, Any], needs: Needs, dtype: str) -> Iterator[str]:
    if one["free"] is not None and one["total"] is not None:
        need = FREE * one["total"] if needs.gpu is None else needs.gpu
        if one["free"] < need:
            yield (
                f"{name}: GPU {one['index']} has {_gib(one['free'])} of {_gib(one['total'])} free, "
                f"and {_gib(need)} are needed; end what else uses it, or see `cmoe plan`"
            )
    capability = one["capability"]
    if dtype == "bfloat16" and capability[:1].isdigit() and float(capability) < BFLOAT16:
        yield (
            f"{name}: GPU {one['index']} has compute capability {capability}, and model.dtype "
            f"bfloat16 needs {BFLOAT16}; use a newer GPU, or float32"
        )


def of_folder(key: str, path: str, folders: Seen, head: str) -> tuple[list[str], list[str]]:
    """Machines that have another folder under a path, or none.

    Args:
        key: Of the configuration.
        path: Its value, a path.
        folders: By machine, what `Scout.seen` told.
        head: Where the mark was left.

    Returns:
        What is wrong; and what is only to be known: another folder with the same files.
    """
    wrong: list[str] = []
    notes: list[str] = []
    right = folders.get(head)
    if right is None:
        return [], []
    if not right["there"]:
        return [f"{head}: {key} {path} isn't there; correct it, or put it there"], []
    where = (
        f"mount the same folder on all machines{', or use s3://' if key != 'model.name' else ''}"
    )
    for name, each in folders.items():
        if name == head or each["marked"]:
            continue
        if not each["there"]:
            wrong.append(f"{name}: {key} {path} isn't there, and {head} has it; {where}")
        elif key != "runs" and each["files"] == right["files"]:
            notes.append(f"{name}: {key} {path} is not {head}'s folder, and has the same files")
        else:
            wrong.append(
                f"{name}: {key} {path} is another folder than on {head}"
                f"{_difference(each['files'], right['files'], head)}; {where}"
            )
    return wrong, notes


def _difference(mine: Mapping[str, int], theirs: Mapping[str, int], head: str) -> str:
    if lacks := sorted(theirs.keys() - mine.keys()):
        return f", without {lacks[0]}" + (f" and {len(lacks) - 1} more" if lacks[1:] else "")
    if more := sorted(mine.keys() - theirs.keys()):
        return f", with {more[0]}, which {head} hasn't"
    others = sorted(name for name in mine if mine[name] != theirs[name])
    return f", with another {others[0]}" if others else ""


def of_storage(seen: Seen) -> Iterator[str]:
    """What machines may not do with runs and data, and bases that they can't have."""
    for name, each in seen.items():
        for what, text in each.get("rights", {}).items():
            yield f"{name}: can't {what}: {text}"
        if each.get("data"):
            yield f"{name}: {each['data']}"
        if error := each.get("base", {}).get("error"):
            yield f"{name}: model.name: {error}"


def of_group(found: Exchange) -> Iterator[str]:
    """What went wrong between the workers, and machines or links that are slow."""
    yield from found.problems
    between = [link for link in found.links if link.between]
    fastest = max((link.bandwidth for link in between), default=0.0)
    names = dict.fromkeys(name for link in between for name in link.machines)
    if len(names) < 3:
        return  # nothing to compare with
    slow = {n for n in names if (found.network(n) or 0.0) < SLOW * fastest}
    for name in sorted(slow):
        yield (
            f"{name}: its network moves {(found.network(name) or 0) / 1e9:.2f} GB/s, and the "
            f"fastest {fastest / 1e9:.2f} GB/s; look at its network card and cable, and at "
            "NCCL_SOCKET_IFNAME or NCCL_IB_HCA"
        )
    for link in between:
        if link.bandwidth < SLOW * fastest and not slow & {*link.machines}:
            yield (
                f"between {' and '.join(link.machines)} {link.bandwidth / 1e9:.2f} GB/s are moved, "
                f"and elsewhere up to {fastest / 1e9:.2f} GB/s; look at the switches between them"
            )


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"
