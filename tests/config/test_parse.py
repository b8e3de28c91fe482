"""A command line becomes a run: what can't be is refused with its key; a plan stands beside it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.configurations import (
    LEAVES,
    as_flags,
    as_yaml,
    refusal,
    refused,
)

from cmoe.config.changes import changed
from cmoe.config.parse import parse, parse_job
from cmoe.config.settings import PlanConfig
from cmoe.folder import differences
from cmoe.methods.settings import EWCConfig

# What is refused


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
