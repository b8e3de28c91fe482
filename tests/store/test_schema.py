"""Stores of every version are read, served and gone on with; what is of a later program says so.

`old/` has stores that earlier programs wrote for the tiny base of the tests, with what their models
said: 0.1.0's, and the last of version 1.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.logs import Place, assert_same, primitive, refusal, resealed
from support.tiny_models import make_base, make_inputs

from cmoe.store.copying import copy, upgraded
from cmoe.store.export import export
from cmoe.store.log import Store
from cmoe.store.model import load_model
from cmoe.store.schema import SCHEMA
from cmoe.version import __version__

OLD = Path(__file__).parent / "old"
NAMES = ("0.1.0", "last_of_1")
SAID = "logits.safetensors"


@pytest.fixture(params=NAMES)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return shutil.copytree(OLD / request.param, tmp_path / "old", ignore=lambda *_: [SAID])


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def said(store: Store) -> dict[str, torch.Tensor]:
    """What the model of a store says to the inputs that its writer asked it."""
    base = make_base()
    model = load_model(store, base)
    inputs = make_inputs(batch=4)
    with torch.no_grad():
        return {task: model(inputs, task).logits[:, -1].float().cpu() for task in store.tasks}


@pytest.mark.parametrize("name", NAMES)
def test_a_store_of_before_gives_the_model_that_wrote_it(name: str) -> None:
    store = Store.open(OLD / name)
    store.verify()
    assert {store.header.schema, *(record.schema for record in store.records())} == {1}
    for task, logits in said(store).items():
        torch.testing.assert_close(logits, load_file(OLD / name / SAID)[task], rtol=0, atol=1e-5)


def test_what_0_1_0_did_not_say_means_what_there_was_then() -> None:
    settings = Store.open(OLD / "0.1.0").header.settings
    assert (settings["gates"], settings["attention"]) == ("renormalized", 0)
    assert settings["locator"]["paraphrases"] == 0
    later = Store.open(OLD / "last_of_1")
    assert later.header.settings["gates"] == "residual"
    assert later.records()[1].builds_on == "one"


def test_a_log_of_before_goes_on_in_the_newest_version(old: Path) -> None:
    before = files(old)
    store = Store.open(old)
    store.append(primitive("three"))
    assert before.items() <= files(old).items()
    again = Store.open(old)
    again.verify()
    assert [record.schema for record in again.records()] == [1, 1, 2]
    assert [record.cmoe for record in again.records()] == [None, None, __version__]
    assert_same(again.read(2), primitive("three"))


def test_a_copy_keeps_the_version_and_an_export_too(old: Path, tmp_path: Path) -> None:
    copy(Store.open(old), tmp_path / "copy")
    assert files(tmp_path / "copy") == files(old)
    made = export(Store.open(old), tmp_path / "shared")
    made.verify()
    assert {record.schema for record in made.records()} == {1}
    if b"/home" not in files(old)["stream.json"]:
        assert files(tmp_path / "shared") == files(old)


def test_an_upgraded_copy_says_the_same_in_the_newest_version(old: Path, tmp_path: Path) -> None:
    store = Store.open(old)
    store.append(primitive("three"))
    assert store.schemas != {SCHEMA}
    made = copy(store, tmp_path / "new", change=upgraded)
    made.verify()
    assert Store.open(tmp_path / "new").schemas == {SCHEMA}
    assert made.header.settings == store.header.settings
    for index in range(3):
        assert_same(made.read(index), store.read(index))
        mine, theirs = made.records()[index], store.records()[index]
        assert (mine.builds_on, mine.instructions) == (theirs.builds_on, theirs.instructions)
        assert mine.references == theirs.references
    # An interrupted one goes on, and comes to the same.
    whole = files(tmp_path / "new")
    for name in ("001.json", "002.json", next(n for n in whole if n.startswith("002-"))):
        (tmp_path / "new" / name).unlink()
    copy(store, tmp_path / "new", change=upgraded)
    assert files(tmp_path / "new") == whole


LATER = {
    "a version": (
        {"schema": 3, "cmoe": "9.8.7"},
        f"has schema version 3, written by cmoe 9.8.7; this is cmoe {__version__}, which reads 1 "
        "and 2; install cmoe 9.8.7 or a newer one",
    ),
    "a field": (
        {"colour": "blue", "cmoe": "9.8.7"},
        f"has colour, written by cmoe 9.8.7; this is cmoe {__version__}, which knows nothing of "
        "that; install cmoe 9.8.7 or a newer one",
    ),
}


@pytest.mark.parametrize("name", ["stream.json", "001.json"])
@pytest.mark.parametrize("kind", LATER)
def test_what_a_later_program_wrote_names_it(two_on_disk: Place, kind: str, name: str) -> None:
    changes, cause = LATER[kind]
    two_on_disk.write(name, resealed(two_on_disk.files()[name], **changes))
    assert refusal(two_on_disk) == f"{two_on_disk.url}/{name}: {cause}"


@pytest.mark.parametrize("schema", [0, -1, True, "2", 1.0, None, [2]])
def test_what_is_no_version_is_damaged(two_on_disk: Place, schema: Any) -> None:
    two_on_disk.write("001.json", resealed(two_on_disk.files()["001.json"], schema=schema))
    assert "001.json: damaged: " in refusal(two_on_disk)


def test_a_changed_version_is_damage_not_a_later_program(two_on_disk: Place) -> None:
    data = two_on_disk.files()["001.json"].replace(b'"schema":2', b'"schema":3')
    two_on_disk.write("001.json", data)
    assert "001.json: damaged: " in refusal(two_on_disk)


@pytest.mark.parametrize(
    "changes",
    [{"files": [1]}, {"files": {"experts": {"size": 1}}}, {"instructions": {"a": 1}},
     {"references": [{}]}, {"base": "mini"}, {"settings": {"top_k": 1, "locator": 3}}],
)  # fmt: skip
def test_what_is_sealed_but_makes_no_sense_is_refused(
    two_on_disk: Place, changes: dict[str, Any]
) -> None:
    name = "stream.json" if changes.keys() & {"base", "settings"} else "001.json"
    two_on_disk.write(name, resealed(two_on_disk.files()[name], **changes, schema=1))
    assert f"{two_on_disk.url}/{name}: " in refusal(two_on_disk)


def test_every_file_names_its_writer(two_on_disk: Place) -> None:
    sealed = {n: json.loads(d) for n, d in two_on_disk.files().items() if n.endswith(".json")}
    assert {(each["schema"], each["cmoe"]) for each in sealed.values()} == {(2, __version__)}
