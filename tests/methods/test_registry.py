"""Methods by name: what can be registered, what a package may bring, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from support.jobs import JOB, finish, start
from support.packages import write_package
from support.tiny_models import make_base

from cmoe import register_method
from cmoe.config.tree import RunConfig
from cmoe.methods import entry
from cmoe.methods.baselines.zero_shot import ZeroShot
from cmoe.methods.entry import RegistryError, Told
from cmoe.methods.registry import method_entry, methods
from cmoe.methods.settings import LoRAConfig
from cmoe.reports.comparison_numbers import ALL_TASKS, THE_TASK

CMOES_OWN = [
    *("zero_shot", "lora", "ewc", "lwf", "moelora", "olora", "hide_llava", "replay"),
    *("per_task_lora", "located_lora", "multitask", "expand_all", "cmoe"),
]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """What a test registers is gone when it ends."""
    before = dict(methods())
    yield
    entry.ENTRIES.clear()
    entry.ENTRIES.update(before)


@dataclass(frozen=True)
class Settings:
    size: int = 1


@dataclass(frozen=True)
class Demanding:
    size: int


def test_cmoes_own_methods_are_there() -> None:
    assert list(methods()) == CMOES_OWN
    assert {each.package for each in methods().values()} == {"cmoe"}


@pytest.mark.parametrize("name", CMOES_OWN)
def test_what_is_registered_of_a_method_is_true_of_it(name: str) -> None:
    config = RunConfig("x", method=name)
    made = config.entry.create(make_base(), 0, config.method_sections)
    assert (made.locates, made.joint) == (config.entry.locates, config.entry.joint)
    assert config.least_samples == (8 if made.locates else 1)
    learned_first = {made.answerer(stage, 0) for stage in range(3)} if not made.locates else set()
    assert (config.entry.told == "the task") == (name == "per_task_lora")
    assert config.entry.recalls == (name == "replay")
    if config.entry.told and not config.entry.recalls:
        assert learned_first == {0}, "a bound answers a task as well at every later stage"
    for key, kind in config.entry.sections.items():
        assert is_dataclass(kind)
        assert isinstance(getattr(config, key), kind)
        assert fields(kind)


@pytest.mark.parametrize("wrong", [{"locates": True}, {"told": "all tasks at once"}])
def test_a_method_that_is_not_what_was_registered_is_refused(wrong: dict[str, Any]) -> None:
    register_method("mine", about="a test", **wrong)(lambda base, seed: ZeroShot(base))
    flag = "locates" if "locates" in wrong else "joint"
    with pytest.raises(RegistryError, match=f"'mine' of cmoe: {flag} is False, but .* True"):
        method_entry("mine").create(make_base(), 0, {})


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    for refusing in (method_entry, lambda name: RunConfig("x", method=name)):
        with pytest.raises(
            ValueError, match=r"^method is 'lorra'; there are zero_shot, .*"
        ) as said:
            refusing("lorra")
        assert str(said.value).endswith("cmoe; the nearest is lora")


def test_a_name_is_registered_once() -> None:
    register_method("mine", about="a test")(make_base)
    assert methods()["mine"].make is make_base
    for name, package in (("mine", "cmoe"), ("lora", "cmoe")):
        with pytest.raises(RegistryError, match=f"'{name}' is there already, from {package}"):
            register_method(name, about="another")(make_base)
    assert list(methods()) == [*CMOES_OWN, "mine"]


def test_a_section_is_shared_or_it_is_another_methods() -> None:
    register_method("mine", about="a test", sections={"lora": LoRAConfig})(make_base)
    with pytest.raises(RegistryError, match="section 'lora' is taken by method 'lora' of cmoe"):
        register_method("other", about="a test", sections={"lora": Settings})(make_base)
    for key, kind in (("no name", Settings), ("number", int)):
        with pytest.raises(RegistryError, match=f"section '{key}' is no dataclass under a name"):
            register_method("other", about="a test", sections={key: kind})(make_base)
    with pytest.raises(RegistryError, match=r"section 'demanding' lacks defaults: .*'size'"):
        register_method("other", about="a test", sections={"demanding": Demanding})(make_base)
    assert "other" not in methods()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"told": "the tasks"}, "told is 'the tasks'; .* the nearest is 'the task'"),
        ({"formula": "adapter"}, "formula is 'adapter'; there are '', 'probed experts'"),
    ],
)
def test_what_is_said_of_a_method_is_one_of_few_things(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(RegistryError, match=said):
        register_method("mine", about="a test", **wrong)(make_base)


# Packages

LIGHT = """
from dataclasses import dataclass
from cmoe import register_method

