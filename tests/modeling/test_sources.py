"""Bases on a mirror on S3 and on the hub: their safe files alone, once for all of a machine."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants
from support.flaky import Flaky
from support.mini_store import make_primitive
from support.paths import ROOT

from cmoe.cli.main import main
from cmoe.common.storage import StorageError, filesystem
from cmoe.data.samples import Task
from cmoe.modeling.base import fingerprint
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import (
    MissingModelError,
    load_base,
    load_config,
    load_processor,
    load_shape,
    require_base,
)
from cmoe.modeling.settings import MINI_BASE, ModelConfig
from cmoe.serving.engines.builtin.executor import BuiltinExecutor
from cmoe.serving.settings import ServeConfig
from cmoe.store.model import create_store

if TYPE_CHECKING:
    from support.hub import HubServer

FILES = {file.name: file.read_bytes() for file in MINI_BASE.iterdir() if file.is_file()}
UNSAFE = {
    "pytorch_model.bin": b"a pickle",
    "consolidated.00.pth": b"a pickle",
    "modeling_llava.py": b"raise SystemExit",
    "model.fp16.safetensors": b"another form",
    "original/model.safetensors": b"another form",
}
LOAD = """
import sys
from transformers.models.llava import modeling_llava
from cmoe.modeling.base import fingerprint
from cmoe.modeling.pretrained import load_base
print("ready", flush=True)
sys.stdin.read()
print(fingerprint(load_base(sys.argv[1])[0]))
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache of this test, for this process and those that it starts."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(url: str, files: dict[str, bytes]) -> str:
    fs, root = filesystem(url)
    for name, content in files.items():
        fs.pipe_file(f"{root}/{name}", content)
    return url


