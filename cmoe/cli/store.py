"""Keep stores and runs over the years.

`verify` reads a whole store, and names what broken commits have left beside it. `copy` copies one
as it is, also while it is written. `upgrade` copies one of an older version into the newest.
`prune-runs` names what finished runs no longer need. Nothing is removed without --remove.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from cmoe.common.command_line import Parser, refuse_unknown
from cmoe.common.storage import S3, StorageError, exists

if TYPE_CHECKING:
    from cmoe.store.leftovers import Leftover
    from cmoe.store.log import Store

A_STORE = "the folder of a store or of a run, or its s3:// or hf:// URL"


def main(words: Sequence[str], prog: str) -> int:
    action, *rest = [*words] or ["--help"]
    if action not in ACTIONS:
        parser = Parser(prog=prog, description=__doc__)
        parser.add_argument(
            "action", metavar="ACTION", help=f"{', '.join(ACTIONS)}: each has --help"
        )
        parser.parse_args([action])  # ends here if that is a flag
        refuse_unknown(prog, "action", action, ACTIONS)
    return ACTIONS[action](rest, f"{prog} {action}")


def store_of(url: str, **options: Any) -> str:
    """The URL of the store that a URL of a store or of a run names; `options` are s3fs's.

    Raises:
        StoreError: There is none.
    """
    from cmoe.folder import STORE
    from cmoe.store.log import HEADER, StoreError

    url = url.rstrip("/")
    found = next((u for u in (url, f"{url}/{STORE}") if exists(f"{u}/{HEADER}", **options)), None)
    if found is None:
        raise StoreError(
            f"{url}: neither a store nor a run with one; give the folder that has {HEADER}, or the "
            f"one that has {STORE}/"
        )
    return found


# Verify


def verify(words: Sequence[str], prog: str) -> int:
    """Read every file of a store, and check sizes, digests and the chain of records.

    What broken commits have left beside the log is named: data without a record, temporary files,
    uploads that weren't completed. The status is 1 where something is damaged.
    """
    from cmoe.common.amounts import in_bytes
    from cmoe.store.leftovers import leftovers
    from cmoe.store.log import Store, StoreError

    parser = Parser(prog=prog, description=verify.__doc__)
    parser.add_argument("url", metavar="STORE", help=A_STORE)
    parser.add_argument(
        "--remove",
        action="store_true",
        help="remove for good what is left, where its writer has lost, or wrote it a day ago",
    )
    asked = parser.parse_args(words)
    store = Store.follow(store_of(asked.url))
    damages = list(_damages(store))
    files = [file for record in store.records() for file in record.files.values()]
    print(
        f"{store.url}: {len(store)} tasks, {len(files)} data files, "
        f"{in_bytes(sum(file.size for file in files))}, schema version "
        f"{' and '.join(map(str, sorted(store.schemas)))}"
    )
    if damages:
        raise StoreError(f"{store.url}: damaged: {len(damages)} of what was read; see above")
    left = leftovers(store)
    for each in left:
        age = time.time() - each.written
        print(_line(each.name, each.why, each.files, each.size, age))
    if left and not asked.remove:
        print("nothing was removed; --remove removes what no writer can still need")
    elif left:
        _remove(store, left)
    return 0


def _damages(store: Store) -> Iterator[str]:
    """Read a log, and tell of every primitive; yields what is damaged."""
    from cmoe.common.amounts import in_bytes
    from cmoe.store.log import StoreError

    broken = None
    try:
        store.refresh()
    except StoreError as error:  # the records in front of it have been read
        broken = str(error)
    for record in store.records():
        size = sum(file.size for file in record.files.values())
        about = f"{record.index:03d} {record.task}: {len(record.files)} files, {in_bytes(size)}"
        try:
            store.check(record.index)
            print(f"{about}: whole")
        except StoreError as error:
            print(f"{about}: {error}")
            yield str(error)
    if broken is not None:
        print(f"{broken}. What stands behind it can't be told")
        yield broken


def _remove(store: Store, left: Sequence[Leftover]) -> None:
    """Remove what broken commits have left, while no job may drive the run of the store."""
    from cmoe.folder import CONFIG, STORE
    from cmoe.run.lease import held
    from cmoe.store.leftovers import clock, remove

    run = store.url.removesuffix(f"/{STORE}")
    with ExitStack() as stack:
        if run != store.url and exists(f"{run}/{CONFIG}"):
            stack.enter_context(held(run))
        now = clock(store)
        for each in left:
            why = remove(store, each, now)
            print(f"{each.name}: {'removed' if why is None else f'left there, {why}'}")


def _line(name: str, why: str, files: int, size: int, age: float | None = None) -> str:
    from cmoe.common.amounts import in_bytes, in_days

    old = "" if age is None else f", {in_days(age)} old"
    return f"  {name}: {why}; {files} {'file' if files == 1 else 'files'}, {in_bytes(size)}{old}"


# Copy


def copy(words: Sequence[str], prog: str) -> int:
    """Copy a store as it is, to the byte, between disks, S3 and the hub.

    It may be written meanwhile. At any moment the copy is a shorter log that can be used. The same
    command goes on with one that was interrupted, or copies what was appended since. A folder with
    another log or with something else is refused. (`cmoe export` is for others: it replaces paths
    of this machine, and adds a card.)
    """
    from cmoe.store import copying
    from cmoe.store.log import Store

    asked, theirs, ours = _from_and_to(copy.__doc__, words, prog)
    source = Store.open(store_of(asked.source, **theirs), **theirs)
    made = copying.copy(source, asked.out, **ours)
    more = len(made) - len(source)
    ahead = f", {more} more than {source.url}" if more > 0 else ""
    print(f"{made.url}: {len(made)} tasks{ahead}")
    return 0


def upgrade(words: Sequence[str], prog: str) -> int:
    """Copy a store of an older schema version into the newest.

    A store of an older version is served and gone on with as it is. In an upgraded copy every file
    has the newest version, so that programs can read it which no longer read the older one. Its
    records are chained anew: they have other digests. A run goes on with its own store.
    """
    from cmoe.store.copying import copy, upgraded
    from cmoe.store.log import Store
    from cmoe.store.schema import SCHEMA

    asked, theirs, ours = _from_and_to(upgrade.__doc__, words, prog)
    source = Store.open(store_of(asked.source, **theirs), **theirs)
    if source.schemas == {SCHEMA}:
        print(f"{source.url}: nothing to do: all of it has schema version {SCHEMA}")
        return 0
    made = copy(source, asked.out, change=upgraded, **ours)
    print(f"{made.url}: {len(made)} tasks in schema version {SCHEMA}")
    return 0


def _from_and_to(
    about: str | None, words: Sequence[str], prog: str
) -> tuple[Namespace, dict[str, Any], dict[str, Any]]:
    """What is asked for, and s3fs's options of either place."""
    parser = Parser(prog=prog, description=about)
    parser.add_argument("source", metavar="FROM", help=A_STORE)
    parser.add_argument("out", metavar="TO", help="a folder, an s3:// prefix or hf://owner/name")
    places = {"from": "source", "to": "out"}
    for flag in places:
        help = f"profile of ~/.aws/config for {flag.upper()} on S3: its keys and endpoint_url"
        parser.add_argument(f"--{flag}-profile", metavar="NAME", help=help)
    asked = parser.parse_args(words)
    options: dict[str, dict[str, Any]] = {}
    for flag, place in places.items():
        profile, url = getattr(asked, f"{flag}_profile"), getattr(asked, place)
        if profile is not None and not url.startswith(S3):
            parser.error(f"--{flag}-profile is for a place on S3, and {flag.upper()} is {url}")
        options[flag] = {} if profile is None else {"profile": profile}
    return asked, options["from"], options["to"]


