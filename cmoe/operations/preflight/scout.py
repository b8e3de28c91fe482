"""What is looked at on one machine, by an actor there.

Its code travels with it, by value: a machine may have another cmoe, or none, and is to tell that.
So modules of cmoe are imported where they are needed, and what is told is plain values.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from cmoe.common.versions import versions

SMI = ("index", "name", "memory.total", "memory.free", "driver_version", "compute_cap")
SMI_S = 20.0  # for nvidia-smi, which hangs where a driver does
ATTEMPTS = 3  # of a request to S3
LISTED = 1000  # entries of a folder whose sizes are compared
MIB = 2**20


class Scout:
    """Looks at the machine that it runs on."""

    def about(self) -> dict[str, Any]:
        """Versions, memory and shared memory, in bytes, and where temporary files and the hub's
        cache lie.
        """
        shared = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
        cache = os.environ.get("HF_HUB_CACHE") or os.path.join(
            os.environ.get("HF_HOME", "~/.cache/huggingface"), "hub"
        )
        return {
            "versions": versions(),
            "memory": _memory(),
            "shared_memory": shared.free if shared else None,
            "places": {"temp": tempfile.gettempdir(), "cache": os.path.expanduser(cache)},
        }

    def clock(self) -> float:
        """Seconds since the epoch, by this machine's clock."""
        return time.time()

    def gpus(self) -> dict[str, Any]:
        """The GPUs as the driver lists them, memory in bytes; and the CUDA that torch is built for.

        What can't be asked is told as `error`.
        """
        if not shutil.which("nvidia-smi"):
            return {"gpus": []}
        asked = [f"--query-gpu={','.join(SMI)}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(
                ["nvidia-smi", *asked], capture_output=True, text=True, timeout=SMI_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return {"gpus": [], "error": f"nvidia-smi doesn't answer: {error}"}
        if done.returncode:
            said = (done.stdout + done.stderr).strip().partition("\n")[0]
            return {"gpus": [], "error": f"nvidia-smi fails: {said}"}
        import torch

        return {"gpus": parse_smi(done.stdout), "cuda": torch.version.cuda or "none"}

    def disk(self, places: dict[str, str]) -> dict[str, tuple[int, int]]:
        """Bytes free and in all where each of some folders lies, or will lie."""
        found = {}
        for name, place in places.items():
            there = Path(place).absolute()
            while not there.exists():
                there = there.parent
            usage = shutil.disk_usage(there)
            found[name] = usage.free, usage.total
        return found

    # Folders that all machines share

    def mark(self, folder: str, name: str, make: bool) -> dict[str, Any]:
        """Leave a file in a folder.

        Args:
            folder: Its path.
            name: Of the file.
            make: Make the folder where there is none.

        Returns:
            `made`: the folders that were made for it; `error`: why it can't be left.
        """
        place = Path(folder)
        above = [each for each in (place, *place.parents) if not each.exists()]
        try:
            if make:
                place.mkdir(parents=True, exist_ok=True)
            (place / name).touch(exist_ok=False)
        except OSError as error:
            return {"made": [str(each) for each in above if each.exists()], "error": str(error)}
        return {"made": [str(each) for each in above], "error": None}

    def seen(self, folder: str, name: str) -> dict[str, Any]:
        """Whether a marked folder is this machine's, too, and what is in the one that it has.

        Returns:
            `there`: whether there is such a folder; `marked`; `files`: sizes by name, two levels
            deep, those marked aside.
        """
        place = Path(folder)
        if not place.is_dir():
            return {"there": False, "marked": False, "files": {}}
        return {"there": True, "marked": (place / name).exists(), "files": _files(place, name)}

    def unmark(self, folder: str, name: str, made: list[str]) -> None:
        """Remove a mark, and the folders that were made for it."""
        (Path(folder) / name).unlink(missing_ok=True)
        for each in made:
            with suppress(OSError):  # somebody else uses it by now
                os.rmdir(each)

    # Storage

    def rights(self, url: str, name: str) -> dict[str, str]:
        """What can't be done under a path or an S3 prefix, and why.

        Args:
            url: The path or prefix.
            name: Of the files that are written there, and removed.
        """
        from cmoe.common.exclusive import require_exclusive
        from cmoe.common.storage import StorageError, explained, filesystem, is_missing
        from cmoe.common.storage_errors import LISTED, READ, WRITTEN

        try:
            fs, path = filesystem(url, attempts=ATTEMPTS)
        except StorageError as error:
            return {"use": str(error)}
        file, failed = f"{path}/{name}", {}

        def listed() -> None:
            try:
                fs.ls(path, detail=False)
            except FileNotFoundError as error:
                if not is_missing(error):
                    raise

        for what, done, act in (
            ("list", LISTED, listed),
            ("write", WRITTEN, lambda: fs.pipe_file(file, b"check")),
            ("create exclusively", WRITTEN, lambda: require_exclusive(fs, path, url)),
            ("read", READ, lambda: fs.cat_file(file)),
            ("delete", "removed", lambda: fs.rm_file(file)),
        ):
            if "write" in failed and what in ("read", "delete", "create exclusively"):
                continue  # there is nothing to try it on
            try:
                with explained(url, done):
                    act()
            except StorageError as error:
                failed[what] = str(error)
        return failed

    def readable(self, url: str) -> str | None:
        """Why a URL of data can't be listed; None where it can."""
        from cmoe.common.storage import StorageError, explained, filesystem
        from cmoe.common.storage_errors import LISTED

        try:
            fs, path = filesystem(url, attempts=ATTEMPTS)
            with explained(url, LISTED):
                fs.ls(path, detail=False)
        except StorageError as error:
            return str(error)
        return None

    def base(self, name: str, revision: str | None) -> dict[str, Any]:
        """Whether a base can be had: in a folder, in the cache, or from the hub.

        Returns:
            `error`: why not; `bytes`: of its weights, where known; `fetched`: whether they have to
            be fetched first.
        """
        from cmoe.common.errors import KnownError
        from cmoe.modeling.pretrained import require_base
        from cmoe.modeling.sources import is_mirror, mirrored_weights

        try:
            require_base(name, revision=revision)
        except KnownError as error:
            return {"error": str(error), "bytes": None, "fetched": False}
        if is_mirror(name):
            weights, here = mirrored_weights(name)
            return {"error": None, "bytes": weights, "fetched": not here}
        if Path(name).is_dir():
            sizes = [file.stat().st_size for file in Path(name).glob("*.safetensors")]
            return {"error": None, "bytes": sum(sizes), "fetched": False}
        return _of_hub(name, revision)


def parse_smi(text: str) -> list[dict[str, Any]]:
    """What nvidia-smi says of each GPU, memory in bytes."""
    found = []
    for line in text.strip().splitlines():
        index, name, total, free, driver, capability = (part.strip() for part in line.split(","))
        memory = [int(n) * MIB if n.isdigit() else None for n in (total, free)]
        found.append(
            {"index": int(index), "name": name, "total": memory[0], "free": memory[1]}
            | {"driver": driver, "capability": capability}
        )
    return found


def _memory() -> dict[str, int]:
    """Bytes of memory in all and free, of this container where it has a limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    said = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if "kB" in line}
    total, free = said["MemTotal"], said["MemAvailable"]
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max" where there is none
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat["inactive_file"])
        total, free = min(total, limit), min(free, limit - used)
    return {"total": total, "free": free}


def _files(folder: Path, but: str) -> dict[str, int]:
    """Sizes of the files in a folder and in the folders there; -1 of what is no file.

    Folders with more than `LISTED` entries, such as those of images, are left out.
    """
    found: dict[str, int] = {}
    for place in (folder, *sorted(each for each in folder.iterdir() if each.is_dir())):
        entries = list(islice(os.scandir(place), LISTED + 1))
        if len(entries) <= LISTED:
            found |= {
                str(Path(entry.path).relative_to(folder)): _size(entry)
                for entry in entries
                if entry.name != but
            }
    return found


def _size(entry: os.DirEntry[str]) -> int:
    return entry.stat().st_size if entry.is_file() else -1


def _of_hub(name: str, revision: str | None) -> dict[str, Any]:
    """A base that is no folder, as `Scout.base` tells of it."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache

    from cmoe.common.storage import storage_error
    from cmoe.common.storage_errors import READ
    from cmoe.modeling.sources import WEIGHTS, WEIGHTS_INDEX

    cached = (try_to_load_from_cache(name, f, revision=revision) for f in (WEIGHTS, WEIGHTS_INDEX))
    here = next((Path(file) for file in cached if isinstance(file, str)), None)
    if here is not None:
        sizes = [file.stat().st_size for file in here.parent.glob("*.safetensors")]
        return {"error": None, "bytes": sum(sizes), "fetched": False}
    try:
        info = HfApi(library_name="cmoe").model_info(name, revision=revision, files_metadata=True)
    except Exception as error:  # of the hub, or of whatever lies between
        told = storage_error(error, f"hf://{name}", READ) or f"{type(error).__name__}: {error}"
        why = f"its weights aren't in the cache {constants.HF_HUB_CACHE}, and {told}"
        return {"error": why, "bytes": None, "fetched": True}
    files = [f for f in info.siblings or () if f.rfilename.endswith(".safetensors")]
    return {"error": None, "bytes": sum(f.size or 0 for f in files), "fetched": True}
