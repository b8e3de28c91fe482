"""Score a prediction file of any method.

By a task, joined with its answers as CoIN's own scripts do:

    cmoe score --task GQA --predictions merge.jsonl --answers test.json

Or by a scorer, against a file of answers of your own:

    cmoe score --scorer anls --predictions said.jsonl --answers answers.jsonl

Or by a task of your own, which a configuration names, against its own test rows:

    cmoe score --config mine.yaml --task MyVQA --predictions said.jsonl
"""

from __future__ import annotations

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from cmoe.common.command_line import Parser, has_flag
from cmoe.tasks.answer_files import read_answers, read_predictions, read_targets
from cmoe.tasks.registry import scorer_of, tasks
from cmoe.tasks.scorer import AnyScorer, CoinScorer, CorpusScorer, Mode, Target
from cmoe.tasks.scorer_registry import lacks, scorer_named, scorers
from cmoe.tasks.scoring import scored_by


@dataclass(frozen=True)
class Verdict:
    """What a prediction file is worth.

    Attributes:
        accuracy: The figure of the samples that count, in percent.
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
    """`judge_by` a task's scorer."""
    return judge_by(scorer_of(task), task, mode, predictions, targets)


def judge_by(
    scorer: AnyScorer,
    name: str,
    mode: Mode,
    predictions: Mapping[str, str],
    targets: Mapping[str, Target],
) -> Verdict:
    """Score predictions by question id against targets by question id.

    Officially a missing prediction is wrong in ScienceQA and elsewhere in CoIN leaves its sample
    out, and ImageNet's predictions are matched with the answers by their order, whatever their ids
    (see `Scorer`). Strictly, and by scorers that aren't CoIN's, all is matched by id, and a missing
    prediction is wrong.

    Args:
        scorer: What judges.
        name: Of the task or the scorer, for errors.
        mode: Of CoIN's scorers.
        predictions: What was said.
        targets: What would be right.

    Raises:
        ValueError: No sample counts, there are more predictions than answers to match by order, or
            as `scored_by`.
    """
    said: list[str | None]
    coin = scorer if mode == "official" and isinstance(scorer, CoinScorer) else None
    if coin and coin.by_order:
        if len(predictions) > len(targets):
            raise ValueError(
                f"{len(predictions)} predictions for {len(targets)} answers: official {name} "
                "matches them by order, and needs an answer for each"
            )
        said = list(predictions.values())
        against = list(targets.values())[: len(said)]
    else:
        every = coin is None or coin.counts_missing
        ids = [key for key in targets if every or key in predictions]
        said, against = [predictions.get(key) for key in ids], [targets[key] for key in ids]
    if not said:
        raise ValueError(
            f"none of {len(predictions)} predictions is of a question that has an answer; the "
            "answers must be of the split that was asked"
        )
    return Verdict(
        accuracy=scored_by(scorer, name, mode, said, against).figure,
        samples=len(said),
        missing=len(targets.keys() - predictions.keys()),
        unknown=len(predictions.keys() - targets.keys()),
    )


Own = Callable[[str, str], tuple[str, Mapping[str, Target]]]
"""Of a task in a configuration's file: the scorer's name, and the targets of its test."""


def main(arguments: Sequence[str], prog: str, own: Own) -> int:
    """The program; returns its exit status, 2 where a file can't be used.

    Args:
        arguments: Its command line.
        prog: Its name.
        own: Reads a task of a configuration.
    """
    modes = get_args(Mode)
    parser = Parser(
        prog=prog,
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    judged = parser.add_mutually_exclusive_group(required=True)
    configured = has_flag(arguments, "--config")
    named = None if configured else tasks()
    judged.add_argument("--task", choices=named, help="what was asked")
    judged.add_argument("--scorer", help=f"by name: {', '.join(scorers())}")
    parser.add_argument(
        "--predictions", required=True, type=Path, help="JSON lines, with question_id and text"
    )
    parser.add_argument("--config", help="of a run that has the task; tells its test rows, too")
    parser.add_argument(
        "--answers",
        required=not configured,
        type=Path,
        help="of a task: CoIN's test.json or val.json, or the data set's own: problems.json of "
        "ScienceQA (beside pid_splits.json), TextVQA_0.5.1_val.json, "
        "testdev_balanced_questions.json of GQA; of a scorer: a JSON list or JSON lines with "
        "question_id and answer or answers",
    )
    parser.add_argument(
        "--mode",
        choices=(*modes, "both"),
        default="both",
        help="official: as CoIN's scripts, to compare with papers; strict: without their defects; "
        "other scorers than CoIN's have one rule",
    )
    asked = parser.parse_args(arguments)
    try:
        name = asked.task or asked.scorer
        if asked.config and not asked.task:
            raise ValueError("--config needs --task, one of its tasks")
        predictions = read_predictions(asked.predictions)
        scorer, answers = _judging(asked, own)
        two = isinstance(scorer, CoinScorer)
        for mode in modes[: 2 if two else 1] if asked.mode == "both" else (asked.mode,):
            found = judge_by(scorer, name, mode, predictions, answers)
            print(
                f"{name}{f', {mode}' if two else ''}: {_told(scorer, found)}, "
                f"{found.missing} predictions missing, {found.unknown} of unknown ids"
            )
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def _judging(asked: Namespace, own: Own) -> tuple[AnyScorer, Mapping[str, Target]]:
    """What judges, and what it judges by."""
    if asked.config:
        name, answers = own(asked.config, asked.task)
        return scorer_named(name), read_answers(asked.answers) if asked.answers else answers
    if asked.task:
        return scorer_of(asked.task), read_targets(asked.task, asked.answers)
    if (lack := lacks(asked.scorer)) is not None:
        raise ValueError(f"--scorer is {asked.scorer}, and {lack}")
    return scorer_named(asked.scorer), read_answers(asked.answers)


def _told(scorer: AnyScorer, found: Verdict) -> str:
    if isinstance(scorer, CorpusScorer):
        return f"{found.accuracy:.2f}, of {found.samples} samples together"
    return f"accuracy {found.accuracy:.2f}%, {found.samples} samples"