# Prune


def prune_runs(words: Sequence[str], prog: str) -> int:
    """Name what runs no longer need, with sizes; --remove removes it.

    Of a finished run these are its checkpoints, answers that no stage needs, and files that were
    half written. Its store, report, figures, answers and configuration stay. A run that a job
    drives is left alone. Of runs on S3 also the copies count that killed jobs have left on this
    machine.
    """
    from cmoe.common.amounts import in_bytes
    from cmoe.operations.prune import look, prune

    parser = Parser(prog=prog, description=prune_runs.__doc__)
    parser.add_argument("runs", metavar="RUNS", help="a folder of runs, or one run's; or its URL")
    parser.add_argument(
        "--stopped",
        action="store_true",
        help="also of runs that were stopped or failed: the task under way begins anew then",
    )
    parser.add_argument("--remove", action="store_true", help="remove for good what is named")
    asked = parser.parse_args(words)
    runs, copies = look(asked.runs, stopped=asked.stopped)
    for run in runs:
        hint = "" if run.state != "stopped" or asked.stopped else "; --stopped looks at it, too"
        print(f"{run.url}: {run.state}{f': {run.said}' if run.said else ''}{hint}")
        for each in run.removable:
            print(_line(each.name, each.why, each.files, each.size))
    for copied in copies:
        print(f"{copied.folder}: a killed job's copy of {copied.url}")
    pruned = [run for run in runs if run.removable]
    sizes = [each.size for run in pruned for each in run.removable]
    total = in_bytes(sum(sizes) + sum(copied.size for copied in copies))
    if not asked.remove:
        end = "; nothing was removed, --remove removes it" if pruned or copies else ""
        print(f"together {total}{end}")
        return 0
    removals: list[Callable[[], None]] = [partial(prune, run) for run in pruned]
    failed = 0
    for remove in [*removals, *(copied.remove for copied in copies)]:
        try:
            remove()
        except StorageError as error:  # the others go on
            failed += 1
            print(f"left there: {error}")
    print(f"together {total}; {'removed' if not failed else f'{failed} were left there'}")
    return 1 if failed else 0


ACTIONS = {"verify": verify, "copy": copy, "upgrade": upgrade, "prune-runs": prune_runs}
