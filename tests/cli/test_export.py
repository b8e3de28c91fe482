"""`cmoe export`: from a run's folder or a store to a folder that others load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.mini_store import TASKS

import cmoe
from cmoe.cli.main import main
from cmoe.modeling.settings import MINI_BASE
from cmoe.store.log import Store


@pytest.mark.parametrize("source", ["", "store"])
@pytest.mark.parametrize("out", ["disk", "s3"])
def test_an_exported_run_is_loaded_by_others(
    run: Path,
    bucket: str,
    tmp_path: Path,
    source: str,
    out: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = f"{bucket}/shared" if out == "s3" else str(tmp_path / "shared")
    assert main(["export", str(run / source), url]) == 0
    assert capsys.readouterr().out.startswith(f"{url}: {', '.join(TASKS[:2])}; ")
    shared = cmoe.Store.open(url)
    shared.verify()
    loaded = cmoe.load_model(shared, cmoe.load_base(MINI_BASE)[0])
    wanted = cmoe.load_model(Store.open(run / "store"), cmoe.load_base(MINI_BASE)[0])
    assert loaded.tasks == wanted.tasks == TASKS[:2]
    theirs = dict(wanted.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in loaded.named_parameters())
    if out == "disk":
        there = {p.relative_to(url).as_posix(): p for p in Path(url).rglob("*") if p.is_file()}
        tensors = {n for n in there if n.endswith(".safetensors")}
        assert there.keys() - tensors == {"stream.json", "000.json", "001.json", "README.md"}
        assert ("## Results" in there["README.md"].read_text()) == (not source)
        assert not [n for n, file in there.items() if str(run.parent).encode() in file.read_bytes()]


def test_a_prefix_comes_without_the_report_of_all_tasks(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "one"), "--tasks", "1"]) == 0
    assert Store.open(tmp_path / "one").tasks == TASKS[:1]
    text = (tmp_path / "one" / "README.md").read_text()
    assert TASKS[0] in text
    assert TASKS[1] not in text
    assert "## Results" not in text


@pytest.mark.parametrize(
    ("source", "words", "said"),
    [
        ("data", [], "neither a store nor a run with one; give the folder that has stream.json"),
        ("mini", ["--tasks", "3"], "has 2 tasks; can't export 3"),
    ],
)
def test_what_can_not_be_exported_is_told(
    run: Path,
    tmp_path: Path,
    source: str,
    words: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["export", str(run.parent / source), str(tmp_path / "out"), *words]) == 1
    err = capsys.readouterr().err
    assert err.startswith("cmoe export: ")
    assert said in err
    assert not (tmp_path / "out").exists()
