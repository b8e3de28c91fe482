"""Commits to a repository of the hub: who comes second is told, and what fails changes nothing."""

from __future__ import annotations

import errno

import pytest
from huggingface_hub import constants
from support import hub as stand_in
from support.hub import TOKEN, HubServer
from support.logs import BASE, CONFIG, SETTINGS, assert_same, primitive

from cmoe.common.remote.hub import TRIES, Hub
from cmoe.common.storage import StorageAwayError, StorageError, exists, require_reachable
from cmoe.store.log import Store, StoreError

URL = "hf://me/store"


def create(url: str = URL) -> Store:
    return Store.create(url, base=BASE, settings=SETTINGS, config=CONFIG)


def titles(server: HubServer) -> list[str]:
    return [each.title for each in server.repos["me/store"].commits]


# Names


@pytest.mark.parametrize(
    ("url", "repo", "revision", "prefix"),
    [
        ("hf://me/store", "me/store", "main", ""),
        ("hf://me/store@v1.0", "me/store", "v1.0", ""),
        ("hf://a-b/c_d.e@refs/pr/3/x/y", "a-b/c_d.e", "refs/pr/3", "x/y"),
        ("hf://me/store/runs/a/", "me/store", "main", "runs/a"),
        ("hf://me/store/", "me/store", "main", ""),
    ],
)
def test_a_url_names_a_repository(url: str, repo: str, revision: str, prefix: str) -> None:
    found = Hub.at(url)
    assert (found.repo, found.revision, found.prefix) == (repo, revision, prefix)


@pytest.mark.parametrize(
    "url",
    [
        "hf://",
        "hf://me",
        "hf://datasets/me/store",
        "hf://buckets/me/x",
        "hf://me/a@",
        "hf://-/b",
        "hf://me/a b",
    ],
)
def test_what_names_none_is_refused(url: str) -> None:
    with pytest.raises(StorageError, match=r"names no model repository.*hf://owner/name\[@revis"):
        Store.open(url)


# Writing


def test_what_a_task_adds_is_one_commit_and_a_new_repository_is_private(hub: HubServer) -> None:
    store = create()
    store.append(primitive("GQA"))
    assert titles(hub) == ["initial commit", "Add stream.json", "Add 000.json"]
    assert hub.repos["me/store"].private
    assert hub.requests["create"] == 1


def test_a_commit_of_something_else_in_between_is_no_conflict(hub: HubServer) -> None:
    store = create()
    others = iter([b"# Mine\n", b"# Mine, again\n"])

    def other() -> None:
        if (text := next(others, None)) is not None:
            hub.put("me/store", {"README.md": text})

    hub.before["commit"] = other
    store.append(primitive("GQA"))
    assert hub.requests["commit"] == 1 + 3
    assert hub.files("me/store")["README.md"] == b"# Mine, again\n"
    Store.open(URL).verify()


@pytest.mark.parametrize("when", ["commit", "preupload"])
@pytest.mark.parametrize(("task", "seed"), [("VQAv2", 2), ("VQAv2", 3), ("OCR-VQA", 3)])
def test_a_writer_overtaken_at_the_last_moment_is_told(
    hub: HubServer, task: str, seed: int, when: str
) -> None:
    """By the same task and tensors, by other tensors, by another task.

    Before `preupload` the same task is there already, and `huggingface_hub` commits nothing then.
    """
    create().append(primitive("GQA"))
    loser, winner = Store.open(URL), Store.open(URL)

    def overtake() -> None:
        hub.before.clear()
        winner.append(primitive(task, seed))

    hub.before[when] = overtake
    with pytest.raises(StoreError, match=rf"001\.json: index 1 is held by .*{task!r}"):
        loser.append(primitive("VQAv2", 2))
    assert len(loser) == 1
    store = Store.open(URL)
    store.verify()
    assert store.tasks == ("GQA", task)
    assert_same(store.read(1), primitive(task, seed))
    assert len(titles(hub)) == 4
    with pytest.raises(StoreError, match="a store is here already"):
        create()


