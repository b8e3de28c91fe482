"""The command `cmoe`: its subcommands, its mistakes, and how a program's end is told."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.paths import ROOT

import cmoe
from cmoe.cli.main import COMMANDS, Program, execute, main
from cmoe.common.errors import DataError, RunError
from cmoe.common.storage import StorageError
from cmoe.modeling.base import UnsupportedModelError
from cmoe.modeling.pretrained import MissingModelError
from cmoe.serving.launch import ServiceError
from cmoe.store.log import StoreError


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_in_a_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    said = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.about)}$", said, re.MULTILINE)
    assert max(map(len, said.splitlines())) < 100


def test_the_command_has_what_it_promises() -> None:
    expected = (
        "run compare status sweep choice serve prepare fetch plan check locate phrasing score "
        "export store bench"
    )
    assert list(COMMANDS) == expected.split()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert not ended.value.code
    assert capsys.readouterr().out.startswith(f"usage: cmoe {name} ")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cmoe {cmoe.__version__}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("comparee", "cmoe: unknown command comparee; did you mean compare?"),
        ("Run --name x", "cmoe: unknown command Run; did you mean run?"),
        ("dance", "cmoe: unknown command dance; --help lists all"),
        ("--verson", "cmoe: unknown flag --verson; did you mean --version?"),
        ("run --nmae x", "cmoe run: unknown key --nmae; did you mean --name?"),
        ("run --config coin_mini --methods lora", "cmoe run: unknown key --methods; did you mean"),
        ("run --config coin_mni", "cmoe run: coin_mni: no such file, and no config"),
        ("plan --config coin_mini --plan.gpu 8", "unknown key --plan.gpu; did you mean --plan.gp"),
        ("compare --config coin_mini", "cmoe compare: no methods; give --methods cmoe,lora"),
        ("compare --name x --methods lorra", "cmoe compare: methods: 'lorra' is none; there are"),
        ("sweep --config coin_mini", "cmoe sweep: data.selection is 0"),
        ("serve --config serve_mni", "cmoe serve: serve_mni: no such file, and no config"),
        ("serve --prot 8000", "cmoe serve: unknown flag --prot; did you mean --port?"),
        ("serve --port many", "cmoe serve: --port is 'many'; an integer is needed"),
        ("serve --port", "cmoe serve: --port needs a value"),
        ("prepare --out x", "cmoe prepare: no --root; --help explains it"),
        ("prepare --root x", "cmoe prepare: --out is needed, or --dry-run"),
        ("prepare --root x --out y z", "cmoe prepare: 'z' stands behind no flag"),
        ("check", "cmoe check: no subject; cmoe check cluster"),
        ("check cluter", "cmoe check: unknown subject cluter; did you mean cluster?"),
        ("check cluster --wait_s 0", "cmoe check cluster: wait_s is 0.0; more than 0"),
        ("check cluster --runs ftp://x", "cmoe check cluster: runs is 'ftp://x'; a folder, or s3"),
        ("fetch", "cmoe fetch: one of the arguments --config --model is required"),
        ("fetch --config coin_mni", "cmoe fetch: coin_mni: no such file, and no config"),
        ("fetch --config coin_mini --revision x", "--revision is of --model; a configuration has"),
        ("score --task GQB --predictions a --answers b", "--task is 'GQB'; one of ScienceQA, Te"),
        ("score --task GQB --predictions a --answers b", "is needed; did you mean GQA?"),
        ("export runs/x", "cmoe export: no OUT; --help explains it"),
        ("export", "cmoe export: no RUN_OR_STORE or OUT; --help explains them"),
        ("export runs/x out --tasks 0", "cmoe export: --tasks is 0; 1 or more"),
        ("bench --dtype float23", "--dtype is 'float23'; one of float32, bfloat16 is needed; did"),
        ("bench serve --service serve_mni", "cmoe bench: serve_mni: no such file, and no config"),
        ("bench control --workers 8 0", "cmoe bench: --workers is 0; 1 or more"),
        ("bench expert", "cmoe bench: no section expert; there are experts"),
    ],
)
def test_a_mistake_is_told_in_a_line_without_usage(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert said in err
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    "error",
    [
        DataError("a.json: no list"),
        MissingModelError("nobody/nothing: not there"),
        RunError("the workers failed"),
        ServiceError("port 80 is taken"),
        StorageError("s3://b: no such bucket"),
        StoreError("a/000.json: damaged"),
        UnsupportedModelError("no decoder layers"),
    ],
)
def test_what_a_user_can_mend_is_told_in_a_sentence(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(raising(error), "cmoe run", []) == 1
    assert capsys.readouterr().err == f"cmoe run: {error}\n"


def test_what_a_disk_raises_is_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "a"))
    assert execute(raising(full), "cmoe run", []) == 1
    said = "can't be used: its disk is full; free some space there (ENOSPC)"
    assert capsys.readouterr().err == f"cmoe run: {tmp_path}/a: {said}\n"


def test_what_is_our_own_fault_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        execute(raising(KeyError("x")), "cmoe run", [])


def test_an_interrupted_program_ends_with_the_shells_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert execute(raising(KeyboardInterrupt()), "cmoe run", []) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on\n"


def raising(error: BaseException) -> Program:
    def program(words: Sequence[str], name: str) -> int:
        raise error

    return program


def test_a_command_line_is_read_before_anything_heavy_is_loaded() -> None:
    """A mistake is told at once, and not after seconds of imports."""
    heavy = {"torch", "ray", "transformers", "pyarrow", "wandb", "deepspeed", "numpy", "datasets"}
    program = f"""
import sys
from cmoe.cli.main import COMMANDS, main
for name in COMMANDS:
    try:
        main([name, "--no-such-flag", "1"])
    except SystemExit as end:
        assert end.code == 2, name
    assert not (found := {heavy!r} & sys.modules.keys()), (name, found)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True)


def test_python_runs_the_package_as_the_command() -> None:
    command = [sys.executable, "-m", "cmoe", "comparee"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "cmoe: unknown command comparee; did you mean compare?\n"
