"""The page of a comparison, made by hand: what a reader of the page may rely on."""

from __future__ import annotations

import json
import re
from html import escape
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from playwright.sync_api import Browser
from support.comparison_data import (
    FIGURES,
    STUDY_FIGURES,
    ZERO_SHOT,
    a_method,
    compared,
    methods,
    one_run,
    page,
)
from support.looks import require_nothing_cut, require_readable
from support.pages import DASH, HOSTILE, MINUS, Page, is_light, stays_the_same

from cmoe.common.run_files import RunFileError
from cmoe.reports.comparison_page import write_comparison


@pytest.fixture
def said() -> dict[str, Any]:
    return compared()


def bold(found: Page, part: str) -> list[str]:
    return re.findall(r"<td[^>]*><b>(.*?)</b>", found.section(part))


def in_order(found: Page) -> list[str]:
    """The main table's first column."""
    rows = re.findall(r"<tr(?: class=\"part\")?><th>([^<]*)", found.section("methods"))
    return [name for name in rows if name not in ("", "Method")]


def main_row(found: Page, name: str) -> dict[str, str]:
    """A method's row of the main table, by column."""
    titles = found.row("Method", "Last")
    (row,) = [r for r in found.rows if r[0] == name and len(r) == len(titles)]
    return dict(zip(titles[1:], row[1:], strict=True))


def test_page_is_well_formed_and_loads_nothing(compared_page: Page) -> None:
    compared_page.loads_nothing()
    assert "img" not in {tag for tag, _ in compared_page.elements}


def test_every_link_and_id_in_the_page_is_its_own(compared_page: Page) -> None:
    compared_page.has_its_own_ids()


