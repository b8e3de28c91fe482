"""What the launcher is to the worker program."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol


class Link(Protocol):
    """A worker's way to show where it is, and to keep checkpoints."""

    def emit(self, event: Mapping[str, Any]) -> None:
        """Show progress: the first worker's is shown, every worker tells its own."""
        ...

    def reached(self, place: Mapping[str, Any]) -> None:
        """Tell where this worker is, as an event does, and show nothing. It is cheap."""
        ...

    def save(self, folder: Path, *, wait: bool) -> None:
        """Keep this worker's share of a checkpoint, and remove the folder; every worker calls it.

        It may come back before that is done, unless it is to wait.
        """
        ...

    def leaving(self) -> bool:
        """Whether this worker has heard that a machine of the group is about to be taken away.

        It is told once.
        """
        ...

    def saved(
        self, needed: Callable[[str], bool] | None = None
    ) -> AbstractContextManager[Path | None]:
        """The latest checkpoint, the shares of all workers in one folder.

        Args:
            needed: Whether a file of this name is; others may be left out.
        """
        ...

    def read_saved(self, name: str) -> str | None:
        """One file of it; None where there is none."""
        ...
