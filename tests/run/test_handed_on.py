"""What a worker brings from S3, and what it has of rank 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.train import Checkpoint

from cmoe.common.group import Group
from cmoe.common.storage import filesystem
from cmoe.experiments.benchmarks.threads import Ledger, run_workers
from cmoe.modeling.primitive import Primitive
from cmoe.run.worker import Checkpoints
from cmoe.store.log import BaseId, Store
from cmoe.training.engine import TAG, of_another


class OnS3(Checkpoints):
    def __init__(self, url: str) -> None:
        self.url = url

    def _latest(self) -> Any:
        fs, path = filesystem(self.url)
        return Checkpoint(path, PyFileSystem(FSSpecHandler(fs)))


def test_a_worker_fetches_its_own_share_and_what_is_common(bucket: str) -> None:
    names = ["progress.json", f"{TAG}/mp_rank_00_model_states.pt"]
    shares = [
        f"{TAG}/{kind}zero_pp_rank_{rank}_mp_rank_00_{part}_states.pt"
        for rank in (1, 2, 12)
        for kind, part in (("", "model"), ("", "optim"), ("bf16_", "optim"))
    ]
    fs, path = filesystem(bucket)
    for name in (*names, *shares):
        fs.pipe_file(f"{path}/checkpoint/{name}", name.encode())
    link = OnS3(f"{bucket}/checkpoint")
    for needed, wanted in (
        (None, [*names, *shares]),
        (lambda name: not of_another(2, name), [*names, *shares[3:6]]),
    ):
        with link.saved(needed) as folder:
            assert folder is not None
            files = [file for file in Path(folder).rglob("*") if file.is_file()]
            found = {file.relative_to(folder).as_posix(): file.read_text() for file in files}
        assert found == {name: name for name in wanted}


def test_a_store_that_was_handed_on_is_read_on_s3(bucket: str) -> None:
    base = BaseId("base", "default", "digest")
    store = Store.create(f"{bucket}/store", base=base, settings={}, config={})
    weights = {"layers.0": torch.ones(2, 3)}
    store.append(Primitive("GQA", 1, 1.0, weights, weights, weights))
    found: dict[int, Store] = {}

    def work(group: Group, ledger: Ledger) -> None:
        found[group.rank] = group.from_first(lambda: store)

    run_workers([Ledger(), Ledger()], work)
    assert found[1] is not store
    assert found[1].records() == store.records()
    assert torch.equal(found[1].read(0).experts["layers.0"], weights["layers.0"])
