"""Small data of all tasks, as CoIN's files and as shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.prepared import prepared

from cmoe.mini.tasks import write_mini_coin


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini CoIN, with one picture under a second name."""
    root = tmp_path_factory.mktemp("coin")
    write_mini_coin(root, train=20, test=6)
    file = root / "Instructions_Original" / "GQA" / "train.json"
    rows = json.loads(file.read_text())
    shutil.copy(root / rows[0]["image"], root / "copy.png")
    (root / rows[1]["image"]).unlink()
    rows[1]["image"] = "copy.png"
    rows[2]["conversations"] += [
        {"from": "human", "value": "And now?"},
        {"from": "gpt", "value": "no"},
    ]
    file.write_text(json.dumps(rows))
    return root


@pytest.fixture(scope="module")
def shards(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "coin"
    prepared(root, str(out))
    return out


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Colours that change smoothly, and noise: what cameras see."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    noise = random.integers(-8, 9, (64, 80, 3))
    smooth = np.asarray(coarse.resize((80, 64), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
