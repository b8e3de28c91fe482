"""What is exported is the log itself, whole or not there, and names no place of this machine."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from cmoe.common.instructions import Instructions
from cmoe.common.storage import filesystem
from cmoe.modeling.primitive import Primitive
from cmoe.store import files as store_files
from cmoe.store.export import export, without_paths, without_paths_in_text
from cmoe.store.log import BaseId, Store, StoreError

TASKS = ("GQA", "VQAv2", "VizWiz")
CONFIG = {"seed": 0, "runs": "runs", "data": {"root": "data/coin", "images": "."}}
CARD = "## Results\n\nLast 71.2, n/a elsewhere. See https://example.org/a/b.\n"


def primitive(seed: int) -> Primitive:
    rng = torch.Generator().manual_seed(seed)
    return Primitive(
        task=TASKS[seed],
        rank=2,
        lora_alpha=4.0,
        experts={"layers.0.up_proj.A": torch.randn(1, 2, 3, generator=rng)},
        routers={"layers.0": torch.randn(1, 3, generator=rng)},
        locator={"mean": torch.randn(3, generator=rng)},
        decision={"scores": {"0": 0.1 + 0.2}, "text": "1/2"},
        builds_on=TASKS[0] if seed == 1 else None,
        instructions=Instructions({"Look: ": 0.07}, {"Say it.": 1.0}) if seed == 1 else None,
    )


def store_at(url: str, config: dict[str, Any], base: str = "mini") -> Store:
    store = Store.create(url, base=BaseId(base, "v1", "b" * 64), settings={}, config=config)
    for seed in range(len(TASKS)):
        store.append(primitive(seed))
    return store


def files(url: str | Path) -> dict[str, bytes]:
    fs, root = filesystem(url)
    paths = fs.find(root) if fs.exists(root) else []
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in paths}


@pytest.mark.parametrize(("source", "out"), [("disk", "disk"), ("disk", "s3"), ("s3", "disk")])
def test_an_export_is_the_same_log_to_the_byte(
    bucket: str, tmp_path: Path, source: str, out: str
) -> None:
    places = {"disk": str(tmp_path), "s3": bucket}
    store = store_at(f"{places[source]}/store", CONFIG)
    made = export(store, f"{places[out]}/shared/", card=CARD)
    assert made.records() == store.records()
    assert files(f"{places[out]}/shared") == files(store.url) | {"README.md": CARD.encode()}
    made.verify()


def test_a_prefix_is_exported_alone(tmp_path: Path) -> None:
    store = store_at(str(tmp_path / "store"), CONFIG)
    export(store, tmp_path / "two", tasks=2)
    made = Store.open(tmp_path / "two")
    made.verify()
    assert made.records() == store.records()[:2]
    assert "002" not in "".join(files(tmp_path / "two"))
    for count in (0, 4):
        with pytest.raises(StoreError, match=f"has 3 tasks; can't export {count}"):
            export(store, tmp_path / "none", tasks=count)
    assert not (tmp_path / "none").exists()


def test_no_place_of_this_machine_is_published(tmp_path: Path) -> None:
    home = str(tmp_path)
    config = {
        "runs": f"{home}/runs/",
        "data": {"root": f"{home}/data/coin", "tasks": list(TASKS)},
        "evaluation": {"answer_files": {"GQA": f"{home}/answers/gqa.json"}},
    }
    store = store_at(f"{home}/store", config, base=f"{home}/models/llava")
    card = f"On `{home}/models/llava` (v1):\n\n  root: {home}/data/coin\n  other: '{home}/x y'\n"
    made = export(store, f"{home}/shared", card=card)
    made.verify()
    written = files(f"{home}/shared")
    assert not [name for name, data in written.items() if home.encode() in data]
    assert made.header.base == BaseId("llava", "v1", "b" * 64)
    assert made.header.config == {
        "runs": "runs",
        "data": {"root": "coin", "tasks": list(TASKS)},
        "evaluation": {"answer_files": {"GQA": "gqa.json"}},
    }
    assert written["README.md"].startswith(b"On `llava` (v1):\n\n  root: coin\n  other: 'x")
    tensors = {name for name in files(store.url) if name.endswith(".safetensors")}
    assert {n: written[n] for n in tensors} == {n: files(store.url)[n] for n in tensors}


@pytest.mark.parametrize("text", ["a/b", "s3://bucket/data", "hf://datasets/a/b", "runs", "/", ""])
def test_what_is_no_absolute_path_stays(text: str) -> None:
    assert without_paths({"key": [text]}) == {"key": [text]}
    for written in (text, f"| {text} | x |", f"({text})", f"key: {text}\n"):
        assert without_paths_in_text(written) == written


@pytest.mark.parametrize("path", ["/home/a/coin", "~/coin", "file:///home/a/coin", "/coin/"])
def test_of_an_absolute_path_its_last_part_stays(path: str) -> None:
    assert without_paths({"key": [path]}) == {"key": ["coin"]}
    for written in ("{}", "| {} | x |", "(`{}`)", "key: {}\n", "key: '{}'", "[{}, 1]", "k={} b"):
        assert without_paths_in_text(written.format(path)) == written.format("coin")


def test_interrupted_anywhere_it_is_no_store_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_at(str(tmp_path / "store"), {"runs": "/home/a/runs"})
    whole = files(export(store, tmp_path / "whole", card=CARD).url)
    out = tmp_path / "cut"
    create, written = store_files.DiskFolder.create_file, itertools.count()

    def cut(folder: store_files.DiskFolder, name: str, data: bytes) -> bool:
        if next(written) == limit:
            raise KeyboardInterrupt
        return create(folder, name, data)

    monkeypatch.setattr(store_files.DiskFolder, "create_file", cut)
    for limit in range(len(whole)):
        written = itertools.count()
        with pytest.raises(KeyboardInterrupt):
            export(store, out, card=CARD)
        assert len(files(out)) == limit
        with pytest.raises(StoreError, match=r"stream\.json: missing; there is no store here"):
            Store.open(out)
    written = itertools.count(-len(whole))
    export(store, out, card=CARD).verify()
    assert files(out) == whole
    written = itertools.count(-len(whole))
    export(store, out, card=CARD)  # nothing is left to do
    assert files(out) == whole


def test_a_folder_that_has_something_else_is_left_alone(tmp_path: Path) -> None:
    store = store_at(str(tmp_path / "store"), CONFIG)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"something else in it \(notes.txt\)"):
        export(store, tmp_path / "full")
    assert files(tmp_path / "full") == {"notes.txt": b"mine"}
    with pytest.raises(StoreError, match="is the store itself"):
        export(store, f"{store.url}/")
    with pytest.raises(
        StoreError, match=r"something else in it \(full/notes.txt, store/000-GQA-.*, ...\)"
    ):
        export(store, tmp_path, tasks=1)
    export(store, tmp_path / "older", card=CARD)
    with pytest.raises(StoreError, match=r"README.md: is of another export; give an empty folder"):
        export(store, tmp_path / "older", card="# Another\n")


def test_a_damaged_log_is_not_exported(tmp_path: Path) -> None:
    store = store_at(str(tmp_path / "store"), CONFIG)
    (damaged,) = tmp_path.glob("store/001-*/experts.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="damaged"):
        export(store, tmp_path / "out")
    with pytest.raises(StoreError, match="there is no store here"):
        Store.open(tmp_path / "out")
