"""The documentation: every command in it is run or says why not.

`test_documented_commands.py` runs those that are run. The rest stand in `NOT_RUN` with the reason,
and are checked as far as that goes; a new command that is in neither fails.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from support.documented import PAGES, ROOT, RUN, Command, appended, commands, snippets
from support.packages import write_package

from cmoe.cli.main import COMMANDS, main

WRITTEN = commands()


# What isn't run, and how far it is checked without


CONFIGURED = (
    "run",
    "compare",
    "plan",
    "sweep",
    "choice",
    "locate",
    "check",
)  # subcommands that read a run's tree


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
    """The files of the repository that it names are there, and the folders."""
    named = [w for w in words(command) if re.match(r"(cluster|configs|ray_jobs)/", w)]
    assert all((ROOT / name).exists() for name in named), named
    for before, name in pairwise(words(command)):
        if before in ("-k", "kustomize"):
            assert (ROOT / name / "kustomization.yaml").is_file(), name


def names_resources(command: str) -> None:
    """So are the resources of the manifests, and a patch is JSON."""
    names_files(command)
    manifests = [*(ROOT / "cluster").rglob("*.yaml")]
    texts = "".join(p.read_text() for p in [*manifests, ROOT / "cluster" / "README.md"])
    given = words(command)
    for word in given:
        if word.startswith("{") and "jsonpath" not in command:
            json.loads(word)
    for kind, name in pairwise(given):
        if (
            kind in ("raycluster", "rayjob", "secret")
            and not name.startswith("-")
            and name != "generic"
        ):
            assert f"name: {name}\n" in texts or f"generic {name}" in texts, name
    for word in given:
        if word.startswith(("daemonset/", "job/", "service/")):
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
    "cmoe (run|compare) .*pulled.*": ("needs the package of the page", lambda _: None),
    "cmoe run .* --data.root data/mine .*": ("needs the task of the page", lambda _: None),
    "cmoe run --config coin_mini --name .*": ("the same job with another method", parses),
    "cmoe run --config coin_mini --trackers .*": ("the same job, followed", parses),
    "cmoe (run|plan) --config (ucit|mllm_dcl|trigap)_llava_7b": ("needs their files", parses),
    "cmoe prepare --config ucit_llava_7b --dry-run": ("needs its files", lambda _: None),
    "cmoe run --config coin_llava_7b.*": ("needs GPUs", parses),
    "cmoe run --config coin_real .*": ("needs the reader's data", parses),
    "cmoe plan --config coin_llava_(7|13)b": ("the same for another base", parses),
    "cmoe compare --config (compare|rivals|study)_mini.*": ("an hour", parses),
    "cmoe (compare|sweep|choice) --help all": ("the same help", parses),
    "cmoe choice --config choice_mini.*": ("a quarter of an hour", parses),
    "cmoe (run|compare|choice) --config [a-z]+_small.*": ("needs a GPU, or hours", parses),
    "cmoe sweep --config sweep_mini.*": ("half an hour", parses),
    "cmoe status s3://.*": ("needs a bucket of runs", parses),
    "cmoe fetch --(config|model) .*": ("needs the hub, or a bucket", parses),
    "cmoe serve --config serve_mini": ("the same service", parses),
    "cmoe serve --config serve_mini_vllm": ("needs vLLM's environment", parses),
    "cmoe serve --config serve_mini --store (hf://|runs/mine).*": ("the same service", parses),
    "cmoe export (RUN OUT|runs/loras .*)": ("names, or a run of another method", parses),
    "cmoe store copy .*s3://YOUR-.*": ("needs the reader's buckets", lambda _: None),
    "cmoe check cluster( .*)?": ("tests of the command run it on clusters", parses),
    "cmoe bench .*": ("minutes, alone on a machine", parses),
    "python -m cmoe.mini.build_base --seed 0": ("an hour", builds_the_base),
    "python -m cmoe.small.align .*": ("half an hour", builds_the_base),
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
        (names_files, "kubectl apply -k cluster/components"),
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
        "docs/own-task.md": 2,
        "docs/serving.md": 1,
    }


@pytest.mark.parametrize(
    ("language", "name"), [("python", "cmoe_pulled.py"), ("toml", "pyproject.toml")]
)
def test_the_method_of_the_page_is_the_one_that_tests_install(language: str, name: str) -> None:
    (shown,) = snippets("docs/own-method.md", language)
    assert shown == (ROOT / "tests/support/pulled" / name).read_text(encoding="utf-8")


def test_the_task_of_the_page_is_scored_then() -> None:
    """In a process of its own: a task that is registered stays so."""
    snippet, _ = snippets("docs/own-task.md")
    ask = "from cmoe.tasks.registry import score\nfrom cmoe.tasks.scorers import Target\n"
    ask += "assert score('MyTask', 'official', ['Two.'], [Target('2')]) == [1.0]\n"
    subprocess.run([sys.executable, "-c", snippet + ask], check=True)


def test_the_scorer_of_the_page_is_a_packages_then(tmp_path: Path) -> None:
    """Two of four words are the same in one of two answers."""
    _, source = snippets("docs/own-task.md")
    (points,) = snippets("docs/own-task.md", "toml")
    (group,) = re.findall(r'entry-points."(.*)"', points)
    point = points.splitlines()[-1].replace('"', "")
    environment = os.environ | write_package(tmp_path, "my-package", source, group, point)
    ask = "from cmoe.tasks.scorer_registry import scorer_named\nfrom cmoe import Target\n"
    ask += "target = Target('', answers=('A red dog', 'one big cat'))\n"
    ask += "assert scorer_named('my_score').rule('official')('a red cat', target) == 0.5\n"
    subprocess.run([sys.executable, "-c", ask], check=True, env=environment)
