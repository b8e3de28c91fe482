"""`cmoe store`: what it says of a store, what it copies, what it removes and leaves."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.hub import HubServer
from support.jobs import REPOSITORY
from support.logs import Place, primitive, two_in

from cmoe.cli.main import main
from cmoe.store.log import Store

OLD = Path(__file__).parents[1] / "store" / "old" / "0.1.0"
LEFT = "002-Flickr-0123456789ab"
HOLD = (
    "import sys, time\n"
    "from cmoe.run.lease import held\n"
    "with held(sys.argv[1]):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)\n"
)


@pytest.fixture
def store(tmp_path: Path) -> Place:
    """Of a run, with an old and a young leftover."""
    place = two_in(Place(str(tmp_path / "run" / "store"), {}))
    (tmp_path / "run" / "config.yaml").write_text("name: run\n")
    place.write(f"{LEFT}/experts.safetensors", b"12345")
    for path in (Path(place.url, LEFT, "experts.safetensors"), Path(place.url, LEFT)):
        os.utime(path, (1e9, 1e9))
    place.write(f"000.json.{'a' * 32}.tmp", b"123")
    return place


def ran(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(["store", *map(str, words)])
    return status, *capsys.readouterr()


def test_verify_tells_of_every_record_and_of_what_is_left(
    store: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = store.files()
    status, out, _ = ran(capsys, "verify", Path(store.url).parent)
    assert status == 0
    assert [line.partition(":")[0] for line in out.splitlines()[:2]] == ["000 GQA", "001 VQAv2"]
    assert out.count(": whole") == 2
    assert f"{store.url}: 2 tasks, 6 data files, " in out
    assert re.search(rf"{LEFT}: data without record; 1 file, 5 B, \d+ days old", out)
    assert re.search(r"a{32}\.tmp: a temporary file; 1 file, 3 B, \d seconds old", out)
    assert out.endswith("nothing was removed; --remove removes what no writer can still need\n")
    assert store.files() == before


def test_verify_removes_what_it_may_and_says_what_stays(
    store: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = ran(capsys, "verify", store.url, "--remove")
    assert status == 0
    assert f"{LEFT}: removed\n" in out
    assert ".tmp: left there, younger than 24 hours: its writer may be at work\n" in out
    names = store.files()
    assert not [name for name in names if LEFT in name]
    assert [name for name in names if name.endswith(".tmp")]
    store.open().verify()


def test_verify_removes_nothing_of_a_run_that_a_job_drives(
    store: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(Path(store.url).parent)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, run], cwd=REPOSITORY, text=True, stdout=-1
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = store.files()
        status, _, err = ran(capsys, "verify", store.url, "--remove")
        assert status == 1
        assert f"{run}: another job works on it: process {holder.pid} " in err
        assert store.files() == before
    finally:
        holder.kill()
        holder.wait()


def test_verify_names_every_damage_and_ends_with_1(
    store: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    store.open().append(primitive("VizWiz", 3))
    for start in ("000-", "001-"):
        name = next(n for n in store.files() if n.startswith(start) and "routers" in n)
        store.write(name, store.files()[name] + b"x")
    store.write("002.json", store.files()["002.json"][:-1])
    status, out, err = ran(capsys, "verify", store.url, "--remove")
    assert status == 1
    for name in ("000-GQA-.*/routers", "001-VQAv2-.*/routers", r"002\.json"):
        assert re.search(f"{name}.*: damaged", out)
    assert err == f"cmoe store: {store.url}: damaged: 3 of what was read; see above\n"
    assert [name for name in store.files() if LEFT in name], "removed beside a broken log"


def test_copy_and_its_repetition(
    store: Place, tmp_path: Path, bucket: str, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in (f"{bucket}/copy", "hf://me/copy", str(tmp_path / "copy")):
        status, out, _ = ran(capsys, "copy", Path(store.url).parent, target)
        assert status == 0
        assert out.splitlines() == [
            f"{target}/000.json: GQA",
            f"{target}/001.json: VQAv2",
            f"{target}: 2 tasks",
        ]
        assert ran(capsys, "copy", store.url, target)[1] == f"{target}: 2 tasks\n"
        assert Store.open(target).records() == store.open().records()
        assert f"{target}: 2 tasks, 6 data files, " in ran(capsys, "verify", target)[1]
    Store.open(tmp_path / "copy").append(primitive("VizWiz"))
    said = ran(capsys, "copy", store.url, tmp_path / "copy")[1]
    assert said == f"{tmp_path}/copy: 3 tasks, 1 more than {store.url}\n"


def test_upgrade_and_nothing_to_do(
    store: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = shutil.copytree(OLD, tmp_path / "old")
    status, out, _ = ran(capsys, "upgrade", old, tmp_path / "new")
    assert (status, out.splitlines()[-1]) == (0, f"{tmp_path}/new: 2 tasks in schema version 2")
    assert "schema version 2\n" in ran(capsys, "verify", tmp_path / "new")[1]
    status, out, _ = ran(capsys, "upgrade", store.url, tmp_path / "none")
    assert (status, out) == (0, f"{store.url}: nothing to do: all of it has schema version 2\n")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verfy"], "cmoe store: unknown action verfy; did you mean verify?"),
        (["copy", "a"], "cmoe store copy: no TO; --help explains it"),
        (["verify", "a", "--rm"], "cmoe store verify: unknown flag --rm"),
    ],
)
def test_a_wrong_command_line_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["store", *words])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(said)


def test_help_names_all_actions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["store", "--help"])
    assert "verify, copy, upgrade, prune-runs" in capsys.readouterr().out
    for name in ("verify", "copy", "upgrade", "prune-runs"):
        with pytest.raises(SystemExit) as ended:
            main(["store", name, "--help"])
        assert ended.value.code == 0
    capsys.readouterr()
    assert main(["store", "copy", "/nowhere/a", "/nowhere/b"]) == 1
    assert "neither a store nor a run with one" in capsys.readouterr().err
