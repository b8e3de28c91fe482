"""A log's damage is refused with the file's name and the cause."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from support.logs import BASE, Place, primitive, refusal, resealed

from cmoe.modeling.primitive import PARTS
from cmoe.store.log import Store, StoreError


def test_flipped_bit_in_any_file(two: Place) -> None:
    for name, data in two.files().items():
        for at in range(5, len(data), 11 if two.options == {} else len(data) // 2):
            flipped = bytearray(data)
            flipped[at] ^= 1 << (at % 8)
            two.write(name, bytes(flipped))
            message = refusal(two)
            assert f"{two.url}/{name}: " in message
            assert "damaged" in message or "schema version" in message
        two.write(name, data)
    two.open().verify()


def test_truncated_or_extended_file(two_on_disk: Place) -> None:
    for name, data in two_on_disk.files().items():
        for changed in (data[:-1], data + b"\n"):
            two_on_disk.write(name, changed)
            assert f"{two_on_disk.url}/{name}: damaged" in refusal(two_on_disk)
        two_on_disk.write(name, data)


def test_an_oversized_file_is_refused_before_it_is_read(two_on_disk: Place) -> None:
    """Holes of a terabyte: no memory would take them."""
    for name in two_on_disk.files():
        path = Path(two_on_disk.url, name)
        data = path.read_bytes()
        os.truncate(path, 2**40)
        message = refusal(two_on_disk)
        assert f"{path}: damaged: it has {2**40:,} bytes" in message
        path.write_bytes(data)


def test_a_record_that_nests_without_end_is_refused(two_on_disk: Place) -> None:
    two_on_disk.write("001.json", b'{"a":' * 200_000)
    assert f"{two_on_disk.url}/001.json: damaged: RecursionError" in refusal(two_on_disk)


def test_missing_file(two: Place) -> None:
    for name, data in two.files().items():
        if name == "001.json":
            continue  # A log without its last record is a shorter log; see the next test.
        two.remove(name)
        message = refusal(two)
        assert f"{two.url}/{name}: missing; " in message
        if name == "000.json":
            assert "gap in the log" in message
        if name == "stream.json":
            assert "no store here" in message
        two.write(name, data)
    two.open().verify()


def test_log_that_shrinks_under_a_reader(two: Place) -> None:
    reader = two.open()
    two.remove("001.json")
    assert two.open().tasks == ("GQA",)
    with pytest.raises(StoreError, match=r"001\.json: gone, though it was read before"):
        reader.refresh()
    with pytest.raises(StoreError, match="another log"):
        reader.verify()


def test_log_replaced_under_a_reader(local: Place) -> None:
    local.create().append(primitive("GQA", seed=1))
    reader = local.open()
    shutil.rmtree(local.url)
    local.create().append(primitive("GQA", seed=2))
    local.open().append(primitive("VQAv2"))
    with pytest.raises(StoreError, match=r"001\.json: its parent"):
        reader.refresh()
    with pytest.raises(StoreError, match="another log"):
        reader.verify()


def test_broken_parent(two_on_disk: Place) -> None:
    files = two_on_disk.files()
    for name, parent in (("000.json", "stream.json"), ("001.json", "000.json")):
        two_on_disk.write(name, resealed(files[name], parent="0" * 64))
        assert f"{name}: its parent is {'0' * 64}, but {parent} has digest" in refusal(two_on_disk)
        two_on_disk.write(name, files[name])
    # A header or a record that is whole, but of another log.
    two_on_disk.write("stream.json", resealed(files["stream.json"], config={"seed": 1}))
    assert "000.json: its parent" in refusal(two_on_disk)
    two_on_disk.write("stream.json", files["stream.json"])
    two_on_disk.write("000.json", resealed(files["000.json"], decision={}))
    assert "001.json: its parent" in refusal(two_on_disk)


def test_task_twice_in_a_log(two_on_disk: Place) -> None:
    two_on_disk.write("001.json", resealed(two_on_disk.files()["001.json"], task="GQA"))
    assert "001.json: task 'GQA' is in the log already" in refusal(two_on_disk)


def test_counts_that_the_files_do_not_hold(two_on_disk: Place) -> None:
    counts = {"experts": 17, "routers": 3, "locator": 4}
    two_on_disk.write("001.json", resealed(two_on_disk.files()["001.json"], parameters=counts))
    assert "001.json: counts" in refusal(two_on_disk)


@pytest.mark.parametrize("part", [*PARTS, "memory"])
def test_a_part_that_is_missing_or_unknown(two_on_disk: Place, part: str) -> None:
    data = two_on_disk.files()["001.json"]
    files = json.loads(data)["files"]
    fewer = {name: file for name, file in files.items() if name != part}
    more = {**files, f"{part}2": files["routers"]}
    for changed in (
        more,
        {**fewer, "other": files["routers"]},
        *([fewer] if part in files else []),
    ):
        two_on_disk.write("001.json", resealed(data, files=changed))
        message = refusal(two_on_disk)
        assert f"{two_on_disk.url}/001.json: has the parts " in message
        assert all(name in message for name in (*changed, *PARTS))
        # The records in front of it can still be read.
        follower = Store.follow(two_on_disk.url)
        with pytest.raises(StoreError, match=r"001\.json: has the parts"):
            follower.refresh()
        assert follower.tasks == ("GQA",)


def test_another_base(two_on_disk: Place) -> None:
    store = two_on_disk.open()
    store.require_base(BASE.digest)
    with pytest.raises(StoreError, match=r"stream\.json: .*mini-llava@v1") as refused:
        store.require_base("c" * 64)
    assert "b" * 64 in str(refused.value)
    assert "c" * 64 in str(refused.value)


@pytest.mark.parametrize("index", [-1, 2])
def test_index_out_of_the_log(two_on_disk: Place, index: int) -> None:
    with pytest.raises(StoreError, match=f"no primitive {index}; there are 2"):
        two_on_disk.open().read(index)
