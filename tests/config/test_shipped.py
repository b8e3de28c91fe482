"""Configurations that come with cmoe are found by their names, from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.paths import CONFIGS

from cmoe.config.parse import parse
from cmoe.config.shipped import find_config, shipped, with_files


def test_every_file_of_the_folder_has_a_name() -> None:
    assert set(shipped().values()) == set(CONFIGS.glob("*.yaml"))
    assert shipped()["coin_mini"] == CONFIGS / "coin_mini.yaml"


@pytest.mark.parametrize("words", [["--config", "coin_mini"], ["--config=coin_mini"]])
def test_a_name_is_read_as_its_file(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse([*words, "--seed", "3"])
    assert found == parse(["--config", str(CONFIGS / "coin_mini.yaml"), "--seed=3"])


def test_a_path_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("coin_mini") == CONFIGS / "coin_mini.yaml"
    Path("coin_mini").write_text("name: mine\n")
    assert find_config("coin_mini") == Path("coin_mini")
    assert parse(["--config", "coin_mini"]).name == "mine"
    for path in ("coin_mini.yaml", "configs/coin_mini", "./coin_mini", "{name: x}"):
        assert find_config(path) == Path(path)
        assert [*with_files(["--config", path], "--config")] == ["--config", path]


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"^coin_mni: no such file, and no .*; there are choice_mini, choice_"
    ):
        find_config("coin_mni")
    with pytest.raises(ValueError, match=r"; the nearest is coin_mini$"):
        find_config("coin_mni")


def test_only_the_flags_own_value_is_a_name() -> None:
    words = ["--name", "coin_mini", "--config=nothing", "--", "--config", "coin_mini"]
    assert [*with_files(words, "--config")] == words
