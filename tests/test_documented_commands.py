"""Every command and snippet of the documentation, walked as it is written.

A command is run, in a folder that looks like a clone, with the mini data where CoIN would lie and a
real S3 wire; or it stands in `NOT_RUN` with the reason, and is checked as far as that goes. One
that is in neither fails.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import S3Server
from documented import PAGES, ROOT, Command, commands, snippets
from heads import Head, running_head
from ports import free_port

from cmoe.comparison.settings import CompareConfig
from cmoe.config import parse, parse_job, parse_with
from cmoe.data.mini import write_mini_coin
from cmoe.tuning.settings import BranchConfig, BudgetConfig, SearchConfig

MINUTES = 60
BIN = Path(sys.executable).parent
SHORT = (
    "--data.tasks '[GQA, VizWiz]' --data.train_samples 32 --data.test_samples 4 "
    "--training.steps 2 --training.global_batch 16 --training.micro_batch 8 --probe.steps 2 "
    "--locator.steps 20 --cluster.workers 1 --wandb.mode disabled"
)
ON_THE_MINI_BASE = "--model.name mini --model.revision null --model.dtype float32"
LEARNING = "python ray_jobs/coin_stream.py --config configs/coin_mini.yaml"
KEYS = "read -rs CMOE_API_KEYS && export CMOE_API_KEYS"
SERVING = "python ray_jobs/coin_serve.py --config configs/serve_mini.yaml --store"
JOB = "ray job submit (--no-wait )?--working-dir \\. -- python ray_jobs/coin_stream.py "

RUN = {
    re.escape(LEARNING): SHORT,
    "python ray_jobs/coin_stream.py --help": "",
    "python ray_jobs/coin_stream.py .* --plan.gpus 8 --plan.memory 80": ON_THE_MINI_BASE,
    "python ray_jobs/coin_locate.py --config configs/coin_mini.yaml": SHORT,
    "python ray_jobs/coin_prepare.py --root data/coin --dry-run": "",
    "python ray_jobs/coin_prepare.py --root data/coin --out .*": "",
    "python -m cmoe.evaluation.scorers .*": "",
    KEYS: "",
    f"{SERVING} runs/coin_mini/store": "",
    f"{JOB}.*": "--print_config",
    "ray job (logs --follow|stop) raysubmit_\\.\\.\\.": "",
    "ray get-auth-token --generate > /dev/null": "",
    "(chmod 600 ~/.ray/auth_token|export .*|IMAGE=.*)": "",
    "grep -rn YOUR- cluster configs": "",
    'printf %s "\\$KEY" \\| sha256sum > api_keys': "",
}
"""Patterns of commands that are run, and what is appended: few steps, a small model."""


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
    """Ray's own program has the subcommand."""
    path = words(command)[1:3] if words(command)[1] == "job" else words(command)[1:2]
    done = subprocess.run([BIN / "ray", *path, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names_files(command)


NOT_RUN: dict[str, tuple[str, Callable[[str], None]]] = {
    "make .*": ("minutes to hours; what they run of ours is checked", makes),
    f"{re.escape(LEARNING)} --name mini_lora .*": ("the same job with another method", parses),
    "python ray_jobs/coin_stream.py --config configs/coin_llava_.*": ("needs GPUs", parses),
    "python ray_jobs/coin_stream.py --config configs/(compare|study)_mini.*": ("an hour", parses),
    "python ray_jobs/coin_sweep.py .*": ("half an hour", parses),
    "python ray_jobs/coin_serve.py --config configs/serve_mini.yaml": ("the same service", parses),
    "python ray_jobs/bench.py .*": ("minutes, alone on a machine", parses),
    "python -m cmoe.assets.build_mini_base --seed 0": ("an hour", parses),
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

WRITTEN = commands()


def appended(command: str) -> str | None:
    """What is appended to a command that is run; None for one that isn't."""
    return next((more for each, more in RUN.items() if re.fullmatch(each, command)), None)


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
        with pytest.raises((AssertionError, SystemExit, subprocess.CalledProcessError)):
            check(wrong)


# What is run


@dataclass
class Walk:
    """A reader's folder and shell.

    Attributes:
        folder: As a clone, with the mini data where CoIN's would be.
        environment: Of the shell.
        job: The name of the job that was submitted last.
    """

    folder: Path
    environment: dict[str, str]
    job: str = ""

    def do(self, command: str, minutes: float = 5) -> subprocess.CompletedProcess[str]:
        """A line of the documentation, with its placeholders filled."""
        text = command.replace("YOUR-BUCKET", "bucket").replace("raysubmit_...", self.job)
        done = subprocess.run(
            ["bash", "-ec", text],
            cwd=self.folder,
            env=self.environment,
            input="key\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=minutes * MINUTES,
        )
        if named := re.search(r"Job '(raysubmit_\w+)' submitted", done.stdout):
            self.job = named[1]
        return done


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Walk:
    import s3fs

    folder = tmp_path_factory.mktemp("clone")
    for name in ("README.md", ".gitignore", "cmoe", "configs", "cluster", "ray_jobs"):
        (folder / name).symlink_to(ROOT / name)
    write_mini_coin(folder / "data" / "coin", train=8, test=4)
    home = folder / "home"
    home.mkdir()
    fs = s3fs.S3FileSystem(**s3_server.storage_options)
    if not fs.exists("bucket"):
        fs.mkdir("bucket")
    environment = os.environ | {
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_JOB_SUBMIT_HOOK": "cmoe.uploads.check",
        "KEY": "a key",
    }
    return Walk(folder, environment)


@pytest.fixture(scope="module")
def head(walk: Walk) -> Iterator[Head]:
    """A Ray cluster with the token that the documented command makes; all jobs share it."""
    done = walk.do("ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token")
    assert done.returncode == 0, done.stdout
    token = Path(walk.environment["HOME"], ".ray", "auth_token")
    log = walk.folder / "head.log"
    with running_head(token, log, walk.environment, walk.folder) as head:
        walk.environment["RAY_ADDRESS"] = head.address
        walk.environment["RAY_API_SERVER_ADDRESS"] = head.url
        yield head


@pytest.fixture(scope="module")
def learned(walk: Walk, head: Head) -> str:
    """What the documented stream says, and `runs/coin_mini` in the folder."""
    done = walk.do(f"{LEARNING} {SHORT}")
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def service(walk: Walk, learned: str) -> Iterator[str]:
    """The documented service's URL, on a free port."""
    (command,) = [c.text for c in WRITTEN if c.text.startswith(SERVING)]
    port = free_port()
    process = subprocess.Popen(
        ["bash", "-ec", f"{KEYS}; exec {command} --port {port}"],
        cwd=walk.folder,
        env=walk.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("key\n")
        process.stdin.flush()
        said = [line for line in iter(process.stdout.readline, "") if "answers; Ctrl-C" in line][:1]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(MINUTES)
    assert said


RUN_ALONE = [
    c
    for c in WRITTEN
    if appended(c.text) is not None and not c.text.startswith((SERVING, LEARNING))
]


@pytest.mark.parametrize("command", RUN_ALONE, ids=lambda c: f"{c.place} {c.text[:60]}")
def test_what_is_run_ends_well(walk: Walk, learned: str, command: Command) -> None:
    text = command.text
    if "scorers" in text:  # of the run that was just made
        text = text.replace("gqa.jsonl", "runs/coin_mini/coin/GQA.jsonl")
        text = text.replace("test.json", "runs/data/coin_mini/Instructions_Original/GQA/test.json")
    done = walk.do(f"{text} {appended(command.text)}".strip())
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout


def test_the_stream_leaves_what_the_page_says(walk: Walk, learned: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("What a run leaves in")[2].partition("\n\n**")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(named) > 8
    for name in named:
        assert (walk.folder / "runs" / "coin_mini" / name).exists(), name
    figures = json.loads((walk.folder / "runs/coin_mini/matrix.json").read_text())
    said = re.search(r"^\| `matrix.json` \|(.*)$", table, re.MULTILINE)
    assert said is not None
    assert set(re.findall(r"`(\w+)`", said[1])) <= set(figures)


def test_the_client_of_the_page_is_answered(service: str) -> None:
    (snippet,) = [text for text in snippets("README.md") if "OpenAI(" in text]
    picture = next((ROOT / "cmoe").rglob("*.png"), None) or png()
    data = base64.b64encode(picture if isinstance(picture, bytes) else picture.read_bytes())
    for written, here in (
        ("http://127.0.0.1:8000", service),
        ("data:image/png;base64,...", f"data:image/png;base64,{data.decode()}"),
    ):
        assert written in snippet
        snippet = snippet.replace(written, here)
    names: dict[str, Any] = {"key": "key"}
    exec(compile(snippet, "README.md", "exec"), names)
    found = names["found"]
    assert isinstance(found.choices[0].message.content, str)
    assert {"task", "probability", "store_version"} & set(found.cmoe)


def png() -> bytes:
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    return file.getvalue()


def test_a_model_grows_as_the_page_says(walk: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `prompts` and `batch` are the reader's; its `features` is named in a comment."""
    from cmoe.assets import MINI_BASE
    from cmoe.data.batches import Collator
    from cmoe.data.coin import read_tasks
    from cmoe.data.settings import DataConfig
    from cmoe.modeling.pretrained import load_base

    monkeypatch.chdir(walk.folder)
    (snippet,) = [text for text in snippets("README.md") if "GrowingVLM(" in text]
    assert "features: model.features(prompts)" in snippet
    (task,) = read_tasks(DataConfig(root="data/coin", tasks=("VQAv2",)), seed=0)
    prompts = Collator(load_base(str(MINI_BASE))[1], 512, 4).prompts(task.train[:2])
    names: dict[str, Any] = {"prompts": prompts}
    exec(
        compile(snippet.replace("(features,", "(model.features(prompts),"), "README.md", "exec"),
        names,
    )
    assert names["same"].tasks == names["model"].tasks
    assert Path("runs/demo/store/000.json").is_file()


# The working directory


def test_coin_where_the_pages_put_it_is_not_uploaded(walk: Walk, learned: str) -> None:
    """CoIN lies in `data/coin`, and is far too large for Ray's job server."""
    (command,) = [
        c.text for c in WRITTEN if re.fullmatch(f"{JOB}.*", c.text) and "no-wait" not in c.text
    ]
    for large in (walk.folder / "data/coin/images.zip", walk.folder / "runs/large"):
        with large.open("wb") as file:
            file.truncate(200_000_000)
    done = walk.do(f"{command} --print_config")
    assert done.returncode == 0, done.stdout
    assert "root: s3://bucket/coin" in done.stdout
    elsewhere = walk.folder / "pictures" / "train" / "all.zip"
    elsewhere.parent.mkdir(parents=True)
    try:
        with elsewhere.open("wb") as file:
            file.truncate(200_000_000)
        done = walk.do(command)
    finally:
        elsewhere.unlink()
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert line.startswith("ray job submit: . has 2")
    assert "pictures/train/ 200 MB" in line
    assert ".gitignore or .rayignore" in line


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
    from cmoe.config import PlanConfig, RunConfig
    from cmoe.config_keys import key_type, tree_of

    tree = tree_of(RunConfig) | {
        "search": tree_of(SearchConfig),
        "budget": tree_of(BudgetConfig),
        "plan": tree_of(PlanConfig),
    }
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(rf"`-{{0,2}}((?:{SECTIONS})\.[a-z_]+)(?=[ `.:=])", text))
    assert [key for key in named if key_type(tree, key) is None and "safetensors" not in key] == []
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
