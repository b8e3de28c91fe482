"""`cmoe score`: the same program as `python -m cmoe.tasks.scorers`."""

from __future__ import annotations

from collections.abc import Sequence


def main(words: Sequence[str], prog: str) -> int:
    from cmoe.tasks import judge

    return judge.main(words, prog)
