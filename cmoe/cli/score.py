"""`cmoe score`: what a file of predictions is worth by a task's or any scorer."""

from __future__ import annotations

from collections.abc import Sequence


def main(words: Sequence[str], prog: str) -> int:
    from cmoe.tasks import judge

    return judge.main(words, prog)
