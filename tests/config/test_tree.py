"""Configurations: YAML and flags say the same, and what can't be is refused with its key."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.paths import CONFIGS

from cmoe.config.changes import changed
from cmoe.config.parse import parse, parse_job, parse_with
from cmoe.config.settings import PlanConfig
from cmoe.config.tree import RunConfig
from cmoe.data.settings import TASKS
from cmoe.experiments.comparison.runs import require_possible
from cmoe.experiments.comparison.settings import CompareConfig
from cmoe.experiments.sweep.settings import BudgetConfig, SearchConfig
from cmoe.folder import differences
from cmoe.methods.settings import EWCConfig


def leaves(kind: Any = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a run with its type."""
    hints = get_type_hints(kind)
    for field in fields(kind):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if is_dataclass(hint):
            yield from leaves(hint, f"{key}.")
        else:
            yield key, hint


LEAVES = dict(leaves())


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        at = out
        for section in sections:
            at = at.setdefault(section, {})
        at[name] = value
    return out


def as_yaml(folder: Path, values: Mapping[str, Any]) -> list[str]:
    """A YAML file of these values, as arguments."""
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(nested(values)), encoding="utf-8")
    return ["--config", str(file)]


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """The same as flags."""
    return [f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items()]


def get(config: RunConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


# What is refused


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What ends the program with status 2 says, behind its name: no usage, no class of Python's."""
    return refused(capsys, lambda: parse(arguments, prog="job.py"))


def refused(capsys: pytest.CaptureFixture[str], reading: Callable[[], object]) -> str:
    with pytest.raises(SystemExit) as ended:
        reading()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("job.py: ")
    for word in ("usage", "[--", "<class", "typing.", "Traceback"):
        assert word not in said
    return said.removeprefix("job.py: ")


@pytest.mark.parametrize("key", ["probe.alhpa", "probes.alpha", "alpha", "training.step", "see"])
def test_an_unknown_key_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    known = ["--name", "x"]
    assert f"--{key}" in refusal(capsys, *known, f"--{key}", "1")
    said = refusal(capsys, *known, *as_yaml(tmp_path, {key: 1}))
    assert key.split(".")[-1] in said


@pytest.mark.parametrize("value", [3, None, [1]])
def test_a_section_that_is_none_is_refused_with_its_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: Any
) -> None:
    said = refusal(capsys, "--name", "x", *as_yaml(tmp_path, {"probe": value}))
    assert "probe" in said
    assert "alpha" in said


