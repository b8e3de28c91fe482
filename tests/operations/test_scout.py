"""What a scout finds on the machine that it runs on, without Ray."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.hub import HubServer

from cmoe.modeling.settings import MINI_BASE
from cmoe.operations.preflight.scout import LISTED, Scout, _of_hub


def test_a_mark_makes_the_folders_that_a_run_would_make_and_takes_them_away(tmp_path: Path) -> None:
    scout, folder = Scout(), tmp_path / "a" / "b"
    assert scout.mark(str(folder), "mark", False)["error"]
    told = scout.mark(str(folder), "mark", True)
    assert told["error"] is None
    assert scout.seen(str(folder), "mark") == {"there": True, "marked": True, "files": {}}
    scout.unmark(str(folder), "mark", told["made"])
    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_somebody_uses_meanwhile_is_left(tmp_path: Path) -> None:
    scout, folder = Scout(), tmp_path / "runs"
    told = scout.mark(str(folder), "mark", True)
    (folder / "other").mkdir()
    scout.unmark(str(folder), "mark", told["made"])
    assert [each.name for each in folder.iterdir()] == ["other"]


def test_files_are_compared_and_folders_of_images_are_not(tmp_path: Path) -> None:
    (tmp_path / "GQA").mkdir()
    (tmp_path / "GQA" / "train.json").write_text("[1]")
    (tmp_path / "images").mkdir()
    for number in range(LISTED + 1):
        (tmp_path / "images" / str(number)).touch()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    files = Scout().seen(str(tmp_path), "mark")["files"]
    assert files == {"GQA": -1, "GQA/train.json": 3, "images": -1, "gone": -1}


def test_rights_are_tried_and_nothing_is_left(tmp_path: Path) -> None:
    assert Scout().rights(str(tmp_path), "file") == {}
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    told = Scout().rights(str(tmp_path / "file"), "file")
    assert {*told} == {"list", "write"} or {*told} == {"write"}
    assert "is a file where a folder is needed" in told["write"]


def test_a_base_in_a_folder_has_its_weights_bytes(tmp_path: Path) -> None:
    told = Scout().base(str(MINI_BASE), None)
    assert told["error"] is None
    assert told["bytes"] == (MINI_BASE / "model.safetensors").stat().st_size
    shutil.copytree(MINI_BASE, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    assert "model.safetensors is missing" in Scout().base(str(tmp_path / "base"), None)["error"]


def test_weights_that_would_have_to_be_fetched_and_can_not_be_are_told(hub: HubServer) -> None:
    told = _of_hub("owner/none-such", None)
    assert "its weights aren't in the cache" in told["error"]
    assert "has no such repository" in told["error"]


@pytest.mark.parametrize("said", ["0, A, 10, 5, 1.0, 9.0, 7", "no devices"])
def test_what_nvidia_smi_says_otherwise_is_no_silent_success(said: str) -> None:
    from cmoe.operations.preflight.scout import parse_smi

    with pytest.raises(ValueError, match="unpack"):
        parse_smi(said)
