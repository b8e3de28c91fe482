"""What a disk or an S3 server raises becomes one sentence, at once where waiting can't help."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import s3fs
from support.bad_paths import a_circle, a_file, a_folder
from support.flaky import Flaky, flaky
from support.jobs import REPOSITORY

from cmoe.common.exclusive import create, require_exclusive
from cmoe.common.files import Log, whole
from cmoe.common.storage import (
    StorageAwayError,
    StorageError,
    exists,
    explained,
    filesystem,
    require_reachable,
    storage_error,
)
from cmoe.common.storage_errors import READ, WRITTEN

SECRET = "secret-of-nobody"


@contextmanager
def no_larger_than(size: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def write(file: Path) -> None:
    with whole(file) as beside:
        beside.write_bytes(b"x" * 100_000)


# A disk


BAD_PATHS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a file where a folder should be": (a_file, r"taken is a file where a folder is needed"),
    "links in a circle": (a_circle, "symbolic links in it lead in a circle"),
    "a long name": (lambda root: root / ("n" * 300) / "a", "a name in it is too long"),
    "a NUL": (lambda root: root / "n\0n" / "a", "no file can be named so"),
    "a lone surrogate": (lambda root: root / "n\ud800n" / "a", "no file can be named so"),
    "no folder": (lambda root: root / "none" / "a", "the folder .*none isn't there"),
    "nobody's folder": (lambda _: Path("/proc/cmoe/a"), "the folder /proc/cmoe isn't there"),
    "a folder where a file should be": (a_folder, "folder: can't be written: "),
}


@pytest.mark.parametrize("kind", BAD_PATHS)
def test_a_path_that_can_not_be_written(tmp_path: Path, kind: str) -> None:
    make, cause = BAD_PATHS[kind]
    file = make(tmp_path)
    with pytest.raises(StorageError, match=cause) as raised:
        write(file)
    assert not raised.value.transient
    assert str(raised.value).startswith(f"{file}: can't be written: ")
    assert "\n" not in str(raised.value)


def test_a_full_disk_and_what_was_there_stays(tmp_path: Path) -> None:
    file = tmp_path / "matrix.json"
    file.write_text("before")
    with no_larger_than(4096), pytest.raises(StorageError, match=r"larger than is allowed.*ulimit"):
        write(file)
    assert [f.name for f in tmp_path.iterdir()] == ["matrix.json"]
    assert file.read_text() == "before"
    with (
        pytest.raises(StorageError, match=r"/dev/full: .*its disk is full; free some space there"),
        explained("/dev/full", WRITTEN),
        open("/dev/full", "w") as full,
    ):
        full.write("a")


@contextmanager
def few_files(folder: Path, count: int) -> Iterator[None]:
    """A folder on a disk of its own that holds so many files, however much room there is."""
    options = f"size=1m,nr_inodes={count + 1}"  # its own folder is one
    command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if os.getuid() or subprocess.run(command, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("only root mounts a disk, where the system lets it")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_takes_no_more_files_is_not_said_to_be_full(tmp_path: Path) -> None:
    with few_files(tmp_path, 2):
        write(tmp_path / "one")
        (tmp_path / "two").touch()
        no_room = (
            r"one: can't be written: its disk can't take more files \(no inode is free\); remove"
        )
        with pytest.raises(StorageError, match=no_room):
            write(tmp_path / "one")
        (tmp_path / "two").unlink()
        write(tmp_path / "one")


def test_a_log_that_can_not_be_written_is_said_once_and_stops_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    log = Log(tmp_path / "run.log", told.append)
    log.write("begun\n")
    with no_larger_than(0):
        for _ in range(3):
            log.write("lost\n")
        assert len(told) == 1
        assert told[0].startswith(f"{tmp_path / 'run.log'}: can't be written: ")
    log.write("room again\n")
    log.close()
    assert (tmp_path / "run.log").read_text().startswith("begun\n")
    assert (tmp_path / "run.log").read_text().endswith("room again\n")


def test_who_may_not_write_is_told_whose_folder_it_is(tmp_path: Path) -> None:
    """In a process that isn't root, which may write everywhere."""
    folder = Path(tempfile.mkdtemp())  # pytest's own is closed to others
    folder.chmod(0o755)
    program = (
        "import os, pathlib, sys\n"
        "from cmoe.common.files import whole\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "else: os.chmod(sys.argv[1], 0o555)\n"
        "with whole(pathlib.Path(sys.argv[1], 'a')) as beside: beside.write_text('a')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder], cwd=REPOSITORY, text=True, stderr=-1
    )
    shutil.rmtree(folder)
    said = done.stderr.splitlines()[-1]
    assert f"{folder} belongs to {tmp_path.owner()} with mode" in said
    assert "may not write there; give that right, or use another path (EACCES)" in said


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_network_disk_that_is_away_may_come_back(number: int) -> None:
    found = storage_error(OSError(number, os.strerror(number)), "/mnt/runs", WRITTEN)
    assert found is not None
    assert found.transient
    assert str(found).startswith("/mnt/runs: can't be written: its disk or network file system")


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENOSPC])
def test_what_waiting_can_not_mend_is_not_transient(number: int) -> None:
    found = storage_error(OSError(number, os.strerror(number)), "/mnt/runs", WRITTEN)
    assert found is not None
    assert not found.transient
    assert errno.errorcode[number] in str(found)


