"""Copy what a run has learned, for others to load.

OUT receives the store, with every file checked, and the run's model card as README.md. It receives
no checkpoint, no prediction, and no absolute path of this machine. What an interrupted export
leaves can't be loaded; the same command finishes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from cmoe.common.command_line import Parser


def main(words: Sequence[str], prog: str) -> int:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument(
        "source", metavar="RUN_OR_STORE", help="the folder of either, or its s3:// prefix"
    )
    parser.add_argument(
        "out", metavar="OUT", help="a folder or an s3:// prefix; nothing else may be there"
    )
    parser.add_argument(
        "--tasks",
        type=int,
        metavar="N",
        help="only the first N tasks, without the card, which is about all",
    )
    asked = parser.parse_args(words)
    if asked.tasks is not None and asked.tasks < 1:
        parser.error(f"--tasks is {asked.tasks}; 1 or more")
    from cmoe.common.storage import exists
    from cmoe.folder import STORE
    from cmoe.store.export import export
    from cmoe.store.log import HEADER, Store, StoreError

    url = asked.source.rstrip("/")
    found = next((u for u in (url, f"{url}/{STORE}") if exists(f"{u}/{HEADER}")), None)
    if found is None:
        raise StoreError(
            f"{url}: neither a store nor a run with one; give the folder that has {HEADER}, or the "
            f"one that has {STORE}/"
        )
    store = Store.open(found)
    whole = asked.tasks in (None, len(store))  # the card is about all tasks
    made = export(store, asked.out, tasks=asked.tasks, card=card_of(url) if whole else None)
    parameters = sum(sum(record.parameters.values()) for record in made.records())
    print(f"{made.url}: {', '.join(made.tasks)}; {parameters:,} parameters")
    return 0


def card_of(run: str) -> str | None:
    """The model card that a run has left; None where there is none."""
    from cmoe.common.storage import exists, explained, filesystem
    from cmoe.common.storage_errors import READ
    from cmoe.folder import CARD

    file = f"{run}/{CARD}"
    if not exists(file):
        return None
    fs, path = filesystem(file)
    with explained(file, READ):
        return str(fs.cat_file(path).decode())
