"""Tasks of the user's own in a configuration: what may stand there, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmoe.config.changes import changed
from cmoe.config.parse import parse
from cmoe.config.tree import RunConfig
from cmoe.data.settings import SCORERS, TASKS, DataConfig, OwnTask

MINE = "{train: a.jsonl, test: b.jsonl, scorer: vqa}"


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        parse(["--name", "x", *words], "job.py")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "Namespace" not in said
    return said.removeprefix("job.py: ").rstrip()


def test_own_tasks_are_the_stream_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"name: x\ndata:\n  own:\n    Zeta: {MINE}\n    Alpha: {MINE}\n")
    config = parse(["--config", str(file)])
    assert config.data.tasks == ("Zeta", "Alpha")
    assert config.data.own["Zeta"] == OwnTask("a.jsonl", "b.jsonl", "vqa")
    mixed = parse(["--config", str(file), "--data.tasks", "[GQA, Alpha]"])
    assert mixed.data.tasks == ("GQA", "Alpha")
    assert [mixed.data.scorer(task) for task in mixed.data.tasks] == ["lower_case", "vqa"]
    assert parse(["--name", "x"]).data.tasks == TASKS


def test_they_are_given_on_a_command_line_and_go_through_changes() -> None:
    whole = parse(["--name", "x", "--data.own", f"{{A: {MINE}}}"])
    single = parse(["--name", "x", "--data.own.A", MINE])
    assert whole == single
    assert changed(whole, {"seed": 0}) == whole
    other = changed(whole, {"data.own": {"A": whole.as_dict()["data"]["own"]["A"] | {"test": "c"}}})
    assert other.data.own["A"].test == "c"


@pytest.mark.parametrize(
    ("own", "cause"),
    [
        ("{A: {train: a, tst: b, scorer: vqa}}", "data.own.A: unknown key tst; did you mean test?"),
        ("{A: {train: a, test: b}}", "data.own.A has no scorer; train, test, scorer are needed"),
        ("{A: 3}", "data.own.A is 3; a section is needed, with its keys: train, test, scorer"),
        ("[1]", "a mapping of names is needed, each with train, test, scorer"),
        ("{A: {train: 5, test: b, scorer: vqa}}", "data.own.A.train is 5; a text is needed"),
        ("{A: {train: '', test: b, scorer: vqa}}", "data.own.A.train is empty; a text is needed"),
        (
            "{A: {train: a, test: b, scorer: vqq}}",
            "data.own.A.scorer is 'vqq': no scorer 'vqq'; there are",
        ),
        (
            "{A: {train: a, test: b, scorer: x, columns: {qestion: q}}}",
            "data.own.A.columns names 'qestion'; there are id, question, answer, answers, image; "
            "the nearest is question",
        ),
        (f"{{GQA: {MINE}}}", "data.own names 'GQA', which is a task already"),
        (f"{{a/b: {MINE}}}", "data.own names 'a/b'; letters, digits"),
        (f"{{.a: {MINE}}}", "data.own names '.a'; letters, digits"),
        (f"{{{'a' * 81}: {MINE}}}", "80 bytes at most"),
    ],
)
def test_what_is_wrong_is_told_by_its_key(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, own: str, cause: str
) -> None:
    assert cause in refusal(capsys, "--data.own", own)
    file = tmp_path / "run.yaml"
    file.write_text(f"data:\n  own: {own}\n")
    said = refusal(capsys, "--config", str(file))
    assert cause in said
    assert said.startswith(f"{file}:2: ") or "data.own.A." in said


def test_a_registered_name_and_a_task_that_is_nowhere_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cmoe.tasks.registry import register_task

    said = refusal(capsys, "--data.own.A", MINE, "--data.tasks", "[A, Bb]")
    assert "data.tasks names 'Bb', which has no scorer; there are ScienceQA, " in said
    assert said.endswith("OCRVQA, A")
    register_task("Registered", scorer="exact")
    try:
        with pytest.raises(ValueError, match="'Registered', which is a task already"):
            RunConfig("x", data=DataConfig(own={"Registered": OwnTask("a", "b", "vqa")}))
    finally:
        del SCORERS["Registered"]
