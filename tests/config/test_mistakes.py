"""What a mistake in a configuration is answered with: its key, its file, the nearest right key."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from cmoe.config.parse import parse, parse_job, parse_with
from cmoe.config.tree import RunConfig
from cmoe.experiments.comparison.settings import CompareConfig
from cmoe.experiments.sweep.settings import BranchConfig, BudgetConfig, SearchConfig

NAMED = ["--name", "x"]
SWEEP = {"search": SearchConfig, "budget": BudgetConfig, "": BranchConfig}


def refusal(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], **sweep: Any) -> str:
    """What a job says, and nothing else: no usage, no traceback, its own name first."""
    parsed = partial(parse_with, SWEEP) if sweep else partial(parse_job, {"": CompareConfig})
    with pytest.raises(SystemExit) as ended:
        parsed(arguments, "job.py")
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("job.py: ")
    assert len(said.err.splitlines()) < 10
    return said.err.removeprefix("job.py: ").rstrip()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("run.yaml")


def in_file(capsys: pytest.CaptureFixture[str], file: Path, text: str, **sweep: Any) -> str:
    file.write_text(text, encoding="utf-8")
    return refusal(capsys, ["--config", str(file)], **sweep)


# An unknown key


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("training.stepz", ["training.steps"]),
        ("trainig.steps", ["training.steps"]),
        ("trainig.stpes", ["training.steps"]),
        ("probes.alpha", ["probe.alpha"]),
        ("training.learning-rate", ["training.learning_rate"]),
        ("Training.Steps", ["training.steps"]),
        ("nam", ["name"]),
        ("model_name", ["model.name"]),
        # A right key in the wrong section, or in none.
        ("steps", ["probe.steps", "locator.steps", "training.steps"]),
        ("training.rank", ["experts.rank", "lora.rank", "moelora.rank"]),
        ("alpha", ["probe.alpha"]),
        ("global_batch", ["training.global_batch"]),
        ("cluster.zero", ["training.zero"]),
        ("plan.gpu", ["plan.gpus"]),
        ("seeed", ["seed"]),
        ("at_onec", ["at_once"]),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str], file: Path, key: str, meant: list[str]
) -> None:
    for arguments in ([f"--{key}", "3"], [f"--{key}=3"]):
        said = refusal(capsys, [*NAMED, *arguments])
        assert said.startswith(f"unknown key --{key}; did you mean --{meant[0]}")
        assert all(f"--{each}" in said for each in meant)
    section, dot, name = key.rpartition(".")
    text = f"name: x\n{section}:\n  {name}: 3\n" if dot else f"name: x\n{name}: 3\n"
    said = in_file(capsys, file, text)
    assert said.startswith("run.yaml:")
    assert f"unknown key {key}; did you mean" in said
    found = said.split("did you mean ")[1]
    assert all(each.partition(".")[0] in found for each in meant)


def test_the_line_of_a_key_is_named(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    text = "name: x\n# a comment\ntraining:\n  steps: 3\n\n  stepz: 4\n"
    assert in_file(capsys, file, text).startswith("run.yaml:6: unknown key training.stepz;")
    merged = "x: &x {name: x, stepz: 1}\n<<: *x\n"
    assert "unknown key stepz" in in_file(capsys, file, merged)


def test_where_nothing_is_near_the_keys_of_the_section_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = refusal(capsys, [*NAMED, "--evaluation.xyz", "1"])
    assert said.startswith("unknown key --evaluation.xyz; evaluation has batch_size, ")
    assert refusal(capsys, [*NAMED, "--xyz", "1"]) == "unknown key --xyz; --help all lists all"


@pytest.mark.parametrize("text", ["probes: {}", "probes:", "probes: []", "probes: 3", "3: {}"])
def test_an_unknown_section_is_refused_also_when_it_is_empty(
    capsys: pytest.CaptureFixture[str], file: Path, text: str
) -> None:
    said = in_file(capsys, file, f"name: x\n{text}\n")
    assert said.startswith(f"run.yaml:2: unknown key {text.partition(':')[0]};")


def test_other_jobs_have_their_own_keys(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    said = refusal(capsys, [*NAMED, "--search.aplha", "[1]"], sweep=True)
    assert said == "unknown key --search.aplha; did you mean --search.alpha?"
    assert "--budget.parameters" in refusal(capsys, [*NAMED, "--parameters", "3"], sweep=True)
    assert "--plan" not in refusal(capsys, [*NAMED, "--plan.gpus", "3"], sweep=True).split(";")[1]
    said = in_file(capsys, file, "name: x\nserch: {alpha: [1]}\n", sweep=True)
    assert "unknown key serch.alpha; did you mean search?" in said


def test_several_mistakes_are_named_together(
    capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    file.write_text("name: x\ntrainig: {steps: 3}\ntraining: {stpes: 1, zero: 9}\nseed: one\n")
    said = refusal(capsys, ["--config", "run.yaml", "--lora.rnk", "2", "--seed=two"])
    assert said.splitlines()[0] == "6 mistakes:"
    for each in (
        "run.yaml:2: unknown key trainig.steps; did you mean training?",
        "run.yaml:3: unknown key training.stpes; did you mean training.steps?",
        "unknown key --lora.rnk; did you mean --lora.rank?",
        "run.yaml:3: training.zero is 9; one of 0, 1, 2, 3 is needed",
        "run.yaml:4: seed is 'one'; an integer is needed",
        "--seed is 'two'; an integer is needed",
    ):
        assert f"  {each}" in said.splitlines()


# Values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: [1]", "run.yaml:2: seed is [1]; an integer is needed"),
        ("training: {steps: {a: 1}}", "run.yaml:2: training.steps is {'a': 1}; an integer or null"),
        ("data: {tasks: {a: 1}}", "run.yaml:2: data.tasks is {'a': 1}; a list"),
        ("method: lorra", "run.yaml:2: method is 'lorra'; one of zero_shot, lora"),
        ("methods: lorra", "did you mean lora?"),
        ("seeds: 1", "run.yaml:2: seeds is 1; a list"),
        ("seeds:", "run.yaml:2: seeds is null; a value is needed"),
        ("training: 3", "run.yaml:2: training is 3; a section is needed, with its keys: steps"),
        ("training:", "run.yaml:2: training is null; a section is needed"),
        ("training: [steps]", "run.yaml:2: training is ['steps']; a section is needed"),
        ("training: fast", "run.yaml:2: training is 'fast'; a section is needed"),
        ("training: {steps: 0}", "run.yaml:2: training.steps is 0; at least 1, or null"),
        ("plan: {gpus: 0}", "run.yaml:2: plan.gpus is 0; at least 1, or null"),
        ("seeds: [1, 1]", "run.yaml:2: seeds is [1, 1]; one or more, each once"),
    ],
)
def test_a_value_is_named_with_its_place_and_with_what_is_allowed(
    capsys: pytest.CaptureFixture[str], file: Path, text: str, said: str
) -> None:
    assert said in in_file(capsys, file, f"name: x\n{text}\n")


def test_values_out_of_range_are_named_together(
    capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    said = in_file(capsys, file, "name: x\ntraining: {steps: 0}\nprobe: {fraction: 4}\n")
    assert said.splitlines()[0] == "2 mistakes:"
    assert "run.yaml:2: training.steps is 0" in said
    assert "run.yaml:3: probe.fraction is 4.0" in said
    # A flag that overrides the file has no line in it.
    said = refusal(capsys, ["--config", "run.yaml", "--probe.fraction=0.1", "--training.steps=-1"])
    assert said.endswith("training.steps is -1; at least 1, or null")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--training.steps"], "--training.steps needs a value"),
        (["--config"], "--config needs a value"),
        (["--probe.alpha", "-1e-3"], "--probe.alpha needs a value; one that begins with - is"),
        (["extra"], "'extra' stands after no key"),
        (["--data.tasks", "[GQA]", "VQAv2"], "'VQAv2' stands after no key"),
        (["--data.tasks", "[GQA"], "--data.tasks: while parsing a flow sequence"),
        (["--training", "3"], "--training is '3'; a section is needed, with its keys: steps"),
        (["--training", "{stepz: 1}"], "--training: unknown key training.stepz; did you mean"),
        (["--training", "{steps:1}"], "--training: not a mapping"),
        (["--config", "{stepz: 1}"], "--config: unknown key stepz; did you mean"),
        (["--plan", "3"], "--plan is '3'; a section is needed, with its keys: gpus"),
        (["--plan.gpus", "many"], "--plan.gpus is 'many'; an integer or null is needed"),
        (["-name", "y"], "unknown key -name; did you mean --name"),
        (["--confg", "y"], "unknown key --confg; did you mean --config?"),
        (["--config="], "a YAML file is needed"),
    ],
)
def test_a_wrong_command_line_is_told_by_its_flag(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert said in refusal(capsys, [*NAMED, *arguments])


def test_a_file_that_names_itself_is_refused(
    capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    Path("other.yaml").write_text("name: x\nconfig: run.yaml\n")
    said = in_file(capsys, file, "name: x\nconfig: other.yaml\n")
    assert said == "run.yaml: names itself as its config"
    said = in_file(capsys, file, "name: x\nsettings: &a {lora: *a}\n")
    assert said == "a value is nested too deeply, or holds itself"


def test_a_file_may_be_named_twice(file: Path) -> None:
    file.write_text("name: x\ntraining.steps: 3\n")
    Path("other.yaml").write_text("config: run.yaml\nseed: 2\n")
    read, _, _ = parse_job({}, ["--config=run.yaml", "--config=other.yaml", "--config=run.yaml"])
    assert (read.training.steps, read.seed) == (3, 2)


def test_what_looks_like_a_mistake_and_is_none() -> None:
    read: RunConfig
    read, plan, _ = parse_job(
        {"": CompareConfig},
        [
            *("--name", "x", "--probe.alpha", "-0.5", "--model.revision=--odd one", "--plan"),
            *("--wandb.project", "[not a list"),
            *("--evaluation.answer_files.GQA", "f.json", "--training", '{"steps": 3}'),
        ],
    )
    assert (read.probe.alpha, read.model.revision, plan is not None) == (-0.5, "--odd one", True)
    assert read.wandb.project == "[not a list"
    assert (read.evaluation.answer_files, read.training.steps) == ({"GQA": "f.json"}, 3)


# A key that stands twice


@pytest.mark.parametrize(
    "text",
    [
        "name: x\ntraining: {steps: 3}\nseed: 1\ntraining: {zero: 1}\n",
        "name: x\ntraining: {steps: 3, zero: 1, steps: 3}\n",
        "name: x\nsettings: {lora: {seed: 1}, lora: {seed: 2}}\n",
        "name: x\ncandidates: {lora: [{seed: 1, seed: 2}]}\n",
        "name: x\ntraining: {steps: 3}\ntraining.steps: 4\n",
    ],
)
def test_a_key_stands_once_in_a_file(
    capsys: pytest.CaptureFixture[str], file: Path, text: str
) -> None:
    said = in_file(capsys, file, text)
    assert said.startswith("run.yaml")
    assert "each key stands once" in said


def test_a_key_stands_once_in_a_file_that_a_file_or_a_flag_names(
    capsys: pytest.CaptureFixture[str], file: Path
) -> None:
    Path("below").mkdir()
    Path("below/training.yaml").write_text("steps: 3\nsteps: 4\n")
    Path("below/run.yaml").write_text("name: x\ntraining: training.yaml\n")
    for arguments in (
        ["--config", "below/run.yaml"],
        [*NAMED, "--training", "below/training.yaml"],
        ["--config", "{name: x, config: below/run.yaml}"],
    ):
        said = refusal(capsys, arguments)
        assert said.startswith("below/training.yaml: 'steps' stands here (line 1, ")
    said = refusal(capsys, [*NAMED, "--settings", "{lora: {seed: 1, seed: 2}}"])
    assert said.startswith("--settings: 'seed' stands here")
    # The same with one of them: relative to the file that names it.
    Path("below/training.yaml").write_text("steps: 3\nlearning_rate: 1e-3\n")
    read, _, _ = parse_job({}, ["--config", "below/run.yaml"])
    assert (read.training.steps, read.training.learning_rate) == (3, 0.001)


def test_a_flag_overrides_a_file_and_itself(file: Path) -> None:
    file.write_text("name: x\nseed: 1\n")
    read, _, _ = parse_job({}, ["--config", "run.yaml", "--seed", "2", "--seed", "3"])
    assert read.seed == 3


# Every program


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("coin_stream.py --name x --training.stepz 3", "--training.steps"),
        (
            "coin_stream.py --name x --methods lora --settings '{lora: {training.stepz: 3}}'",
            "'training.stepz'; did you mean training.steps?",
        ),
        ("coin_sweep.py --name x --serch.by grid", "--search.by"),
        ("coin_locate.py --name x --locater.layer 3", "--locator.layer"),
        ("coin_prepare.py --rot x --out y", "unknown flag --rot; did you mean --root?"),
        ("coin_serve.py --stor x", "unknown flag --stor; did you mean --store?"),
        ("coin_serve.py --port many", "--port"),
        ("bench.py --divice cpu", "unknown flag --divice; did you mean --device?"),
        ("spot_notice.py --leaves 3", "unknown flag --leaves; did you mean --leaves-in?"),
    ],
)
def test_every_job_says_it_alike(command: str, said: str) -> None:
    job, *arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable, f"ray_jobs/{job}", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{job}: ")
    assert said in line


# What a run looks for in its own folder, and in a job's


def test_a_runs_own_configuration_is_read_as_strictly(tmp_path: Path) -> None:
    from cmoe.common.run_files import RunFileError
    from cmoe.folder import CONFIG, RunFolder

    config = parse(NAMED).as_dict()
    folder = RunFolder(tmp_path, str(tmp_path))
    folder.claim(config)
    folder.require_same(config)
    written = (tmp_path / CONFIG).read_bytes()
    for data, said in (
        (written + b"seed: 3\n", "'seed' stands here"),
        (b"- 1\n", "no mapping"),
        (b"name: [1", "while parsing a flow sequence"),
        (b"\xff\x00", "codec can't decode"),
    ):
        (tmp_path / CONFIG).write_bytes(data)
        with pytest.raises(RunFileError, match=f"{CONFIG}: .*{said}"):
            folder.require_same(config)


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--data.root", "data/coin"], "data.root"),
        ([], "data.root"),
        (
            ["--data.root", "s3://b/coin", "--evaluation.answer_files.GQA", "data/gqa.json"],
            "evaluation.answer_files.GQA",
        ),
    ],
)
def test_what_a_job_did_not_bring_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], key: str
) -> None:
    """Where Ray puts what `--working-dir` brings, what `.gitignore` names isn't."""
    from cmoe.common.errors import RunError
    from cmoe.run.launch import WORKING_COPIES, require_uploaded

    copy = tmp_path / WORKING_COPIES / "_ray_pkg_0123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    config = parse([*NAMED, *flags])
    with pytest.raises(RunError, match=rf"{key} is 'data/.*isn't in the copy.*absolute path"):
        require_uploaded(config)
    # Elsewhere, there, given by its whole path, or made on the spot, it is as before.
    for name in ("data/coin", "data/gqa.json"):
        (copy / name).mkdir(parents=True)
    require_uploaded(config)
    monkeypatch.chdir(tmp_path)
    require_uploaded(config)
    monkeypatch.chdir(copy)
    require_uploaded(parse([*NAMED, "--data.root", "/nowhere/coin"]))
    made = ["--data.generate=true", "--data.train_samples=8", "--data.test_samples=8"]
    require_uploaded(parse([*NAMED, "--data.root", "elsewhere", *made]))
