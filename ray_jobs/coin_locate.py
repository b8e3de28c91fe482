"""Compare the locator's features and scores: `python ray_jobs/coin_locate.py --config FILE`.

Needs the frozen base alone, and neither Ray nor training: choose `locator.layer`, `.pooling` and
`.score` by it before a stream. It never reads the test splits.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch

from cmoe.config import parse

SELECTION = 0.1  # of the training samples, where the configuration holds none back


def main() -> int:
    config = parse(prog="coin_locate.py")
    from cmoe.benchmarks.locating import accuracies
    from cmoe.data.batches import Collator
    from cmoe.data.coin import ensure_data, read_tasks
    from cmoe.data.samples import DataError
    from cmoe.modeling.base import load_base

    data = replace(
        config.data, selection=config.data.selection or SELECTION, evaluate_on="selection"
    )
    try:
        ensure_data(data)
        tasks = read_tasks(data, config.seed)
        base, processor = load_base(
            config.model.path,
            revision=config.model.revision,
            dtype=getattr(torch, config.model.dtype),
            device="cuda" if torch.cuda.is_available() else "cpu",
            pad=config.model.pad,
        )
        limit = config.data.max_length or base.config.get_text_config().max_position_embeddings
        collator = Collator(processor, limit, config.evaluation.max_new_tokens)
        batch = config.evaluation.batch_size
        print(f"{len(tasks)} tasks, {sum(len(t.test) for t in tasks)} selection samples; percent")
        for row in accuracies(base, collator, tasks, config.locator, batch, config.seed):
            print(
                "  ".join(
                    f"{n} {v:.1f}" if isinstance(v, float) else f"{n} {v}" for n, v in row.items()
                ),
                flush=True,
            )
    except (DataError, OSError) as error:
        print(f"coin_locate.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
