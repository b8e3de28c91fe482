"""A stream's weights and figures are, bit for bit, those of commit 0c99435, fp32 on a CPU.

Since that commit one thing was changed on purpose: `view_as` in the experts' and the FFN's forward
pass, which fixes the order in which gradients are summed, so that ZeRO 3 gives the bits of ZeRO 0.
The streams of `cmoe` leave it out again, and have the forms of the paper, which were all there was.

Bits depend on the machine's arithmetic. Where that is another one than the digests', nothing can be
said, and the tests are skipped.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.devices import DEVICE
from support.workers import FolderLink, run_group, small_config
from torch import Tensor

from cmoe.common.group import Group
from cmoe.config.tree import RunConfig
from cmoe.evaluation.results import MEASURED
from cmoe.mini.tasks import ensure_data
from cmoe.run.stream import run_stream
from cmoe.store.log import Store

ARITHMETIC = "3d7d59c7b895ff40"
"""Of the machine that the digests are from."""
DIGESTS = {
    ("lora", 1): "1583ce6a1f246aad",
    ("cmoe", 1): "8953e64e18bee4d1",
    ("cmoe", 2): "d895faec9f110748",
}
VIEWED = ("cmoe/modeling/experts.py", "cmoe/modeling/ffn.py")
VIEW_AS = Tensor.view_as


def arithmetic() -> str:
    """What one thread of this machine makes of products, exponentials and sums."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    digest = sha256()
    for rows, inner, columns in ((1, 8, 96), (7, 96, 256), (64, 256, 96), (200, 96, 8)):
        left = torch.randn(rows, inner, generator=generator)
        right = torch.randn(inner, columns, generator=generator)
        product = left @ right
        for tensor in (product, product.softmax(-1), F.silu(product), product.sum(0)):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def as_before(tensor: Tensor, other: Tensor) -> Tensor:
    viewed = sys._getframe(1).f_code.co_filename.endswith(VIEWED)
    return tensor if viewed else VIEW_AS(tensor, other)


def stream(group: Group, config: RunConfig) -> None:
    Tensor.view_as = as_before  # type: ignore[assignment]
    run_stream(config, group, FolderLink(group, config.folder / "checkpoint"))


def digest(folder: Path) -> str:
    """Of all weights and all figures that aren't measured."""
    files: list[Any] = [
        {name: file.sha256 for name, file in record.files.items()}
        for record in Store.open(folder / "store").records()
    ]
    matrix = json.loads((folder / "matrix.json").read_text())
    new = (*MEASURED, "last_scores", "scorers", "told")
    figures = {name: value for name, value in matrix.items() if name not in new}
    return sha256(json.dumps([files, figures], sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.skipif(DEVICE.type != "cpu", reason="the digests are of a CPU")
@pytest.mark.parametrize(("method", "workers"), DIGESTS)
def test_a_stream_has_the_bits_that_it_had(tmp_path: Path, method: Any, workers: int) -> None:
    if (here := arithmetic()) != ARITHMETIC:
        pytest.skip(f"this machine's arithmetic is {here}, the digests are of {ARITHMETIC}")
    config = small_config(tmp_path, "short", method=method)
    data = replace(config.data, tasks=("ScienceQA", "VizWiz"), train_samples=48, test_samples=9)
    training = replace(config.training, micro_batch=4, steps=8)
    experts = replace(config.experts, gates="renormalized", attention=0, build_on="none")
    probe = replace(config.probe, rule="relative", init="used")
    locator = replace(config.locator, paraphrases=0)
    config = replace(
        config, data=data, training=training, experts=experts, probe=probe, locator=locator
    )
    ensure_data(config.data)
    config.folder.mkdir(parents=True)
    run_group(workers, stream, config)
    assert digest(config.folder) == DIGESTS[method, workers]
