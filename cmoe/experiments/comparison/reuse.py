"""A run begins with what another has learned already, as their logs would begin alike.

A candidate for a method's settings trains as the comparison's own run with those settings and that
seed does, on the same samples: only what they are judged on differs. So their primitives would be
the same, bit for bit; the run takes them, and goes on behind them.
"""

from __future__ import annotations

from cmoe.common.remote.mirror import mirrored
from cmoe.common.storage import exists
from cmoe.config.tree import RunConfig
from cmoe.evaluation.data_identity import claim_data, trained_on
from cmoe.folder import APART, CONFIG, DATA, STAGES, RunFolder
from cmoe.run.worker_group import rooted
from cmoe.store.log import HEADER, Store


def reuse_primitives(run: RunConfig, learned: RunConfig) -> int:
    """Give a run the primitives of one that has come to its end; safe to repeat.

    Args:
        run: Neither under way nor finished. What it has learned already stays as it is.
        learned: The same but for its name, what it is judged on, and further tasks.

    Returns:
        How many primitives it was given now.

    Raises:
        RunError: A run of this name was configured otherwise.
        DataError: What is taken was learned from other data than the run's.
        StoreError: A store is damaged.
    """
    with mirrored(learned.url, apart=APART) as source, mirrored(run.url, apart=APART) as mirror:
        mirror.fetch(CONFIG, DATA, STAGES)
        folder = RunFolder(mirror.folder, run.url)
        folder.require_same(run.as_dict())
        source.fetch(DATA, STAGES)
        folder.claim(run.as_dict())
        claim_data(folder.path, trained_on(source.folder))
        taken = RunFolder(source.folder, learned.url)
        log = Store.open(taken.store)
        if exists(f"{folder.store}/{HEADER}"):
            mine = Store.open(folder.store)
        else:
            base, settings = log.header.base, log.header.settings
            config = rooted(run).as_dict()
            mine = Store.create(folder.store, base=base, settings=settings, config=config)
        missing = range(len(mine), len(log))
        folder.stages.mkdir(exist_ok=True)
        for index in missing:
            # What it took and how its losses went: before the primitive, as where it is learned.
            folder.note(index, taken.read_notes(index))
            mirror.flush()
            mine.append(log.read(index))
    return len(missing)
