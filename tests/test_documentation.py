"""The documentation: every command in it is run or says why not, and what it names is there.

`test_documented_commands.py` runs those that are run. The rest stand in `NOT_RUN` with the reason,
and are checked as far as that goes; a new command that is in neither fails.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from support.documented import PAGES, ROOT, RUN, Command, appended, commands, snippets

from cmoe import __version__
from cmoe.cli.main import COMMANDS, main
from cmoe.config.keys import key_type, tree_of
from cmoe.config.parse import parse
from cmoe.config.settings import PlanConfig
from cmoe.config.tree import RunConfig
from cmoe.experiments.sweep.settings import BudgetConfig, SearchConfig

WRITTEN = commands()


# What isn't run, and how far it is checked without


CONFIGURED = ("run", "compare", "plan", "sweep", "locate")  # subcommands that read a run's tree


def words(command: str) -> list[str]:
    return shlex.split(command.split(" && ")[0].split(" | ")[0])


def parses(command: str) -> None:
    """A command of ours takes every word: it says what it would run, or has the flags."""
    _, name, *arguments = words(command)
    assert name in COMMANDS, name
    if name in CONFIGURED:
        ends = [] if "--help" in arguments else ["--print_config"]
        with pytest.raises(SystemExit) as end:
            main([name, *arguments, *ends])
        assert end.value.code == 0
    else:
        known_flags(["-m", "cmoe", name], arguments)


def is_a_subcommand(command: str) -> None:
    assert words(command)[1] in COMMANDS


def names_tests(command: str) -> None:
    """The tests that it runs are there."""
    named = [word for word in words(command) if word.startswith("tests/")]
    assert named
    assert all((ROOT / name).exists() for name in named), named


def has_the_extra(command: str) -> None:
    (extra,) = re.findall(r"\[(\w+)\]", command)
    assert (
        extra
        in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
            "optional-dependencies"
        ]
    )


def known_flags(program: list[str], arguments: list[str]) -> None:
    said = helped(tuple(program))
    for word in arguments:
        if word.strip("[]").startswith("--"):
            assert f" {word.strip('[]')} " in said, word


@cache
def helped(program: tuple[str, ...]) -> str:
    done = subprocess.run(
        [sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.replace("\n", " ").replace(",", " ")


def builds_the_base(command: str) -> None:
    """The program has the flags; its sources are looked at, as asking it loads torch."""
    module, *arguments = words(command)[2:]
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    for flag in (word for word in arguments if word.startswith("--")):
        assert f'add_argument("{flag}"' in text, flag


def makes(command: str) -> None:
    """The target is there; what it runs of ours takes every word."""
    done = subprocess.run(
        ["make", "-n", "-o", "install", *words(command)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines():
        if match := re.match(r"\.venv/bin/(cmoe .*)", line):
            parses(match[1])
        if match := re.match(r"\.venv/bin/(python -m cmoe\.\S+ .*)", line):
            builds_the_base(match[1])


def names_files(command: str) -> None:
    """The files of the repository that it names are there."""
    named = [w for w in words(command) if re.match(r"(cluster|configs|ray_jobs)/", w)]
    assert all((ROOT / name).is_file() for name in named), named


def names_resources(command: str) -> None:
    """So are the resources of the manifests, and a patch is JSON."""
    names_files(command)
    manifests = [*(ROOT / "cluster").glob("*.yaml")]
    texts = "".join(p.read_text() for p in [*manifests, ROOT / "cluster" / "README.md"])
    given = words(command)
    for word in given:
        if word.startswith("{") and "jsonpath" not in command:
            json.loads(word)
    for kind, name in pairwise(given):
        if kind in ("rayjob", "secret") and not name.startswith("-") and name != "generic":
            assert f"name: {name}\n" in texts or f"generic {name}" in texts, name
    for word in given:
        if word.startswith(("job/", "service/")):
            name = word.partition("/")[2].removesuffix("-head-svc")
            assert f"name: {name}\n" in texts, word


def deploys(command: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    from cmoe.serving.settings import ServeConfig

    made = ServeDeploySchema(**yaml.safe_load((ROOT / words(command)[-1]).read_text()))
    ServeConfig.of(made.applications[0].args)


def is_rays(command: str) -> None:
    """Ray's own program has the subcommand, and the files are there."""
    from ray.scripts.scripts import cli

    found = cli.commands[words(command)[1]]
    if words(command)[1] == "job":
        assert words(command)[2] in found.commands
    names_files(command)


