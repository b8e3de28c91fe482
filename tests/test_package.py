"""What is published: the wheel, its names, and that it works where nothing else of cmoe is."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from support.documented import SHORT
from support.paths import CONFIGS, ROOT

import cmoe

HEAVY = {"torch", "ray", "transformers", "pyarrow", "wandb", "deepspeed", "datasets", "matplotlib"}
MINUTES = 60


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("cmoe-*.whl")
    return wheel


def test_the_wheel_holds_the_package_with_its_assets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "cmoe").rglob("*.py")}
    assets = {str(p.relative_to(ROOT)) for p in (ROOT / "cmoe/mini/base").iterdir() if p.is_file()}
    configs = {f"cmoe/configs/{file.name}" for file in CONFIGS.iterdir()}
    assert "cmoe/mini/base/model.safetensors" in assets
    assert "cmoe/configs/coin_mini.yaml" in configs
    assert modules | assets | configs | {"cmoe/py.typed"} <= names
    assert not [n for n in names if n.endswith((".pt", ".bin", ".pkl"))]
    assert {n.split("/")[0].split("-")[0] for n in names} == {"cmoe"}
    assert f"cmoe-{cmoe.__version__}.dist-info/METADATA" in names


def test_what_the_package_imports_is_what_it_declares() -> None:
    """Whoever installs the wheel has every import; what only an extra brings is named here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {distribution(line) for line in project["dependencies"]}
    brought = ("captions", "mlflow", "quantized", "sweep", "tensorboard")
    extras = {distribution(line) for e in brought for line in project["optional-dependencies"][e]}
    providers = packages_distributions()
    found = {
        name: {re.sub(r"[_.]", "-", each).lower() for each in providers.get(name, [name])}
        for file in (ROOT / "cmoe").rglob("*.py")
        for name in imported(file)
        if name not in sys.stdlib_module_names | {"cmoe"}
    }
    # vLLM has an environment of its own; torch for CUDA brings Triton.
    beside = {name for name, by in found.items() if not by & (declared | extras)}
    assert beside == {"triton", "vllm"}
    assert {name for name, by in found.items() if not by & declared} == {
        *("bitsandbytes", "mlflow", "optuna", "sacrebleu", "tensorboardX", "triton", "vllm")
    }


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=~ ;]", requirement)[0].lower()


def imported(file: Path) -> set[str]:
    """Top-level names of the packages that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize(
    "program",
    [
        "import cmoe",
        "from cmoe.cli.main import main; main(['--help'])",
        "from cmoe.cli.main import main; main(['--version'])",
    ],
)
def test_importing_cmoe_and_its_help_load_nothing_heavy(program: str) -> None:
    asked = f"import sys; {program}; print(sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_the_public_names_are_there_when_they_are_used() -> None:
    assert {name for name in cmoe.__all__ if not hasattr(cmoe, name)} == set()
    assert set(cmoe.__all__) <= set(dir(cmoe))
    with pytest.raises(AttributeError, match="'cmoe' has no attribute 'load_bse'"):
        _ = cmoe.load_bse  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment into which pip has installed the wheel.

    Its dependencies are the ones of the environment that runs the tests: installing them again
    would take minutes and a network. They are found by a `.pth` file, which makes their folders
    part of the path, but does not follow the `.pth` files in there: of cmoe there is the wheel
    alone, and not the checkout.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(wheel)], check=True)
    paths = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text("\n".join(paths) + "\n")
    subprocess.run([str(python), str(ROOT / "cluster" / "torchvision_without_cuda.py")], check=True)
    return folder / "bin"


@pytest.mark.ray
def test_the_installed_wheel_runs_the_mini_stream(installed: Path, tmp_path: Path) -> None:
    """Outside of the checkout, from the configuration's name to the matrix and the export."""
    environment = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "PYTHONHOME")}
    environment["PATH"] = f"{installed}:{environment['PATH']}"

    def shell(command: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=5 * MINUTES,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    where = shell("python -c 'import cmoe; print(cmoe.__file__)'").strip()
    assert Path(where).is_relative_to(installed.parent)
    assert "cmoe COMMAND" in shell("cmoe --help")
    assert shell("cmoe --version") == f"cmoe {cmoe.__version__}\n"
    said = shell(f"cmoe run --config coin_mini {SHORT}")
    assert "runs/coin_mini/report.html" in said
    matrix = json.loads((tmp_path / "runs/coin_mini/matrix.json").read_text())
    assert [len(row) for row in matrix["located"]] == [2, 2]
    assert str(ROOT) not in (tmp_path / "runs/coin_mini/run.log").read_text()
    shell("cmoe export runs/coin_mini shared")
    assert (tmp_path / "shared/stream.json").is_file()
