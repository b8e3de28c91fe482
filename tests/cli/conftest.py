"""Runs to export: of cmoe's own method, and of one with a LoRA for every task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.mini_store import TASKS, make_data, make_model, make_primitive

from cmoe.common.storage import filesystem
from cmoe.methods.baselines.per_task_lora import PerTaskLoRA
from cmoe.methods.settings import LoRAConfig
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE
from cmoe.store.log import Store
from cmoe.store.model import create_store

REPORT = "---\ntags:\n- a-run\n---\n## Results\n\nLast 71.2.\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of two tasks leaves, as far as an export looks at it."""
    folder = tmp_path_factory.mktemp("runs") / "mini"
    model = make_model()
    store = create_store(
        folder / "store", model, name="mini", revision="default", config={"runs": str(folder)}
    )
    for task in make_data(folder.parent / "data")[:2]:
        store.append(make_primitive(model, task))
    (folder / "report.md").write_text(f"{REPORT}\nruns: {folder}\n")
    for name in ("predictions/000.parquet", "train/checkpoint/weights.pt", "config.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not to be published")
    return folder


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a LoRA for every task, whose base lies in a folder of its own."""
    folder = tmp_path_factory.mktemp("runs") / "loras"
    make_loras(folder, str(MINI_BASE))
    (folder / "report.md").write_text(REPORT)
    return folder


@pytest.fixture
def mirrored_loras(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with a base on S3."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    fs, root = filesystem(bucket)
    for file in MINI_BASE.iterdir():
        fs.put_file(str(file), f"{root}/base/{file.name}")
    make_loras(tmp_path / "loras", f"{bucket}/base")
    return tmp_path / "loras"


def make_loras(folder: Path, base: str) -> Store:
    method = PerTaskLoRA(load_base(base)[0], LoRAConfig(rank=2, lora_alpha=3), 0)
    model = {"name": base, "revision": None, "dtype": "float32", "pad": True}
    config = {"method": "per_task_lora", "model": model}
    store = create_store(folder / "store", method, name=base, revision="default", config=config)
    rng = torch.Generator().manual_seed(0)
    for task in TASKS[:2]:
        with torch.no_grad():
            for p in method.trained().values():
                p.copy_(torch.randn(p.shape, generator=rng) * 0.05)
        store.append(method._primitive(task, method._exported()))
    return store