def test_the_usage_comes_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--probe.alhpa", "1", "--help", "all"])
    assert ended.value.code == 0
    usage = capsys.readouterr().out
    assert all(f"--{key}" in usage for key in LEAVES)
    assert len(refusal(capsys, "--name", "x", "--probe.alhpa", "1").splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("probe.alpha", "high", ["a number"]),
        ("training.steps", "1.5", ["an integer", "null"]),
        ("seed", "1.0", ["an integer"]),
        ("cluster.gpu", "maybe", ["true or false", "null"]),
        ("data.tasks", "GQA", ["a list"]),
        ("method", "gem", ["cmoe", "lora"]),
        ("model.dtype", "float16", ["float32", "bfloat16"]),
        ("probe.score", "gain", ["frequency", "excess", "loss_gain"]),
        ("training.zero", "4", ["0", "1", "2", "3"]),
        ("evaluation.scoring", "loose", ["official", "strict"]),
    ],
)
def test_a_wrong_type_is_named_with_the_right_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: str, allowed: list[str]
) -> None:
    value_ = yaml.safe_load(value)
    for arguments in ([f"--{key}={value}"], as_yaml(tmp_path, {key: value_})):
        said = refusal(capsys, "--name", "x", *arguments)
        assert key in said
        assert value in said
        assert all(word in said for word in allowed)


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("experts.rank", 0, "at least 1"),
        ("experts.top_k", 0, "at least 1"),
        ("experts.lora_alpha", 0.0, "more than 0"),
        ("lora.rank", 0, "at least 1"),
        ("ewc.weight", -1.0, "at least 0"),
        ("ewc.samples", 0, "at least 1"),
        ("lwf.weight", -0.5, "at least 0"),
        ("lwf.temperature", 0.0, "more than 0"),
        ("moelora.experts", 0, "at least 1"),
        ("moelora.rank", 0, "at least 1"),
        ("moelora.lora_alpha", 0, "at least 1"),
        ("locator.steps", 0, "at least 1"),
        ("locator.held_out", 1.0, "between 0 and 1"),
        ("locator.shrinkage", 1.0, "0 or more, and less than 1"),
        ("locator.beta", -1.0, "at least 0"),
        ("data.loader_workers", -1, "at least 0"),
        ("experts.balance_weight", -0.1, "at least 0"),
        ("probe.fraction", 0.51, "more than 0 and at most 0.5"),
        ("probe.steps", 0, "at least 1"),
        ("probe.max_layers", -1, "at least 0, or null"),
        ("data.selection", 1.0, "0 or more, and less than 1"),
        ("data.train_samples", 0, "at least 1, or null"),
        ("training.steps", 0, "at least 1"),
        ("training.micro_batch", 0, "at least 1"),
        ("training.learning_rate", 0.0, "more than 0"),
        ("training.epochs", -1.0, "more than 0"),
        ("training.warmup", 1.0, "0 or more, and less than 1"),
        ("training.weight_decay", -1.0, "at least 0"),
        ("evaluation.batch_size", 0, "at least 1"),
        ("evaluation.max_new_tokens", 0, "at least 1"),
        ("cluster.workers", 0, "at least 1"),
        ("cluster.cpus_per_worker", 0, "at least 1"),
        ("cluster.max_failures", -1, "at least 0"),
        ("cluster.timeout_s", 59, "at least 60"),
        ("cluster.min_workers", 0, "1 to cluster.workers, 2"),
        ("cluster.min_workers", 3, "1 to cluster.workers, 2"),
        ("cluster.resize_s", 0.0, "more than 0"),
        ("runs", "gs://bucket/runs", "a folder, or s3://bucket/prefix"),
        ("name", "a/b", "one folder's name"),
        ("name", "..", "one folder's name"),
        ("name", "", "one folder's name"),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: Any, allowed: str
) -> None:
    for write in (lambda v: as_yaml(tmp_path, v), as_flags):
        said = refusal(capsys, *write({"name": "x", key: value}))
        assert key in said
        assert repr(value) in said
        assert allowed in said


def test_what_is_no_number_is_in_no_range() -> None:
    with pytest.raises(ValueError, match=r"ewc\.weight is nan; at least 0"):
        EWCConfig(weight=float("nan"))


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 80), st.integers(1, 10), st.integers(1, 5))
def test_a_global_batch_divides_into_micro_batches_of_all_workers(
    capsys: pytest.CaptureFixture[str], total: int, micro: int, workers: int
) -> None:
    arguments = as_flags(
        {
            "name": "x",
            "training.global_batch": total,
            "training.micro_batch": micro,
            "cluster.workers": workers,
        }
    )
    if total % micro:
        said = refusal(capsys, *arguments)
        assert f"training.global_batch is {total}" in said
        assert f"training.micro_batch {micro} a multiple" in said
    elif workers > total // micro:
        said = refusal(capsys, *arguments)
        assert f"{total // micro} of training.micro_batch {micro}; at most so many workers" in said
    else:
        config = parse(arguments)
        accumulated = config.training.accumulation(workers)
        assert accumulated * micro * workers >= total
        assert (accumulated - 1) * micro * workers < total


@pytest.mark.parametrize("method", ["ewc", "lwf", "per_task_lora"])
def test_methods_that_need_whole_weights_refuse_sharded_ones(
    capsys: pytest.CaptureFixture[str], method: str
) -> None:
    asked = ["--name", "x", "--method", method, "--training.zero"]
    said = refusal(capsys, *asked, "3")
    assert "training.zero is 3" in said
    assert f"method {method}" in said
    for zero in (0, 1, 2):
        assert parse([*asked, str(zero)]).training.zero == zero
    other = parse(["--name", "x", "--method", "lora", "--training.zero", "3"])
    with pytest.raises(ValueError, match=f"training.zero is 3; method {method}"):
        changed(other, {"method": method})
    assert changed(other, {"method": method, "training.zero": 2}).method == method


