"""A folder on S3 that is worked on here: everything comes there, in order, or somebody is told."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import s3fs
from support.flaky import Flaky, flaky

from cmoe.common.remote import mirror as mirror_module
from cmoe.common.remote.mirror import mirrored
from cmoe.common.storage import StorageError, filesystem


def there(url: str) -> dict[str, bytes]:
    fs, root = filesystem(url)
    found = fs.find(root, detail=True).items()
    files = [path for path, info in found if info["type"] == "file"]
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in files}


def test_a_folder_of_this_machine_is_worked_on_itself(tmp_path: Path) -> None:
    with mirrored(str(tmp_path / "run")) as mirror:
        assert mirror.folder == tmp_path / "run"
        mirror.fetch()
        assert not mirror.folder.exists(), "who only looks leaves nothing"
        mirror.folder.mkdir()
        (mirror.folder / "a").write_text("1")
    assert (tmp_path / "run" / "a").read_text() == "1"


def test_what_is_written_is_there_when_the_folder_is_left(bucket: str) -> None:
    with mirrored(bucket) as mirror:
        (mirror.folder / "deep" / "er").mkdir(parents=True)
        (mirror.folder / "deep" / "er" / "b").write_bytes(b"b" * 3_000_000)
        (mirror.folder / "a").write_text("1")
        (mirror.folder / "half.tmp").write_text("not whole yet")
    assert there(bucket) == {"deep/er/b": b"b" * 3_000_000, "a": b"1"}
    with mirrored(bucket) as mirror:
        mirror.fetch("a")
        assert [f.name for f in mirror.folder.iterdir()] == ["a"]
        mirror.fetch()
        assert (mirror.folder / "deep" / "er" / "b").stat().st_size == 3_000_000


def test_it_is_carried_while_work_goes_on_in_the_order_of_writing(bucket: str) -> None:
    with mirrored(bucket) as mirror:
        for name in "ba":
            (mirror.folder / name).write_text(name)
            time.sleep(0.02)
        deadline = time.monotonic() + 30
        while (names := there(bucket).keys()) != {"a", "b"} and time.monotonic() < deadline:
            assert names <= {"b"}, "a came before what was written before it"
        assert there(bucket).keys() == {"a", "b"}


def test_an_appended_file_comes_whole_in_the_end(bucket: str) -> None:
    with mirrored(bucket) as mirror, (mirror.folder / "log").open("a") as log:
        for number in range(50):
            log.write(f"{number}\n")
            log.flush()
            time.sleep(0.1)
    assert there(bucket)["log"].decode().split() == [str(n) for n in range(50)]


def test_two_who_write_different_files_see_each_others(bucket: str) -> None:
    with mirrored(bucket) as driver:
        (driver.folder / "config").write_text("driver's")
        with mirrored(bucket, apart=["store"]) as worker:
            (worker.folder / "matrix").write_text("old")
        filesystem(bucket)[0].pipe_file(f"{bucket}/store/000.json", b"{}")
        driver.fetch()
        with mirrored(bucket, apart=["store"]) as worker:
            worker.fetch()
            assert not (worker.folder / "store").exists(), "the log is the store's own"
            (worker.folder / "matrix").write_text("new")
        (driver.folder / "config").write_text("driver's own, newer")
        driver.fetch()
        assert (driver.folder / "matrix").read_text() == "new"
        assert (driver.folder / "config").read_text() == "driver's own, newer"
    assert there(bucket)["config"] == b"driver's own, newer"


def writing(bucket: str, proxy: Flaky) -> None:
    with mirrored(bucket) as mirror:
        (mirror.folder / "a").write_text("1")
        while not there(bucket):
            time.sleep(0.1)
        proxy.denied = True
        (mirror.folder / "b").write_text("2")
        time.sleep(0.02)
        (mirror.folder / "c").write_text("3")
        time.sleep(5)
        with pytest.raises(StorageError):
            mirror.check()


def test_what_can_not_be_kept_is_said_and_nothing_else_is_called_kept(
    bucket: str, s3_server: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flaky(str(getattr(s3_server, "endpoint", ""))) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(StorageError, match=r"b: can't be written: .*What was saved before is"):
            writing(bucket, proxy)
        assert there(bucket) == {"a": b"1"}


def test_no_bucket_is_said_at_once(bucket: str) -> None:
    nowhere = f"{bucket.removesuffix('/prepared')}-nowhere/runs"
    with pytest.raises(StorageError, match="nowhere"), mirrored(nowhere) as mirror:
        (mirror.folder / "a").write_text("1")


def test_failing_calls_are_tried_again(
    bucket: str, s3_server: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth of all calls fails, also behind their effect and within an answer."""
    with flaky(str(getattr(s3_server, "endpoint", "")), share=0.2, seed=1) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        content = {f"file-{n}": bytes([n]) * 10_000 * (n + 1) for n in range(30)}
        with mirrored(bucket) as mirror:
            for name, value in content.items():
                (mirror.folder / name).write_bytes(value)
        with mirrored(bucket) as mirror:
            mirror.fetch()
            assert {f.name: f.read_bytes() for f in mirror.folder.iterdir()} == content
            assert mirror_module.waiting() == 0
        assert sum(proxy.faults.values()) > 5
        assert len(proxy.faults) >= 3, proxy.faults


def test_what_waiting_can_not_mend_is_not_carried_again(
    bucket: str, s3_server: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "PERIOD_S", 0.1)
    monkeypatch.setattr(mirror_module, "AGAIN_S", 0.1)
    with flaky(str(getattr(s3_server, "endpoint", ""))) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.denied = True
        with mirrored(bucket) as mirror:
            (mirror.folder / "a").write_text("1")
            while not proxy.faults["denied"]:
                time.sleep(0.1)
            time.sleep(1)
            assert proxy.faults["denied"] == 1
            assert mirror_module.waiting() == 1
            with pytest.raises(StorageError, match=r"AccessDenied.*give it the right"):
                mirror.check()
            proxy.denied = False  # mended: what is left is carried at the end
    assert there(bucket) == {"a": b"1"}
