"""`cmoe score --config`: a task of the user's own, against its own test rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cmoe.cli.main import main
from cmoe.common.errors import DataError
from cmoe.config.parse import parse
from cmoe.experiments.planning.samples import samples_of
from cmoe.run.launch import read_stream


@pytest.fixture
def config(tmp_path: Path) -> Path:
    rows = [
        {"id": "1", "question": "How many?", "answer": "100"},
        {"id": "2", "question": "Which?", "answers": ["a cup", "cup", "cup"]},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "mine.yaml"
    own = "{train: rows.jsonl, test: rows.jsonl, scorer: relaxed}"
    file.write_text(f"data:\n  root: {tmp_path}\n  own:\n    Charts: {own}\n")
    return file


def scored(config: Path, texts: list[str], *more: str, task: str = "Charts") -> int:
    said = config.with_name("said.jsonl")
    lines = [json.dumps({"question_id": n, "text": t}) for n, t in enumerate(texts, 1)]
    said.write_text("\n".join(lines))
    words = ["--config", str(config), "--task", task, "--predictions", str(said), *more]
    return main(["score", *words])


def test_its_scorer_and_its_answers_are_the_configurations(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number may be 5 percent off, and the best of several answers counts."""
    assert scored(config, ["104", "a cup"]) == 0
    assert "Charts: accuracy 100.00%, 2 samples" in capsys.readouterr().out
    assert scored(config, ["106", "cup"]) == 0
    assert "Charts: accuracy 50.00%, 2 samples" in capsys.readouterr().out


def test_other_answers_may_be_given(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = config.with_name("answers.jsonl")
    answers.write_text('{"question_id": 1, "answer": "7"}')
    assert scored(config, ["7", "cup"], "--answers", str(answers)) == 0
    assert "accuracy 100.00%, 1 samples" in capsys.readouterr().out


def test_a_task_that_it_does_not_have_is_refused(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scored(config, ["7"], task="Chart") == 2
    assert "data.tasks has no 'Chart'; there are Charts; the nearest is Charts" in (
        capsys.readouterr().err
    )


def test_a_plan_and_a_run_count_its_rows_and_name_a_file_that_is_gone(config: Path) -> None:
    run = parse(["--name", "x", "--config", str(config), "--method", "lora"])
    found = samples_of(run)["Charts"]
    assert (found.train, found.test, found.published) == (2, 2, False)
    said: list[str] = []
    (task,) = read_stream(run, said.append)
    assert task.scorer == "relaxed"
    assert said[0] == "Charts/train: table (JSONL), 2 rows"
    config.with_name("rows.jsonl").unlink()
    for reading in (samples_of, read_stream):
        with pytest.raises(DataError, match=r"rows\.jsonl: can't be read: No such file"):
            reading(run)


def test_answers_that_a_scorer_cannot_judge_by_are_refused_before_anything_starts(
    config: Path,
) -> None:
    """TextVQA's scorer takes one answer or ten."""
    from cmoe.evaluation.targets import stream_targets

    config.write_text(config.read_text().replace("relaxed", "textvqa"))
    run = parse(["--name", "x", "--config", str(config), "--method", "lora"])
    with pytest.raises(DataError, match="Charts, sample '2': its scorer can't judge it"):
        stream_targets(read_stream(run), run.data, run.evaluation)