def test_errors_of_programs_are_no_errors_of_storage() -> None:
    for error in (KeyError("a"), TypeError("b"), ValueError("c"), AssertionError()):
        for url in ("/a", "s3://b/a", None):
            assert storage_error(error, url) is None
        with pytest.raises(type(error)), explained("s3://b/a", READ):
            raise error
    assert storage_error(ConnectionResetError("of another network")) is None
    for text in ("embedded null byte", "null"):  # of what is read or written, not of its path
        assert storage_error(ValueError(text), "/a") is None


def test_a_sentence_passes_between_processes() -> None:
    for kind in (StorageError, StorageAwayError):
        found = pickle.loads(pickle.dumps(kind("a: can't be read")))  # noqa: S301
        assert (str(found), found.transient) == ("a: can't be read", kind.transient)


# A server


@pytest.fixture(scope="module")
def proxy(s3_server: Any) -> Iterator[Flaky]:
    with flaky(s3_server.endpoint) as found:
        yield found


@pytest.fixture
def through(bucket: str, proxy: Flaky, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket behind the proxy, whose address names a user and a password."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    s3fs.S3FileSystem.clear_instance_cache()
    proxy.requests.clear()
    yield bucket
    proxy.answer, proxy.unconditional = None, False


ANSWERS = {
    (403, "AccessDenied"): "no permission, or is wrong .*give it the right to read, write and list",
    (403, "InvalidAccessKeyId"): "the access key is wrong .*check AWS_ACCESS_KEY_ID",
    (403, "SignatureDoesNotMatch"): "the access key is wrong .*check AWS_ACCESS_KEY_ID",
    (400, "ExpiredToken"): "token has expired .*renew AWS_SESSION_TOKEN",
    (403, "RequestTimeTooSkewed"): "this machine's clock is wrong .*set it",
    (404, "NoSuchBucket"): "has no bucket 'coin-.*create it",
    (301, "PermanentRedirect"): "in another region or at another endpoint; set AWS_DEFAULT_REGION",
    (400, "AuthorizationHeaderMalformed"): "in another region",
    (403, "QuotaExceeded"): "full or its quota is used up .*free some space",
    (507, "XMinioStorageFull"): "full or its quota is used up .*free some space",
    (501, "NotImplemented"): "can't do what is asked for .*use an S3 server that can",
    (400, "KeyTooLongError"): "its name is too long .*shorten",
    (400, "NeverHeardOf"): "is refused, .*correct the URL",
}


@pytest.mark.parametrize(("answer", "cause"), ANSWERS.items(), ids=[c for _, c in ANSWERS])
def test_what_a_server_refuses_is_said_at_once(
    through: str, proxy: Flaky, answer: tuple[int, str], cause: str
) -> None:
    proxy.answer = answer
    fs, path = filesystem(through)
    with pytest.raises(StorageError, match=cause) as raised, explained(f"{through}/a", WRITTEN):
        fs.pipe_file(f"{path}/a", b"a")
    assert not raised.value.transient
    assert str(raised.value).startswith(f"{through}/a: can't be written: ")
    assert SECRET not in str(raised.value)
    if answer[0] != 301:  # botocore looks for the region by itself
        assert proxy.requests.total() == 1, "it was tried again"


def test_what_refuses_a_creation_is_told_and_not_what_refuses_the_look_behind_it(
    through: str, proxy: Flaky
) -> None:
    """A look has no body in its answer, and so no code."""
    proxy.answer = (403, "InvalidAccessKeyId")
    fs, path = filesystem(through)
    with pytest.raises(StorageError, match=r"the access key is wrong \(InvalidAccessKeyId"):
        create(fs, f"{path}/a", b"a", f"{through}/a")


@pytest.mark.parametrize("answer", [(403, "AccessDenied"), (400, "ExpiredToken"), (503, "Away")])
def test_every_operation_has_a_sentence(
    through: str, proxy: Flaky, answer: tuple[int, str]
) -> None:
    proxy.answer = answer
    fs, path = filesystem(through, attempts=1)
    actions: dict[str, Callable[[], object]] = {
        "info": lambda: fs.info(path),
        "read": lambda: fs.cat_file(path),
        "list": lambda: fs.ls(path, detail=False),
        "create": lambda: fs.pipe_file(path, b"a", mode="create"),
        "remove": lambda: fs.rm_file(path),
        "open": lambda: fs.open(path, "rb").read(),
    }
    for name, act in actions.items():
        if answer[0] == 503 and name != "info":
            continue  # s3fs is patient with it
        with pytest.raises(StorageError) as raised, explained(through, "used"):
            act()
        assert raised.value.transient == (answer[0] == 503), name
        assert "; " in str(raised.value), name


def test_a_missing_file_is_missing_and_a_missing_bucket_is_said(bucket: str) -> None:
    assert not exists(f"{bucket}/none")
    with pytest.raises(StorageError, match="no bucket 'coin-nowhere'"):
        exists("s3://coin-nowhere/none")
    require_reachable(f"{bucket}/none")
    with pytest.raises(StorageError, match="no bucket 'coin-nowhere'"):
        require_reachable("s3://coin-nowhere/none")


@pytest.mark.parametrize(
    ("endpoint", "transient", "cause"),
    [
        ("http://127.0.0.1:9", True, "127.0.0.1:9 doesn't answer"),
        ("http://user:secret-of-nobody@127.0.0.1:9", False, "the endpoint can't be right"),
        ("http://no.such.host.invalid", True, "no.such.host.invalid doesn't answer"),
        ("localhost:9", False, "the endpoint can't be right"),
    ],
)
def test_an_endpoint_that_can_not_be_reached(
    bucket: str, monkeypatch: pytest.MonkeyPatch, endpoint: str, transient: bool, cause: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    fs, path = filesystem(bucket, attempts=1)
    with pytest.raises(StorageError, match=cause) as raised, explained(bucket, READ):
        fs.info(path)
    assert raised.value.transient == transient
    assert SECRET not in str(raised.value)


def test_no_credentials(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"there are no credentials.*check AWS_ACCESS_KEY_ID"):
        exists(f"{bucket}/a")


@pytest.mark.parametrize("url", ["s3://", "s3:///a", "s3:/a", "s3:a", "nowhere://a/b", "gs://a/b"])
def test_what_is_no_place(url: str) -> None:
    with pytest.raises(StorageError) as raised:
        filesystem(url)
    assert str(raised.value).startswith(f"{url}: ")


def test_a_disk_that_is_full_under_a_copy_is_not_the_servers(bucket: str, tmp_path: Path) -> None:
    fs, path = filesystem(bucket)
    fs.pipe_file(path, b"x" * 100_000)
    with (
        no_larger_than(4096),
        pytest.raises(StorageError, match=rf"{tmp_path}.*larger than is allowed"),
        whole(tmp_path / "copy") as beside,
        explained(bucket, READ),
    ):
        fs.get_file(path, str(beside))
    assert not list(tmp_path.iterdir())


# A server that overwrites


@pytest.mark.parametrize("kind", ["overwrites", "refuses"])
def test_a_server_without_conditional_writes_is_refused(
    through: str, proxy: Flaky, kind: str
) -> None:
    fs, path = filesystem(through)
    require_exclusive(fs, path, through)
    if kind == "overwrites":
        proxy.unconditional = True
        cause = r"overwrites what exists.*If-None-Match.*needed is an S3 server with conditional"
    else:
        proxy.answer = (501, "NotImplemented")
        cause = "can't do what is asked for"
    with pytest.raises(StorageError, match=cause):
        require_exclusive(fs, path, through)
    proxy.answer = None
    assert fs.find(path) == [], "the probe stays"
