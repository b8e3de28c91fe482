"""A crash of a log leaves the old state or the new one."""

from __future__ import annotations

import builtins
import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.logs import (
    Place,
    assert_same,
    in_small_parts,
    killed_in_an_upload,
    large_primitive,
    patch_s3,
    primitive,
)

from cmoe.common import exclusive
from cmoe.store.log import StoreError


class CrashError(Exception):
    """The process ends here."""


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
    s3, want = in_small_parts(s3, monkeypatch), large_primitive()
    killed_in_an_upload(s3.create(), want, monkeypatch, aborts=True)
    assert s3.open().tasks == ()
    s3.open().append(want)
    assert_same(s3.open().read(0), want)


def test_damaged_leftover_of_a_crash_is_refused_not_committed(anywhere: Place) -> None:
    anywhere.create().append(primitive("GQA"))
    anywhere.remove("000.json")
    name = next(name for name in anywhere.files() if name.endswith("routers.safetensors"))
    anywhere.write(name, b"torn")
    with pytest.raises(StoreError, match=r"routers\.safetensors: damaged: 4 bytes"):
        anywhere.open().append(primitive("GQA"))
    anywhere.remove(name)
    anywhere.open().append(primitive("GQA"))
    anywhere.open().verify()
