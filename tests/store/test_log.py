"""The store's promises, on a local path and on a real S3 wire."""

from __future__ import annotations

import builtins
import contextlib
import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors
import torch
from fsspec.core import url_to_fs
from hypothesis import given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem
from support.flaky import flaky

from cmoe.common import exclusive
from cmoe.common.storage import StorageError
from cmoe.modeling.primitive import PARTS, Primitive
from cmoe.store import files as store_files
from cmoe.store.log import BaseId, Store, StoreError

BASE = BaseId(name="mini-llava", revision="v1", digest="b" * 64)
SETTINGS = {"top_k": 2, "locator": {"layer": 1, "pooling": "mean"}}
CONFIG = {"seed": 0, "tasks": ["GQA", "VQAv2"], "path": None}


@dataclass(frozen=True)
class Place:
    """Where a store is put, with a way to its files that isn't the store's own."""

    url: str
    options: dict[str, Any]

    def create(self) -> Store:
        return Store.create(self.url, base=BASE, settings=SETTINGS, config=CONFIG, **self.options)

    def open(self) -> Store:
        return Store.open(self.url, **self.options)

    def _fs(self) -> tuple[Any, str]:
        return url_to_fs(self.url, use_listings_cache=False, **self.options)

    def files(self) -> dict[str, bytes]:
        fs, root = self._fs()
        paths = fs.find(root) if fs.exists(root) else []
        return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in paths}

    def write(self, name: str, data: bytes) -> None:
        fs, root = self._fs()
        fs.pipe_file(f"{root}/{name}", data)

    def remove(self, name: str) -> None:
        fs, root = self._fs()
        fs.rm_file(f"{root}/{name}")


@pytest.fixture
def local(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "store"), {})


@pytest.fixture
def s3(s3_server: Any) -> Place:
    bucket = f"b-{uuid.uuid4().hex}"
    S3FileSystem(**s3_server.storage_options).call_s3("create_bucket", Bucket=bucket)
    return Place(f"s3://{bucket}/runs/store", s3_server.storage_options)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)


def primitive(task: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Primitive:
    rng = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng).to(dtype)

    return Primitive(
        task=task,
        rank=2,
        lora_alpha=4.0,
        experts={"layers.0.up_proj.A": random(1, 2, 3), "layers.0.up_proj.B": random(1, 5, 2)},
        routers={"layers.0": random(1, 3)},
        locator={"mean": random(3), "count": torch.tensor(7)},
        decision={"threshold": 0.25, "layers": [0], "scores": {"0": 0.1 + 0.2}},
    )


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(got: Primitive, want: Primitive) -> None:
    assert (got.task, got.rank, got.lora_alpha) == (want.task, want.rank, want.lora_alpha)
    assert got.decision == want.decision
    for part, tensors in want.parts().items():
        read = got.parts()[part]
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
            assert bits(read[name]) == bits(tensor)


def resealed(data: bytes, **changes: Any) -> bytes:
    """A record or header with `changes` and a valid digest of its own, as the layout defines it."""
    fields = {**json.loads(data), **changes}
    del fields["digest"]
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    fields["digest"] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


# What is stored comes back.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_round_trip_is_exact_to_the_bit(place: Place, dtype: torch.dtype) -> None:
    special = torch.tensor([float("nan"), -0.0, float("inf"), 1e-40], dtype=dtype)
    want = replace(primitive("GQA", dtype=dtype), locator={"special": special})
    place.create().append(want)
    assert_same(place.open().read(0), want)


def test_empty_parts_and_empty_tensors_round_trip(place: Place) -> None:
    want = Primitive("GQA", 4, 8, experts={}, routers={"layers.0": torch.ones(0, 3)}, locator={})
    place.create().append(want)
    got = place.open()
    assert_same(got.read(0), want)
    assert got.records()[0].parameters == {"experts": 0, "routers": 0, "locator": 0}


