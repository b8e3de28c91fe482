"""`cmoe phrasing`: ask a run's test questions as people may ask, and see what is located and said.

Reads the store of the run that the configuration names. It needs neither Ray nor training.
"""

from __future__ import annotations

from collections.abc import Sequence

from cmoe.config.parse import parse


def main(words: Sequence[str], prog: str) -> int:
    config = parse(words, prog)
    import torch

    from cmoe.data.coin import read_tasks
    from cmoe.evaluation.targets import stream_targets
    from cmoe.experiments.phrasing import asked_naturally
    from cmoe.folder import STORE
    from cmoe.mini.tasks import ensure_data
    from cmoe.run.stream import load
    from cmoe.store.log import Store
    from cmoe.store.model import load_model

    store = Store.open(f"{config.runs}/{config.name}/{STORE}")
    ensure_data(config.data)
    base, collator = load(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    model = load_model(store, base)
    tasks = {t.name: t for t in read_tasks(config.data, config.seed) if t.name in store.tasks}
    targets = stream_targets([*tasks.values()], config.data, config.evaluation)
    evaluation = config.evaluation
    print(f"{'':12}{'located':>9}{'unknown':>9}{'score':>9}{'told':>9}   percent")
    for row in asked_naturally(
        model,
        collator,
        tasks,
        [record.instructions for record in store.records()],
        targets,
        evaluation.scoring,
        evaluation.batch_size,
        evaluation.max_new_tokens,
    ):
        figures = (row.located, row.unknown, row.score, row.told)
        print(f"{row.way:12}" + "".join(f"{value:9.1f}" for value in figures), flush=True)
    return 0