@dataclass(frozen=True)
class OtherConfig:
    size: int = 3

@register_method("other", about="another method", sections={SECTION: OtherConfig})
def other(base, seed, **sections):
    raise NotImplementedError
"""


def asked(package: dict[str, str], *arguments: str) -> tuple[int, str]:
    job = start(JOB, *arguments, environment=package)
    said = finish(job)
    return job.returncode, said


def test_a_packages_method_is_a_choice_with_a_section_of_its_own(tmp_path: Path) -> None:
    package = write_package(tmp_path, "cmoe-other", LIGHT.replace("SECTION", "'other'"))
    status, said = asked(package, "--help")
    assert status == 0
    assert "  other                     another method\n" in said
    for arguments, sentence in (
        (["--method", "othr"], "--method is 'othr'; one of zero_shot, .*other is needed"),
        (["--other.sise", "4"], "unknown key --other.sise; did you mean --other.size?"),
        (["--other.size", "much"], "--other.size is 'much'; an integer is needed"),
        (["--method", "other", "--plan"], "method is other; --plan knows cmoe, expand_all, lora"),
        (
            ["--methods", "othr"],
            "methods: 'othr' is none; there are zero_shot, .*other; did you mean other?",
        ),
    ):
        status, said = asked(package, "--name", "x", *arguments)
        assert status == 2
        start_, _, end = sentence.partition(".*")
        assert said.startswith(f"coin_stream.py: {start_}")
        assert end in said
        assert len(said.splitlines()) == 1


WRITTEN = """
import pickle
from cmoe.config.changes import changed
from cmoe.config.tree import RunConfig
from cmoe.folder import differences
run = RunConfig("x", method="lora")
assert "other" not in run.as_dict()
larger = changed(run, {"other.size": 4})
assert differences(run.as_dict(), larger.as_dict()) == ["other.size: None -> 4"]
assert changed(larger, {"method": "other"}).method_sections["other"].size == 4
assert changed(run, {"method": "other"}).as_dict()["other"] == {"size": 3}
assert pickle.loads(pickle.dumps(larger)) == larger
"""


def test_a_run_is_written_as_before_where_a_package_has_nothing_to_say(tmp_path: Path) -> None:
    package = write_package(tmp_path, "cmoe-other", LIGHT.replace("SECTION", "'other'"))
    reading = start("-c", WRITTEN, environment=package)
    assert finish(reading) == ""
    assert reading.returncode == 0


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import nowhere", "cmoe_bad ends in ModuleNotFoundError: No module named 'nowhere'"),
        ("1 / 0", "cmoe_bad ends in ZeroDivisionError: division by zero"),
        (
            LIGHT.replace("SECTION", "'mine'").replace('"other"', '"lora"'),
            "method 'lora' is there already, from cmoe",
        ),
        (
            LIGHT.replace("SECTION", "'probe'"),
            "method 'other': section 'probe' is taken by method 'expand_all' of cmoe",
        ),
        *(
            (
                LIGHT.replace("SECTION", repr(key)),
                f"section {key!r} of method 'other' is another key",
            )
            # A run's own, a comparison's, the job's own, and what isn't a key of a run's.
            for key in ("training", "seed", "methods", "plan", "config", "folder")
        ),
    ],
)
def test_a_package_that_cannot_be_used_is_refused_by_its_name(
    tmp_path: Path, source: str, why: str
) -> None:
    package = write_package(tmp_path, "cmoe-bad", source)
    status, said = asked(package, "--name", "x", "--plan")
    assert status == 2
    assert said == (
        f"coin_stream.py: package cmoe-bad can't be used: {why}; mend or uninstall it\n"
    )


def test_a_comparisons_page_knows_bounds_by_what_they_are_told() -> None:
    """Beside them stands what is no bound, but is told something as well."""
    assert get_args(Told) == ("", THE_TASK, ALL_TASKS, "samples of earlier tasks")
