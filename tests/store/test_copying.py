"""A copy is the same log to the byte, a shorter one at any moment, and goes on."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import pytest
from support.hub import HubServer
from support.logs import Place, primitive, resealed

from cmoe.store import files as store_files
from cmoe.store.copying import copy
from cmoe.store.log import Store, StoreError

TASKS = ("GQA", "VQAv2", "VizWiz")


class KilledError(BaseException):
    """The process ends here."""


@pytest.fixture
def three(local: Place) -> Place:
    store = local.create()
    for seed, task in enumerate(TASKS):
        store.append(primitive(task, seed))
    return local


@pytest.fixture
def places(
    tmp_path: Path, bucket: str, hub: HubServer, three: Place
) -> dict[str, tuple[Store, str, Any]]:
    """Of each kind the log, a free place, and what reads that place's files."""
    found = {}
    for kind, url in {"disk": str(tmp_path), "s3": bucket, "hub": "hf://me"}.items():
        copied = copy(three.open(), f"{url}/source")
        found[kind] = copied, f"{url}/copy", copied.folder
    return found


def files_of(store: Store) -> dict[str, bytes]:
    return {name: store.folder.read(name, "") for name in store.folder.names()}


@pytest.mark.parametrize("kind", ["disk", "s3", "hub"])
def test_a_copy_anywhere_is_the_same_to_the_byte(
    places: dict[str, tuple[Store, str, Any]], three: Place, kind: str
) -> None:
    for target in places:
        made = copy(places[kind][0], f"{places[target][1]}-of-{kind}")
        assert files_of(made) == three.files()
        made.verify()
        assert made.records() == three.open().records()


def test_it_goes_on_with_what_is_appended_also_meanwhile(
    local: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.create().append(primitive("GQA", 0))
    reader, shown = local.open(), []

    def append_one(line: str) -> None:
        shown.append(line)
        if len(shown) == 1:
            local.open().append(primitive("VQAv2", 1))

    made = copy(reader, tmp_path / "copy", show=append_one)
    assert made.tasks == ("GQA", "VQAv2")
    assert shown == [f"{made.url}/000.json: GQA", f"{made.url}/001.json: VQAv2"]
    local.open().append(primitive("VizWiz", 2))
    shown.clear()
    again = copy(local.open(), tmp_path / "copy", show=shown.append)
    assert shown == [f"{made.url}/002.json: VizWiz"], "what is there is copied again"
    assert files_of(again) == local.files()
    assert len(copy(reader, tmp_path / "copy")) == 3


def test_killed_before_any_file_the_copy_is_a_shorter_log_and_goes_on(
    three: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, create = tmp_path / "copy", store_files.DiskFolder.create_file
    lengths = []
    for limit in itertools.count():
        written = itertools.count()

        def cut(folder: Any, name: str, data: bytes, n: Any = written, at: int = limit) -> bool:
            if next(n) == at:
                raise KilledError
            return create(folder, name, data)

        target = out.with_name(f"copy-{limit}")
        with monkeypatch.context() as patch, contextlib.suppress(KilledError):
            patch.setattr(store_files.DiskFolder, "create_file", cut)
            copy(three.open(), target)
            break
        if limit:
            cut_off = Store.open(target)
            cut_off.verify()
            lengths.append(len(cut_off))
            assert cut_off.records() == three.open().records()[: len(cut_off)]
        assert files_of(copy(three.open(), target)) == three.files()
    assert lengths == sorted(lengths)
    assert {*lengths} == {0, 1, 2}
    assert len(lengths) == 12


def test_one_data_file_at_a_time_is_in_memory(
    three: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, str]] = []
    create, read = store_files.DiskFolder.create_file, store_files.DiskFolder.read
    source = three.open()

    def create_noted(self: Any, name: str, data: bytes) -> bool:
        order.append(("write", name))
        return create(self, name, data)

    def read_noted(self: Any, name: str, *args: Any) -> bytes:
        if self is source.folder and name.endswith(".safetensors"):
            order.append(("read", name))
        return read(self, name, *args)

    monkeypatch.setattr(store_files.DiskFolder, "create_file", create_noted)
    monkeypatch.setattr(store_files.DiskFolder, "read", read_noted)
    copy(source, tmp_path / "copy")
    tensors = [each for each in order if each[1].endswith(".safetensors")]
    assert [kind for kind, _ in tensors] == ["read", "write"] * 9


def test_another_log_or_something_else_is_refused_by_name(
    three: Place, local: Place, tmp_path: Path
) -> None:
    store = three.open()
    other = Store.create(tmp_path / "other", base=store.header.base, settings={}, config={})
    with pytest.raises(StoreError, match=r"other/stream\.json: is of another log than .*/store"):
        copy(store, other.url)
    # The same beginning, and then another task.
    branch = copy(store, tmp_path / "branch")
    for name in [name for name in files_of(branch) if name.startswith(("001", "002"))]:
        (tmp_path / "branch" / name).unlink()
    Store.open(branch.url).append(primitive("Flickr"))
    before = files_of(Store.open(branch.url))
    with pytest.raises(StoreError, match=r"branch/001\.json: is of another log than"):
        copy(store, branch.url)
    assert files_of(Store.open(branch.url)) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"full: has something else in it \(notes\.txt\)"):
        copy(store, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]
    with pytest.raises(StoreError, match="is the store itself"):
        copy(store, f"{store.url}/")


def test_a_damaged_source_or_leftover_is_not_copied_over(three: Place, tmp_path: Path) -> None:
    store = three.open()
    (name,) = (n for n in three.files() if n.startswith("001-") and "experts" in n)
    data = three.files()[name]
    three.write(name, data[:-1] + b"x")
    with pytest.raises(StoreError, match=r"experts\.safetensors: damaged"):
        copy(store, tmp_path / "copy")
    assert Store.open(tmp_path / "copy").tasks == ("GQA",)
    three.write(name, data)
    place = tmp_path / "copy" / name
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(b"torn")
    with pytest.raises(StoreError, match=rf"{name}: isn't the file of .*; remove it"):
        copy(store, tmp_path / "copy")
    place.unlink()
    assert files_of(copy(store, tmp_path / "copy")) == three.files()


def test_a_source_that_is_replaced_meanwhile_is_noticed(three: Place, tmp_path: Path) -> None:
    store = three.open()
    three.write("002.json", resealed(three.files()["002.json"], decision={}))
    with pytest.raises(StoreError, match=r"002\.json: another log now lies here"):
        copy(store, tmp_path / "copy")
    assert len(Store.open(tmp_path / "copy")) == 2
