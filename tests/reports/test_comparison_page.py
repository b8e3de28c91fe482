"""The page of a comparison, made by hand: what a reader of the page may rely on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from html import escape
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from playwright.sync_api import Browser
from support.pages import Page

from cmoe.common.run_files import RunFileError
from cmoe.evaluation.metrics import summary
from cmoe.reports.comparison_page import write_comparison

HOSTILE = '<script>alert(1)</script> & "$\\frac{"$'
TASKS = ("ScienceQA", HOSTILE, "GQA")
BASE, ZERO_SHOT = 1_000_000, [31.25, 18.75, 12.5]
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def one_run(
    method: str, seed: int, level: float, fall: float, added: int, **more: Any
) -> dict[str, Any]:
    """A run whose tasks fall by so many points with every task after them."""
    located = [
        [level + 4 * j + seed - fall * (i - j) if j <= i else None for j in range(3)]
        for i in range(3)
    ]
    return {
        "seed": seed,
        "run": f"{method}-{seed}",
        **summary(located),
        "fwt": 1.25,
        "location": None,
        "oracle": None,
        "added": added,
        "trainable": 90_123,
        "kept": 0,
        "peak_memory": 1.5 * 2**30,
        "learning_flops": 1.25e13,
        "seconds": 300.0 + 60 * seed,
        "learning_seconds": 180.0,
        "latency": 0.02,
        "base_latency": 0.016,
        "located": located,
        "zero_shot": ZERO_SHOT,
        "oracle_last": None,
        "similarity": None,
        **more,
    }


def a_method(
    runs: list[dict[str, Any]], about: str, knows: str = "", **more: Any
) -> dict[str, Any]:
    """What is said of a method, from its runs."""
    lists = ("located", "zero_shot", "oracle_last", "similarity")
    scalars = [k for k in runs[0] if k not in ("seed", "run", *lists)] if runs else []
    columns = {key: [run[key] for run in runs] for key in scalars}
    return {
        "knows": knows,
        "about": about,
        "settings": {},
        "runs": runs,
        "mean": {k: None if None in v else fmean(v) for k, v in columns.items()},
        "deviation": {k: None if None in v or len(v) < 2 else stdev(v) for k, v in columns.items()},
        "tuned": None,
        **more,
    }


def methods(seeds: Sequence[int]) -> dict[str, Any]:
    """Two rivals, what learns nothing, and two bounds."""
    by_router: dict[str, Any] = {
        "location": 98.5,
        "oracle": 75.0,
        "oracle_last": [76.0, 75.0, 74.0],
    }
    by_router["similarity"] = [0.125, None]
    nothing: dict[str, Any] = {"trainable": 0, "learning_flops": 0}
    idle = [
        one_run("zero_shot", s, 0, 0, 0, **nothing)
        | {"located": [[v if j <= i else None for j, v in enumerate(ZERO_SHOT)] for i in range(3)]}
        | {"last": 20.75, "mft": 20.75, "maa": 25.0, "bwt": 0.0, "bwt_t_minus_1": 0.0, "fwt": 0.0}
        for s in seeds
    ]
    tuned = {
        "seed": 0,
        "tasks": [TASKS[0], TASKS[2]],
        "candidates": [
            {"settings": {"training.learning_rate": 0.002}, "last": 61.25},
            {"settings": {"training.learning_rate": 0.006, "ewc.weight": HOSTILE}, "last": 64.75},
        ],
        "chosen": 1,
    }
    missing = {"peak_memory": None, "latency": None, "base_latency": None, "fwt": None}
    return {
        "lora": a_method(
            [one_run("lora", s, 70.0, 20, 50_000, **missing) for s in seeds],
            "one that goes on",
            settings={"training.learning_rate": 0.002, "x": HOSTILE},
            tuned=tuned,
        ),
        "zero_shot": a_method(idle, "the base alone"),
        "multitask": a_method(
            [one_run("multitask", s, 80.0, 0, 50_000) for s in seeds],
            "at once",
            "all tasks at once",
        ),
        "cmoe": a_method(
            [one_run("cmoe", s, 70.5, 0.75, 300_000 + 1000 * s, **by_router) for s in seeds],
            "experts & routers",
        ),
        "per_task_lora": a_method(
            [one_run("per_task_lora", s, 72.0, 0, 150_000) for s in seeds],
            "each its own",
            "the task",
        ),
    }


def variant(
    label: str, settings: dict[str, Any], seeds: Sequence[int], *more: Any
) -> dict[str, Any]:
    name = f"study-{label}"
    runs = [one_run(name, s, *more, location=97.25, oracle=76.25) for s in seeds]
    made = a_method(runs, "", settings=settings)
    return {key: made[key] for key in ("settings", "runs", "mean", "deviation")} | {"label": label}


def study(seeds: Sequence[int]) -> dict[str, Any]:
    curve = {"fpr": [0.0, 0.25, 1.0], "tpr": [0.0, 0.875, 1.0], "false_alarms": 1.5}
    reverse = {"data.tasks": TASKS[::-1]}
    return {
        "method": "cmoe",
        "run": "cmoe-0",
        "groups": [
            {
                "name": HOSTILE,
                "variants": [
                    variant("by chance", {"probe.score": "random"}, seeds, 66.5, 0, 290_000),
                    variant("everywhere", {"probe.enabled": False}, seeds, 72.5, 1, 600_000),
                ],
            },
            {
                "name": "order of tasks",
                "variants": [variant("reversed", reverse, seeds, 68.5, 0, 310_000)],
            },
        ],
        "location": [{"tasks": n, "accuracy": 100.0 - n, "score_us": 12.5 * n} for n in (1, 2, 3)],
        "unknown": {
            "reject": 0.99,
            "curves": [
                {"held_out": HOSTILE, "known": 1, "auc": 0.9375, "caught": 88.25, **curve},
                {"held_out": "GQA", "known": 2, "auc": 0.8125, "caught": 71.75, **curve},
            ],
        },
        "diversity": [
            {"layer": 0, "experts": 3, "cosine": 0.375},
            {"layer": 1, "experts": 1, "cosine": None},
        ],
    }


def compared(seeds: Sequence[int] = (0, 1)) -> dict[str, Any]:
    """A whole comparison of three tasks, as it is read from its file."""
    values = {
        "name": "compared",
        "tasks": TASKS,
        "scoring": "official",
        "evaluated_on": "test",
        "base": {
            "name": "mini",
            "revision": "r1",
            "parameters": BASE,
            "flops_per_token": 1_234_567,
        },
        "shared": {"probe.score": "frequency", "probe.enabled": True, "data.tasks": TASKS},
        "seeds": seeds,
        "methods": methods(seeds),
        "published": {
            "base": "a larger one",
            "rows": [
                {"method": "LoRA", "last": 28.74, "maa": 32.97, "bwt": -32.62},
                {"method": "all", "last": None, "maa": 57.18, "bwt": None},
            ],
        },
        "study": study(seeds),
    }
    read: dict[str, Any] = json.loads(json.dumps(values))
    return read


@pytest.fixture
def said() -> dict[str, Any]:
    return compared()


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the page of a whole comparison."""
    folder = tmp_path_factory.mktemp("comparison")
    write_comparison(folder, compared())
    return folder


