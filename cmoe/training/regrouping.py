"""A checkpoint that another number of workers has left, for these."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cmoe.common.files import temporary_folder
from cmoe.common.group import Group
from cmoe.training.engine import convert
from cmoe.training.link import Link


@contextmanager
def converted(link: Link, group: Group) -> Iterator[Path]:
    """The latest checkpoint for any number of workers, in a folder of each worker's own.

    Rank 0 alone reads what was kept and converts it. The others get its files, one by one.
    """
    with tempfile.TemporaryDirectory(dir=temporary_folder()) as folder:
        into = Path(folder)

        def made() -> list[str]:
            with link.saved() as kept:
                assert kept is not None
                convert(kept, into)
            files = (file for file in sorted(into.rglob("*")) if file.is_file())
            return [file.relative_to(into).as_posix() for file in files]

        for name in group.from_first(made):
            data = group.from_first((into / name).read_bytes)
            if not group.first:
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                (into / name).write_bytes(data)
        yield into
