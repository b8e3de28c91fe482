"""Commands and snippets of the documentation, run as they are written.

In a folder that looks like a clone, with the mini data where CoIN would lie, and a real S3 wire.
What isn't run is checked by `test_documentation.py`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import S3Server
from support.documented import (
    KEYS,
    LEARNING,
    ROOT,
    SERVING,
    SHORT,
    SUBMITTING,
    Command,
    appended,
    commands,
    snippets,
)
from support.forking import PYTHONPATH
from support.heads import Head, running_head
from support.hub import TOKEN, running_hub
from support.own_files import PICTURES, Said, table, write_all, write_pictures
from support.ports import free_port

from cmoe.mini.tasks import write_mini_coin

MINUTES = 60
WRITTEN = commands()
BIN = Path(sys.executable).parent


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
        text = text.replace("YOUR-NAME", "me")
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
def walk(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> Iterator[Walk]:
    folder = tmp_path_factory.mktemp("clone")
    for name in ("README.md", "docs", ".gitignore", "cmoe", "configs", "cluster", "ray_jobs"):
        (folder / name).symlink_to(ROOT / name)
    write_mini_coin(folder / "data" / "coin", train=8, test=4)
    write_own(folder)
    home = folder / "home"
    home.mkdir()
    made = urllib.request.Request(f"{s3_server.endpoint}/bucket", method="PUT")
    urllib.request.urlopen(made, timeout=MINUTES).close()
    environment = os.environ | {
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": PYTHONPATH,
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_JOB_SUBMIT_HOOK": "cmoe.run.uploads.check",
        "KEY": "a key",
    }
    with running_hub() as hub:
        yield Walk(folder, environment | {"HF_ENDPOINT": hub.url})


def write_own(folder: Path) -> None:
    """The page's configuration of tasks of one's own, and files as it names them."""
    (text,) = [each for each in snippets("docs/own-data.md", "yaml") if "name: mine" in each]
    (folder / "mine.yaml").write_text(text)
    root = folder / "my_data"
    write_pictures(root)
    write_pictures(root / "pictures")
    answers = ("3", "4", "a dog")
    rows = [Said(str(n), ((f"What is {n}?", answers[n % 3]),), (PICTURES[0],)) for n in range(12)]
    written = write_all(root, rows)
    for split in ("train", "test"):
        shutil.copy(root / written["data.jsonl"].file(split), root / f"{split}.jsonl")
    names = ("id", "query", "label", "img")
    (root / "charts.csv").write_text(table(rows, ",", names))
    columns = {"id": [r.id for r in rows], "img": [[*r.images] for r in rows]}
    for number, name in enumerate(("query", "label")):
        columns[name] = [row.turns[0][number] for row in rows]
    pq.write_table(pa.table(columns), root / "charts-test.parquet")
    said = [json.dumps({"question_id": row.id, "text": row.turns[0][1]}) for row in rows]
    (folder / "said.jsonl").write_text("\n".join(said))


@pytest.fixture(scope="module")
def head(walk: Walk) -> Iterator[Head]:
    """A cluster with the token that the documented commands make; all commands work on it."""
    done = walk.do("ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token")
    assert done.returncode == 0, done.stdout
    token = Path(walk.environment["HOME"], ".ray", "auth_token")
    log = walk.folder / "head.log"
    with running_head(token, log, walk.environment, walk.folder) as head:
        walk.environment |= {"RAY_API_SERVER_ADDRESS": head.url, "RAY_ADDRESS": head.address}
        yield head


@pytest.fixture(scope="module")
def learned(walk: Walk, head: Head) -> str:
    """What the documented stream says, and `runs/coin_mini` in the folder."""
    done = walk.do(f"{LEARNING} {SHORT}")
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def service(walk: Walk, learned: str) -> Iterator[str]:
    """The documented service's URL, on a free port and a Ray of its own."""
    port = free_port()
    alone = {name: value for name, value in walk.environment.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        ["bash", "-ec", f"{KEYS}; exec {SERVING} --port {port}"],
        cwd=walk.folder,
        env=alone,
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
        lines = iter(process.stdout.readline, "")
        assert any("answers; Ctrl-C" in line for line in lines), "it ended"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(MINUTES)


OF_OTHER_TESTS = "|".join(map(re.escape, (LEARNING, SERVING))) + f"|{SUBMITTING}"
RUN_ALONE = [
    c for c in WRITTEN if appended(c.text) is not None and not re.fullmatch(OF_OTHER_TESTS, c.text)
]


@pytest.mark.parametrize("command", RUN_ALONE, ids=lambda c: f"{c.place} {c.text[:60]}")
def test_what_is_run_ends_well(walk: Walk, learned: str, command: Command) -> None:
    text = command.text
    if text.startswith("cmoe score"):  # of the run that was just made
        text = text.replace("gqa.jsonl", "runs/coin_mini/coin/GQA.jsonl")
        text = text.replace("test.json", "runs/data/coin_mini/Instructions_Original/GQA/test.json")
    done = walk.do(f"{text} {appended(command.text)}".strip())
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout


def test_the_stream_leaves_what_the_page_says(walk: Walk, learned: str) -> None:
    text = (ROOT / "docs/runs.md").read_text(encoding="utf-8")
    table = text.partition("## What a run leaves in")[2].partition("\n## ")[0]
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
    (snippet,) = [text for text in snippets("docs/serving.md") if "OpenAI(" in text]
    picture = next((ROOT / "cmoe").rglob("*.png"), None) or png()
    data = base64.b64encode(picture if isinstance(picture, bytes) else picture.read_bytes())
    for written, here in (
        ("http://127.0.0.1:8000", service),
        ("data:image/png;base64,...", f"data:image/png;base64,{data.decode()}"),
    ):
        assert written in snippet
        snippet = snippet.replace(written, here)
    names: dict[str, Any] = {"key": "key"}
    exec(compile(snippet, "serving.md", "exec"), names)
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
    from cmoe.data.batches import Collator
    from cmoe.data.coin import read_tasks
    from cmoe.data.settings import DataConfig
    from cmoe.modeling.pretrained import load_base
    from cmoe.modeling.settings import MINI_BASE

    monkeypatch.chdir(walk.folder)
    (snippet,) = [text for text in snippets("docs/own-base.md") if "GrowingVLM(" in text]
    assert "features: model.features(prompts)" in snippet
    (task,) = read_tasks(DataConfig(root="data/coin", tasks=("VQAv2",)), seed=0)
    collator = Collator(load_base(str(MINI_BASE))[1], 512, 4)
    names: dict[str, Any] = {
        "prompts": collator.prompts(task.train[:2]),  # its last example has two tasks
        "task": collator.prompts(task.train[:8]),
    }
    snippet = snippet.replace("(features,", "(model.features(task),")
    exec(compile(snippet, "own-base.md", "exec"), names)
    assert names["same"].tasks == names["model"].tasks
    assert Path("runs/demo/store/000.json").is_file()


# The working directory


def test_coin_where_the_pages_put_it_is_not_uploaded(walk: Walk, head: Head) -> None:
    """CoIN lies in `data/coin`, and is far too large for Ray's job server."""
    (command,) = [c.text for c in WRITTEN if re.fullmatch(SUBMITTING, c.text)]
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
