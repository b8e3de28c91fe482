"""The report of real, small runs: what a reader of the page and of the card may rely on."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64decode
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from playwright.sync_api import Browser
from support.looks import require_good_file
from support.pages import DASH, Page, is_light, stays_the_same
from support.reported_runs import (
    ATTACK,
    TASKS,
    TESTED,
    Stream,
    agreed,
    answer_file,
    write_report_data,
)

from cmoe.cli.score import main as score_file
from cmoe.common.run_files import RunFileError, write_json
from cmoe.evaluation.report_data import report_data
from cmoe.folder import MATRIX, REPORT, RunFolder
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE
from cmoe.reports.run_page import write_run_page
from cmoe.store.log import Store
from cmoe.store.model import load_model


@pytest.fixture(params=["grown", "overwritten", "begun", "single"])
def folder(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


def found(folder: Path) -> dict[str, Any]:
    matrix: dict[str, Any] = json.loads((folder / MATRIX).read_text(encoding="utf-8"))
    return matrix


def test_page_is_well_formed_and_loads_nothing(folder: Path) -> None:
    Page(folder / "report.html").loads_nothing()


def test_every_link_and_id_in_the_page_is_its_own(folder: Path) -> None:
    Page(folder / "report.html").has_its_own_ids()


def test_questions_are_escaped(folder: Path) -> None:
    page = Page(folder / "report.html")
    assert ATTACK not in page.source
    assert page.text.count(ATTACK) == TESTED


def test_matrix_shows_every_task_and_accuracy(folder: Path) -> None:
    matrix = found(folder)
    figures = Page(folder / "report.html").figures
    names = {"located": "Accuracy matrix", "oracle": "Accuracy matrix, oracle"}
    for key in names if matrix["oracle"] else ("located",):
        cells = figures[names[key]]
        rows = [matrix["zero_shot"], *matrix[key]]
        expected = [f"{value:.1f}" for row in rows for value in row if value is not None]
        assert set(matrix["tasks"]) <= set(cells)
        assert [cell for cell in cells if re.fullmatch(r"\d+\.\d", cell)] == expected


def test_headline_is_the_last_rows_mean(folder: Path) -> None:
    row = [value for value in found(folder)["located"][-1] if value is not None]
    assert Page(folder / "report.html").tiles["Last"] == f"{sum(row) / len(row):.1f}"


def test_samples_are_marked_as_they_were_scored(folder: Path) -> None:
    """All samples are shown, so that the marks add up to the accuracy."""
    matrix = found(folder)
    parts = re.split(
        r"<h3>(\w+)</h3>", Page(folder / "report.html").source.split('id="samples"')[1]
    )
    assert parts[1::2] == matrix["tasks"][: len(matrix["located"])]
    for section, accuracy in zip(parts[2::2], matrix["located"][-1], strict=False):
        shown = section.split("</section>")[0]
        assert shown.count("<article") == TESTED
        assert 100 * shown.count("✓") / TESTED == accuracy
        assert shown.count("✓") + shown.count("✗") == TESTED
    assert 0 < parts[2].count("✓") < TESTED


def test_expected_answers_are_those_that_samples_were_scored_by(grown: Path) -> None:
    section = Page(grown / "report.html").source.split(f"<h3>{TASKS[0]}</h3>")[1].split("<h3>")[0]
    shown = re.findall(r"<dt>Expected</dt><dd>(.*?)</dd>", section)
    rows = json.loads(answer_file(grown, TASKS[0]).read_text(encoding="utf-8"))
    assert sorted(map(unescape, shown)) == sorted(row["answer"] for row in rows)


def test_prediction_files_give_the_matrixs_last_row(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = found(folder)
    learned = matrix["tasks"][: len(matrix["located"])]
    assert sorted(f.stem for f in (folder / "coin").iterdir()) == sorted(learned)
    for number, task in enumerate(learned):
        arguments = ("--task", task, "--predictions", str(folder / f"coin/{task}.jsonl"))
        assert (
            score_file([*arguments, "--answers", str(answer_file(folder, task))], "cmoe score") == 0
        )
        assert capsys.readouterr().out.splitlines() == [
            f"{task}, {mode}: accuracy {tables['located'][-1][number]:.2f}%, {TESTED} samples, "
            "0 predictions missing, 0 of unknown ids"
            for mode, tables in (("official", matrix), ("strict", matrix["strict"]))
        ]


def test_pictures_are_small(folder: Path) -> None:
    sources = Page(folder / "report.html").values("src")
    assert sources
    for source in sources:
        with Image.open(BytesIO(b64decode(source.partition("base64,")[2]))) as picture:
            assert max(picture.size) <= 160


def test_growth_and_location_of_a_growing_run(grown: Path) -> None:
    page = Page(grown / "report.html")
    records = [json.loads((grown / f"store/{i:03d}.json").read_text()) for i in range(3)]
    counts = [n for record in records for n in record["decision"]["experts"].values()]
    cut = sum(len(record["decision"].get("cut", ())) for record in records)
    cells = page.figures["Experts added by layer and task"]
    assert cells.count("1") - 1 == len(counts) == sum(counts)  # a layer is called 1, too
    assert cells.count("cut") == cut
    confusion = [n for row in found(grown)["location"]["confusion"] for n in row if n]
    cells = page.figures["Location confusion"]
    assert sorted(int(c) for c in cells if c.isdigit()) == sorted(confusion)
    assert {f"Probe scores of {task} by layer" for task in TASKS[1:]} <= set(page.figures)
    assert f"Probe scores of {TASKS[0]} by layer" not in page.figures


def test_a_method_that_does_not_locate_has_no_empty_sections(overwritten: Path) -> None:
    page, card = (
        Page(overwritten / "report.html"),
        (overwritten / "report.md").read_text(encoding="utf-8"),
    )
    assert not {"decomposition", "experts", "routing", "location"} & set(page.values("id"))
    for text in (page.text, card):
        assert "oracle" not in text.lower()
        assert "located" not in text.lower()
    # The adapter is one: what two stages hold is not added.
    matrix = found(overwritten)
    adapter = sum(matrix["parameters"]["tasks"][TASKS[1]].values())
    share = 100 * adapter / matrix["parameters"]["base"]
    assert page.tiles["Parameters added"] == f"{share:.1f}"


def test_an_unfinished_run_says_so(begun: Path, grown: Path) -> None:
    assert "1 of 3 tasks" in Page(begun / "report.html").text
    assert "of 3 tasks" not in Page(grown / "report.html").text


def tables(card: str) -> list[list[list[str]]]:
    """The Markdown's tables, as rows of cells."""
    blocks = re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]