def test_who_is_overtaken_all_the_time_gives_up(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmoe.common.remote.hub.PAUSE_S", 0)
    store = create()
    numbers = iter(range(100))
    hub.before["commit"] = lambda: hub.put("me/store", {"notes": b"%d" % next(numbers)})
    with pytest.raises(StorageError, match=f"others commit to it all the time; {TRIES} commits"):
        store.append(primitive("GQA"))
    assert Store.open(URL).tasks == ()


def test_a_commit_whose_answer_is_an_error_is_found_in_the_log(hub: HubServer) -> None:
    """The hub has answered 500 to commits that it then had."""
    store = create()
    hub.lost = 1
    store.append(primitive("GQA"))
    Store.open(URL).verify()
    assert titles(hub)[2:] == ["Add 000.json"]


def test_what_fails_in_the_middle_changes_nothing(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create()
    before = hub.files("me/store")

    def cut() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.hf_api.HfApi.create_commit", lambda *_, **__: cut())
        with pytest.raises(KeyboardInterrupt):
            store.append(primitive("GQA"))
    assert hub.files("me/store") == before
    store.append(primitive("GQA"))
    Store.open(URL).verify()


def test_a_commit_is_read_and_not_written(hub: HubServer) -> None:
    store = create()
    store.append(primitive("GQA"))
    then = hub.repos["me/store"].branches["main"]
    store.append(primitive("VQAv2"))
    old = Store.open(f"{URL}@{then}")
    old.verify()
    assert old.tasks == ("GQA",)
    with pytest.raises(StorageError, match="a commit stays as it is; give a branch"):
        old.append(primitive("OCR-VQA"))
    hub.repos["me/store"].branches["side"] = then
    Store.open(f"{URL}@side").append(primitive("OCR-VQA"))
    assert Store.open(f"{URL}@side").tasks == ("GQA", "OCR-VQA")
    assert Store.open(URL).tasks == ("GQA", "VQAv2")


# Reading


def test_a_folder_of_a_repository_is_a_store_of_its_own(hub: HubServer) -> None:
    for name in ("a", "b"):
        create(f"{URL}/runs/{name}").append(primitive(name))
    found = Store.open(f"{URL}/runs/a")
    found.verify()
    assert found.tasks == ("a",)
    with pytest.raises(StoreError, match=r"stream\.json: missing; there is no store here"):
        Store.open(f"{URL}/runs")


def test_a_reader_follows_and_reads_a_file_once(hub: HubServer) -> None:
    writer = create()
    reader = Store.follow(URL)
    assert reader.refresh() == ()
    writer.append(primitive("GQA"))
    assert [record.task for record in reader.refresh()] == ["GQA"]
    assert_same(reader.read(0), primitive("GQA"))
    assert (hub.requests["resolve GET"], hub.requests["cdn"]) == (2, 3)
    Store.open(URL).verify()
    hub.requests.clear()
    Store.open(URL).verify()
    # The cache has all of them; header and record are asked for twice.
    assert dict(hub.requests) == {"tree": 2, "resolve HEAD": 2 * 2 + 3}


def test_a_changed_byte_is_noticed(hub: HubServer) -> None:
    store = create()
    store.append(primitive("GQA"))
    for name, data in hub.files("me/store").items():
        hub.put("me/store", {name: data[:-1] + bytes([data[-1] ^ 1])})
        with pytest.raises(StoreError, match=f"{URL}/{name}: damaged"):
            Store.open(URL).verify()
        hub.put("me/store", {name: data + b" "})
        with pytest.raises(StoreError, match=rf"{name}: damaged"):
            Store.open(URL).verify()
        hub.put("me/store", {name: data})
    Store.open(URL).verify()


def test_a_long_listing_comes_in_pages(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in, "PAGE", 3)
    store = create()
    for task in ("GQA", "VQAv2", "OCR-VQA"):
        store.append(primitive(task))
    assert Store.open(URL).tasks == ("GQA", "VQAv2", "OCR-VQA")


def test_whether_there_is_a_file(hub: HubServer) -> None:
    create()
    assert exists(f"{URL}/stream.json")
    assert not exists(f"{URL}/store/stream.json")
    require_reachable(URL)
    with pytest.raises(StorageError, match="has no such repository"):
        exists("hf://me/nothing/stream.json")
    Hub.at("hf://me/nothing").require_writable()
    assert not exists("hf://me/nothing/stream.json")  # no listing of before is asked


# Refusals


def test_a_full_disk_below_the_cache_is_told(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    create()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/blobs/x")

    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.hf_hub_download", full)
    with pytest.raises(StorageError, match=r"stream\.json.*its disk is full; free some space"):
        Store.open(URL)


def test_refusals_say_what_helps_and_never_the_token(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create()
    said = []

    def refused(match: str, kind: type[StorageError] = StorageError) -> None:
        with pytest.raises(kind, match=match) as raised:
            Store.open(URL).append(primitive("GQA"))
        said.append(str(raised.value))

    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else_9876543210")
    refused(r"has no such repository, or doesn't show it.*HF_TOKEN")
    hub.repos["me/store"].private = False
    refused("doesn't know the token.*Invalid credentials")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    refused(r"HF_TOKEN, or use `hf auth login`")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.away = True
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    refused(r"doesn't answer, or not now.*check HF_ENDPOINT", StorageAwayError)
    with pytest.raises(StorageAwayError):
        store.append(primitive("GQA"))
    hub.away = False
    with pytest.raises(StorageError, match=r"there is no such revision.*behind @"):
        Store.open(f"{URL}@v9")
    store.append(primitive("GQA"))
    for each in said:
        assert "9876543210" not in each
        assert TOKEN not in each
        assert each.startswith(URL)