def test_what_only_learning_goes_back_to_is_a_part_of_its_own(place: Place) -> None:
    special = torch.tensor([float("nan"), -0.0, float("inf"), 1e-40])
    plain = primitive("GQA")
    want = replace(plain, memory={"layers.0.A": torch.rand(2, 3), "special": special})
    store = place.create()
    store.append(want)
    store.append(primitive("VQAv2"))
    read = place.open()
    assert_same(read.read(0), want)
    assert read.read(1).memory == {}
    counts = plain.parameter_counts()
    assert [r.parameters for r in read.records()] == [counts | {"memory": 6 + 4}, counts]
    assert [set(r.files) for r in read.records()] == [{*PARTS, "memory"}, set(PARTS)]
    # The other parts don't know of it; the folder's name does.
    first, second = read.records()
    for part in PARTS:
        assert first.files[part] == second.files[part]
    assert first.folder.rpartition("-")[2] != second.folder.rpartition("-")[2]
    name = f"{first.folder}/memory.safetensors"
    place.write(name, place.files()[name][:-1])
    assert f"{place.url}/{name}: damaged" in refusal(place)


def test_views_that_share_memory_round_trip(local: Place) -> None:
    bank = torch.arange(12.0).reshape(3, 4)
    views = {"row": bank[1], "again": bank[1], "column": bank[:, 2], "turned": bank.T}
    want = replace(primitive("GQA"), locator=views)
    local.create().append(want)
    assert_same(local.open().read(0), want)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # A lone surrogate is no text, but JSON can escape it.
    | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_json_decision_round_trips(decision: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(folder, base=BASE, settings=SETTINGS, config=CONFIG)
        store.append(Primitive("GQA", 2, 4.0, {}, {}, {}, decision))
        assert Store.open(folder).read(0).decision == decision


def test_header_comes_back_and_create_is_exclusive(place: Place) -> None:
    place.create()
    before = place.files()
    header = place.open().header
    assert (header.base, header.settings, header.config) == (BASE, SETTINGS, CONFIG)
    with pytest.raises(StoreError, match=r"stream\.json: a store is here already"):
        place.create()
    assert place.files() == before


def test_append_changes_no_earlier_file_and_refresh_shows_the_new(place: Place) -> None:
    writer, reader = place.create(), place.open()
    for index, task in enumerate(["ScienceQA", "OCR-VQA", "VQA_v2.1"]):
        before = place.files()
        record = writer.append(primitive(task, seed=index))
        assert before.items() <= place.files().items()
        assert len(reader) == index
        assert reader.refresh() == (record,)
        assert_same(reader.read(index), primitive(task, seed=index))
    assert reader.refresh() == ()
    assert reader.tasks == writer.tasks == ("ScienceQA", "OCR-VQA", "VQA_v2.1")
    assert reader.records() == writer.records() == place.open().records()
    parents = [record.parent for record in reader.records()]
    assert parents == [reader.header.digest, *(record.digest for record in reader.records()[:-1])]
    reader.verify()


def test_nothing_but_json_and_safetensors_and_the_same_bytes_everywhere(
    local: Place, s3: Place
) -> None:
    for place in (local, s3):
        store = place.create()
        for task in ("GQA", "VQAv2"):
            store.append(primitive(task))
    files = local.files()
    assert files == s3.files()
    assert sorted(Path(name).name for name in files) == sorted(
        ["stream.json", "000.json", "001.json", *2 * [f"{part}.safetensors" for part in PARTS]]
    )
    for name, data in files.items():
        if name.endswith(".json"):
            assert resealed(data) == data
        else:
            path = Path(local.url, name)
            with safetensors.safe_open(path, "pt") as file:
                assert file.metadata() == {"format": "pt"}
            record = json.loads(files[name[:3] + ".json"])
            entry = record["files"][path.stem]
            assert path.parent.name == record["folder"]
            assert (entry["name"], entry["size"]) == (path.name, len(data))
            assert entry["sha256"] == hashlib.sha256(data).hexdigest()


def test_polling_costs_one_listing(s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = s3.create()
    store.append(primitive("GQA"))
    calls: list[str] = []
    patch_s3(monkeypatch, calls.append)
    assert store.refresh() == ()
    assert calls == ["list_objects_v2"]


# A crash leaves the old state or the new one.


class CrashError(Exception):
    """The process ends here."""


def patch_s3(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], object]) -> None:
    """Run `before` with its method's name before every request to S3."""
    call = S3FileSystem._call_s3

    async def patched(self: S3FileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
        before(method)
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_call_s3", patched)


class PowerCut:
    """Stands for `os` and `open` within the store and cuts the power before the n-th operation.

    After one operation is before the next, and a write is two, so this is any moment there is. The
    cut takes what was not yet synced: half of a file's bytes, and every new name but the newest (a
    disk keeps them in any order). What is dead cleans nothing up.
    """

    def __init__(self, at: int) -> None:
        self.left, self.dead = at, False
        self.paths: dict[int, str] = {}
        self.unsynced_files: set[str] = set()
        self.unsynced_names: list[str] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        return self._operation(name, value) if callable(value) else value

    @contextlib.contextmanager
    def open_file(self, path: str, mode: str) -> Iterator[Any]:
        write = self._operation("write", lambda data: (file.write(data), file.flush()))

        def write_halves(data: bytes) -> None:
            self.unsynced_files.add(path)
            write(data[: len(data) // 2])
            write(data[len(data) // 2 :])

        with self._operation("create", builtins.open)(path, mode) as file:
            self.paths[file.fileno()] = path
            yield SimpleNamespace(write=write_halves, flush=file.flush, fileno=file.fileno)

    def _operation(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                self._cut()
            result = function(*args, **kwargs)
            self._note(name, args, result)
            return result

        return run

    def _note(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name == "open":
            self.paths[result] = args[0]
        elif name == "fsync":
            path = self.paths[args[0]]
            self.unsynced_files -= {path}
            self.unsynced_names = [n for n in self.unsynced_names if os.path.dirname(n) != path]
        elif name == "link":
            self.unsynced_names.append(args[1])
            if args[0] in self.unsynced_files:
                self.unsynced_files.add(args[1])

    def _cut(self) -> None:
        if not self.dead:
            self.dead = True
            for path in self.unsynced_files:
                if os.path.exists(path):
                    os.truncate(path, os.path.getsize(path) // 2)
            for path in self.unsynced_names[:-1]:
                os.unlink(path)
        raise CrashError


def power_cuts(
    template: Path | None, local: Place, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]
) -> Iterator[None]:
    """Try `act` on fresh copies of `template`, with a cut before each operation, until one ends."""
    for at in itertools.count():
        shutil.rmtree(local.url, ignore_errors=True)
        if template is not None:
            shutil.copytree(template, local.url)
        cut = PowerCut(at)
        with monkeypatch.context() as patch, contextlib.suppress(CrashError):
            patch.setattr(exclusive, "os", cut)
            patch.setattr(exclusive, "open", cut.open_file, raising=False)
            act()
        yield
        if not cut.dead:
            return


def test_power_cut_in_create_on_disk(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = 0
    for _ in power_cuts(None, local, monkeypatch, local.create):
        moments += 1
        if not os.path.exists(Path(local.url, "stream.json")):
            local.create()
        local.open().verify()
    assert moments > 10


def test_power_cut_in_append_on_disk(
    local: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.create().append(primitive("GQA", seed=1))
    template = shutil.copytree(local.url, tmp_path / "template")

    def act() -> None:
        local.open().append(primitive("VQAv2", seed=2))

    seen = []
    for _ in power_cuts(template, local, monkeypatch, act):
        store = local.open()
        store.verify()
        seen.append(store.tasks)
        if store.tasks == ("GQA",):
            store.append(primitive("VQAv2", seed=2))
        local.open().verify()
        assert local.open().tasks == ("GQA", "VQAv2")
        assert_same(local.open().read(1), primitive("VQAv2", seed=2))
    assert set(seen) == {("GQA",), ("GQA", "VQAv2")}
    assert len(seen) > 40


def crash_at(turn: int) -> Callable[[str], None]:
    """For `patch_s3`: from request `turn` on there is no process to send any."""
    turns = itertools.count()

    def check(method: str) -> None:
        if next(turns) >= turn:
            raise CrashError

    return check


def test_crash_before_any_request_to_s3(s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for turn in itertools.count():
        place = replace(s3, url=f"{s3.url}-{turn}")
        ended = False
        with monkeypatch.context() as patch, contextlib.suppress(CrashError):
            patch_s3(patch, crash_at(turn))
            place.create().append(primitive("GQA"))
            ended = True
        if "stream.json" not in place.files():
            place.create()
        store = place.open()
        store.verify()
        seen.append(store.tasks)
        if not store.tasks:
            store.append(primitive("GQA"))
        place.open().verify()
        assert_same(place.open().read(0), primitive("GQA"))
        if ended:
            break
    assert set(seen) == {(), ("GQA",)}
    assert len(seen) > 6


def test_object_in_many_parts_survives_a_crash(s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    # s3fs splits what is 100 MiB and more; smaller parts take the same way in less time.
    part = 5 * 2**20
    monkeypatch.setattr(S3FileSystem._pipe_file, "__defaults__", (part, None, "overwrite"))
    s3 = replace(s3, options={**s3.options, "default_block_size": part})
    weights = torch.arange(3 * 2**20, dtype=torch.float32)
    want = replace(primitive("GQA"), experts={"layers.0.up_proj.A": weights})
    store = s3.create()
    methods: list[str] = []

    def crash(method: str) -> None:
        methods.append(method)
        if methods.count("upload_part") == 2:
            raise CrashError

    with monkeypatch.context() as patch:
        patch_s3(patch, crash)
        with pytest.raises(CrashError):
            store.append(want)
    assert s3.open().tasks == ()
    s3.open().append(want)
    assert_same(s3.open().read(0), want)


def test_damaged_leftover_of_a_crash_is_refused_not_committed(place: Place) -> None:
    place.create().append(primitive("GQA"))
    place.remove("000.json")
    name = next(name for name in place.files() if name.endswith("routers.safetensors"))
    place.write(name, b"torn")
    with pytest.raises(StoreError, match=r"routers\.safetensors: damaged: 4 bytes"):
        place.open().append(primitive("GQA"))
    place.remove(name)
    place.open().append(primitive("GQA"))
    place.open().verify()


# Damage is refused with the file's name and the cause.


def two_in(place: Place) -> Place:
    store = place.create()
    store.append(primitive("GQA", seed=1))
    store.append(primitive("VQAv2", seed=2))
    return place


@pytest.fixture
def two(place: Place) -> Place:
    return two_in(place)


@pytest.fixture
def two_on_disk(local: Place) -> Place:
    return two_in(local)


def refusal(place: Place) -> str:
    with pytest.raises(StoreError) as refused:
        place.open().verify()
    return str(refused.value)


def test_flipped_bit_in_any_file(two: Place) -> None:
    for name, data in two.files().items():
        for at in range(5, len(data), 11 if two.options == {} else len(data) // 2):
            flipped = bytearray(data)
            flipped[at] ^= 1 << (at % 8)
            two.write(name, bytes(flipped))
            message = refusal(two)
            assert f"{two.url}/{name}: " in message
            assert "damaged" in message or "schema version" in message
        two.write(name, data)
    two.open().verify()


def test_truncated_or_extended_file(two_on_disk: Place) -> None:
    for name, data in two_on_disk.files().items():
        for changed in (data[:-1], data + b"\n"):
            two_on_disk.write(name, changed)
            assert f"{two_on_disk.url}/{name}: damaged" in refusal(two_on_disk)
        two_on_disk.write(name, data)


def test_missing_file(two: Place) -> None:
    for name, data in two.files().items():
        if name == "001.json":
            continue  # A log without its last record is a shorter log; see the next test.
        two.remove(name)
        message = refusal(two)
        assert f"{two.url}/{name}: missing; " in message
        if name == "000.json":
            assert "gap in the log" in message
        if name == "stream.json":
            assert "no store here" in message
        two.write(name, data)
    two.open().verify()


def test_log_that_shrinks_under_a_reader(two: Place) -> None:
    reader = two.open()
    two.remove("001.json")
    assert two.open().tasks == ("GQA",)
    with pytest.raises(StoreError, match=r"001\.json: gone, though it was read before"):
        reader.refresh()
    with pytest.raises(StoreError, match="another log"):
        reader.verify()


def test_log_replaced_under_a_reader(local: Place) -> None:
    local.create().append(primitive("GQA", seed=1))
    reader = local.open()
    shutil.rmtree(local.url)
    local.create().append(primitive("GQA", seed=2))
    local.open().append(primitive("VQAv2"))
    with pytest.raises(StoreError, match=r"001\.json: its parent"):
        reader.refresh()
    with pytest.raises(StoreError, match="another log"):
        reader.verify()


def test_broken_parent(two_on_disk: Place) -> None:
    files = two_on_disk.files()
    for name, parent in (("000.json", "stream.json"), ("001.json", "000.json")):
        two_on_disk.write(name, resealed(files[name], parent="0" * 64))
        assert f"{name}: its parent is {'0' * 64}, but {parent} has digest" in refusal(two_on_disk)
        two_on_disk.write(name, files[name])
    # A header or a record that is whole, but of another log.
    two_on_disk.write("stream.json", resealed(files["stream.json"], config={"seed": 1}))
    assert "000.json: its parent" in refusal(two_on_disk)
    two_on_disk.write("stream.json", files["stream.json"])
    two_on_disk.write("000.json", resealed(files["000.json"], decision={}))
    assert "001.json: its parent" in refusal(two_on_disk)


def test_task_twice_in_a_log(two_on_disk: Place) -> None:
    two_on_disk.write("001.json", resealed(two_on_disk.files()["001.json"], task="GQA"))
    assert "001.json: task 'GQA' is in the log already" in refusal(two_on_disk)


def test_counts_that_the_files_do_not_hold(two_on_disk: Place) -> None:
    counts = {"experts": 17, "routers": 3, "locator": 4}
    two_on_disk.write("001.json", resealed(two_on_disk.files()["001.json"], parameters=counts))
    assert "001.json: counts" in refusal(two_on_disk)


@pytest.mark.parametrize("part", [*PARTS, "memory"])
def test_a_part_that_is_missing_or_unknown(two_on_disk: Place, part: str) -> None:
    data = two_on_disk.files()["001.json"]
    files = json.loads(data)["files"]
    fewer = {name: file for name, file in files.items() if name != part}
    more = {**files, f"{part}2": files["routers"]}
    for changed in (
        more,
        {**fewer, "other": files["routers"]},
        *([fewer] if part in files else []),
    ):
        two_on_disk.write("001.json", resealed(data, files=changed))
        message = refusal(two_on_disk)
        assert f"{two_on_disk.url}/001.json: has the parts " in message
        assert all(name in message for name in (*changed, *PARTS))
        # The records in front of it can still be read.
        follower = Store.follow(two_on_disk.url)
        with pytest.raises(StoreError, match=r"001\.json: has the parts"):
            follower.refresh()
        assert follower.tasks == ("GQA",)


@pytest.mark.parametrize("name", ["stream.json", "001.json"])
def test_unknown_schema_version(two_on_disk: Place, name: str) -> None:
    two_on_disk.write(name, resealed(two_on_disk.files()[name], schema=2))
    assert f"{two_on_disk.url}/{name}: has schema version 2; this program reads 1" in refusal(
        two_on_disk
    )


def test_another_base(two_on_disk: Place) -> None:
    store = two_on_disk.open()
    store.require_base(BASE.digest)
    with pytest.raises(StoreError, match=r"stream\.json: .*mini-llava@v1") as refused:
        store.require_base("c" * 64)
    assert "b" * 64 in str(refused.value)
    assert "c" * 64 in str(refused.value)


@pytest.mark.parametrize("index", [-1, 2])
def test_index_out_of_the_log(two_on_disk: Place, index: int) -> None:
    with pytest.raises(StoreError, match=f"no primitive {index}; there are 2"):
        two_on_disk.open().read(index)


# What can't be stored is refused before anything is written.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "GQA"}, "'GQA' is in the log already"),
        *(
            ({"task": task}, "can't name a folder")
            for task in ("", "../x", "a/b", ".hidden", "a b", "ä", "x" * 65, "x\n")
        ),
        ({"decision": {"scores": [0.5, float("nan")]}}, "record.decision.scores.1: nan"),
        ({"lora_alpha": float("inf")}, "record.lora_alpha: inf"),
        ({"decision": {"layers": {3: 0.5}}}, "record.decision.layers: JSON's keys are strings"),
        ({"decision": {"score": torch.tensor(1.0)}}, "record.decision.score: a Tensor"),
    ],
)
def test_unfit_primitive(local: Place, change: dict[str, Any], message: str) -> None:
    store = local.create()
    store.append(primitive("GQA"))
    before = local.files()
    with pytest.raises(StoreError, match=message.replace("(", r"\(")):
        store.append(replace(primitive("VQAv2"), **change))
    assert local.files() == before
    store.append(primitive("VQAv2"))


def test_unfit_config_and_place(local: Place) -> None:
    with pytest.raises(StoreError, match=r"header\.config\.out: a PosixPath"):
        Store.create(local.url, base=BASE, settings={}, config={"out": Path("runs")})
    with pytest.raises(StoreError, match="local path or s3://"):
        Store.open("memory://store")
    assert not os.path.exists(local.url)


# Two writers.


@pytest.mark.parametrize("turn", [0, 3])
@pytest.mark.parametrize(("task", "seed"), [("VQAv2", 2), ("VQAv2", 3), ("OCR-VQA", 3)])
def test_writer_overtaken_before_its_first_or_its_last_file(
    place: Place, monkeypatch: pytest.MonkeyPatch, turn: int, task: str, seed: int
) -> None:
    """Another writer commits the same task and tensors, other tensors, or another task."""
    place.create().append(primitive("GQA"))
    loser, winner = place.open(), place.open()
    create, count = store_files.Folder.create, itertools.count()

    def overtaken(self: Any, name: str, data: bytes) -> bool:
        if next(count) == turn:
            winner.append(primitive(task, seed))
            files.update(place.files())
        return create(self, name, data)

    files: dict[str, bytes] = {}
    monkeypatch.setattr(store_files.Folder, "create", overtaken)
    with pytest.raises(StoreError, match=rf"001\.json: index 1 is held by .*{task!r}"):
        loser.append(primitive("VQAv2", 2))
    assert files.items() <= place.files().items()
    assert len(loser) == 1
    with pytest.raises(StoreError, match="index 1 is held"):
        loser.append(primitive("Flickr"))
    store = place.open()
    store.verify()
    assert store.tasks == ("GQA", task)
    assert_same(store.read(1), primitive(task, seed))


def test_processes_that_race_for_every_index(local: Place) -> None:
    """On the disk alone: moto's own check and its write are two steps, unlike S3's."""
    rounds, fork = 15, multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(3), fork.SimpleQueue()
    local.create()

    def race(writer: int) -> None:
        won = []
        for turn in range(rounds):
            store = local.open()
            # Even turns are for one task with different tensors, odd ones for two tasks.
            task = f"turn-{turn}" if turn % 2 == 0 else f"turn-{turn}-of-{writer}"
            barrier.wait(timeout=30)
            with contextlib.suppress(StoreError):
                store.append(primitive(task, seed=writer))
                won.append(turn)
            barrier.wait(timeout=30)
        results.put((writer, won))

    writers = [fork.Process(target=race, args=(writer,), daemon=True) for writer in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=60)
        assert writer.exitcode == 0
    won = dict(results.get() for _ in writers)
    assert sorted(turn for turns in won.values() for turn in turns) == list(range(rounds))
    store = local.open()
    store.verify()
    for writer, turns in won.items():
        for turn in turns:
            assert bits(store.read(turn).routers["layers.0"]) == bits(
                primitive("any", seed=writer).routers["layers.0"]
            )


# What storage answers when it is far away.


def test_s3_answer_that_got_lost_is_not_another_writer(
    s3: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """s3fs repeats a request whose answer it never saw; its own object then refuses it."""
    call = S3FileSystem._call_s3

    async def twice(self: S3FileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "put_object":
            await call(self, method, *args, **kwargs)
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(S3FileSystem, "_call_s3", twice)
    s3.create().append(primitive("GQA"))
    s3.open().verify()


def test_s3_refusal_without_the_conditions_name(s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    call = S3FileSystem._call_s3

    async def vague(self: S3FileSystem, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return await call(self, method, *args, **kwargs)
        except FileExistsError:
            raise OSError(errno.EIO, "ConditionalRequestConflict") from None

    monkeypatch.setattr(S3FileSystem, "_call_s3", vague)
    first, second = s3.create(), s3.open()
    first.append(primitive("GQA"))
    with pytest.raises(StoreError, match="index 0 is held by another writer's task 'GQA'"):
        second.append(primitive("VQAv2"))


def test_a_server_that_overwrites_is_refused_before_anything_is_written(
    s3: Place, s3_server: Any
) -> None:
    with flaky(s3_server.endpoint) as proxy:
        proxy.unconditional = True
        there = replace(s3, options={**s3.options, "endpoint_url": proxy.url})
        with pytest.raises(StorageError, match=r"ignores If-None-Match.*needed is an S3 server"):
            there.create()
        assert s3.files() == {}
        s3.create().append(primitive("GQA"))
        before = s3.files()
        writer = there.open()
        assert_same(writer.read(0), primitive("GQA"))
        with pytest.raises(StorageError, match=r"ignores If-None-Match"):
            writer.append(primitive("VQAv2"))
        assert s3.files() == before
        proxy.unconditional = False
        writer.append(primitive("VQAv2"))
    s3.open().verify()


def test_a_writer_asks_once_whether_its_files_are_safe(
    s3: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3.create()
    calls: list[str] = []
    patch_s3(monkeypatch, calls.append)
    store.append(primitive("GQA"))
    assert calls == ["put_object"] * 4
    calls.clear()
    other = s3.open()
    other.append(primitive("VQAv2"))
    other.append(primitive("OCR-VQA"))
    assert calls.count("delete_object") == 1


def test_a_missing_bucket_is_no_missing_store(s3: Place) -> None:
    with pytest.raises(StoreError, match="there is no store here; create one first"):
        s3.open()
    for nowhere in ("s3://nowhere-at-all/store", "s3://"):
        with pytest.raises(StorageError, match=r"no bucket") as raised:
            Store.open(nowhere, **s3.options)
        assert not isinstance(raised.value, StoreError)


def test_s3_failure_is_no_refusal(s3: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store = s3.create()

    def deny(method: str) -> None:
        if method == "put_object":
            raise PermissionError("Access Denied")

    with monkeypatch.context() as patch:
        patch_s3(patch, deny)
        with pytest.raises(StorageError, match=r"no permission, or is wrong \(Access Denied\)"):
            store.append(primitive("GQA"))
    store.append(primitive("GQA"))


def test_nfs_answer_that_got_lost_is_not_another_writer(
    local: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def twice(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    local.create().append(primitive("GQA"))
    local.open().verify()


def test_file_system_without_hard_links(local: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=r"no hard links here"):
        local.create()
    assert local.files() == {}
