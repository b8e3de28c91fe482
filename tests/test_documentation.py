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
from collections.abc import Callable
from functools import cache
from itertools import pairwise

import pytest
import yaml
from support.documented import LEARNING, PAGES, ROOT, RUN, Command, appended, commands

from cmoe.config.keys import key_type, tree_of
from cmoe.config.parse import parse, parse_job, parse_with
from cmoe.config.settings import PlanConfig
from cmoe.config.tree import RunConfig
from cmoe.experiments.comparison.settings import CompareConfig
from cmoe.experiments.sweep.settings import BranchConfig, BudgetConfig, SearchConfig

WRITTEN = commands()


# What isn't run, and how far it is checked without


def words(command: str) -> list[str]:
    return shlex.split(command.split(" && ")[0].split(" | ")[0])


def parses(command: str) -> None:
    """A job of ours takes every word."""
    _, script, *arguments = words(re.sub(r"^.* -- (?=python )", "", command))
    if script == "ray_jobs/coin_stream.py":
        parse_job({"": CompareConfig}, arguments, script)
    elif script == "ray_jobs/coin_sweep.py":
        sections = {"search": SearchConfig, "budget": BudgetConfig, "": BranchConfig}
        if arguments != ["--help"]:
            parse_with(sections, arguments, script)
    elif script == "ray_jobs/coin_locate.py":
        parse(arguments, script)
    elif script == "-m":
        known_flags(["-m", arguments[0]], arguments[1:])
    else:
        known_flags([script], arguments)


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
        if match := re.match(r"\.venv/bin/python (ray_jobs/\S+|-m cmoe\.\S+)(.*)", line):
            parses(f"python {match[1]}{match[2]}")


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
    f"{re.escape(LEARNING)} --name mini_lora .*": ("the same job with another method", parses),
    "python ray_jobs/coin_stream.py --config configs/coin_llava_.*": ("needs GPUs", parses),
    "python ray_jobs/coin_stream.py --config configs/(compare|study)_mini.*": ("an hour", parses),
    "python ray_jobs/coin_sweep.py .*": ("half an hour", parses),
    "python ray_jobs/coin_serve.py --config configs/serve_mini.yaml": ("the same service", parses),
    "python ray_jobs/bench.py .*": ("minutes, alone on a machine", parses),
    "python -m cmoe.mini.build_base --seed 0": ("an hour", parses),
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
        (
            parses,
            "python ray_jobs/coin_stream.py --config configs/coin_mini.yaml --trainig.steps 3",
        ),
        (parses, "python ray_jobs/bench.py serve [--devise cuda]"),
        (makes, "make streams"),
        (names_files, "docker build -f cluster/Dockerfile"),
        (names_resources, "kubectl -n cmoe get rayjob coin-streams"),
        (names_resources, "kubectl -n cmoe logs --follow job/coin-streams"),
        (is_rays, "ray ups cluster/aws.yaml"),
    ):
        with pytest.raises((AssertionError, KeyError, SystemExit, subprocess.CalledProcessError)):
            check(wrong)


# What the pages name


@pytest.mark.parametrize("page", PAGES)
def test_paths_and_links_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in links:
        assert ((ROOT / page).parent / link.partition("#")[0]).exists(), link
    named = re.findall(r"`((?:cmoe|ray_jobs|configs|cluster|tests|docs)/[\w./-]*\w)`", text)
    for path in named:
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(\w+\.yaml)`", text):
        assert [*(ROOT / "configs").glob(name), *(ROOT / "cluster").glob(name)] or name in (
            "config.yaml",
        ), name


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
    assert named or page != "README.md"


def test_variables_that_are_named_are_read() -> None:
    """By us, or by a library that is installed here."""
    of_others = {
        *("HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "AWS_ENDPOINT_URL", "RAY_AUTH_MODE"),
        *("RAY_JOB_SUBMIT_HOOK", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS", "IMAGE", "KEY", "PATH"),
        *("RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS", "PIP_FLAGS", "HOME"),
    }
    sources = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "cmoe").rglob("*.py"))
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in set(re.findall(r"\b(?:CMOE|HF|AWS|RAY|RAYJOB|WANDB)_[A-Z_]+\b", text)):
            assert name in of_others or name in sources or name.endswith("_"), name


def test_the_configuration_that_the_pages_put_data_for_is_the_one_that_looks_there() -> None:
    assert parse(["--config", str(ROOT / "configs/coin_llava_7b.yaml")]).data.root == "data/coin"
    assert "/data/" in (ROOT / ".gitignore").read_text().splitlines()
