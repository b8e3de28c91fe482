"""Whether a worker failed by itself, or because another one is lost.

A process, a machine or a device that is lost is worth another try. All else would end the same
again, and ends the run.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from enum import Enum

from cmoe.common.group import LOST_PEER
from cmoe.common.storage import StorageError
from cmoe.config.tree import RunConfig

# Where another worker has died, Ray takes the group down, or kills this process, within so long.
SETTLE_S = 15.0
# Nothing of these comes of a lost peer while the process group is there.
OWN_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    TypeError,
    ValueError,
)
# torch's `RuntimeError`s are told apart by their texts: few have a class of their own.
OUT_OF_MEMORY = re.compile(
    r"out of memory|can(no|')t allocate memory|not enough memory|bad_alloc|STATUS_ALLOC_FAILED",
    re.I,
)
SHARED_MEMORY = re.compile(r"shared memory|/dev/shm", re.I)
MISUSED = re.compile(r"ncclInvalid(Usage|Argument)|Duplicate GPU", re.I)
LOST = re.compile(
    r"connection (was )?(closed|reset|refused|aborted|timed out)|broken pipe|socket|\bpeer\b"
    r"|timed?.?out|gloo/transport|no route to host|(host|network) is unreachable|abort"
    r"|\bnccl|process ?group|TCPStore|rendezvous"
    r"|DataLoader worker .*(killed by signal|exited unexpectedly)",
    re.I,
)
LOST_DEVICE = re.compile(
    r"CUDA (error|failure).*(ECC|unspecified launch failure|launch timed out|hardware|unknown error"
    r"|illegal memory access|illegal instruction|misaligned|initialization error|no CUDA-capable"
    r"|unavailable|busy|not permitted|driver shutting|context is destroyed|fallen off)"
    r"|STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|NOT_INITIALIZED|MAPPING_ERROR)",
    re.I | re.S,
)


class Verdict(Enum):
    """What a failure tells of itself."""

    OWN = "trying again would end the same"
    LOST = "another process, machine or device is lost"
    UNCLEAR = "its own, unless another worker is found dead"


def is_own(error: BaseException) -> bool:
    """Whether a worker's failure is its own, so that trying again would end the same.

    Where the process group has gone, Ray has taken it down because of another worker, and whatever
    came of that here, an `AssertionError` of DeepSpeed's for example, says nothing. Survivors of a
    lost worker also fail in ways that can't be foreseen: a failure that doesn't tell waits until
    Ray would have found such a loss. Then the group has gone, or this process.
    """
    found = verdict(error)
    if found is Verdict.UNCLEAR:
        _settle()
        found = verdict(error)
    return found is not Verdict.LOST


def verdict(error: BaseException, *, alone: bool = False) -> Verdict:
    """What a failure says, together with those that it came of.

    Args:
        error: The failure.
        alone: Whether the process has no group that others could take down.
    """
    import torch.distributed as dist

    if isinstance(error, StorageError):  # it says so itself, whoever fell behind it
        return Verdict.LOST if error.transient else Verdict.OWN
    if not alone and not dist.is_initialized():
        return Verdict.LOST
    chain = [*_chain(error)]
    if any(is_out_of_memory(one) for one in chain):
        return Verdict.OWN
    if any(_is_lost(one) for one in chain):
        return Verdict.LOST
    return Verdict.OWN if isinstance(error, OWN_FAILURES) else Verdict.UNCLEAR


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory didn't suffice: the device's, the host's, or what processes share."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, RuntimeError | OSError):
        return bool(OUT_OF_MEMORY.search(str(error)) or SHARED_MEMORY.search(str(error)))
    return False


def _is_lost(error: BaseException) -> bool:
    from torch.distributed import DistError

    if isinstance(error, LOST_PEER) or any(
        c.__module__.startswith("ray.") for c in type(error).__mro__
    ):
        return True
    if not isinstance(error, RuntimeError) or MISUSED.search(str(error)):
        return False
    text = str(error)
    return isinstance(error, DistError) or bool(LOST.search(text) or LOST_DEVICE.search(text))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """A failure, and those while whose handling it came up."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _settle() -> None:
    """Wait until the process group has gone, or long enough to know that it stays."""
    import torch.distributed as dist

    deadline = time.monotonic() + SETTLE_S
    while dist.is_initialized() and dist.get_world_size() > 1 and time.monotonic() < deadline:
        time.sleep(0.1)


def described(error: BaseException, config: RunConfig) -> str:
    """A failure as the run's user reads it: what, where, and what would help."""
    root = next((one for one in _chain(error) if is_out_of_memory(one)), error)
    kind = "" if isinstance(root, StorageError) else f"{type(root).__name__}: "
    lines = [f"{kind}{root}", *getattr(error, "__notes__", [])]
    if is_out_of_memory(root):
        lines.append(_advice(root, config))
    return "\n  ".join(lines)


def _advice(error: BaseException, config: RunConfig) -> str:
    """What to lower, with what it is."""
    if SHARED_MEMORY.search(str(error)):
        return (
            "give the workers more shared memory (/dev/shm; in a container its shm size), or lower "
            f"data.loader_workers (now {config.data.loader_workers})"
        )
    training = config.training
    helps = [
        f"training.micro_batch (now {training.micro_batch})",
        f"evaluation.batch_size (now {config.evaluation.batch_size})",
        f"data.max_length (now {config.data.max_length or 'as the base has'})",
    ]
    more = []
    if not training.gradient_checkpointing:
        more.append("training.gradient_checkpointing true")
    if training.zero < 3:
        more.append("training.zero 3 (with several workers)")
    if config.model.dtype != "bfloat16":
        more.append("model.dtype bfloat16")
    also = f", or set {', '.join(more)}" if more else ""
    return f"lower {', '.join(helps)}{also}; other settings need another name"


def limit_collectives(seconds: float) -> None:
    """Let groups that are made from now on, DeepSpeed's own, wait as long as the first one does.

    By torch's default theirs would wait 10 minutes with NCCL and 30 with gloo, whatever was asked.
    """
    from datetime import timedelta

    from torch.distributed import distributed_c10d as c10d

    limit = timedelta(seconds=seconds)
    c10d.default_pg_timeout = limit
    c10d.default_pg_nccl_timeout = limit  # type: ignore[attr-defined]