@pytest.fixture(scope="module")
def whole_page(whole_folder: Path) -> Page:
    return Page(whole_folder / "comparison.html")


def page(folder: Path, said: dict[str, Any]) -> Page:
    write_comparison(folder, said)
    return Page(folder / "comparison.html")


def section(found: Page, name: str) -> str:
    """The source of a part, from its heading to the next one."""
    return re.split(r"<h[23]\b", found.source.split(f'id="{name}"')[1])[0]


def bold(found: Page, part: str) -> list[str]:
    return re.findall(r"<td[^>]*><b>(.*?)</b>", section(found, part))


def in_order(found: Page) -> list[str]:
    """The main table's first column."""
    rows = re.findall(r"<tr(?: class=\"part\")?><th>([^<]*)", section(found, "methods"))
    return [name for name in rows if name not in ("", "Method")]


def main_row(found: Page, name: str) -> dict[str, str]:
    """A method's row of the main table, by column."""
    titles = found.row("Method", "Last")
    (row,) = [r for r in found.rows if r[0] == name and len(r) == len(titles)]
    return dict(zip(titles[1:], row[1:], strict=True))


def test_page_is_well_formed_and_loads_nothing(whole_page: Page) -> None:
    whole_page.loads_nothing()
    assert "img" not in {tag for tag, _ in whole_page.elements}


