"""One job at a time drives a run, whatever becomes of the others, on a disk and on an S3 wire."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import s3fs
from support.flaky import flaky
from support.holding import holding
from support.jobs import REPOSITORY, until
from support.workers import small_config

from cmoe.common.errors import RunError
from cmoe.common.storage import StorageError, filesystem
from cmoe.experiments.comparison import compare
from cmoe.experiments.comparison.settings import CompareConfig
from cmoe.experiments.sweep import sweep
from cmoe.experiments.sweep.settings import BudgetConfig, SearchConfig
from cmoe.experiments.sweep.sweep import SweepConfig
from cmoe.run import holder as holder_module
from cmoe.run import launch, lease
from cmoe.run.lease import LeaseError, held


@pytest.fixture(params=["disk", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "run")
    return str(request.getfixturevalue("bucket"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs of life every tenth of a second, and two seconds to miss them."""
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    monkeypatch.setattr(lease, "EXPIRY_S", 2.0)
    monkeypatch.setattr(lease, "LOOK_S", 0.2)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What is called makes this process one of another machine."""
    return lambda: monkeypatch.setattr(holder_module, "_machine", lambda: "another machine")


@pytest.fixture
def holder(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease."""
    yield from holding(url)


def files(url: str) -> dict[str, dict[str, Any]]:
    """The lease's files and what they say."""
    fs, root = filesystem(f"{url}/lease")
    return {path.rsplit("/", 1)[-1]: json.loads(fs.cat_file(path)) for path in fs.find(root)}


def begin(folder: Path) -> None:
    """Leave something of a run: only the lease of one that wasn't begun goes without a trace."""
    (folder / "config.yaml").touch()


def silent(_: str) -> None:
    raise AssertionError("nothing is to be waited for")


def lose(url: str, act: Callable[[], object]) -> None:
    """Hold a lease while something happens to it, and sleep on."""
    with held(url, silent):
        act()
        time.sleep(60)
        raise AssertionError("it goes on")


