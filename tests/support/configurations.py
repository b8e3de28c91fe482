"""Configurations as tests write and draw them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from hypothesis import strategies as st

from cmoe.config.parse import parse
from cmoe.config.tree import RunConfig


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
    "trackers": st.lists(st.sampled_from(["tensorboard", "mlflow"]), unique=True),
    "mlflow.uri": st.none() | st.just("http://127.0.0.1:5000"),
    "wandb.mode": st.sampled_from(["online", "offline", "disabled"]),
}


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    chosen = draw(st.sets(st.sampled_from(sorted(set(VALUES) - {"name"})), max_size=8))
    return {key: draw(VALUES[key]) for key in ("name", *sorted(chosen))}


def plain(value: Any) -> Any:
    """A value as YAML has it; of own tasks what isn't left out."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if is_dataclass(value):
        return {key: each for key, each in vars(value).items() if each not in (None, {})}
    return list(value) if isinstance(value, tuple) else value
