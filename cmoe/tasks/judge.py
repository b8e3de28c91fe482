"""Score a prediction file of any method, joined with its answers as CoIN's own scripts do.

cmoe score --task GQA --predictions merge.jsonl --answers test.json
"""

from __future__ import annotations

import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from cmoe.common.command_line import Parser
from cmoe.tasks.answer_files import read_predictions, read_targets
from cmoe.tasks.registry import score, scorer_of, tasks
from cmoe.tasks.scorers import Mode, Target


@dataclass(frozen=True)
class Verdict:
    """What a prediction file is worth.

    Attributes:
        accuracy: Percent of the samples that count.
        samples: How many count.
        missing: Answers without a prediction.
        unknown: Predictions of ids that have no answer.
    """

    accuracy: float
    samples: int
    missing: int
    unknown: int


def judge(
    task: str, mode: Mode, predictions: Mapping[str, str], targets: Mapping[str, Target]
) -> Verdict:
    """Score predictions by question id against targets by question id.

    Officially a missing prediction is wrong in ScienceQA and elsewhere leaves its sample out, and
    ImageNet's predictions are matched with the answers by their order, whatever their ids (see
    `Scorer`). Strictly all is matched by id, and a missing prediction is wrong in every task.

    Raises:
        ValueError: No sample counts, there are more predictions than answers to match by order, or
            as `score`.
    """
    said: list[str | None]
    scorer = scorer_of(task)
    if scorer.by_order and mode == "official":
        if len(predictions) > len(targets):
            raise ValueError(
                f"{len(predictions)} predictions for {len(targets)} answers: official {task} "
                "matches them by order, and needs an answer for each"
            )
        said = list(predictions.values())
        against = list(targets.values())[: len(said)]
    else:
        every = mode == "strict" or scorer.counts_missing
        ids = [key for key in targets if every or key in predictions]
        said, against = [predictions.get(key) for key in ids], [targets[key] for key in ids]
    if not said:
        raise ValueError(
            f"none of {len(predictions)} predictions is of a question that has an answer; the "
            "answers must be of the split that was asked"
        )
    scores = score(task, mode, said, against)
    return Verdict(
        accuracy=100 * sum(scores) / len(scores),
        samples=len(scores),
        missing=len(targets.keys() - predictions.keys()),
        unknown=len(predictions.keys() - targets.keys()),
    )


def main(arguments: Sequence[str], prog: str) -> int:
    """The program; returns its exit status, 2 where a file can't be used."""
    modes = get_args(Mode)
    parser = Parser(
        prog=prog,
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, choices=tasks(), help="what was asked")
    parser.add_argument(
        "--predictions", required=True, type=Path, help="JSON lines, with question_id and text"
    )
    parser.add_argument(
        "--answers",
        required=True,
        type=Path,
        help="CoIN's test.json or val.json, or the data set's own: problems.json of ScienceQA "
        "(beside pid_splits.json), TextVQA_0.5.1_val.json, testdev_balanced_questions.json of GQA",
    )
    parser.add_argument(
        "--mode",
        choices=(*modes, "both"),
        default="both",
        help="official: as CoIN's scripts, to compare with papers; strict: without their defects",
    )
    asked = parser.parse_args(arguments)
    try:
        predictions = read_predictions(asked.predictions)
        targets = read_targets(asked.task, asked.answers)
        for mode in modes if asked.mode == "both" else (asked.mode,):
            found = judge(asked.task, mode, predictions, targets)
            print(
                f"{asked.task}, {mode}: accuracy {found.accuracy:.2f}%, {found.samples} samples, "
                f"{found.missing} predictions missing, {found.unknown} of unknown ids"
            )
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0
