"""`cmoe export`: from a run's folder or a store to a folder that others load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.mini_store import TASKS, make_data, make_model, make_primitive

import cmoe
from cmoe.cli.main import main
from cmoe.modeling.settings import MINI_BASE
from cmoe.store.log import Store
from cmoe.store.model import create_store


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of two tasks leaves, as far as an export looks at it."""
    folder = tmp_path_factory.mktemp("runs") / "mini"
    model = make_model()
    store = create_store(
        folder / "store", model, name="mini", revision="default", config={"runs": str(folder)}
    )
    for task in make_data(folder.parent / "data")[:2]:
        store.append(make_primitive(model, task))
    (folder / "report.md").write_text(f"## Results\n\nruns: {folder}\n")
    for name in ("predictions/000.parquet", "train/checkpoint/weights.pt", "config.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not to be published")
    return folder


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
        card = set() if source else {"README.md"}
        assert there.keys() - tensors == {"stream.json", "000.json", "001.json"} | card
        assert not [n for n, file in there.items() if str(run.parent).encode() in file.read_bytes()]


def test_a_prefix_comes_without_the_card_of_all_tasks(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "one"), "--tasks", "1"]) == 0
    assert Store.open(tmp_path / "one").tasks == TASKS[:1]
    assert not (tmp_path / "one" / "README.md").exists()


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
