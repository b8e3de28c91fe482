"""What `--help` shows: few keys and all methods; `--help all` shows every key."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from cmoe.config.help import MOST_USED
from cmoe.config.keys import leaves, tree_of
from cmoe.config.parse import parse, parse_job, parse_with
from cmoe.config.settings import PlanConfig
from cmoe.config.tree import RunConfig
from cmoe.experiments.comparison.settings import CompareConfig
from cmoe.experiments.sweep.settings import BranchConfig, BudgetConfig, SearchConfig
from cmoe.methods.registry import methods

SWEEP = {"search": SearchConfig, "budget": BudgetConfig, "": BranchConfig}
JOBS: dict[str, Callable[..., Any]] = {
    "run": partial(parse_job, {"": CompareConfig}),
    "sweep": partial(parse_with, SWEEP),
    "locate": parse,
}


def shown(capsys: pytest.CaptureFixture[str], job: str, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        JOBS[job](arguments, "job.py")
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert said.err == ""
    return said.out


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_shows_the_ten_most_used_keys_first_a_line_each(
    capsys: pytest.CaptureFixture[str], job: str, flag: str
) -> None:
    text = shown(capsys, job, flag)
    keys = [*leaves(tree_of(RunConfig)), "config"]
    assert len(MOST_USED) == 10
    assert set(MOST_USED) <= set(keys)
    found = re.findall(r"^  --(\S+) +(\S.*)$", text, re.MULTILINE)
    assert [key for key, _ in found] == list(MOST_USED)
    assert all(len(words.split()) >= 3 for _, words in found)
    assert max(map(len, text.split("methods:")[0].splitlines())) <= 100
    assert text.startswith("usage: job.py --config FILE [--KEY VALUE ...]\n")


def test_help_names_every_method_and_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "run", "--help")
    listed = re.findall(r"^  (\w+) +(\S.*)$", text.split("methods:")[1].split("sections")[0], re.M)
    assert listed == [(name, entry.about) for name, entry in methods().items()]
    named = re.findall(r"\w+", text.split("sections, and other keys:")[1])
    for key in ("probe", "moelora", "plan", "seed", "methods", "seeds", "study"):
        assert key in named


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("asked", [["--help", "all"], ["--help=all"], ["-h", "all"]])
def test_help_all_explains_every_key(
    capsys: pytest.CaptureFixture[str], job: str, asked: list[str]
) -> None:
    text = shown(capsys, job, *asked)
    parts = {"sweep": SWEEP, "run": {"": CompareConfig}}.get(job, {})
    keys = leaves(tree_of(RunConfig))
    for section, part in parts.items():
        keys += [f"{section}.{key}" if section else key for key in leaves(tree_of(part))]
    for key in keys:
        assert re.search(rf"^  --{re.escape(key)} ", text, re.MULTILINE), key
    assert "--print_config" in text
    keys += [f"plan.{key}" for key in leaves(tree_of(PlanConfig))] if job == "run" else []
    assert f"--help all explains all {len(keys)} keys." in shown(capsys, job, "--help")


def test_help_is_shown_whatever_else_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "run", "--help")
    for others in (["--name", "x"], ["--seed", "one"], ["--nmae", "x"], ["stray"]):
        assert shown(capsys, "run", *others, "--help") == text
        assert shown(capsys, "run", "--help", *others) == text
