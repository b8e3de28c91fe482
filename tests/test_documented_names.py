"""The documentation: what its pages name is there, and a site is built from them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from support.documented import PAGES, ROOT, snippets

from cmoe import __version__
from cmoe.config.keys import key_type, tree_of
from cmoe.config.parse import parse
from cmoe.config.settings import PlanConfig
from cmoe.config.tree import RunConfig
from cmoe.experiments.sweep.settings import BudgetConfig, SearchConfig

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
            "mine.yaml",
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


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_a_page_names_are_there(page: str) -> None:
    """Written as `tests/run/test_lease.py::test_a_damaged_lease_is_said`."""
    for file, name in named_tests((ROOT / page).read_text(encoding="utf-8")):
        assert has_test(file, name), (file, name)


def named_tests(text: str) -> list[tuple[str, str]]:
    return re.findall(r"(tests/[\w/]+\.py)::(\w+)", text)


def has_test(file: str, name: str) -> bool:
    source = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else ""
    return re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE) is not None


def test_every_failure_says_what_one_sees_what_to_do_and_how_it_is_known() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    failures = re.findall(r"^### (.*)\n((?:(?!^##).*\n)*)", text, re.MULTILINE)
    assert len(failures) >= 12
    for title, body in failures:
        _, done, known = re.split(r"^\*\*(?:Do|Known):\*\* ", body, flags=re.MULTILINE)
        assert done, title
        by_hand = re.search(r"tried\s+by\s+hand\s+on\s+\d{4}-\d\d-\d\d", known)
        by_test = re.search(r"tried\s+by\s+(?:a\s+test|tests)", known) and named_tests(known)
        assert by_hand or by_test or re.match(r"[Rr]ead\b", known), title


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
    assert not has_test("tests/run/test_lease.py", "test_a_lease")


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

    *_, train, test = map(json.loads, snippets("docs/own-data.md", "json"))
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


def test_rows_of_every_format_of_the_page_say_what_the_page_means(tmp_path: Path) -> None:
    """Each of its examples is a file of a task of one's own."""
    from PIL import Image

    from cmoe.data.coin import read_tasks
    from cmoe.data.settings import DataConfig, OwnTask

    (tmp_path / "pictures").mkdir()
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / name)
    *rows, _, _ = map(json.loads, snippets("docs/own-data.md", "json"))
    (table,) = snippets("docs/own-data.md", "csv")
    (tmp_path / "table.csv").write_text(table)
    files = ["table.csv"]
    for number, row in enumerate(rows):
        files.append(f"{number}.json")
        (tmp_path / files[-1]).write_text(json.dumps([row]))
    said: list[str] = []
    for file in files:
        data = DataConfig(root=str(tmp_path), own={"Mine": OwnTask(file, file, "exact")})
        (task,) = read_tasks(data, seed=0, say=said.append)
        assert task.test[0].text == "Is the car red?"
        assert len(task.test[0].images) == 1
    kinds = [re.sub(r".*: (\w+) .*", r"\1", line) for line in said[::2]]
    assert kinds == ["table", "conversations", "messages", "messages", "text"]


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
    "model|data|experts|probe|locator|lora|ewc|lwf|moelora|olora|hide|replay|training|evaluation|"
    "cluster|wandb|search|budget|plan"
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
        *("RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS", "PIP_FLAGS", "HOME", "RAY_TMPDIR"),
        "RAY_JOB_START_TIMEOUT_SECONDS",
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