def test_every_link_and_id_in_the_page_is_its_own(whole_page: Page) -> None:
    whole_page.has_its_own_ids()


def test_texts_are_escaped(tmp_path: Path, said: dict[str, Any]) -> None:
    for one in ("name", "scoring"):
        said[one] = HOSTILE
    said["methods"][HOSTILE] = said["methods"]["lora"] | {"about": HOSTILE, "knows": HOSTILE}
    said["published"]["base"] = said["published"]["rows"][0]["method"] = HOSTILE
    said["study"]["groups"][0]["variants"][0] |= {"label": HOSTILE, "settings": {HOSTILE: HOSTILE}}
    found = page(tmp_path, said)
    assert "<script" not in found.source
    assert found.text.count(HOSTILE) > 20


def test_sections_stand_in_their_order(whole_page: Page) -> None:
    parts = "headline methods cost forgetting tasks tuning published study decomposition group0 "
    parts += "group1 location unknown diversity runs settings"
    assert [v for v in whole_page.values("id") if v in parts.split()] == parts.split()


def test_rivals_come_by_their_last_and_bounds_apart(whole_page: Page) -> None:
    order = ["cmoe", "lora", "zero_shot", "Bounds, not rivals", "multitask", "per_task_lora"]
    assert in_order(whole_page) == order
    curves = [label for label in whole_page.figures if label.startswith("Accuracy of")]
    names = [name for name in order if not name.startswith("Bounds")]
    assert curves == [f"Accuracy of {name} by stage" for name in names]
    assert whole_page.row("multitaskknows all tasks at once")
    assert whole_page.row("per_task_loraknows the task")


def test_a_methods_row_has_its_means_and_deviations(whole_page: Page) -> None:
    """Levels 70.5 and 71.5, and 4 points more with each task: means by hand."""
    assert list(main_row(whole_page, "cmoe").values()) == [
        *("74.2 ± 0.7", "75.0 ± 0.7", "72.6 ± 0.7", f"{MINUS}0.8", "+1.2", "98.5"),
        *("300,500 ± 707", "30.1", "0", "90,123"),
        *("1.50", "12.5", "3.0", "20.0", "1.25"),
    ]


def test_what_was_not_measured_is_a_dash(whole_page: Page) -> None:
    row = main_row(whole_page, "lora")
    unknown = ("FWT", "Location", "Peak, GiB", "Answer, ms", "\N{MULTIPLICATION SIGN} base")
    assert [title for title, text in row.items() if text == DASH] == list(unknown)


def test_only_the_best_that_learn_are_bold(whole_page: Page) -> None:
    """The base alone has the best BWT and multitask the best Last; neither is a rival."""
    row = section(whole_page, "methods").split("<th>cmoe")[1].split("</tr>")[0]
    assert bold(whole_page, "methods") == re.findall("<b>(.*?)</b>", row)
    assert bold(whole_page, "methods") == ["74.2", "75.0", "72.6", f"{MINUS}0.8"]


def test_each_column_has_its_own_best(tmp_path: Path, said: dict[str, Any]) -> None:
    said["methods"]["lora"]["mean"] |= {"mft": 90.0, "location": 99.9, "oracle": 99.9}
    said["methods"]["per_task_lora"]["mean"]["maa"] = 99.0
    assert bold(page(tmp_path, said), "methods") == ["74.2", "72.6", f"{MINUS}0.8", "90.0"]


