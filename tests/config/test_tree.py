"""A run's tree: YAML and flags say the same, and the shipped configurations are what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from support.configurations import (
    LEAVES,
    as_flags,
    as_yaml,
    get,
    plain,
    runs,
)
from support.paths import CONFIGS

from cmoe.config.parse import parse, parse_with
from cmoe.data.settings import TASKS
from cmoe.experiments.choice.settings import ChoiceConfig
from cmoe.experiments.comparison.runs import require_possible
from cmoe.experiments.comparison.settings import CompareConfig
from cmoe.experiments.sweep.settings import BudgetConfig, SearchConfig


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
    elif "choice" in written:
        beside = {"choice": ChoiceConfig}
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
    "lora_alpha": "twice the rank",
    "epochs": 1,
    "learning_rate": 2e-4,
    "warmup": 0.03,
    "weight_decay": 0,
    "gradient_checkpointing": True,
}
"""What CoIN's own scripts have (zackschen/CoIN, scripts/LLaVA/Train/*.sh), by our names."""

TRAINED = {
    "pad": True,
    "max_length": 2048,
    "epochs": 1,
    "learning_rate": 2e-4,
    "warmup": 0.03,
    "weight_decay": 0,
    "zero": 2,
    "max_new_tokens": 128,
}
BESIDE: dict[str, dict[str, Any]] = {
    "ucit H": TRAINED | {"dtype": "bfloat16", "gradient_checkpointing": True, "images": "datasets"},
    "ucit M": {"global_batch": 64},
    "mllm_dcl M": TRAINED
    | {
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
        "learning_rate": 2e-5,
        "global_batch": 64,
    },
    "trigap R": TRAINED | {"dtype": "bfloat16", "images": "datasets"},
}
"""By configuration and mark, what the authors' files have that docs/benchmarks.md names:
HiDe-LLaVA's scripts/HiDe/Train_UCIT, MCITlib's LoRA-FT, Prism's run.py and config."""

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


@pytest.mark.parametrize("marked", BESIDE)
def test_what_is_said_to_be_a_benchmarks_is_its(marked: str) -> None:
    name, mark = marked.split()
    text = (CONFIGS / f"{name}_llava_7b.yaml").read_text(encoding="utf-8")
    found = re.findall(rf"^  (\w+): +(\S+) +# \({mark}\)", text, re.MULTILINE)
    assert {key: yaml.safe_load(value) for key, value in found if key != "name"} == BESIDE[marked]
