"""A log on Ceph's S3: another server than the other tests', which people run.

What is stated of the server is Ceph 16's, as Debian 12 has it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest
import s3fs
import torch
from support.ceph import Ceph
from support.logs import (
    PART,
    Place,
    assert_same,
    in_small_parts,
    killed_in_an_upload,
    large_primitive,
    patch_s3,
    primitive,
    two_in,
)

from cmoe.cli.main import main
from cmoe.common.exclusive import require_exclusive
from cmoe.common.storage import StorageError, exists, explained, filesystem
from cmoe.common.storage_errors import WRITTEN
from cmoe.store.copying import copy
from cmoe.store.leftovers import clock, leftovers, remove
from cmoe.store.log import Store, StoreError
from cmoe.store.schema import MAX_JSON


@dataclass(frozen=True)
class Account:
    """A user of the server, with a bucket."""

    server: Ceph
    key: str
    secret: str
    bucket: str

    @property
    def user(self) -> str:
        return str(self.server.admin("user", "info", f"--access-key={self.key}")["user_id"])

    @property
    def place(self) -> Place:
        options = self.server.options(self.key, self.secret)
        return Place(f"s3://{self.bucket}/runs/store", options)


@pytest.fixture
def account(ceph: Ceph) -> Account:
    key, secret = ceph.new_user()
    bucket = f"b-{uuid4().hex}"
    s3fs.S3FileSystem(**ceph.options(key, secret)).call_s3("create_bucket", Bucket=bucket)
    return Account(ceph, key, secret, bucket)


@pytest.fixture
def environment(account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The bucket as a user reaches it, by the environment alone."""
    login(monkeypatch, account.key, account.secret)
    monkeypatch.setenv("AWS_ENDPOINT_URL", account.server.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield f"s3://{account.bucket}"
    s3fs.S3FileSystem.clear_instance_cache()


def login(monkeypatch: pytest.MonkeyPatch, key: str, secret: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    s3fs.S3FileSystem.clear_instance_cache()


# The log


def test_it_lets_nobody_overwrite(account: Account) -> None:
    fs, root = filesystem(account.place.url, **account.place.options)
    require_exclusive(fs, root, account.place.url)
    assert account.place.files() == {}


def test_writers_that_race_for_every_index(account: Account) -> None:
    place, writers, rounds = account.place, 3, 5
    place.create()
    barrier = threading.Barrier(writers)

    def race(writer: int) -> list[int]:
        mine = replace(place, options={**place.options, "skip_instance_cache": True})
        won = []
        for turn in range(rounds):
            store = mine.open()
            # Even turns are for one task with different tensors, odd ones for two tasks.
            task = f"turn-{turn}" if turn % 2 == 0 else f"turn-{turn}-of-{writer}"
            barrier.wait(timeout=60)
            with suppress(StoreError):
                store.append(primitive(task, seed=writer))
                won.append(turn)
            barrier.wait(timeout=60)
        return won

    with ThreadPoolExecutor(writers) as pool:
        won = list(pool.map(race, range(writers)))
    assert sorted(turn for turns in won for turn in turns) == list(range(rounds))
    store = place.open()
    store.verify()
    for writer, turns in enumerate(won):
        for turn in turns:
            assert_same(store.read(turn), primitive(store.tasks[turn], seed=writer))
    # What the losers left is known, and none of it can come into the log any more.
    left = leftovers(store)
    assert {each.lost for each in left} <= {True}
    assert [remove(store, each, clock(store)) for each in left] == [None] * len(left)
    place.open().verify()


def test_a_file_in_many_parts_and_one_that_broke_off(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, want = in_small_parts(account.place, monkeypatch), large_primitive()
    store = place.create()
    killed_in_an_upload(store, want, monkeypatch)
    assert place.open().tasks == ()
    (broken,) = leftovers(place.open())
    assert (broken.why, broken.upload is None) == ("an upload that wasn't completed", False)
    now = clock(store)
    assert "younger than 24 hours" in str(remove(store, broken, now))
    assert remove(store, broken, now + 25 * 3600) is None
    assert leftovers(place.open()) == []
    place.open().append(want)
    place.open().verify()
    assert_same(place.open().read(0), want)


def test_a_file_in_parts_overwrites_which_only_data_files_may(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ceph ignores `If-None-Match` there. Data files of one name have the same bytes; a record is
    never so large.
    """
    assert MAX_JSON < 100 * 2**20
    monkeypatch.setattr(s3fs.S3FileSystem._pipe_file, "__defaults__", (PART, None, "overwrite"))
    place = account.place
    weights = torch.arange(3 * 2**20, dtype=torch.float32)
    want = replace(primitive("GQA"), experts={"layers.0.up_proj.A": weights})
    first, second = place.create(), place.open()
    first.append(want)
    before = place.files()
    with pytest.raises(StoreError, match="index 0 is held by another writer's task 'GQA'"):
        second.append(want)
    assert place.files() == before
    place.open().verify()


def test_listings_of_more_than_a_thousand_files(account: Account, tmp_path: Path) -> None:
    place = two_in(account.place)
    fs, root = filesystem(place.url, **place.options)
    # Most of them stand before the log's own files, one page is full of them.
    fs.pipe({f"{root}/!{n:04d}.tmp": b"1" for n in range(1100)})
    fs.pipe({f"{root}/002-Flickr-0123456789ab/{n:04d}": b"1" for n in range(1050)})
    store = place.open()
    assert store.tasks == ("GQA", "VQAv2")
    left = {each.name: each for each in leftovers(store)}
    assert len(left) == 1101
    assert left["002-Flickr-0123456789ab"].files == 1050
    assert remove(store, left["002-Flickr-0123456789ab"], clock(store) + 25 * 3600) is None
    assert len(leftovers(store)) == 1100
    assert copy(store, tmp_path / "copy").records() == store.records()


# Between places


def test_copies_between_two_servers_and_a_disk(account: Account, s3: Place, tmp_path: Path) -> None:
    source = two_in(account.place)
    disk = copy(source.open(), tmp_path / "disk")
    other = copy(source.open(), s3.url, **s3.options)
    back = replace(account.place, url=f"{account.place.url}-back")
    again = copy(other, back.url, **back.options)
    assert back.files() == s3.files() == source.files()
    assert again.records() == other.records() == disk.records() == source.open().records()
    again.verify()


def test_the_command_copies_between_two_servers_by_profiles(
    account: Account,
    s3: Place,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, file = two_in(account.place), tmp_path / "config"
    logins = {"ceph": (source, account.key, account.secret), "other": (s3, "test", "test")}
    file.write_text(
        "".join(
            f"[profile {name}]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
            f"region = us-east-1\nendpoint_url = {place.options['endpoint_url']}\n"
            for name, (place, key, secret) in logins.items()
        )
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    profiles = ["--from-profile", "ceph", "--to-profile", "other"]
    assert main(["store", "copy", source.url, s3.url, *profiles]) == 0
    assert capsys.readouterr().out.endswith(f"{s3.url}: 2 tasks\n")
    assert s3.files() == source.files()
    with pytest.raises(SystemExit) as ended:
        main(["store", "copy", source.url, str(tmp_path / "a"), *profiles])
    assert ended.value.code == 2
    assert "--to-profile is for a place on S3" in capsys.readouterr().err


def test_a_key_that_is_withdrawn_within_a_copy_leaves_a_shorter_log(
    account: Account,
    environment: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    user = account.user
    local = two_in(Place(str(tmp_path / "store"), {}))
    url = f"{environment}/copy"

    def withdraw(line: str) -> None:
        account.server.admin("key", "rm", f"--uid={user}", f"--access-key={account.key}")

    with pytest.raises(StorageError, match=r"the access key is wrong \(InvalidAccessKeyId"):
        copy(local.open(), url, show=withdraw)
    assert main(["store", "copy", local.url, url]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert f"{url}: can't be listed" in err
    assert "check AWS_ACCESS_KEY_ID" in err
    assert account.secret not in err
    login(monkeypatch, *account.server.new_key(user))
    shorter = Store.open(url)
    shorter.verify()
    assert shorter.tasks == ("GQA",)
    assert leftovers(shorter) == []
    assert main(["store", "copy", local.url, url]) == 0
    assert Store.open(url).records() == local.open().records()


def test_a_key_that_is_withdrawn_within_a_commit_leaves_no_record(
    account: Account, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, place = account.user, Place(f"{environment}/store", {})
    store, puts = place.create(), []

    def withdraw(method: str) -> None:
        puts.extend([method] if method == "put_object" else [])
        if len(puts) == 3:
            account.server.admin("key", "rm", f"--uid={user}", f"--access-key={account.key}")
            puts.append("")

    with monkeypatch.context() as patch:
        patch_s3(patch, withdraw)
        with pytest.raises(StorageError, match=r"wrong \(InvalidAccessKeyId") as raised:
            store.append(primitive("GQA"))
    assert not raised.value.transient
    login(monkeypatch, *account.server.new_key(user))
    again = place.open()
    assert len(again) == 0
    assert [(each.why, each.files) for each in leftovers(again)] == [("data without record", 2)]
    again.append(primitive("GQA"))
    place.open().verify()
    assert leftovers(place.open()) == []


# What it refuses


def test_wrong_keys_are_told_apart(
    account: Account, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, secret, code in (
        ("NOBODY", account.secret, "InvalidAccessKeyId"),
        (account.key, "of-another", "SignatureDoesNotMatch"),
    ):
        login(monkeypatch, key, secret)
        place = Place(f"{environment}/store", {})
        with pytest.raises(StorageError, match=rf"the access key is wrong \({code}") as raised:
            place.create()
        assert not raised.value.transient
        with pytest.raises(StorageError, match=r"no permission, or is wrong \(403"):
            place.open()  # begins by HEAD, whose answer has no code


def test_a_missing_bucket_and_another_users(
    account: Account, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match=r"has no bucket 'nowhere-at-all'.*create it"):
        Store.open("s3://nowhere-at-all/store")
    with pytest.raises(StoreError, match="there is no store here; create one first"):
        Store.open(f"{environment}/store")
    assert not exists(f"{environment}/none")
    login(monkeypatch, *account.server.new_user())
    with pytest.raises(StorageError, match=r"no permission, or is wrong"):
        two_in(Place(f"{environment}/store", {}))


def test_another_region_is_none_of_its_business(
    account: Account, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ceph takes a signature for any region; only a bucket that is made names one."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    s3fs.S3FileSystem.clear_instance_cache()
    place = two_in(Place(f"{environment}/store", {}))
    place.open().verify()
    fs, _ = filesystem(environment)
    url = f"s3://b-{uuid4().hex}"
    with pytest.raises(StorageError, match="InvalidLocationConstraint"), explained(url, WRITTEN):
        fs.call_s3(
            "create_bucket",
            Bucket=url.removeprefix("s3://"),
            CreateBucketConfiguration={"LocationConstraint": "eu-central-1"},
        )


def test_a_quota_that_is_used_up_is_said_and_more_room_helps(
    account: Account, environment: str
) -> None:
    place, user = Place(f"{environment}/store", {}), account.user
    store = place.create()
    quota = "--quota-scope=user", f"--uid={user}"
    account.server.admin("quota", "set", *quota, "--max-objects=1")
    account.server.admin("quota", "enable", *quota)
    with pytest.raises(StorageError, match=r"full or its quota is used up.*free some space"):
        store.append(primitive("GQA"))
    assert len(place.open()) == 0
    account.server.admin("quota", "disable", *quota)
    place.open().append(primitive("GQA"))
    place.open().verify()
