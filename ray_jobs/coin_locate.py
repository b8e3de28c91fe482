"""Compare the locator's features and scores: `python ray_jobs/coin_locate.py --config FILE`.

Needs the frozen base alone, and neither Ray nor training: choose `locator.layer`, `.pooling` and
`.score` by it before a stream. It never reads the test splits.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from cmoe.config.parse import parse

SELECTION = 0.1  # of the training samples, where the configuration holds none back


def main() -> int:
    config = parse(prog="coin_locate.py")
    import torch

    from cmoe.common.errors import DataError
    from cmoe.common.storage import StorageError
    from cmoe.data.coin import read_tasks
    from cmoe.data.texts import reserved_tokens
    from cmoe.experiments.benchmarks.locating import accuracies
    from cmoe.mini.tasks import ensure_data
    from cmoe.modeling.pretrained import load_processor
    from cmoe.modeling.settings import MIN_SAMPLES
    from cmoe.run.stream import load

    data = replace(
        config.data, selection=config.data.selection or SELECTION, evaluate_on="selection"
    )
    try:
        ensure_data(data)
        processor = load_processor(config.model.path, revision=config.model.revision)
        tokens = reserved_tokens(processor)
        tasks = read_tasks(data, config.seed, tokens=tokens, least=MIN_SAMPLES)
        base, collator = load(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        batch = config.evaluation.batch_size
        print(f"{len(tasks)} tasks, {sum(len(t.test) for t in tasks)} selection samples; percent")
        for row in accuracies(base, collator, tasks, config.locator, batch, config.seed):
            print(
                "  ".join(
                    f"{n} {v:.1f}" if isinstance(v, float) else f"{n} {v}" for n, v in row.items()
                ),
                flush=True,
            )
    except (DataError, StorageError, OSError) as error:
        print(f"coin_locate.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