def test_headline_is_the_best_rival_beside_the_bounds(whole_page: Page) -> None:
    """multitask: (84.0 + 85.0) / 2; per_task_lora adds 150,000."""
    assert whole_page.tiles == {
        "Best Last": "74.2",
        "Its BWT": f"{MINUS}0.8",
        "Of multitask&#39;s Last": f"{100 * 74.25 / 84.5:.1f}",
        "Of per_task_lora&#39;s size": f"{100 * 300.5 / 150:.1f}",
        "Seeds": "2",
    }
    assert "cmoe" in whole_page.notes["Best Last"]
    assert "for every method" in whole_page.notes["Seeds"]


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
    assert in_order(found) == ["Bounds, not rivals", "multitask"]


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


FIGURES = {
    "Last by added parameters",
    *(f"Accuracy of {name} by stage" for name in methods((0,))),
    "Last by method and task",
}
STUDY_FIGURES = {
    "Zero-shot, oracle and located accuracy of cmoe by task",
    *(f"Last by added parameters, by {name}" for name in (HOSTILE, "order of tasks")),
    *(f"Last by task, by {name}" for name in (HOSTILE, "order of tasks")),
    "Located right by number of tasks",
    "Time of a score by number of tasks",
    "Unlearned samples called unknown by learned ones called so",
}


def test_figures_are_those_there_is_something_for(whole_page: Page) -> None:
    assert set(whole_page.figures) == FIGURES | STUDY_FIGURES


def test_without_a_study_there_is_no_section_of_it(tmp_path: Path, said: dict[str, Any]) -> None:
    found = page(tmp_path, said | {"study": None})
    assert set(found.figures) == FIGURES
    parts = {"study", "decomposition", "group0", "location", "unknown", "diversity"}
    assert not parts & set(found.values("id"))