def test_texts_are_escaped(tmp_path: Path, said: dict[str, Any]) -> None:
    for one in ("name", "scoring"):
        said[one] = HOSTILE
    said["methods"][HOSTILE] = said["methods"]["lora"] | {"about": HOSTILE, "knows": HOSTILE}
    said["published"]["base"] = said["published"]["rows"][0]["method"] = HOSTILE
    said["study"]["groups"][0]["variants"][0] |= {"label": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    found = page(tmp_path, said)
    assert "<script" not in found.source
    assert found.text.count(HOSTILE) > 20


def test_sections_stand_in_their_order(compared_page: Page) -> None:
    parts = "headline methods cost forgetting tasks tuning published study decomposition group0 "
    parts += "group1 location unknown diversity runs settings"
    assert [v for v in compared_page.values("id") if v in parts.split()] == parts.split()


def test_rivals_come_by_their_last_and_bounds_apart(compared_page: Page) -> None:
    rivals, apart = ["cmoe", "lora", "zero_shot"], ["multitask", "per_task_lora"]
    assert in_order(compared_page) == [*rivals, "Not rivals: they know more", *apart]
    curves = [f"Accuracy of {name} by stage" for name in rivals + apart]
    assert [name for name in compared_page.figures if name.startswith("Accuracy of")] == curves
    assert compared_page.row("multitaskknows all tasks at once")
    assert compared_page.row("per_task_loraknows the task")


def test_who_goes_back_to_earlier_data_is_no_rival(tmp_path: Path, said: dict[str, Any]) -> None:
    said["methods"]["replay"] = said["methods"]["cmoe"] | {"knows": "samples of earlier tasks"}
    before, found = page(tmp_path, compared()), page(tmp_path, said)
    assert (in_order(found)[-1], found.tiles) == ("replay", before.tiles)


def test_a_methods_row_has_its_means_and_deviations(compared_page: Page) -> None:
    """Levels 70.5 and 71.5, and 4 points more with each task: means by hand."""
    assert list(main_row(compared_page, "cmoe").values()) == [
        *("74.2 ± 0.7", "75.0 ± 0.7", "72.6 ± 0.7", f"{MINUS}0.8", "+1.2", "98.5"),
        *("300,500 ± 707", "30.1", "0", "90,123"),
        *("1.50", "12.5", "3.0", "20.0", "1.25"),
    ]


def test_what_was_not_measured_is_a_dash(compared_page: Page) -> None:
    row = main_row(compared_page, "lora")
    unknown = ("FWT", "Location", "Peak, GiB", "Answer, ms", "\N{MULTIPLICATION SIGN} base")
    assert [title for title, text in row.items() if text == DASH] == list(unknown)


def test_only_the_best_that_learn_are_bold(compared_page: Page) -> None:
    """The base alone has the best BWT and multitask the best Last; neither is a rival."""
    row = compared_page.section("methods").split("<th>cmoe")[1].split("</tr>")[0]
    assert bold(compared_page, "methods") == re.findall("<b>(.*?)</b>", row)
    assert bold(compared_page, "methods") == ["74.2", "75.0", "72.6", f"{MINUS}0.8"]


def test_each_column_has_its_own_best(tmp_path: Path, said: dict[str, Any]) -> None:
    said["methods"]["lora"]["mean"] |= {"mft": 90.0, "location": 99.9, "oracle": 99.9}
    said["methods"]["per_task_lora"]["mean"]["maa"] = 99.0
    assert bold(page(tmp_path, said), "methods") == ["74.2", "72.6", f"{MINUS}0.8", "90.0"]


def test_headline_is_the_best_rival_beside_the_bounds(compared_page: Page) -> None:
    """multitask: (84.0 + 85.0) / 2; per_task_lora adds 150,000."""
    assert compared_page.tiles == {
        "Best Last": "74.2",
        "Its BWT": f"{MINUS}0.8",
        "Of multitask&#39;s Last": f"{100 * 74.25 / 84.5:.1f}",
        "Of per_task_lora&#39;s size": f"{100 * 300.5 / 150:.1f}",
        "Seeds": "2",
    }
    assert "cmoe" in compared_page.notes["Best Last"]
    assert "for every method" in compared_page.notes["Seeds"]


def test_without_bounds_there_is_nothing_to_compare_with(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    said["methods"] = {name: said["methods"][name] for name in ("lora", "cmoe")}
    found = page(tmp_path, said)
    assert set(found.tiles) == {"Best Last", "Its BWT", "Seeds"}
    assert "Bounds" not in found.text
    assert "multitask" not in found.text
    assert "per_task_lora" not in found.text


def test_bounds_alone_have_no_headline(tmp_path: Path, said: dict[str, Any]) -> None:
    said["methods"] = {"multitask": said["methods"]["multitask"]}
    found = page(tmp_path, said | {"study": None})
    assert not found.tiles
    assert not bold(found, "methods")
    assert in_order(found) == ["Not rivals: they know more", "multitask"]


def test_a_last_of_nothing_is_nothing_to_measure_by(tmp_path: Path, said: dict[str, Any]) -> None:
    """As after two steps of training in a trial of the machinery."""
    for bound in ("multitask", "per_task_lora"):
        said["methods"][bound]["mean"] |= {"last": 0.0, "added": 0}
    assert set(page(tmp_path, said).tiles) == {"Best Last", "Its BWT", "Seeds"}


def test_a_comparison_under_way_says_so(tmp_path: Path, said: dict[str, Any]) -> None:
    made = methods([0])
    said["methods"]["cmoe"] = made["cmoe"]
    said["methods"]["lora"] = a_method([], "not yet") | {"mean": None}
    found = page(tmp_path, said)
    row = main_row(found, "cmoe1 of 2 seeds so far")
    assert row["Last"] == "73.8"
    assert "±" not in "".join(row.values())
    assert "Not run yet: lora." in found.text
    assert "lora" not in in_order(found)
    assert "not all have run yet" in found.notes["Seeds"]
    assert found.text.count("seeds so far") == 1


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    found = page(tmp_path, compared([7]))
    assert "±" not in found.text
    assert not re.search(r"\bseeds\b", found.text.lower())
    assert found.tiles["Seed"] == "1"


@pytest.mark.parametrize(
    ("flops", "title", "text"),
    [
        (1.25e13, "Learning, TFLOP", "12.5"),
        (3.5e18, "Learning, EFLOP", "3.5"),
        (0, "Learning, GFLOP", "0.0"),
    ],
)
def test_operations_have_the_unit_that_suits_the_largest(
    tmp_path: Path, said: dict[str, Any], flops: float, title: str, text: str
) -> None:
    for method in said["methods"].values():
        method["mean"]["learning_flops"] = min(flops, method["mean"]["learning_flops"])
    said["methods"]["cmoe"]["mean"]["learning_flops"] = flops
    assert main_row(page(tmp_path, said), "cmoe")[title] == text


def test_figures_are_those_there_is_something_for(compared_page: Page) -> None:
    assert set(compared_page.figures) == FIGURES | STUDY_FIGURES


def test_every_method_has_its_name_in_the_figure_of_costs(compared_page: Page) -> None:
    texts = compared_page.figures["Last by added parameters"]
    assert sorted(t for t in texts if t in methods((0,))) == sorted(methods((0,)))


def test_forgetting_has_the_same_axes_for_all(compared_page: Page) -> None:
    texts = {
        tuple(cells)
        for label, cells in compared_page.figures.items()
        if label.startswith("Accuracy of")
    }
    assert texts == {("1", "2", "3", "tasks learned", "0", "50", "100")}
    assert "multitask (knows more)" in compared_page.text


def points(found: Page, method: str) -> int:
    """That its figure of forgetting has, beside the ticks of its axes."""
    drawn = found.source.split(f'aria-label="Accuracy of {method} by stage"')[1]
    return drawn.split("</svg>")[0].count("<use ") - 6


def test_forgetting_has_a_point_for_every_task_learned_and_their_mean(compared_page: Page) -> None:
    assert points(compared_page, "cmoe") == (1 + 2 + 3) + 3


def test_what_learned_all_at_once_may_have_only_a_last_stage(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    for run in said["methods"]["multitask"]["runs"]:
        run["located"][:2] = [[None] * 3] * 2
    assert points(page(tmp_path, said), "multitask") == 3 + 1


def last_by_task(found: Page) -> dict[str, list[str]]:
    cells = found.figures["Last by method and task"]
    values = [c for c in cells if re.fullmatch(r"\d+\.\d", c)]
    names = cells[cells.index("tested on") + 1 :][: len(values) // 3]
    return {name: values[3 * n : 3 * n + 3] for n, name in enumerate(names)}


def test_last_by_task_is_the_mean_of_the_last_rows(
    compared_page: Page, said: dict[str, Any]
) -> None:
    expected = {
        name: [
            f"{fmean(column):.1f}"
            for column in zip(*(run["located"][-1] for run in method["runs"]), strict=True)
        ]
        for name, method in said["methods"].items()
    }
    shown = last_by_task(compared_page)
    assert shown == expected
    assert list(shown) == ["multitask", "per_task_lora", "cmoe", "lora", "zero_shot"]


def test_the_base_has_a_row_of_its_own_if_it_is_no_method(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    del said["methods"]["zero_shot"]
    shown = last_by_task(page(tmp_path, said))
    assert list(shown) == ["multitask", "per_task_lora", "base alone", "cmoe", "lora"]
    assert shown["base alone"] == [f"{v:.1f}" for v in ZERO_SHOT]


def test_candidates_are_shown_with_the_chosen_one_and_the_budget(compared_page: Page) -> None:
    assert compared_page.row("0.002", "", "61.2")[3:] == ["60.0, 62.5", ""]
    assert compared_page.row("0.006", json.dumps(HOSTILE), "64.8")[3:] == ["64.0, 65.5", "chosen"]
    assert "Budget: 2 candidates, seeds 0, 1, on ScienceQA, GQA." in compared_page.text


def test_without_tuning_there_is_no_section_of_it(tmp_path: Path, said: dict[str, Any]) -> None:
    said["methods"]["lora"]["tuned"] = None
    assert "tuning" not in page(tmp_path, said).values("id")


def test_published_figures_are_marked_as_others(compared_page: Page) -> None:
    assert compared_page.row("LoRA") == ["LoRA", "28.74", "32.97", f"{MINUS}32.62"]
    assert compared_page.row("all") == ["all", DASH, "57.18", DASH]
    text = compared_page.section("published")
    assert "Not run here" in text
    assert "another base (a larger one) and other data" in text
    assert "don't compare" in text


def test_every_run_is_shown(compared_page: Page, said: dict[str, Any]) -> None:
    titles = compared_page.row("Run", "Seed", "Last")[1:]
    assert {"BWT by T\N{MINUS SIGN}1", "Oracle Last", "With all answers, min"} <= set(titles)
    variants = [one for group in said["study"]["groups"] for one in group["variants"]]
    for method in (*said["methods"].values(), *variants):
        for run in method["runs"]:
            name, seed, last = run["run"], str(run["seed"]), f"{run['last']:.1f}"
            (row,) = [r for r in compared_page.rows if r[:3] == [name, seed, last] and len(r) > 9]
            shown = dict(zip(titles, row[1:], strict=True))
            oracle = run["oracle"]
            assert shown["Oracle Last"] == (DASH if oracle is None else f"{oracle:.1f}")
            assert shown["Added"] == f"{run['added']:,}"
            by_task = [f"{value:.1f}" for value in run["located"][-1]]
            assert ([name, seed, *by_task] in compared_page.rows) == (method not in variants)
    given = compared_page.row("cmoe-1, true task given")
    assert given == ["cmoe-1, true task given", "1", "76.0", "75.0", "74.0"]
    assert ["cmoe-1", "1", "+0.12", DASH] in compared_page.rows


def test_settings_are_shown(compared_page: Page) -> None:
    assert compared_page.row("lora", "training.learning_rate")[2] == "0.002"
    assert compared_page.row("lora", "x")[2] == json.dumps(HOSTILE)
    assert compared_page.row("cmoe", "as shared")
    assert compared_page.row("probe.rule") == ["probe.rule", '"relative"']
    assert escape("experts & routers") in compared_page.source


def test_writing_again_gives_the_same_and_leaves_nothing_else(
    tmp_path: Path, said: dict[str, Any], drawn_charts: dict[str, str]
) -> None:
    write_comparison(tmp_path, said)
    assert [f.name for f in tmp_path.iterdir()] == ["comparison.html"]
    stays_the_same(tmp_path, lambda: write_comparison(tmp_path, said), drawn_charts)


def test_nothing_to_show(tmp_path: Path, said: dict[str, Any]) -> None:
    said["methods"] = {"lora": a_method([], "not yet") | {"mean": None}}
    with pytest.raises(ValueError, match="no method has run"):
        write_comparison(tmp_path, said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("field", ["base", "published", "shared"])
def test_a_missing_field_is_a_sentence(tmp_path: Path, said: dict[str, Any], field: str) -> None:
    del said[field]
    with pytest.raises(RunFileError, match=rf"comparison\.json: lacks .*'{field}'"):
        write_comparison(tmp_path, said)
    assert not list(tmp_path.iterdir())


def test_import_is_light() -> None:
    is_light("cmoe.reports.comparison_page")


# In a browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_opens_and_is_as_wide_as_the_screen(
    browser: Browser, compared_folder: Path, width: int, scheme: Any
) -> None:
    """A table wider than it scrolls in its place."""
    shown = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    address = (compared_folder / "comparison.html").as_uri()
    shown.goto(address)
    shown.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    require_nothing_cut(shown)
    require_readable(shown, 500)
    table = shown.locator("#methods ~ .scroll")
    assert table.evaluate("part => part.scrollWidth > part.clientWidth")
    assert (said, asked) == ([], [address])
    shown.close()


def test_names_lie_neither_on_each_other_nor_beyond_the_figure(
    browser: Browser, tmp_path: Path, said: dict[str, Any]
) -> None:
    """However near the methods come."""
    names = [f"a_near_method_{n}" for n in range(7)]
    for n, name in enumerate(names):
        made = a_method([one_run(name, 0, 70 + 0.2 * n, 0, 296_000 + 9_000 * (n % 3))], "near")
        said["methods"][name] = made
    write_comparison(tmp_path, said)
    shown = browser.new_page()
    shown.goto((tmp_path / "comparison.html").as_uri())
    figure = shown.locator("svg[aria-label='Last by added parameters']")
    edge = figure.bounding_box()
    boxes = [figure.get_by_text(n, exact=True).bounding_box() for n in said["methods"]]
    assert edge
    for box in boxes:
        assert box
        assert edge["x"] <= box["x"]
        assert box["x"] + box["width"] <= edge["x"] + edge["width"]
    for a, b in combinations(boxes, 2):
        assert a
        assert b
        assert any(
            a[at] + a[size] <= b[at] + 3 or b[at] + b[size] <= a[at] + 3
            for at, size in (("x", "width"), ("y", "height"))
        )
    shown.close()


def test_what_is_beyond_noise_stands_in_words(compared_page: Page) -> None:
    assert compared_page.row("lora", "+31.2")[2:] == ["+28.5 to +34.0", "better beyond noise"]
    row = compared_page.row(HOSTILE, f"{MINUS}0.2")
    assert row[2:] == [f"{MINUS}1.5 to +1.0", "not to be told from noise"]
