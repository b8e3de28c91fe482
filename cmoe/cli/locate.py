"""`cmoe locate`: compare the locator's features and scores.

Needs the frozen base alone, and neither Ray nor training: choose `locator.layer`, `.pooling` and
`.score` by it before a stream. It never reads the test splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cmoe.config.parse import parse

SELECTION = 0.1  # of the training samples, where the configuration holds none back


def main(words: Sequence[str], prog: str) -> int:
    config = parse(words, prog)
    import torch

    from cmoe.data.coin import read_tasks
    from cmoe.experiments.locator_choice import accuracies, chosen
    from cmoe.mini.tasks import ensure_data
    from cmoe.modeling.settings import MIN_SAMPLES
    from cmoe.run.stream import load
    from cmoe.tasks.base_rule import base_rule

    data = replace(
        config.data, selection=config.data.selection or SELECTION, evaluate_on="selection"
    )
    ensure_data(data)
    tasks = read_tasks(data, config.seed, base=base_rule(config.model), least=MIN_SAMPLES)
    base, collator = load(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    batch = config.evaluation.batch_size
    print(f"{len(tasks)} tasks, {sum(len(t.test) for t in tasks)} selection samples; percent")
    rows = []
    for row in accuracies(base, collator, tasks, config.locator, batch, config.seed):
        rows.append(row)
        shown = (f"{n} {v:.1f}" if isinstance(v, float) else f"{n} {v}" for n, v in row.items())
        print("  ".join(shown), flush=True)
    print(f"choice: {chosen(rows)}")
    return 0