def at_once(program: str, *arguments: str, processes: int = 3) -> list[str]:
    """What processes print that have all been imported before one begins."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for each in started:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in started:
        assert each.stdin is not None
        each.stdin.close()
        each.stdin = None
    return [each.communicate(timeout=240)[0].strip() for each in started]


def names(read: Counter[str]) -> dict[str, int]:
    return {Path(path).name: count for path, count in read.items()}


def test_a_mirror_is_read_once_by_all_processes_of_a_machine(
    bucket: str, wire: Flaky, cache: Path
) -> None:
    url = put(f"{bucket}/base", {**FILES, **UNSAFE})
    digest = fingerprint(load_base(str(MINI_BASE))[0])
    assert at_once(LOAD, url) == [digest] * 3
    safe = {name: 1 for name in FILES if name != "README.md"}
    assert names(wire.read) == safe
    assert fingerprint(load_base(url)[0]) == digest
    assert names(wire.read) == safe
    copied = {file.name: file.read_bytes() for file in next(cache.glob("s3--*/*/")).iterdir()}
    assert copied == {name: FILES[name] for name in safe}


def test_weights_are_read_where_they_are_needed_alone(
    bucket: str, wire: Flaky, cache: Path
) -> None:
    url = put(f"{bucket}/base", FILES)
    require_base(url)
    assert load_config(url).model_type == "llava"
    assert load_processor(url).tokenizer is not None
    assert sum(p.numel() for p in load_shape(url).parameters())
    assert main(["plan", "--config", "coin_mini", "--model.name", url]) == 0
    assert "model.safetensors" not in names(wire.read)
    assert max(wire.read.values()) == 1
    assert main(["fetch", "--model", url]) == 0
    assert names(wire.read)["model.safetensors"] == 1
    load_base(url)
    assert max(wire.read.values()) == 1


def test_shards_are_those_of_the_index(
    bucket: str, wire: Flaky, cache: Path, tmp_path: Path
) -> None:
    base, _ = load_base(str(MINI_BASE))
    base.save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    shutil.copy(MINI_BASE / "tokenizer.json", tmp_path / "shards")
    files = {file.name: file.read_bytes() for file in (tmp_path / "shards").iterdir()}
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    assert len(shards) > 1
    texts = {name: FILES[name] for name in FILES if name.endswith((".json", ".jinja"))}
    url = put(f"{bucket}/base", {**texts, **files, "consolidated.safetensors": b"another form"})
    assert fingerprint(load_base(url)[0]) == fingerprint(base)
    assert {name for name in names(wire.read) if name.endswith("s")} == {*shards}

    lacking = put(f"{bucket}/lacking", {**texts, **files} | {shards[0]: b""})
    filesystem(bucket)[0].rm_file(f"{filesystem(lacking)[1]}/{shards[0]}")
    for load in (require_base, load_base):
        with pytest.raises(MissingModelError, match=rf"{lacking}: {shards[0]} is missing; a base"):
            load(lacking)
    damaged = put(f"{bucket}/damaged", {**texts, "model.safetensors.index.json": b"{}"})
    with pytest.raises(MissingModelError, match=r"index\.json: names no files"):
        require_base(damaged)


def test_what_is_no_base_says_so(bucket: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = put(f"{bucket}/empty", {"pytorch_model.bin": b"a pickle"})
    with pytest.raises(MissingModelError, match=rf"{url}: config\.json is missing; .*There: none"):
        load_config(url)
    url = put(f"{bucket}/alone", {"config.json": FILES["config.json"]})
    with pytest.raises(MissingModelError, match=rf"{url}: model\.safetensors is missing"):
        load_base(url)
    with pytest.raises(MissingModelError, match=rf"{url} is a folder without a whole model"):
        load_processor(url)
    for wrong, said in (("s3://", "names no bucket"), ("s3://nowhere-at-all/x", "has no bucket")):
        with pytest.raises(StorageError, match=said):
            load_config(wrong)


def test_without_a_network_it_is_the_copy_that_was_whole_at_last(
    bucket: str, wire: Flaky, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(f"{bucket}/base", FILES)
    load_config(url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingModelError, match=r"no whole copy .* HF_HUB_OFFLINE .*`cmoe fetch`"):
        load_config(url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    digest = fingerprint(load_base(url)[0])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    wire.requests.clear()
    require_base(url)
    assert fingerprint(load_base(url)[0]) == digest
    assert not wire.requests


def test_a_store_is_served_with_its_base_from_wherever_it_is(
    bucket: str, cache: Path, tmp_path: Path, tasks: tuple[Task, ...]
) -> None:
    """Its digest decides."""
    url = put(f"{bucket}/base", FILES)
    model = GrowingVLM(load_base(url)[0])
    config = {"model": vars(ModelConfig(url))}
    store = create_store(tmp_path / "store", model, name=url, revision="default", config=config)
    store.append(make_primitive(model, tasks[0]))
    assert store.header.base.digest == fingerprint(load_base(str(MINI_BASE))[0])
    for base in (None, ModelConfig("mini")):
        served = asyncio.run(BuiltinExecutor.load(store, ServeConfig(store.url, model=base)))
        assert served.tasks == store.tasks


def test_a_hub_name_is_downloaded_once_by_all_processes_of_a_machine(hub: HubServer) -> None:
    hub.make("someone/mini")
    hub.put("someone/mini", {**FILES, **UNSAFE})
    digest = fingerprint(load_base(str(MINI_BASE))[0])
    assert at_once(LOAD, "someone/mini", processes=2) == [digest] * 2
    assert hub.requests["cdn"] == 1, "the weights"


def test_a_hub_name_is_fetched_before_it_is_needed(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.make("someone/mini")
    hub.put("someone/mini", {**FILES, **UNSAFE})
    assert main(["fetch", "--model", "someone/mini"]) == 0
    (said,) = capsys.readouterr().out.splitlines()
    folder = Path(said.rpartition(" in ")[2])
    assert said.startswith(
        f"someone/mini: {len(FILES) - 1} files, 0.01 GiB in {constants.HF_HUB_CACHE}"
    )
    assert {file.name for file in folder.iterdir()} == FILES.keys() - {"README.md"}
    hub.away = True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    require_base("someone/mini")


def test_fetching_says_what_is_wrong(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("nobody/nothing", "./nowhere"):
        assert main(["fetch", "--model", name]) == 1
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"cmoe fetch: {name}")


def test_the_base_of_a_configuration_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_store(tmp_path / "store", GrowingVLM(load_base(str(MINI_BASE))[0]),
                 name="mini", revision="default", config={})  # fmt: skip
    service = (
        (ROOT / "configs/serve_mini.yaml")
        .read_text()
        .replace("runs/coin_mini/store", str(tmp_path / "store"))
    )
    (tmp_path / "service.yaml").write_text(service)
    for config in ("coin_mini", str(tmp_path / "service.yaml")):
        assert main(["fetch", "--config", config]) == 0
        assert capsys.readouterr().out.endswith(f" in {MINI_BASE}\n")