NOT_RUN: dict[str, tuple[str, Callable[[str], None]]] = {
    "make .*": ("minutes to hours; what they run of ours is checked", makes),
    "cmoe [a-z]+": ("a name", is_a_subcommand),
    "cmoe (run|compare) .*replay.*": ("needs the package of the page", lambda _: None),
    "cmoe run .* --data.root data/mine .*": ("needs the task of the page", lambda _: None),
    "cmoe run --config coin_mini --name .*": ("the same job with another method", parses),
    "cmoe run --config coin_llava_7b.*": ("needs GPUs", parses),
    "cmoe run --config coin_real .*": ("needs the reader's data", parses),
    "cmoe plan --config coin_llava_(7|13)b": ("the same for another base", parses),
    "cmoe compare --config (compare|study)_mini.*": ("an hour", parses),
    "cmoe (compare|sweep) --help all": ("the same help", parses),
    "cmoe sweep --config sweep_mini.*": ("half an hour", parses),
    "cmoe serve --config serve_mini": ("the same service", parses),
    "cmoe bench .*": ("minutes, alone on a machine", parses),
    "python -m cmoe.mini.build_base --seed 0": ("an hour", builds_the_base),
    "CMOE_TEST_DEVICE=cuda python -m pytest .*": ("needs a GPU", names_tests),
    "\\. \\.venv/bin/activate": ("of the virtual environment that make made", lambda _: None),
    "apt install .*": ("needs root", lambda _: None),
    "pip install '.*": ("fetches packages", has_the_extra),
    "pip install \\.": ("a test installs the package of the page", lambda _: None),
    "serve deploy .*": ("needs a Ray cluster for good", deploys),
    "docker .*": ("needs Docker and a registry", names_files),
    "aws .*": ("needs an account", names_files),
    "helm .*": ("needs Kubernetes", names_files),
    "kubectl .*": ("needs Kubernetes", names_resources),
    "ray (up|down|dashboard|drain-node|start|get-auth-token|job submit)( .*)?": (
        "a name, or needs an account",
        is_rays,
    ),
}


def not_run(command: str) -> tuple[str, Callable[[str], None]] | None:
    if appended(command) is not None:
        return None
    return next((v for each, v in NOT_RUN.items() if re.fullmatch(each, command)), None)


def test_every_command_is_run_or_says_why_not() -> None:
    assert len(WRITTEN) > 60
    left = [c for c in WRITTEN if appended(c.text) is None and not_run(c.text) is None]
    assert not left, "neither run nor in NOT_RUN"
    for pattern in (*RUN, *NOT_RUN):
        assert any(re.fullmatch(pattern, c.text) for c in WRITTEN), f"{pattern}: documented nowhere"