def test_the_second_is_refused_at_once_and_told_who_holds_it(
    url: str, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(LeaseError) as refused, held(url, silent):
        raise AssertionError("it is held")
    said = str(refused.value)
    assert said.startswith(f"{url}: another job works on it: process {holder.pid} of ")
    assert f" on {os.uname().nodename}, since 20" in said
    assert "last renewed 20" in said


def test_a_killed_holder_of_this_machine_blocks_nobody(
    url: str, holder: subprocess.Popen[str]
) -> None:
    """Also while nobody has asked how it ended."""
    holder.send_signal(signal.SIGKILL)
    until(lambda: holder_module._started(holder.pid) in ("", None))
    with held(url, silent):
        (one,) = files(url).values()
        assert one["pid"] == os.getpid()


def test_a_process_that_got_the_number_of_a_dead_one_is_not_it(tmp_path: Path) -> None:
    begin(tmp_path)
    url = str(tmp_path)
    with held(url, silent):
        pass
    (file,) = (tmp_path / "lease").iterdir()
    left = json.loads(file.read_text())
    file.write_text(json.dumps(left | {"released": False, "started": "1", "pid": os.getpid()}))
    with held(url, silent):
        pass


def test_where_nothing_was_begun_nothing_is_left(url: str) -> None:
    fs, root = filesystem(url)
    with pytest.raises(ValueError, match="refused"), held(url, silent):
        raise ValueError("refused")
    assert not fs.find(root)
    assert "file" not in fs.protocol or not fs.exists(root)
    with held(url, silent):
        fs.pipe_file(f"{root}/config.yaml", b"")
    assert [one["released"] for one in files(url).values()] == [True]


def test_who_has_come_to_an_end_blocks_nobody_anywhere(
    url: str, elsewhere: Callable[[], None]
) -> None:
    with held(url, silent):
        pass
    elsewhere()
    with held(url, silent):
        assert len(files(url)) == 1


@pytest.mark.usefixtures("quick")
def test_a_dead_holder_elsewhere_is_waited_for_and_taken_over(
    url: str, holder: subprocess.Popen[str], elsewhere: Callable[[], None]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    elsewhere()
    told: list[str] = []
    with held(url, told.append):
        (one,) = files(url).values()
        assert one["machine"] == "another machine"
    assert len(told) == 1
    assert f"for a sign of life of process {holder.pid}" in told[0]


@pytest.mark.usefixtures("quick")
def test_a_living_holder_elsewhere_is_seen_to_live_though_its_clock_is_wrong(
    url: str, elsewhere: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder_module, "_now", lambda: "1999-12-31 23:59:59 UTC")
    with held(url, silent), monkeypatch.context() as other:
        other.setattr(holder_module, "_machine", lambda: "another machine")
        with (
            pytest.raises(LeaseError, match=r"another job works on it: .*1999-12-31"),
            held(url, lambda _: None),
        ):
            raise AssertionError("it is held")


@pytest.mark.usefixtures("quick")
def test_a_holder_that_was_stopped_too_long_ends_itself(url: str) -> None:
    """Another has taken over meanwhile. What sleeps in the main thread is woken."""

    def take_over() -> None:
        fs, root = filesystem(f"{url}/lease")
        ((name, mine),) = files(url).items()
        other = mine | {"token": "b", "host": "far", "pid": 7, "user": "nobody"}
        number = int(name.removesuffix(".json"))
        fs.pipe_file(f"{root}/{number + 1:04d}.json", json.dumps(other).encode())

    with pytest.raises(LeaseError, match="another job has taken over: process 7 of nobody on far"):
        lose(url, take_over)
    newest = max(files(url).items())[1]
    assert newest["token"] == "b"
    assert not newest["released"]


@pytest.mark.usefixtures("quick")
def test_a_holder_whose_lease_was_removed_ends_itself(tmp_path: Path) -> None:
    with pytest.raises(LeaseError, match=r"its lease was removed.*same command goes on"):
        lose(str(tmp_path), lambda: shutil.rmtree(tmp_path / "lease"))


@pytest.mark.usefixtures("quick")
def test_in_another_thread_the_end_tells(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def work() -> None:
        try:
            with held(str(tmp_path), silent):
                shutil.rmtree(tmp_path / "lease")
                time.sleep(1)  # some signs of life
        except LeaseError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "its lease was removed" in str(caught[0])


@pytest.mark.usefixtures("quick")
def test_what_fails_in_the_body_stays_what_it_is(tmp_path: Path) -> None:
    begin(tmp_path)
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error), held(str(tmp_path), silent):
            raise error
    ((name, left),) = files(str(tmp_path)).items()
    assert (name, left["released"]) == ("0002.json", True)


@pytest.mark.usefixtures("quick")
def test_a_storage_that_refuses_ends_the_run_with_its_sentence(
    bucket: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flaky(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(StorageError, match=r"AccessDenied.*same command goes on from it"):
            lose(bucket, lambda: setattr(proxy, "denied", True))
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.usefixtures("quick")
def test_a_storage_that_is_away_for_a_while_ends_nothing(
    bucket: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flaky(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        with held(bucket, silent):
            proxy.go_away(3)
            time.sleep(3)
            before = files(bucket)["0001.json"]["beats"]
            until(lambda: files(bucket)["0001.json"]["beats"] > before)
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_sign_of_life_costs_a_listing_and_a_small_write(
    bucket: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_S", 0.5)
    with flaky(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        with held(bucket, silent):
            proxy.requests.clear()
            until(lambda: proxy.requests["PUT"] >= 4)
            counted = dict(proxy.requests)
        s3fs.S3FileSystem.clear_instance_cache()
    assert counted.keys() == {"GET", "PUT"}
    assert counted["GET"] - counted["PUT"] in (0, 1)


def test_of_many_that_begin_at_once_one_gets_it(tmp_path: Path) -> None:
    """On the disk alone: moto's own check and its write are two steps, unlike S3's."""
    begin(tmp_path)
    program = (
        "import sys, time\n"
        "from cmoe.run.lease import LeaseError, held\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "try:\n"
        "    with held(sys.argv[1]):\n"
        "        print('held', flush=True); sys.stdin.readline()\n"
        "except LeaseError:\n"
        "    print('refused', flush=True)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path],
            cwd=REPOSITORY,
            text=True,
            stdin=-1,
            stdout=-1,
        )
        for _ in range(4)
    ]

    def lines() -> list[str]:
        return [one.stdout.readline().strip() for one in processes if one.stdout]

    def go() -> None:
        for one in processes:
            assert one.stdin is not None
            if one.poll() is None:
                one.stdin.write("\n")
                one.stdin.flush()

    assert lines() == ["ready"] * 4
    go()
    assert sorted(lines()) == ["held", "refused", "refused", "refused"]
    for one in processes:
        one.communicate("\n")
    (left,) = files(str(tmp_path)).values()
    assert left["released"]


def test_a_damaged_lease_is_said(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "0001.json").write_text("{")
    with pytest.raises(LeaseError, match=r"0001\.json: damaged .*remove it"), held(str(tmp_path)):
        raise AssertionError("it can't be held")


# Who drives what


def nested(refused: list[str], again: Callable[[], object]) -> Callable[..., Any]:
    """In the place of the work itself: begin the same once more."""

    def work(*_: object, **__: object) -> None:
        with pytest.raises(RunError) as raised:
            again()
        refused.append(str(raised.value))
        raise KeyboardInterrupt

    return work


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_a_run_is_driven_once_at_a_time(
    tmp_path: Path, where: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, "twice")
    if where == "s3":
        config = replace(config, runs=str(request.getfixturevalue("bucket")))
    refused: list[str] = []
    monkeypatch.setattr(launch, "drive", nested(refused, lambda: launch.run(config, silent)))
    for _ in range(2):  # the second begins where the first has been released
        with pytest.raises(KeyboardInterrupt):
            launch.run(config, silent)
    assert len(refused) == 2
    assert all(f"another job works on it: process {os.getpid()} " in text for text in refused)
    assert not files(config.url), "nothing was begun"


def test_a_comparison_and_a_sweep_are_driven_once_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path, "twice")
    config = replace(config, data=replace(config.data, selection=0.2))
    how, plan = CompareConfig(methods="lora"), SweepConfig(config, SearchConfig(), BudgetConfig())
    whole: dict[str, tuple[Any, str, Callable[[], object]]] = {
        "comparison": (compare, "_compared", lambda: compare.compare(config, how, silent)),
        "sweep": (sweep, "_swept", lambda: sweep.sweep(plan, silent)),
    }
    for module, work, begin in whole.values():
        refused: list[str] = []
        monkeypatch.setattr(module, work, nested(refused, begin))
        with pytest.raises(KeyboardInterrupt):
            begin()
        assert f"another job works on it: process {os.getpid()} " in refused[0]