def test_markdown_tables_are_valid(folder: Path) -> None:
    card = (folder / "report.md").read_text(encoding="utf-8")
    assert len(tables(card)) >= 4
    for header, rule, *rows in tables(card):
        assert set(rule) == {"---"}
        assert rows
        assert {len(row) for row in (rule, *rows)} == {len(header)}
    assert not re.search(r"\n{3,}", card)


def test_markdown_has_the_matrix_and_the_configuration(folder: Path) -> None:
    card, matrix = (folder / "report.md").read_text(encoding="utf-8"), found(folder)
    table = next(t for t in tables(card) if t[0][0].strip() == "After learning")
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in table}
    assert rows["After learning"] == matrix["tasks"]
    for task, accuracies in zip(matrix["tasks"], matrix["located"], strict=False):
        assert rows[task] == ["" if a is None else f"{a:.1f}" for a in accuracies]
    block = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(block) == yaml.safe_load((folder / "config.yaml").read_text())


def test_a_configuration_cannot_leave_its_block(
    single: Path, stream: Stream, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(single, folder)
    with (folder / "config.yaml").open("a") as file:
        file.write("# </pre><b>\n# ```\n")
    config, tasks = stream
    write_report_data(folder, tasks[:1], agreed(config, tasks[:1], single))
    write_run_page(folder)
    assert "</pre><b>" not in (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "report.md").read_text(encoding="utf-8").endswith("\n# ```\n````\n")


def test_what_a_method_is_told_stands_beside_its_name(single: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(single, folder)
    data = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    data["results"]["told"] = "samples of earlier tasks"
    write_json(folder / REPORT, data)
    write_run_page(folder)
    said = "(told samples of earlier tasks) on the frozen base"
    for name in ("report.html", "report.md"):
        assert said in (folder / name).read_text(encoding="utf-8")
        assert "(told" not in (single / name).read_text(encoding="utf-8")


def test_writing_again_gives_the_same_and_leaves_nothing_else(
    grown: Path, stream: Stream, drawn_charts: dict[str, str]
) -> None:
    config, tasks = stream

    def again() -> None:
        for name in ("report.json", "report.html", "report.md"):
            (grown / name).unlink()
        write_report_data(grown, tasks, agreed(config, tasks, grown))
        write_run_page(grown)

    stays_the_same(grown, again, drawn_charts)


def test_pages_need_only_their_data(grown: Path, tmp_path: Path) -> None:
    shutil.copy(grown / REPORT, tmp_path / REPORT)
    write_run_page(tmp_path)
    for name in ("report.html", "report.md"):
        assert (tmp_path / name).read_bytes() == (grown / name).read_bytes()


def test_pages_are_written_again_only_when_their_data_changed(grown: Path, tmp_path: Path) -> None:
    shutil.copy(grown / REPORT, tmp_path / REPORT)
    write_run_page(tmp_path)
    html = tmp_path / "report.html"
    html.write_text(html.read_text(encoding="utf-8").replace("<h1>", "<h1>Mine: "))
    write_run_page(tmp_path)
    assert "<h1>Mine: " in html.read_text(encoding="utf-8")
    write_json(tmp_path / REPORT, json.loads((tmp_path / REPORT).read_text()) | {"asked": 123_456})
    write_run_page(tmp_path)
    assert "<h1>Mine: " not in html.read_text(encoding="utf-8")
    assert "of 123,456" in html.read_text(encoding="utf-8")


@pytest.mark.parametrize("field", ["learned", "samples", "location", "base"])
def test_a_missing_field_is_a_sentence(grown: Path, tmp_path: Path, field: str) -> None:
    data = json.loads((grown / REPORT).read_text())
    del data[field]
    write_json(tmp_path / REPORT, data)
    with pytest.raises(RunFileError, match=rf"report.json: lacks .*'{field}'.*; remove it, and"):
        write_run_page(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == [REPORT]


def test_a_run_without_its_data_has_no_page(tmp_path: Path) -> None:
    with pytest.raises(RunFileError, match=r"report.json: lost; remove it, and|report.json: lost"):
        write_run_page(tmp_path)


def test_nothing_to_report(single: Path, stream: Stream, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(single, folder, ignore=shutil.ignore_patterns("report.*"))
    write_json(folder / MATRIX, found(folder) | {"located": []})
    with pytest.raises(ValueError, match="no task has been tested"):
        report_data(RunFolder(folder, str(folder)), stream[1], {})
    assert not list(folder.glob("report*"))


def test_import_is_light() -> None:
    is_light("cmoe.reports.run_page")


def test_the_limit_of_unknown_parts_the_samples_as_the_run_did(grown: Path) -> None:
    """A task's own samples that lie beyond it were called unknown, and no others."""
    data = json.loads((grown / REPORT).read_text(encoding="utf-8"))
    log = Store.open(grown / "store")
    model = load_model(log, load_base(MINI_BASE)[0])
    assert [data["location"][t]["limit"] for t in TASKS] == pytest.approx(
        model.bank.limits.tolist()
    )
    page = Page(grown / "report.html")
    for task in TASKS:
        chart = page.source.split(f'aria-label="Locator scores of {task}')[1].split("</svg>")[0]
        assert chart.count("stroke-dasharray: 4") == 1


def test_accuracies_have_wilsons_interval(grown: Path) -> None:
    """Its ends are the shares whose distance from what was seen is 1.96 of their own deviations."""
    rows = re.findall(
        rf"<tr><th>(\w+)</th>.*?([\d.]+) <span class=\"of95\">([\d.]+){DASH}([\d.]+)</span>",
        Page(grown / "report.html").section("forgetting"),
    )
    last = found(grown)["located"][-1]
    assert [(task, float(seen)) for task, seen, *_ in rows] == list(zip(TASKS, last, strict=True))
    for _, seen, *ends in rows:
        for end in ends:
            share, distance = float(end) / 100, abs(float(end) - float(seen)) / 100
            if 0 < share < 1:
                deviation = (share * (1 - share) / TESTED) ** 0.5
                assert distance / deviation == pytest.approx(1.96, abs=0.02)


def test_the_page_looks_good_everywhere(grown: Path, browser: Browser) -> None:
    require_good_file(browser, grown / "report.html", 200)


def test_the_two_matrices_say_how_the_task_was_found(grown: Path) -> None:
    drawn = Page(grown / "report.html").source.split('id="matrix"')[1].split("</section>")[0]
    titled = re.findall(r"<h3>([^<]*)</h3>\s*<div class=\"plot\"><svg[^>]*label=\"([^\"]*)", drawn)
    assert titled == [
        ("Task located", "Accuracy matrix"),
        ("Task told", "Accuracy matrix, oracle"),
    ]


def test_a_task_judged_as_a_whole_is_told_apart(grown: Path, tmp_path: Path) -> None:
    """It has no interval, its samples no scores; and its figure may be over 100."""
    folder = Path(shutil.copytree(grown, tmp_path / "captions"))
    data = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    first, second, third = TASKS
    results, samples = data["results"], data["samples"]
    results["scorers"] = {first: "cider", second: "box", third: "scienceqa"}
    del results["last_scores"][first]
    for table in ("located", "oracle"):
        for row in results[table]:
            row[0] = 123.4
    for sample in samples[first]:
        sample["score"] = None
    write_json(folder / REPORT, data)
    write_run_page(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert f"<b>{first}</b> is an exception: <code>cider</code>" in text
    assert "± " not in text.partition("</dl>")[0], "Last has no interval, either"
    cells = re.findall(r"<td>123\.4(.*?)</td>", text)
    assert cells
    assert not any("of95" in cell for cell in cells)
    shown = text[text.index('id="samples"') :].partition(f"<h3>{second}</h3>")
    for part, marked in ((shown[0], False), (shown[2].partition("</section>")[0], True)):
        assert bool(re.search("[✓✗]", part)) == marked
    Page(folder / "report.html").has_its_own_ids()
    card = (folder / "report.md").read_text(encoding="utf-8")
    assert f"{first} is judged by `cider`" in card