@pytest.mark.parametrize(
    "command", [c for c in WRITTEN if not_run(c.text)], ids=lambda c: f"{c.place} {c.text[:60]}"
)
def test_what_is_not_run_is_checked(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = not_run(command.text)
    assert found is not None
    found[1](command.text)


def test_a_check_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for check, wrong in (
        (parses, "cmoe run --config coin_mini --trainig.steps 3"),
        (parses, "cmoe run --config coin_minni"),
        (parses, "cmoe bench serve [--devise cuda]"),
        (is_a_subcommand, "cmoe rum"),
        (builds_the_base, "python -m cmoe.mini.build_base --sead 0"),
        (has_the_extra, "pip install 'cmoe[sweeps]'"),
        (names_tests, "python -m pytest tests/modelling"),
        (makes, "make streams"),
        (names_files, "docker build -f cluster/Dockerfile"),
        (names_resources, "kubectl -n cmoe get rayjob coin-streams"),
        (names_resources, "kubectl -n cmoe logs --follow job/coin-streams"),
        (is_rays, "ray ups cluster/aws.yaml"),
    ):
        with pytest.raises((AssertionError, KeyError, SystemExit, subprocess.CalledProcessError)):
            check(wrong)


def test_every_snippet_of_python_is_run() -> None:
    """By `test_documented_commands.py`; the method by the tests that install it, the task here."""
    assert {page: len(snippets(page)) for page in PAGES if snippets(page)} == {
        "docs/own-base.md": 1,
        "docs/own-method.md": 1,
        "docs/own-task.md": 1,
        "docs/serving.md": 1,
    }


@pytest.mark.parametrize(
    ("language", "name"), [("python", "cmoe_replay.py"), ("toml", "pyproject.toml")]
)
def test_the_method_of_the_page_is_the_one_that_tests_install(language: str, name: str) -> None:
    (shown,) = snippets("docs/own-method.md", language)
    assert shown == (ROOT / "tests/support/replay" / name).read_text(encoding="utf-8")


def test_the_task_of_the_page_is_scored_then() -> None:
    """In a process of its own: a task that is registered stays so."""
    (snippet,) = snippets("docs/own-task.md")
    ask = "from cmoe.tasks.registry import score\nfrom cmoe.tasks.scorers import Target\n"
    ask += "assert score('MyVQA', 'official', ['Two.'], [Target('2')]) == [1.0]\n"
    subprocess.run([sys.executable, "-c", snippet + ask], check=True)


# What the pages name

OURS = r"(?:cmoe|ray_jobs|configs|cluster|tests|docs)"


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_links_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for path in re.findall(rf"`({OURS}/[\w./-]*\w)`", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(\w+\.yaml)`", text):
        assert [*(ROOT / "configs").glob(name), *(ROOT / "cluster").glob(name)] or name in (
            "config.yaml",
        ), name


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_their_names_are_there(page: str) -> None:
    """Written as `cmoe.store.log` or `cmoe.store.log.Store`; the sources are looked at."""
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"(?:`|::: |from |-m |=)(cmoe(?:\.\w+)+)", text)
    for name in named:
        assert is_module(name) or has_name(name), name


def test_what_the_architecture_finds_is_in_that_file() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    places = re.findall(r"`(cmoe/[\w/]+\.py)`, `([\w.]+)`", text)
    assert len(places) > 4
    for file, name in places:
        source = (ROOT / file).read_text(encoding="utf-8")
        for part in name.split("."):
            assert re.search(rf"^ *(?:def|class) {part}\b", source, re.MULTILINE), (file, part)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def has_name(name: str) -> bool:
    """Whether the module before the last dot defines what is behind it."""
    module, _, last = name.rpartition(".")
    path = ROOT / module.replace(".", "/")
    files = [file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()]
    defined = rf"^(?:def|class) {last}\b|^{last}\b.* = "
    return any(re.search(defined, file.read_text("utf-8"), re.MULTILINE) for file in files)


def test_a_name_that_is_not_there_would_be_found() -> None:
    assert is_module("cmoe.store")
    assert is_module("cmoe.store.log")
    assert has_name("cmoe.store.log.Store")
    assert not is_module("cmoe.stores")
    assert not has_name("cmoe.store.log.Storage")
    assert not has_name("cmoe.stores.log")


def test_pictures_are_well_formed_and_say_what_they_show() -> None:
    pictures = sorted((ROOT / "docs").rglob("*.svg"))
    assert pictures
    for picture in pictures:
        root = ElementTree.parse(picture).getroot()
        names = {child.tag.rpartition("}")[2]: child.text for child in root}
        assert root.get("viewBox")
        assert names["title"]
        assert names["desc"]
        text = picture.read_text(encoding="utf-8")
        assert "prefers-color-scheme: dark" in text
        assert not re.search(r"<script|href=|url\(http", text)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_citation_and_the_changes_are_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["version"] == __version__
    assert cited["references"][0]["url"] == "https://arxiv.org/abs/2503.21227"
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *versions = re.findall(r"^## (\S+)", changes, re.MULTILINE)
    assert first == "Unreleased"
    assert versions[0] == __version__


def test_every_page_of_results_says_when_it_was_measured() -> None:
    for page in (ROOT / "docs/results").glob("*.md"):
        if page.name == "index.md":
            continue
        date = re.match(r"\d{4}-\d{2}-\d{2}", page.name)
        assert date, page.name
        assert date[0] in page.read_text(encoding="utf-8").splitlines()[0]
        assert f"({page.name})" in (ROOT / "docs/results/index.md").read_text(encoding="utf-8")


def test_rows_of_the_page_are_rows(tmp_path: Path) -> None:
    """What a reader would copy into files of a task is read as one."""
    from PIL import Image

    from cmoe.data.coin import read_tasks
    from cmoe.data.settings import DataConfig

    train, test = map(json.loads, snippets("docs/own-data.md", "json"))
    folder = tmp_path / "Instructions_Original" / "GQA"
    folder.mkdir(parents=True)
    for name, row in (("train", train), ("test", test)):
        (folder / f"{name}.json").write_text(json.dumps([row]))
        image = tmp_path / row["image"]
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(image)
    (task,) = read_tasks(DataConfig(root=str(tmp_path), tasks=("GQA",)), seed=0)
    assert (task.train[0].text, task.train[0].answer) == ("Is the car red?", "yes")
    assert (task.test[0].text, task.test[0].answer) == ("Is the car red?", "no")


@pytest.mark.skipif(
    find_spec("mkdocs") is None, reason="the extra `docs` isn't installed: pip install -e '.[docs]'"
)
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    reference = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in ("GrowingVLM", "Store", "load_base"):
        assert re.search(rf'id="cmoe\.[\w.]+\.{name}"', reference), name


SECTIONS = (
    "model|data|experts|probe|locator|lora|ewc|lwf|moelora|training|evaluation|cluster|wandb|search|"
    "budget|plan"
)


@pytest.mark.parametrize("page", PAGES)
def test_keys_that_are_named_are_there(page: str) -> None:
    tree = tree_of(RunConfig) | {
        "search": tree_of(SearchConfig),
        "budget": tree_of(BudgetConfig),
        "plan": tree_of(PlanConfig),
    }
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(rf"`-{{0,2}}((?:{SECTIONS})\.[a-z_]+)(?=[ `.:=])", text))
    assert [
        key
        for key in named
        if key_type(tree, key) is None and not key.endswith((".json", ".safetensors"))
    ] == []
    assert named or page != "docs/runs.md"


def test_variables_that_are_named_are_read() -> None:
    """By us, or by a library that is installed here."""
    of_others = {
        *("HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "AWS_ENDPOINT_URL", "RAY_AUTH_MODE"),
        *("RAY_JOB_SUBMIT_HOOK", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "IMAGE", "KEY", "PATH"),
        *("RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS", "PIP_FLAGS", "HOME"),
    }
    files = [p for room in ("cmoe", "tests/support") for p in (ROOT / room).rglob("*.py")]
    sources = "".join(file.read_text(encoding="utf-8") for file in files)
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in set(re.findall(r"\b(?:CMOE|HF|AWS|RAY|RAYJOB|WANDB)_[A-Z_]+\b", text)):
            assert name in of_others or name in sources or name.endswith("_"), name


def test_the_configuration_that_the_pages_put_data_for_is_the_one_that_looks_there() -> None:
    assert parse(["--config", str(ROOT / "configs/coin_llava_7b.yaml")]).data.root == "data/coin"
    assert "/data/" in (ROOT / ".gitignore").read_text().splitlines()
