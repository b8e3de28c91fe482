"""What a job would upload is what Ray packs; too much is refused before, and keys are warned of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import create_package

from cmoe.run.uploads import LIMIT, check, packed

MB = 1_000_000
RAY = Path(sys.executable).with_name("ray")


def write(path: Path, size: int = 0, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if size:
        os.truncate(path, size)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with data, pictures, and what Ray's own rules and files leave out."""
    write(tmp_path / ".gitignore", text="/data/\n*.log\n!kept.log\n")
    write(tmp_path / "sub" / ".rayignore", text="only_here/\n")
    for name in ("data/coin/a.jpg", "sub/data/b.jpg", "run.log", "sub/run.log", "sub/kept.log"):
        write(tmp_path / name, 1000)
    for name in ("only_here/c", "sub/only_here/d", ".venv/e", ".git/f", "sub/__pycache__/g"):
        write(tmp_path / name, 1000)
    write(tmp_path / "umlaut-ä/h.txt", 10)
    (tmp_path / "link").symlink_to("sub")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("excludes", [[], ["sub"], ["*.jpg", "/umlaut-ä/"]])
@pytest.mark.parametrize("gitignore", [True, False])
def test_the_files_and_their_bytes_are_those_of_rays_package(
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    excludes: list[str],
    gitignore: bool,
) -> None:
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0" if gitignore else "1")
    package = tmp_path_factory.mktemp("ray") / "package.zip"
    left_out = [".git", ".venv", "venv", "__pycache__", *excludes]
    create_package(".", package, include_gitignore=gitignore, excludes=left_out)
    sizes = packed(Path("."), excludes)
    with ZipFile(package) as made:
        files = {name for name in made.namelist() if not name.endswith("/")}
    assert {str(path) for path in sizes} == files
    assert 0 <= package.stat().st_size - sum(sizes.values()) < 1000
    assert ("data/coin/a.jpg" in files) is (not gitignore and "*.jpg" not in excludes)


def test_the_limit_is_below_that_of_rays_job_server() -> None:
    assert LIMIT < DASHBOARD_CLIENT_MAX_SIZE
    assert LIMIT == 100 * MB


def refusal(capsys: pytest.CaptureFixture[str], **asked: str) -> str:
    with pytest.raises(SystemExit) as ended:
        check(**asked)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_large_folder_is_refused_with_its_largest_parts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(working_dir=".")
    write(folder / "checkpoints" / "last" / "model.bin", 70 * MB)
    write(folder / "pictures" / "a.zip", 20 * MB)
    write(folder / "data" / "coin" / "large.zip", 900 * MB)  # which .gitignore names
    check(working_dir=".")
    write(folder / "pictures" / "b.zip", 20 * MB)
    for asked in (
        {"working_dir": "."},
        {"working_dir": str(folder)},
        {"runtime_env_json": json.dumps({"working_dir": "."})},
        {"runtime_env_json": json.dumps({"py_modules": [str(folder)]})},
    ):
        said = refusal(capsys, **asked)
        assert " has 110 MB to upload, and 100 MB is the most: " in said
        assert "checkpoints/last/ 70 MB, pictures/ 40 MB. " in said
        for remedy in (".gitignore", ".rayignore", "excludes", "absolute path", "s3://"):
            assert remedy in said
    file = folder / "env.yaml"
    file.write_text("working_dir: .\nexcludes: [checkpoints]\n")
    check(runtime_env=str(file))
    write(folder / ".rayignore", text="pictures/\n")
    check(working_dir=".")


def test_a_large_archive_and_many_small_files_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / "code.zip", 101 * MB)
    assert "code.zip has 101 MB" in refusal(capsys, working_dir="code.zip")
    (folder / "code.zip").unlink()
    write(folder / "huge", 5000 * MB)
    assert "more than 1,000 MB" in refusal(capsys, working_dir=".")


@pytest.mark.parametrize("working_dir", ["s3://bucket/code.zip", "gcs://_ray_pkg_0.zip", "nowhere"])
def test_what_lies_elsewhere_is_rays_own_affair(folder: Path, working_dir: str) -> None:
    check(working_dir=working_dir)
    check()


def test_a_runtime_environment_that_cannot_be_read_is_said_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "can't be read" in refusal(capsys, runtime_env_json="{")
    assert "nowhere.yaml" in refusal(capsys, runtime_env="nowhere.yaml")


@pytest.mark.parametrize(
    "name", ["AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HF_TOKEN", "CMOE_API_KEYS", "db_password"]
)
def test_a_key_in_the_open_is_warned_of_and_not_repeated(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    env = {"env_vars": {name: "hush", "AWS_ENDPOINT_URL": "http://s3"}}
    check(runtime_env_json=json.dumps(env))
    said = capsys.readouterr().err
    assert f"warning: {name} in env_vars is shown" in said
    assert "hush" not in said
    assert "AWS_ENDPOINT_URL" not in said
    check(runtime_env_json=json.dumps({"env_vars": {"AWS_ENDPOINT_URL": "http://s3"}}))
    assert capsys.readouterr().err == ""


def test_rays_own_command_asks_before_it_reads_or_connects(folder: Path) -> None:
    write(folder / "large", 200 * MB)
    command = ["job", "submit", "--address", "http://127.0.0.1:1", "--working-dir", "."]
    done = subprocess.run(
        [RAY, *command, "--", "python", "x.py"],
        env={**os.environ, "RAY_JOB_SUBMIT_HOOK": "cmoe.run.uploads.check"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("ray job submit: . has 200 MB to upload")
