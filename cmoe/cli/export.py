"""Copy what a run has learned, for others to load.

By default OUT receives the store, with every file checked. With --to peft it receives LoRA adapters
that PEFT loads, with --merge a whole model that transformers loads, both only where the method's
tasks are LoRAs. There is a model card, README.md, with it. It receives no checkpoint, no
prediction, and no absolute path of this machine. What an interrupted export leaves can't be loaded;
the same command finishes it.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from cmoe.common.command_line import Parser

if TYPE_CHECKING:
    from cmoe.store.log import Store

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}")


def main(words: Sequence[str], prog: str) -> int:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument(
        "source", metavar="RUN_OR_STORE", help="the folder of either, or its s3:// or hf:// URL"
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        help="a folder, an s3:// prefix, or hf://owner/name of the hub; nothing else may be there",
    )
    parser.add_argument(
        "--to",
        choices=("store", "peft", "hub"),
        help="a store (default); PEFT's adapters; or the hub, where OUT is owner/name",
    )
    parser.add_argument("--merge", action="store_true", help="a model, adapters merged into it")
    parser.add_argument("--task", metavar="NAME", help="with peft or --merge: this task alone")
    parser.add_argument("--tasks", type=int, metavar="N", help="only the first N tasks")
    parser.add_argument("--license", metavar="ID", help="for the card, as the hub names licenses")
    parser.add_argument("--language", metavar="CODE", help="for the card, such as en")
    asked = parser.parse_args(words)
    if mistakes := list(_mistakes(asked)):
        parser.error("; ".join(mistakes))
    if asked.to == "hub":
        asked.out = f"hf://{asked.out.removeprefix('hf://')}"
    print(_export(asked))
    return 0


def _mistakes(asked: Namespace) -> Iterator[str]:
    apart = asked.to == "peft" or asked.merge
    if asked.tasks is not None and asked.tasks < 1:
        yield f"--tasks is {asked.tasks}; 1 or more"
    if asked.merge and asked.to in ("store", "peft"):
        yield f"--merge writes a whole model, and --to {asked.to} doesn't; give one of them"
    if asked.task is not None and not apart:
        yield "--task is for --to peft and --merge; of a store, --tasks N takes the first tasks"
    if asked.task is not None and asked.tasks is not None:
        yield "--task names one task and --tasks the first ones; give one of them"
    if asked.to == "hub" and not re.fullmatch(r"(hf://)?[^/:]+/[^/:]+", asked.out):
        yield f"OUT is {asked.out!r}; with --to hub it is owner/name"
    if apart and "://" in asked.out and not asked.out.startswith("hf://"):
        yield f"OUT is {asked.out!r}; PEFT and transformers load from folders and from the hub"
    if asked.license is not None and not _LICENSE.fullmatch(asked.license):
        yield (
            f"--license is {asked.license!r}; an identifier such as apache-2.0, of "
            "https://huggingface.co/docs/hub/repositories-licenses"
        )
    if asked.language is not None and not _LANGUAGE.fullmatch(asked.language):
        yield f"--language is {asked.language!r}; a code of ISO 639 such as en"


def _export(asked: Namespace) -> str:
    """Do what is asked; what was done, in a line."""
    from cmoe.cli.store import store_of
    from cmoe.store.log import Store, StoreError

    url = asked.source.rstrip("/")
    store = Store.open(store_of(url))
    count = len(store) if asked.tasks is None else asked.tasks
    if count > len(store) or not len(store):
        raise StoreError(f"{store.url}: has {len(store)} tasks; can't export {count}")
    report = report_of(url) if count == len(store) and asked.task is None else None
    if asked.to == "peft" or asked.merge:
        return _adapters(asked, store, count, report)

    from cmoe.store.export import export

    card = _card(asked, store, "store", store.tasks[:count], report)
    made = export(store, asked.out, tasks=count, card=card)
    parameters = sum(sum(record.parameters.values()) for record in made.records())
    return f"{made.url}: {', '.join(made.tasks)}; {parameters:,} parameters"


def _adapters(asked: Namespace, store: Store, count: int, report: str | None) -> str:
    """Write adapters, or a model with one merged into it."""
    from cmoe.exports.folders import folder_for, write_adapters, write_model
    from cmoe.exports.loras import loras
    from cmoe.modeling.fixed import NotFixedError
    from cmoe.modeling.pretrained import load_shape
    from cmoe.store.model import base_of

    named = base_of(store)
    try:
        found = loras(
            store,
            store.header.settings,
            lambda: load_shape(named.path, revision=named.revision),
            count=count,
            task=asked.task,
        )
    except NotFixedError as error:
        raise NotFixedError(f"{store.url}: {error}") from error
    if asked.merge and len(found) > 1:
        raise NotFixedError(
            f"{store.url}: each task has an adapter of its own, and one can be merged; give "
            f"--task NAME: {', '.join(found)}"
        )
    tasks = (asked.task,) if asked.task else store.tasks[:count]
    single = asked.task is not None or "" in found
    with folder_for(asked.out) as folder:
        if asked.merge:
            write_model(store, next(iter(found.values()))(), folder)
        else:
            places = {"" if single else name: updates for name, updates in found.items()}
            write_adapters(store, places, folder)
        kind: Literal["model", "peft"] = "model" if asked.merge else "peft"
        card = _card(asked, store, kind, tasks, report, () if single or asked.merge else tasks)
        (folder / "README.md").write_text(card, encoding="utf-8")
    what = "a model" if asked.merge else f"adapters for PEFT ({len(found)})"
    return f"{asked.out}: {what} of {', '.join(tasks)}"


# The card


def _card(
    asked: Namespace,
    store: Store,
    kind: Literal["store", "peft", "model"],
    tasks: tuple[str, ...],
    report: str | None,
    folders: tuple[str, ...] = (),
) -> str:
    from dataclasses import asdict

    from cmoe.reports.card import Published, model_card
    from cmoe.store.export import without_paths, without_paths_in_text

    place = str(without_paths(asked.out))
    place = place if kind == "store" else place.removeprefix("hf://")
    published = Published(
        kind,
        place,
        without_paths(asdict(store.header.base)),
        without_paths(store.header.config),
        store.header.settings.get("method", "cmoe"),
        tasks,
        folders,
        asked.license,
        asked.language,
    )
    return without_paths_in_text(model_card(published, report))


def report_of(run: str) -> str | None:
    """The report for a card that a run has left; None where there is none."""
    from cmoe.common.storage import exists, explained, filesystem
    from cmoe.common.storage_errors import READ
    from cmoe.folder import CARD

    file = f"{run}/{CARD}"
    if not exists(file):
        return None
    fs, path = filesystem(file)
    with explained(file, READ):
        return str(fs.cat_file(path).decode())