def test_a_study_has_the_sections_it_has_something_for(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    """A stream of one task has none that is held out."""
    said["study"] |= {"groups": []}
    said["study"]["unknown"]["curves"] = []
    found = page(tmp_path, said)
    assert {f for f in STUDY_FIGURES if "number of tasks" in f or "oracle" in f} == (
        set(found.figures) - FIGURES
    )
    assert {"group0", "unknown"}.isdisjoint(found.values("id"))


def test_every_method_has_its_name_in_the_figure_of_costs(whole_page: Page) -> None:
    texts = whole_page.figures["Last by added parameters"]
    assert sorted(t for t in texts if t in methods((0,))) == sorted(methods((0,)))


def test_forgetting_has_the_same_axes_for_all(whole_page: Page) -> None:
    texts = {
        tuple(cells)
        for label, cells in whole_page.figures.items()
        if label.startswith("Accuracy of")
    }
    assert texts == {("1", "2", "3", "tasks learned", "0", "50", "100")}
    assert "multitask (bound)" in whole_page.text


def points(found: Page, method: str) -> int:
    """That its figure of forgetting has, beside the ticks of its axes."""
    drawn = found.source.split(f'aria-label="Accuracy of {method} by stage"')[1]
    return drawn.split("</svg>")[0].count("<use ") - 6


def test_forgetting_has_a_point_for_every_task_learned_and_their_mean(whole_page: Page) -> None:
    assert points(whole_page, "cmoe") == (1 + 2 + 3) + 3


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


def test_last_by_task_is_the_mean_of_the_last_rows(whole_page: Page, said: dict[str, Any]) -> None:
    expected = {
        name: [
            f"{fmean(column):.1f}"
            for column in zip(*(run["located"][-1] for run in method["runs"]), strict=True)
        ]
        for name, method in said["methods"].items()
    }
    shown = last_by_task(whole_page)
    assert shown == expected
    assert list(shown) == ["multitask", "per_task_lora", "cmoe", "lora", "zero_shot"]


def test_the_base_has_a_row_of_its_own_if_it_is_no_method(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    del said["methods"]["zero_shot"]
    shown = last_by_task(page(tmp_path, said))
    assert list(shown) == ["multitask", "per_task_lora", "base alone", "cmoe", "lora"]
    assert shown["base alone"] == [f"{v:.1f}" for v in ZERO_SHOT]


def test_candidates_are_shown_with_the_chosen_one_and_the_budget(whole_page: Page) -> None:
    assert whole_page.row("0.002", "", "61.2")[3] == ""
    assert whole_page.row("0.006", json.dumps(HOSTILE), "64.8")[3] == "chosen"
    assert "Budget: 2 candidates, seed 0, on ScienceQA, GQA." in whole_page.text


def test_without_tuning_there_is_no_section_of_it(tmp_path: Path, said: dict[str, Any]) -> None:
    said["methods"]["lora"]["tuned"] = None
    assert "tuning" not in page(tmp_path, said).values("id")


def test_published_figures_are_marked_as_others(whole_page: Page) -> None:
    assert whole_page.row("LoRA") == ["LoRA", "28.74", "32.97", f"{MINUS}32.62"]
    assert whole_page.row("all") == ["all", DASH, "57.18", DASH]
    text = section(whole_page, "published")
    assert "Not run here" in text
    assert "another base (a larger one) and other data" in text
    assert "don't compare" in text


def test_decomposition_has_the_bound_beside_it(whole_page: Page) -> None:
    """ScienceQA: 70.5 less two falls of 0.75 with seed 0, a point more with seed 1."""
    row = [r for r in whole_page.rows if r[:2] == ["ScienceQA", "31.2"] and len(r) == 7]
    assert row == [["ScienceQA", "31.2", "76.0", "69.5", "+44.8", f"{MINUS}6.5", "72.5"]]


def variant_row(found: Page, name: str) -> dict[str, str]:
    """A variant's row, by column."""
    titles = found.rows[[r[0] for r in found.rows].index("Variant")]
    return dict(zip(titles, found.row(name), strict=True))


def test_variants_stand_beside_the_method_as_it_was_compared(whole_page: Page) -> None:
    """Without forgetting a level of 66.5 is 67.0, 71.0 and 75.0 over both seeds."""
    row = variant_row(whole_page, "by chance")
    shown = {key: row[key] for key in ("Last", "BWT", "Location", "Oracle Last", "Added")}
    assert list(shown.values()) == ["71.0 ± 0.7", "0.0", "97.2", "76.2", "290,000"]
    assert [row[task] for task in TASKS] == ["67.0", "71.0", "75.0"]
    assert row["Settings"] == 'probe.score: "random"'
    compared_rows = [r for r in whole_page.rows if r[0] == "cmoeas compared"]
    assert [r[1] for r in compared_rows] == ["74.2 ± 0.7"] * 2
    assert [r[-1] for r in compared_rows] == [
        'probe.score: "frequency", probe.enabled: true',
        f"data.tasks: {json.dumps(TASKS)}",
    ]
    figure = whole_page.figures[f"Last by task, by {HOSTILE}"]
    assert [text for text in figure if text[0].isalpha()][-3:] == [
        "cmoe",
        "by chance",
        "everywhere",
    ]


def test_the_best_variants_are_bold(whole_page: Page) -> None:
    """Of the method, by chance, and everywhere."""
    rows = section(whole_page, "group0").split("<tbody>")[1].split("</tr>")
    marked = [re.findall(r"<b>(.*?)</b>", row) for row in rows[:3]]
    assert marked == [[], ["0.0"], ["76.0", "77.0", "74.5", "71.0", "76.0", "81.0"]]


def test_another_order_is_shown_in_the_streams_own(whole_page: Page) -> None:
    """ScienceQA came last there: 68.5 and 8 points more, a point more with seed 1."""
    row = variant_row(whole_page, "reversed")
    assert [row[task] for task in TASKS] == ["77.0", "73.0", "69.0"]


def test_a_variant_may_have_fewer_tasks(tmp_path: Path, said: dict[str, Any]) -> None:
    one = said["study"]["groups"][1]["variants"][0]
    one["settings"]["data.tasks"] = ["GQA"]
    for run in one["runs"]:
        run["located"] = [[50.0]]
    row = variant_row(page(tmp_path, said), "reversed")
    assert [row[task] for task in TASKS] == [DASH, DASH, "50.0"]


def test_location_is_by_number_of_tasks(whole_page: Page) -> None:
    for n in (1, 2, 3):
        start = (str(n), f"{100 - n:.1f}")
        assert whole_page.row(*start) == [*start, f"{12.5 * n:.1f}"]
    assert "In run cmoe-0" in whole_page.text


def test_unknown_tasks_have_a_curve_and_rates(whole_page: Page) -> None:
    assert whole_page.row("GQA", "2", "0.812") == ["GQA", "2", "0.812", "1.5", "71.8"]
    assert whole_page.row(HOSTILE, "1", "0.938") == [HOSTILE, "1", "0.938", "1.5", "88.2"]
    curves = whole_page.figures["Unlearned samples called unknown by learned ones called so"]
    assert {HOSTILE, "GQA"} <= set(curves)
    assert "the 0.99 quantile" in whole_page.text


def test_layers_have_their_experts_likeness(whole_page: Page) -> None:
    assert whole_page.row("0", "3") == ["0", "3", "+0.38"]
    assert whole_page.row("1", "1") == ["1", "1", DASH]


def test_every_run_is_shown(whole_page: Page, said: dict[str, Any]) -> None:
    titles = whole_page.row("Run", "Seed", "Last")[1:]
    assert {"BWT by T\N{MINUS SIGN}1", "Oracle Last", "With all answers, min"} <= set(titles)
    variants = [one for group in said["study"]["groups"] for one in group["variants"]]
    for method in (*said["methods"].values(), *variants):
        for run in method["runs"]:
            name, seed, last = run["run"], str(run["seed"]), f"{run['last']:.1f}"
            (row,) = [r for r in whole_page.rows if r[:3] == [name, seed, last] and len(r) > 9]
            shown = dict(zip(titles, row[1:], strict=True))
            oracle = run["oracle"]
            assert shown["Oracle Last"] == (DASH if oracle is None else f"{oracle:.1f}")
            assert shown["Added"] == f"{run['added']:,}"
            by_task = [f"{value:.1f}" for value in run["located"][-1]]
            assert ([name, seed, *by_task] in whole_page.rows) == (method not in variants)
    given = whole_page.row("cmoe-1, true task given")
    assert given == ["cmoe-1, true task given", "1", "76.0", "75.0", "74.0"]
    assert ["cmoe-1", "1", "+0.12", DASH] in whole_page.rows


def test_settings_are_shown(whole_page: Page) -> None:
    assert whole_page.row("lora", "training.learning_rate")[2] == "0.002"
    assert whole_page.row("lora", "x")[2] == json.dumps(HOSTILE)
    assert whole_page.row("cmoe", "as shared")
    assert whole_page.row("probe.score") == ["probe.score", '"frequency"']
    assert escape("experts & routers") in whole_page.source


def test_writing_again_gives_the_same_and_leaves_nothing_else(
    tmp_path: Path, said: dict[str, Any], drawn_charts: dict[str, str]
) -> None:
    before = page(tmp_path, said).source
    drawn_charts.clear()
    assert page(tmp_path, said).source == before
    assert [f.name for f in tmp_path.iterdir()] == ["comparison.html"]


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
    heavy = "{'matplotlib', 'jinja2', 'ray', 'torch', 'pyarrow', 'transformers'}"
    code = f"import sys, cmoe.reports.comparison_page; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


# In a browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_opens_and_is_as_wide_as_the_screen(
    browser: Browser, whole_folder: Path, width: int, scheme: Any
) -> None:
    """A table wider than it scrolls in its place."""
    shown = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    address = (whole_folder / "comparison.html").as_uri()
    shown.goto(address)
    shown.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert shown.evaluate("document.documentElement.scrollWidth") == width
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
