"""Which runs a folder has, on a disk or on S3."""

from __future__ import annotations

from collections.abc import Iterator

from cmoe.common.storage import exists, explained, filesystem, is_missing
from cmoe.common.storage_errors import LISTED
from cmoe.folder import CONFIG


def is_run(url: str) -> bool:
    """Whether a folder is a run's; errors as of `exists`."""
    return exists(f"{url}/{CONFIG}")


def runs_below(url: str, depth: int) -> Iterator[str]:
    """URLs of the runs in a folder, by name; none where there is no folder.

    Args:
        url: Of the folder.
        depth: How many levels below it are looked at; what lies in a run isn't.

    Raises:
        StorageError: A folder can't be listed.
    """
    fs, root = filesystem(url)
    with explained(url, LISTED):
        try:
            entries = fs.ls(root, detail=True)
        except FileNotFoundError as error:
            if is_missing(error):
                return
            raise
    folders = (e["name"].rstrip("/") for e in entries if e["type"] == "directory")
    for name in sorted(path.rpartition("/")[2] for path in folders):
        inner = f"{url}/{name}"
        if is_run(inner):
            yield inner
        elif depth > 1:
            yield from runs_below(inner, depth - 1)