def test_files_that_are_no_configuration_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nowhere.yaml" in refusal(capsys, "--config", str(tmp_path / "nowhere.yaml"))
    file = tmp_path / "broken.yaml"
    for text in (
        "{",
        "- 1",
        "name: [x]",
        "",
        "3",
        "a: !!python/object:os.system {}",
        "--- 1\n--- 2",
    ):
        file.write_text(text, encoding="utf-8")
        assert str(file) in refusal(capsys, "--config", str(file))
    for data in (bytes(range(256)), b"\xff\xfen\x00", b"name: \x00"):
        file.write_bytes(data)
        assert str(file) in refusal(capsys, "--config", str(file))
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("", "pipe.yaml"):
        said = refusal(capsys, "--config", str(tmp_path / name))
        assert f"{tmp_path / name}: a YAML file is needed" in said
    assert "name" in refusal(capsys), "a run needs a name"


# What is understood

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "name": st.sampled_from(["a", "coin_mini", "run-7"]),
    "runs": st.sampled_from(["runs", "/tmp/elsewhere"]),
    "method": st.sampled_from(["cmoe", "lora"]),
    "seed": st.integers(0, 10**6),
    "model.revision": st.none() | st.just("main"),
    "data.tasks": st.lists(st.sampled_from(["GQA", "VQAv2", "OCRVQA"]), min_size=1, unique=True),
    "data.train_samples": st.none() | st.integers(1, 5000),
    "data.selection": st.sampled_from([0.0, 0.1, 0.5]),
    "experts.rank": st.integers(1, 64),
    "probe.enabled": st.booleans(),
    "probe.alpha": st.floats(-3, 3).map(lambda x: round(x, 4)),
    "probe.count": st.sampled_from(["fixed", "per_probe"]),
    "probe.max_added_parameters": st.none() | st.integers(0, 10**9),
    "locator.layer": st.integers(-1, 40),
    "training.learning_rate": st.sampled_from([2e-4, 0.006, 1e-05, 1.0]),
    "training.global_batch": st.sampled_from([32, 64]),
    "training.zero": st.sampled_from([0, 1, 2, 3]),
    "evaluation.cache": st.booleans(),
    "cluster.gpu": st.none() | st.booleans(),
    "wandb.mode": st.sampled_from(["online", "offline", "disabled"]),
}


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    chosen = draw(st.sets(st.sampled_from(sorted(set(VALUES) - {"name"})), max_size=8))
    return {key: draw(VALUES[key]) for key in ("name", *sorted(chosen))}


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@settings(max_examples=8, deadline=None)
@given(values=runs(), others=runs())
def test_yaml_and_flags_agree_and_flags_win(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any], others: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("yaml")
    from_yaml, from_flags = parse(as_yaml(folder, values)), parse(as_flags(values))
    assert from_yaml == from_flags
    both = parse([*as_yaml(folder, values), *as_flags(others)])
    default = parse(["--name", "x"])
    for config, given_ in ((from_flags, values), (both, values | others)):
        for key in LEAVES:
            wanted = given_[key] if key in given_ else get(default, key)
            assert plain(get(config, key)) == plain(wanted), key
    # What a run writes of itself reads as itself.
    file = folder / "again.yaml"
    file.write_text(yaml.safe_dump(both.as_dict()), encoding="utf-8")
    assert parse(["--config", str(file)]) == both
    assert json.loads(json.dumps(both.as_dict())) == both.as_dict()


def test_every_key_is_described_in_the_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as ended:
        parse(["--help", "all"], prog="stream")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert len(LEAVES) > 60
    for key, hint in LEAVES.items():
        found = re.search(
            rf"^  --{re.escape(key)} [^\n]*?\s{{2,}}([^\n]*)$|"
            rf"^  --{re.escape(key)} [^\n]*\n\s+([^\n]*)$",
            text,
            re.MULTILINE,
        )
        assert found, key
        said, kind = re.split(r"\((?:required, )?type: ", found[1] or found[2])
        assert len(said.split()) >= 2, f"{key}: {said!r}"
        assert key == "name" or "default: " in kind
        if get_origin(hint) is Literal:
            assert all(str(choice) in kind for choice in get_args(hint))
    sections = {key.partition(".")[0] for key in LEAVES if "." in key}
    for section in sections:
        title = re.search(rf"^(\S[^\n]*):\n  --{section} CONFIG", text, re.MULTILINE)
        assert title, f"{section} has no title"
        assert "class" not in title[1]


RUNS = sorted(set(CONFIGS.glob("*.yaml")) - set(CONFIGS.glob("serve_*.yaml")))  # those are Ray's


