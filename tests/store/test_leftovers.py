"""What broken commits left is named, and removed only where no writer can still need it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem
from support.hub import HubServer
from support.logs import (
    PART,
    KilledError,
    Place,
    in_small_parts,
    killed_in_an_upload,
    large_primitive,
    primitive,
    two_in,
)

from cmoe.store.leftovers import clock, leftovers, remove
from cmoe.store.log import Store, StoreError

DAY = 24 * 3600


def killed(place: Place, task: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Let a writer die before its record; the folder that it leaves."""
    from cmoe.store.files import DiskFolder

    create = DiskFolder.create_file

    def cut(self: Any, name: str, data: bytes) -> bool:
        if name.endswith(".json"):
            raise KilledError
        return create(self, name, data)

    before, store = {name.partition("/")[0] for name in place.files()}, place.open()
    with monkeypatch.context() as patch:
        patch.setattr(DiskFolder, "create_file", cut)
        with pytest.raises(KilledError):
            store.append(primitive(task, seed))
    (left,) = {name.partition("/")[0] for name in place.files()} - before
    return left


def test_each_kind_of_leftover_is_named_with_its_size(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.create().append(primitive("GQA", 1))
    lost = killed(place, "VizWiz", 3, monkeypatch)
    place.open().append(primitive("VQAv2", 2))
    open_ = killed(place, "Flickr", 4, monkeypatch)
    folder = place.open().records()[0].folder
    temporary = [f"001.json.{'a' * 32}.tmp", f"{folder}/experts.safetensors.{'b' * 32}.tmp"]
    for name in temporary:
        place.write(name, b"half")
    for name in ("README.md", "notes/a.tmp", "002-odd/a", f"{folder}/more.txt"):
        place.write(name, b"somebody's")
    found = {each.name: each for each in leftovers(place.open())}
    assert found.keys() == {lost, open_, *temporary}
    sizes = {n: sum(len(d) for f, d in place.files().items() if f.startswith(n)) for n in found}
    assert {name: each.size for name, each in found.items()} == sizes
    assert [found[name].files for name in (lost, open_, *temporary)] == [3, 3, 1, 1]
    assert found[lost].why == "of a writer that lost index 1 to VQAv2"
    assert [name for name, each in found.items() if each.lost] == [lost]


def test_only_what_no_writer_can_need_goes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.create().append(primitive("GQA", 1))
    lost = killed(place, "VizWiz", 3, monkeypatch)
    place.open().append(primitive("VQAv2", 2))
    open_ = killed(place, "Flickr", 4, monkeypatch)
    place.write("README.md", b"somebody's")
    store = place.open()
    now = clock(store)
    assert abs(now - time.time()) < 60
    for each in leftovers(store):
        assert (remove(store, each, now) is None) == (each.name == lost)
    assert [each.name for each in leftovers(place.open())] == [open_]
    assert [remove(store, each, now + DAY + 60) for each in leftovers(store)] == [None]
    assert leftovers(place.open()) == []
    assert "README.md" in place.files()
    assert not [name for name in place.files() if "probe" in name]
    place.open().verify()
    assert place.open().tasks == ("GQA", "VQAv2")


def test_what_was_committed_meanwhile_stays(
    two_on_disk: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(two_on_disk, "Flickr", 4, monkeypatch)
    store = two_on_disk.open()
    (left,) = leftovers(store)
    two_on_disk.open().append(primitive("Flickr", 4))
    assert remove(store, left, left.written + 2 * DAY) == "committed meanwhile"
    two_on_disk.open().verify()
    assert two_on_disk.open().tasks == ("GQA", "VQAv2", "Flickr")


def test_the_youngest_file_of_a_folder_decides(
    two_on_disk: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that has been uploading for days has a file of just now, too."""
    left = Path(two_on_disk.url, killed(two_on_disk, "Flickr", 4, monkeypatch))
    store = two_on_disk.open()
    now = clock(store)
    for file in (*left.iterdir(), left):
        os.utime(file, (now - 3 * DAY, now - 3 * DAY))
    os.utime(left / "routers.safetensors", (now - 60, now - 60))
    (found,) = leftovers(store)
    assert "its writer may be at work" in str(remove(store, found, now))
    os.utime(left / "routers.safetensors", (now - 2 * DAY, now - 2 * DAY))
    (found,) = leftovers(store)
    assert remove(store, found, now) is None
    assert not left.exists()


def test_an_empty_folder_is_one_too(two_on_disk: Place) -> None:
    Path(two_on_disk.url, "002-Flickr-0123456789ab").mkdir()
    (found,) = leftovers(two_on_disk.open())
    assert (found.name, found.files, found.size) == ("002-Flickr-0123456789ab", 0, 0)


def test_an_upload_in_parts_that_broke_off_is_found_and_aborted(
    s3: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = in_small_parts(s3, monkeypatch)
    s3.create()
    killed_in_an_upload(s3.open(), large_primitive(), monkeypatch)
    store = s3.open()
    (found,) = [each for each in leftovers(store) if each.upload]
    assert found.name.endswith("/experts.safetensors")
    assert 1 <= found.files < 3
    assert PART // 2 < found.size < 12 * 2**20
    # moto has begun every upload in 2010.
    assert "younger than 24 hours" in str(remove(store, found, found.written + DAY - 60))
    assert remove(store, found, clock(store) + DAY + 60) is None
    assert not [each for each in leftovers(store) if each.upload]


def test_who_may_not_list_uploads_is_told_the_rest(
    s3: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_in(s3)
    s3.write(f"002.json.{'a' * 32}.tmp", b"1")

    def deny(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied")

    shown: list[str] = []
    monkeypatch.setattr(S3FileSystem, "call_s3", deny)
    assert len(leftovers(s3.open(), shown.append)) == 1
    (said,) = shown
    assert "no permission" in said
    assert said.endswith("Uploads that weren't completed are not looked for")


def test_on_the_hub_nothing_is_left(hub: HubServer, on_hub: Place) -> None:
    two_in(on_hub)
    on_hub.write("README.md", b"a card")
    assert leftovers(on_hub.open()) == []


def test_data_of_a_record_that_can_not_be_read_is_not_called_left(two_on_disk: Place) -> None:
    data = two_on_disk.files()["001.json"]
    two_on_disk.write("001.json", data[:-1])
    store = Store.follow(two_on_disk.url)
    with pytest.raises(StoreError):
        store.refresh()
    assert len(store) == 1
    assert leftovers(store) == []
