"""The store's promises, on a local path and on a real S3 wire."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.logs import (
    BASE,
    CONFIG,
    SETTINGS,
    Place,
    assert_same,
    patch_s3,
    primitive,
    refusal,
    resealed,
)

from cmoe.common.instructions import Instructions
from cmoe.modeling.primitive import PARTS, Primitive
from cmoe.store.log import Store, StoreError

# What is stored comes back.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_is_exact_to_the_bit(anywhere: Place, dtype: torch.dtype) -> None:
    special = torch.tensor([float("nan"), -0.0, float("inf"), 1e-40], dtype=dtype)
    want = replace(primitive("GQA", dtype=dtype), locator={"special": special})
    anywhere.create().append(want)
    assert_same(anywhere.open().read(0), want)


def test_a_tasks_instructions_come_back(anywhere: Place) -> None:
    told = Instructions({"Look: ": 0.07}, {"Say it.": 0.9, "In \u00e9 word.": 0.1})
    plain, store = primitive("VQAv2"), anywhere.create()
    store.append(replace(primitive("GQA"), instructions=told))
    store.append(plain)
    read = anywhere.open()
    assert [read.read(index).instructions for index in range(2)] == [told, None]
    assert [record.instructions for record in read.records()] == [told, None]


def test_empty_parts_and_empty_tensors_round_trip(anywhere: Place) -> None:
    want = Primitive("GQA", 4, 8, experts={}, routers={"layers.0": torch.ones(0, 3)}, locator={})
    anywhere.create().append(want)
    got = anywhere.open()
    assert_same(got.read(0), want)
    assert got.records()[0].parameters == {"experts": 0, "routers": 0, "locator": 0}


def test_what_only_learning_goes_back_to_is_a_part_of_its_own(anywhere: Place) -> None:
    special = torch.tensor([float("nan"), -0.0, float("inf"), 1e-40])
    plain = primitive("GQA")
    want = replace(plain, memory={"layers.0.A": torch.rand(2, 3), "special": special})
    store = anywhere.create()
    store.append(want)
    store.append(primitive("VQAv2"))
    read = anywhere.open()
    assert_same(read.read(0), want)
    assert read.read(1).memory == {}
    counts = plain.parameter_counts()
    assert [r.parameters for r in read.records()] == [counts | {"memory": 6 + 4}, counts]
    assert [set(r.files) for r in read.records()] == [{*PARTS, "memory"}, set(PARTS)]
    # The other parts don't know of it; the folder's name does.
    first, second = read.records()
    for part in PARTS:
        assert first.files[part] == second.files[part]
    assert first.folder.rpartition("-")[2] != second.folder.rpartition("-")[2]
    name = f"{first.folder}/memory.safetensors"
    anywhere.write(name, anywhere.files()[name][:-1])
    assert f"{anywhere.url}/{name}: damaged" in refusal(anywhere)


def test_views_that_share_memory_round_trip(local: Place) -> None:
    bank = torch.arange(12.0).reshape(3, 4)
    views = {"row": bank[1], "again": bank[1], "column": bank[:, 2], "turned": bank.T}
    want = replace(primitive("GQA"), locator=views)
    local.create().append(want)
    assert_same(local.open().read(0), want)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # A lone surrogate is no text, but JSON can escape it.
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_json_decision_round_trips(decision: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(folder, base=BASE, settings=SETTINGS, config=CONFIG)
        store.append(Primitive("GQA", 2, 4.0, {}, {}, {}, decision))
        assert Store.open(folder).read(0).decision == decision


def test_header_comes_back_and_create_is_exclusive(anywhere: Place) -> None:
    anywhere.create()
    before = anywhere.files()
    header = anywhere.open().header
    assert (header.base, header.settings, header.config) == (BASE, SETTINGS, CONFIG)
    with pytest.raises(StoreError, match=r"stream\.json: a store is here already"):
        anywhere.create()
    assert anywhere.files() == before


def test_append_changes_no_earlier_file_and_refresh_shows_the_new(anywhere: Place) -> None:
    writer, reader = anywhere.create(), anywhere.open()
    for index, task in enumerate(["ScienceQA", "OCR-VQA", "VQA_v2.1"]):
        before = anywhere.files()
        record = writer.append(primitive(task, seed=index))
        assert before.items() <= anywhere.files().items()
        assert len(reader) == index
        assert reader.refresh() == (record,)
        assert_same(reader.read(index), primitive(task, seed=index))
    assert reader.refresh() == ()
    assert reader.tasks == writer.tasks == ("ScienceQA", "OCR-VQA", "VQA_v2.1")
    assert reader.records() == writer.records() == anywhere.open().records()
    parents = [record.parent for record in reader.records()]
    assert parents == [reader.header.digest, *(record.digest for record in reader.records()[:-1])]
    reader.verify()


def test_nothing_but_json_and_safetensors_and_the_same_bytes_everywhere(
    local: Place, s3: Place
) -> None:
    for place in (local, s3):
        store = place.create()
        for task in ("GQA", "VQAv2"):
            store.append(primitive(task))
    files = local.files()
    assert files == s3.files()
    assert sorted(Path(name).name for name in files) == sorted(
        ["stream.json", "000.json", "001.json", *2 * [f"{part}.safetensors" for part in PARTS]]
    )
    for name, data in files.items():
        if name.endswith(".json"):
            assert resealed(data) == data
        else:
            path = Path(local.url, name)
            with safetensors.safe_open(path, "pt") as file:
                assert file.metadata() == {"format": "pt"}
            record = json.loads(files[name[:3] + ".json"])
            entry = record["files"][path.stem]
            assert path.parent.name == record["folder"]
            assert (entry["name"], entry["size"]) == (path.name, len(data))
            assert entry["sha256"] == hashlib.sha256(data).hexdigest()


def test_polling_costs_one_listing(s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = s3.create()
    store.append(primitive("GQA"))
    calls: list[str] = []
    patch_s3(monkeypatch, calls.append)
    assert store.refresh() == ()
    assert calls == ["list_objects_v2"]


# What can't be stored is refused before anything is written.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "GQA"}, "'GQA' is in the log already"),
        *(
            ({"task": task}, "can't name a folder")
            for task in ("", "../x", "a/b", ".hidden", "a b", "ä", "x" * 65, "x\n")
        ),
        ({"decision": {"scores": [0.5, float("nan")]}}, "record.decision.scores.1: nan"),
        ({"lora_alpha": float("inf")}, "record.lora_alpha: inf"),
        ({"decision": {"layers": {3: 0.5}}}, "record.decision.layers: JSON's keys are strings"),
        ({"decision": {"score": torch.tensor(1.0)}}, "record.decision.score: a Tensor"),
    ],
)
def test_unfit_primitive(local: Place, change: dict[str, Any], message: str) -> None:
    store = local.create()
    store.append(primitive("GQA"))
    before = local.files()
    with pytest.raises(StoreError, match=message.replace("(", r"\(")):
        store.append(replace(primitive("VQAv2"), **change))
    assert local.files() == before
    store.append(primitive("VQAv2"))


def test_unfit_config_and_place(local: Place) -> None:
    with pytest.raises(StoreError, match=r"header\.config\.out: a PosixPath"):
        Store.create(local.url, base=BASE, settings={}, config={"out": Path("runs")})
    with pytest.raises(StoreError, match="local path, s3:// or hf://"):
        Store.open("memory://store")
    assert not os.path.exists(local.url)