@pytest.mark.parametrize("file", RUNS, ids=lambda p: p.stem)
def test_every_configuration_in_the_repository_parses(file: Path) -> None:
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    beside: dict[str, type[Any]] = {}
    if "search" in written:
        beside = {"search": SearchConfig, "budget": BudgetConfig}
    elif "methods" in written:
        beside = {"": CompareConfig}
    config, parts = parse_with(beside, ["--config", str(file)])
    assert config.name == written["name"]
    if compared := parts.get(""):
        require_possible(config, compared)
        written = {k: v for k, v in written.items() if not hasattr(compared, k)}
    for section, values in written.items():
        for name, value in values.items() if isinstance(values, dict) else ():
            beside_it = section in parts
            found = getattr(parts[section], name) if beside_it else get(config, f"{section}.{name}")
            assert plain(found) == value
    assert config.folder == Path(config.runs) / config.name


COIN = {
    "dtype": "bfloat16",
    "pad": True,
    "tasks": [*TASKS],
    "max_length": 2048,
    "loader_workers": 4,
    "lora_alpha": "twice the rank",
    "epochs": 1,
    "learning_rate": 2e-4,
    "warmup": 0.03,
    "weight_decay": 0,
    "gradient_checkpointing": True,
}
"""What CoIN's own scripts have (zackschen/CoIN, scripts/LLaVA/Train/*.sh), by our names."""

PER_GPU = (14, 14, 16, 6, 14, 6, 8, 10)  # in the order of its tasks
GPUS, ACCUMULATED = 8, 8


@pytest.mark.parametrize("name", ["coin_llava_7b.yaml", "coin_llava_13b.yaml"])
def test_what_is_said_to_be_coins_is_coins(name: str) -> None:
    text = (CONFIGS / name).read_text(encoding="utf-8")
    marked = re.findall(r"^  (\w+): +(\S.*?) +# \(C\)", text, re.MULTILINE)
    marked += re.findall(r"# \(C\) The order[^\n]*\n  (tasks): (.*)", text)
    assert {key for key, _ in marked} == set(COIN)
    for key, value in marked:
        if key == "lora_alpha":
            assert int(value) == 2 * int(re.findall(r"^  rank: (\d+)", text, re.MULTILINE)[0])
        else:
            assert yaml.safe_load(value) == COIN[key], key
    batches = [GPUS * each * ACCUMULATED for each in PER_GPU]
    (line,) = [line for line in text.splitlines() if "global_batch" in line]
    assert f"CoIN's is {min(batches):,} to {max(batches):,} by task" in line
    (line,) = [line for line in text.splitlines() if "max_new_tokens" in line]
    assert "128 or 1,024" in line


# A run with other settings


@settings(max_examples=8, deadline=None)
@given(before=runs(), after=runs())
def test_changed_settings_are_those_of_the_command_line(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    run = parse(as_flags(before))
    kept = run.as_dict()
    assert changed(run, after) == parse([*as_flags(before), *as_flags(after)])
    assert changed(run, {}) == run
    assert run.as_dict() == kept


@pytest.mark.parametrize(
    "key",
    [
        *("probe.alhpa", "alpha", "probes.alpha", "", "probe.", ".alpha", "config"),
        # Below a value there is nothing, whatever the value is.
        *("probe.alpha.x", "training.steps.x", "seed.x", "name.x", "data.tasks.GQA"),
    ],
)
def test_a_change_of_an_unknown_key_is_refused(key: str) -> None:
    run = parse(["--name", "x", "--data.tasks", '["GQA"]'])
    with pytest.raises(ValueError, match="unknown key") as refused:
        changed(run, {"seed": 1, key: 1})
    assert repr(key) in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.steps", 0),
        ("training.steps", "many"),
        ("training.steps", 1.5),
        ("training.zero", 4),
        ("training", 3),
        ("method", "gem"),
        ("experts.rank", 0),
        ("data.tasks", "GQA"),
        ("cluster.min_workers", 3),
        ("name", "a/b"),
    ],
)
def test_a_change_to_an_impossible_value_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(key)):
        changed(parse(["--name", "x"]), {key: value})


@pytest.mark.parametrize(
    "key", ["name", "method", "seed", "data.tasks", "training.zero", "training.learning_rate"]
)
def test_null_is_refused_where_it_means_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(key)):
        changed(parse(["--name", "x"]), {key: None})
    assert key in refusal(capsys, *as_yaml(tmp_path, {"name": "x", key: None}))


