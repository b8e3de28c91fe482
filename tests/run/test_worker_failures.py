"""Which failures end a run, which are worth another try, and what is said of them."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.workers import run_group, small_config

from cmoe.common.group import Group
from cmoe.common.storage import StorageAwayError, StorageError
from cmoe.run import worker_failures as failures
from cmoe.run.worker_failures import Verdict, described, is_out_of_memory, is_own, limit_collectives

# As torch 2.13, NCCL, gloo, DeepSpeed and Ray word them.
MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total ..."),
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("HIP out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4000000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    MemoryError(),
    MemoryError("std::bad_alloc"),
    OSError(12, "Cannot allocate memory"),
    dist.DistBackendError(
        "NCCL error in: NCCLUtils.cpp:93, unhandled cuda error, NCCL version 2.27.5\n"
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
        "Cuda failure 2 'out of memory'"
    ),
    RuntimeError(
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that "
        "dataloader's workers are out of shared memory."
    ),
]
OURS = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (4x32 and 16x8)"),
    RuntimeError("The size of tensor a (4) must match the size of tensor b (3) at dimension 1"),
    RuntimeError("expected scalar type Float but found BFloat16"),
    RuntimeError("Expected all tensors to be on the same device, but found at least two devices"),
    RuntimeError("element 0 of tensors does not require grad and does not have a grad_fn"),
    RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    torch.AcceleratorError("CUDA error: device-side assert triggered", 710),
    dist.DistBackendError("NCCL error: ncclInvalidUsage: Duplicate GPU detected : rank 0 and 1"),
    FloatingPointError("the loss is nan"),
    StorageError("s3://bucket: can't be written"),
    KeyError("VizWiz"),
    FileNotFoundError("a picture"),
]  # fmt: skip
LOST = [
    ConnectionResetError("[Errno 104] Connection reset by peer"),
    BrokenPipeError(32, "Broken pipe"),
    TimeoutError("a peer's"),
    RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:41234"),
    RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv"),
    RuntimeError("Application timeout caused pair closure"),
    dist.DistNetworkError("failed to recv, got 0 bytes"),
    dist.DistStoreError("wait timeout after 300000ms, keys: /default_pg/0//cuda//1"),
    dist.DistBackendError("NCCL error: ncclRemoteError: A call failed possibly due to a network"),
    dist.DistBackendError("NCCL communicator was aborted on rank 0."),
    RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
    RuntimeError("DataLoader worker (pid(s) 4242) exited unexpectedly"),
    RuntimeError("DataLoader worker (pid 4242) is killed by signal: Killed."),
]


@pytest.fixture
def group() -> object:
    """A process group of this one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_out_of_memory_ends_a_run_of_any_kind(group: object) -> None:
    for error in MEMORY:
        assert is_out_of_memory(error), error
        assert failures.verdict(error) is Verdict.OWN, error


def test_what_would_come_again_ends_the_run(group: object) -> None:
    for error in OURS:
        assert not is_out_of_memory(error), error
        assert is_own(error), error


def test_what_comes_of_lost_processes_machines_and_devices_is_tried_again(group: object) -> None:
    from ray.exceptions import ActorDiedError, RayTaskError
    from ray.train.v2._internal.exceptions import BroadcastCollectiveTimeoutError

    timed_out = BroadcastCollectiveTimeoutError(60.0, [1], 60.0)
    task = RayTaskError("broadcast", "trace", timed_out).as_instanceof_cause()
    away = StorageAwayError("s3://bucket doesn't answer")
    for error in [*LOST, ActorDiedError(), timed_out, task, away]:
        assert not is_own(error), error


def test_the_first_of_a_chain_of_failures_counts(group: object) -> None:
    """Cleaning up after a failure fails, too: in DeepSpeed's asserts, in further collectives."""
    for first, own in [(MEMORY[0], True), (LOST[3], False)]:
        with pytest.raises(AssertionError) as raised:
            cleaning_up(first)
        assert is_own(raised.value) is own, first
        told = described(raised.value, small_config(Path(), "x"))
        assert ("CUDA out of memory" in told) is own
    apart = ValueError("of ours")
    apart.__context__, apart.__suppress_context__ = ConnectionError(), True
    assert is_own(apart)


def cleaning_up(error: Exception) -> None:
    try:
        raise error
    finally:
        raise AssertionError("no engine")


@pytest.mark.parametrize("error", MEMORY[:6])
def test_it_is_said_what_to_lower(error: Exception) -> None:
    error.add_note("in task 'VizWiz', phase 'train'")
    told = described(error, small_config(Path(), "x"))
    assert str(error) in told
    assert "in task 'VizWiz', phase 'train'" in told
    for key in ("training.micro_batch (now 8)", "evaluation.batch_size (now 8)", "data.max_length"):
        assert key in told
    assert "training.gradient_checkpointing true" in told
    assert "training.zero 3" in told
    assert "/dev/shm" in described(MEMORY[-1], small_config(Path(), "x"))


def failing(group: Group, folder: Path) -> None:
    """Rank 0 fails in a way that says nothing of rank 1, which is found dead a second later."""
    if group.rank == 1:
        time.sleep(1)
        (folder / "dead").touch()
        time.sleep(1)
        dist.destroy_process_group()
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        return
    threading.Thread(target=torn_down, args=(folder,)).start()
    assert not is_own(RuntimeError("an odd one"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    assert is_own(RuntimeError("an odd one")), "alone, nobody is waited for"


def torn_down(folder: Path) -> None:
    """What Ray does in a survivor's process, once it has noticed."""
    while not (folder / "dead").exists():
        time.sleep(0.1)
    dist.destroy_process_group()


def limited(group: Group) -> None:
    """Also groups that are made later, as DeepSpeed's are, keep the limit."""
    limit_collectives(77)
    made = dist.new_group([0, 1])
    backend = made._get_backend(torch.device("cpu"))
    assert backend.options._timeout.total_seconds() == 77
    short = dist.new_group([0, 1], timeout=timedelta(seconds=1))
    if group.rank == 0:
        with pytest.raises(RuntimeError) as raised:
            dist.all_reduce(torch.zeros(1), group=short)
        assert failures.verdict(raised.value) is Verdict.LOST, raised.value
    else:
        time.sleep(3)


def both(group: Group, folder: Path) -> None:
    limited(group)
    failing(group, folder)


def test_survivors_wait_before_they_blame_themselves_and_every_group_keeps_the_limit(
    tmp_path: Path,
) -> None:
    run_group(2, both, tmp_path)