# A plan beside a run

ASKED = ["--name", "x", "--training.global_batch", "48", "--training.micro_batch", "2"]


@pytest.mark.parametrize(
    ("flags", "plan", "workers"),
    [
        ([], None, 2),
        (["--plan"], PlanConfig(), 2),
        (["--plan.gpus", "6"], PlanConfig(gpus=6), 6),
        (["--plan", "--plan.memory", "24"], PlanConfig(memory=24.0), 2),
        (["--plan.flops=4e14", "--cluster.workers", "3"], PlanConfig(flops=4e14), 3),
    ],
)
def test_a_plan_stands_beside_its_run(
    flags: list[str], plan: PlanConfig | None, workers: int
) -> None:
    run, asked, _ = parse_job({}, [*ASKED, *flags])
    assert asked == plan
    alone = parse([*ASKED, f"--cluster.workers={workers}"])
    assert run == alone
    assert "plan" not in run.as_dict()
    assert differences(run.as_dict(), parse(ASKED).as_dict()) == []


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--plan.gpus=0", "plan.gpus is 0; at least 1"),
        ("--plan.gpus=33", "at most so many workers"),
        ("--plan.memory=0", "plan.memory is 0.0; more than 0"),
        ("--plan.flops=-1", "plan.flops is -1.0; more than 0"),
        ("--plan.gpu=1", "gpu"),
    ],
)
def test_an_impossible_plan_is_refused(
    capsys: pytest.CaptureFixture[str], flag: str, said: str
) -> None:
    assert said in refused(capsys, lambda: parse_job({}, [*ASKED, flag], "job.py"))
    assert flag.partition("=")[0] in refusal(capsys, *ASKED, flag), "other scripts know no plan"


def test_a_method_that_no_plan_knows_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, lambda: parse_job({}, [*ASKED, "--plan", "--method=ewc"], "job.py"))
    assert "method is ewc; --plan knows cmoe, expand_all, lora" in said


# What two runs differ in


@settings(max_examples=12, deadline=None)
@given(before=runs(), after=runs())
def test_differences_name_what_changes_the_outcome(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    a, b = parse(as_flags(before)), parse(as_flags(after))
    changed = {key for key in LEAVES if get(a, key) != get(b, key)}
    found = differences(a.as_dict(), b.as_dict())
    neutral = {key for key in changed if key.partition(".")[0] in ("runs", "cluster", "wandb")}
    assert {line.partition(":")[0] for line in found} == changed - neutral
    assert len(found) == len(changed - neutral)
    for line in found:
        key, _, said = line.partition(": ")
        assert said == f"{plain(get(a, key))!r} -> {plain(get(b, key))!r}"
    assert differences(a.as_dict(), json.loads(json.dumps(a.as_dict()))) == []


def test_a_key_that_one_side_lacks_is_a_difference() -> None:
    run = parse(["--name", "x"]).as_dict()
    older = {**run, "probe": {n: v for n, v in run["probe"].items() if n != "alpha"}}
    (line,) = differences(older, run)
    assert line.startswith("probe.alpha: None -> 0.5")
    (line,) = differences(run, older)
    assert line.startswith("probe.alpha: 0.5 -> None")


# Start-up


JOB = """
from cmoe.experiments.comparison.settings import CompareConfig
from cmoe.config.parse import parse_job
parse_job({"": CompareConfig}, ["--name", "x"])
"""
SWEEP = """
from cmoe.config.parse import parse_with
from cmoe.experiments.sweep.settings import BranchConfig, BudgetConfig, SearchConfig
parse_with({"search": SearchConfig, "budget": BudgetConfig, "": BranchConfig}, ["--name", "x"])
"""
SERVICE = """
from cmoe.serving.settings import ServeConfig
ServeConfig.of({"store": "somewhere"})
"""


@pytest.mark.parametrize("reading", [JOB, SWEEP, SERVICE], ids=["job", "sweep", "service"])
def test_reading_a_configuration_imports_nothing_heavy(reading: str) -> None:
    """A job says what is wrong with its configuration before seconds of imports."""
    heavy = {"torch", "transformers", "deepspeed", "ray", "numpy", "PIL", "datasets", "pyarrow"}
    program = f"import sys{reading}print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
