"""The report of a sweep, made by hand: what a reader of the page may rely on."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser
from support.looks import require_good_file
from support.pages import HOSTILE, Page, is_light, stays_the_same
from support.probings import gains

from cmoe.common.run_files import RunFileError
from cmoe.experiments.sweep.settings import BudgetConfig, SearchConfig
from cmoe.experiments.sweep.space import Point, Result, front
from cmoe.experiments.sweep.summary import probes_summary
from cmoe.methods.probe import Gain, Probing
from cmoe.reports.sweep_page import write_sweep_report

TASKS = ("ScienceQA", HOSTILE, "GQA")
LAYERS, BASE, SAMPLES = 3, 1_000_000, 160

SEARCH = SearchConfig(
    alpha=(1.5, -0.5, 0.5), score=("frequency", "loss_gain"), rank=(2, 4), tolerance=1.0
)
PROBING = Probing(
    older=(1, 1, 1),
    largest=((0.9, 0.1), (0.4, 0.6), (0.2, 0.8)),
    gates=((0.8, 0.2), (0.5, 0.5), (0.3, 0.7)),
    gains=gains(0.02, 0.3, 0.1),
    whole=Gain(0.5, 0.01),
    loss=1.0,
)


def candidate(experts: dict[int, int], rank: int, parameters: int, **point: Any) -> dict[str, Any]:
    default = {"alpha": 0.5, "layers": None, "score": "frequency", "per_layer": 1, "init": "used"}
    return {
        "name": "+".join(f"{n}x{c}" for n, c in experts.items()) + f"-r{rank}-used",
        "experts": experts,
        "rank": rank,
        "init": "used",
        "parameters": parameters,
        "point": {**default, "rank": rank, **point},
    }


def task(
    name: str,
    candidates: list[dict[str, Any]],
    accuracies: list[float | None],
    limit: int | None = None,
    probing: Probing | None = PROBING,
) -> dict[str, Any]:
    """A task of sweep.json. Candidates beyond the accuracies had no trial; None was stopped."""
    results = [
        Result(c["name"], a, SAMPLES if a else 0, c["parameters"], 12.5 if a else 0.0, a is None)
        for c, a in zip(candidates, accuracies, strict=False)
    ]
    best = max(front(results), key=lambda r: r.accuracy or 0.0)
    won = next(Point(**c["point"]) for c in candidates if c["name"] == best.name)
    return {
        "task": name,
        "winner": best.name,
        "accuracy": best.accuracy,
        "parameters": best.parameters,
        "limit": limit,
        "probe_seconds": 8.0,
        "index": int(probing is not None),
        "points": [c["point"] | {"candidate": c["name"]} for c in candidates]
        + [c["point"] | {"alpha": 0.5, "candidate": c["name"]} for c in candidates[:1]],
        "trials": len(results),
        "trial_seconds": sum(r.seconds for r in results),
        "saved_seconds": {"shared probe": 1340.0, "same candidate": 25.0},
        "probes": None if probing is None else probes_summary(probing, won),
        "candidates": candidates,
        "results": [asdict(r) for r in results],
        "front": [r.name for r in front(results)],
    }


def swept() -> dict[str, Any]:
    """A sweep of three tasks; one was not probed, one has a budget, one a stopped trial."""
    every = {0: 1, 1: 1, 2: 1}
    first = [candidate(every, 2, 41_312, alpha=1.5), candidate(every, 4, 77_024, alpha=1.5)]
    second = [
        candidate({2: 1}, 2, 20_111, alpha=-0.5),
        candidate({1: 1, 2: 1}, 2, 30_222),
        candidate({1: 2}, 2, 30_333, score="loss_gain", alpha=-0.5),
        candidate(every, 4, 80_444, alpha=1.5),
    ]
    third = [
        candidate({1: 1}, 2, 21_555, score="loss_gain", alpha=-0.5),
        candidate({1: 1, 2: 1}, 4, 52_666, alpha=-0.5),
        candidate(every, 2, 43_777, alpha=1.5),
    ]
    values = {
        "search": asdict(SEARCH),
        "budget": asdict(BudgetConfig(parameters=60_000)),
        "tasks": [
            task(TASKS[0], first, [81.25, 83.75], probing=None),
            task(TASKS[1], second, [61.875, 66.25, 63.125], limit=60_000),
            task(TASKS[2], third, [58.125, None, 55.625]),
        ],
    }
    read: dict[str, Any] = json.loads(json.dumps(values))
    return read


def stream(last: float, added: int, learned: int = 3) -> dict[str, Any]:
    """A matrix.json of which so many tasks are learned."""
    rows = [[last if j <= i else None for j in range(len(TASKS))] for i in range(learned)]
    summary = {"last": last, "mft": last + 1.5, "maa": last, "bwt": -1.25, "bwt_t_minus_1": None}
    return {
        "tasks": list(TASKS),
        "scoring": "official",
        "located": rows,
        "metrics": summary if learned else None,
        "oracle_metrics": summary | {"last": last + 0.5} if learned else None,
        "location": {"accuracy": 98.75, "confusion": []} if learned else None,
        "parameters": {"base": BASE, "added": added, "tasks": {}},
    }


STREAMS = {
    "winners": stream(70.25, 123_456),
    "default": stream(69.5, 234_567),
    "expand_all": stream(71.75, 345_678),
}


@pytest.fixture
def said() -> dict[str, Any]:
    return swept()


@pytest.fixture(scope="module")
def whole_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Of the whole comparison."""
    return page(tmp_path_factory.mktemp("sweep"), swept())


def page(folder: Path, said: dict[str, Any], streams: dict[str, Any] | None = None) -> Page:
    write_sweep_report(folder, said, STREAMS if streams is None else streams)
    return Page(folder / "sweep.html")


def test_page_is_well_formed_and_loads_nothing(whole_page: Page) -> None:
    whole_page.loads_nothing()
    assert "img" not in {tag for tag, _ in whole_page.elements}


def test_every_link_and_id_in_the_page_is_its_own(whole_page: Page) -> None:
    whole_page.has_its_own_ids()


def test_names_are_escaped(tmp_path: Path, said: dict[str, Any]) -> None:
    found = page(tmp_path, said, {HOSTILE: STREAMS["default"]})
    assert "<script" not in found.source
    assert found.text.count(HOSTILE) >= 4  # of the task and of the stream


def test_every_candidate_is_shown_with_what_came_of_it(
    whole_page: Page, said: dict[str, Any]
) -> None:
    for one in said["tasks"]:
        results = {r["name"]: r for r in one["results"]}
        for number, made in enumerate(one["candidates"], 1):
            size = f"{made['parameters']:,}"
            start = [str(number), made["name"]]
            (row,) = [r for r in whole_page.rows if r[:2] == start and size in r]
            result = results.get(made["name"])
            if result is None:
                assert row[-1] == "over budget"
            elif result["accuracy"] is None:
                assert row[-1] == "stopped"
            else:
                share = result["accuracy"] / 100
                error = 100 * (share * (1 - share) / SAMPLES) ** 0.5
                assert row[-3] == f"{result['accuracy']:.1f} ± {error:.1f}"


def test_front_and_winner_are_marked(whole_page: Page, said: dict[str, Any]) -> None:
    shown = [row for row in whole_page.rows if row[-1].startswith("front")]
    expected = [
        (c["name"], f"{c['parameters']:,}", c["name"] == one["winner"])
        for one in said["tasks"]
        for c in one["candidates"]
        if c["name"] in {r.name for r in front([Result(**r) for r in one["results"]])}
    ]
    assert [(row[1], row[-4], row[-1].endswith("wins")) for row in shown] == expected
    assert [name for name, _, wins in expected if wins] == re.findall(
        r"<b>([^<]*)</b> wins", whole_page.source
    )


def test_figures_of_a_task_are_those_it_has_something_for(
    whole_page: Page, said: dict[str, Any]
) -> None:
    figures = whole_page.figures
    for number, name in enumerate(TASKS):
        trials = said["tasks"][number]["trials"]
        scatter = figures[f"Accuracy of {name} by added parameters"]
        assert {str(n + 1) for n in range(trials)} <= set(scatter)
        assert any(t.startswith("budget 60,000") for t in scatter) == (number == 1)
        axes = set(figures[f"What was tried for {name}, setting by setting"])
        assert {"alpha", "score", "rank", "parameters", "accuracy", "loss_gain"} <= axes
        assert not {"per layer", "init", "layers"} & axes
        for label in (f"Probe scores of {name} by layer", f"Layers that grow for {name} by alpha"):
            assert (label in figures) == (number > 0)


def test_a_budget_far_away_is_only_named(tmp_path: Path, said: dict[str, Any]) -> None:
    said["tasks"][1]["limit"] = 10**9
    scatter = page(tmp_path, said).figures[f"Accuracy of {HOSTILE} by added parameters"]
    assert "budget 1,000,000,000 →" in scatter
    sizes = [int(t.replace(",", "")) for t in scatter if re.fullmatch(r"[\d,]{5,}", t)]
    assert max(sizes) < 100_000


def test_comparison_has_the_streams_figures(whole_page: Page) -> None:
    for label, matrix in STREAMS.items():
        last, added = matrix["metrics"]["last"], matrix["parameters"]["added"]
        assert whole_page.row(label)[1:] == [
            f"{last:.2f}",
            "\N{MINUS SIGN}1.25",
            f"{last + 1.5:.2f}",
            f"{last + 0.5:.2f}",
            "98.75",
            f"{added:,}",
            f"{100 * added / BASE:.2f} %",
        ]
    title = "Last of the winners, test"
    value, more = whole_page.tiles[title], whole_page.notes[title]
    assert value == "70.2"
    assert "default 69.5; expand_all 71.8" in more
    assert whole_page.tiles["Parameters added"] == "12.3"
    figures = "1, 1, 2, used, 21,555, 58.1, 70.2, 69.5, 71.8"
    assert ", ".join(whole_page.row("GQA")[1:]) == figures


def test_time_and_trials_are_sums(whole_page: Page) -> None:
    tiles = whole_page.tiles
    assert tiles["Trials"] == "8"
    assert tiles["In trials"] == "1 min 28 s"
    assert "and 24 s in probe runs" in whole_page.notes["In trials"]
    assert tiles["Saved: shared probe"] == "1 h 7 min"
    assert tiles["Saved: same candidate"] == "1 min 15 s"


@pytest.mark.parametrize(
    "streams",
    [
        {},
        {"default": STREAMS["default"]},
        {"winners": stream(0.0, 0, learned=0)},
        {"winners": stream(70.25, 99, learned=2) | {"oracle_metrics": None, "location": None}},
    ],
)
def test_a_comparison_that_is_not_all_there(
    tmp_path: Path, said: dict[str, Any], streams: dict[str, Any]
) -> None:
    found = page(tmp_path, said, streams)
    assert ("comparison" in found.values("id")) == bool(streams)
    for matrix in streams.values():
        assert (f"{len(matrix['located'])} of 3 tasks so far" in found.text) == (
            len(matrix["located"]) < len(TASKS)
        )
    if "winners" not in streams:
        assert found.tiles["Parameters added"] == f"{77_024 + 30_222 + 21_555:,}"


def test_settings_are_shown(whole_page: Page, said: dict[str, Any]) -> None:
    assert whole_page.row("search.alpha") == ["search.alpha", "1.5, -0.5, 0.5"]
    assert whole_page.row("search.layers") == ["search.layers", "none"]
    assert whole_page.row("budget.total_parameters") == ["budget.total_parameters", "null"]
    assert len([r for r in whole_page.rows if r[0].startswith("search.")]) == len(said["search"])


def test_how_the_winner_is_chosen_depends_on_the_tolerance(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    assert "at most 1 standard error of" in page(tmp_path, said).text
    said["search"]["tolerance"] = 0.0
    assert "the best; of equals, the smallest growth" in page(tmp_path, said).text


def test_a_search_by_layers_has_no_threshold(tmp_path: Path, said: dict[str, Any]) -> None:
    said["search"] |= {"alpha": [], "layers": [1, 2]}
    for one in said["tasks"]:
        for made in one["candidates"]:
            made["point"] |= {"alpha": None, "layers": min(2, len(made["experts"]))}
        for point in one["points"]:
            point |= {"alpha": None, "layers": 1}
    found = page(tmp_path, said)
    assert "layers" in found.figures["What was tried for GQA, setting by setting"]
    assert "without a threshold" in found.text


def test_a_layer_that_passed_and_did_not_grow_was_cut(tmp_path: Path, said: dict[str, Any]) -> None:
    """By `frequency`, 0.1, 0.6, 0.8, at alpha 0.5: the last two pass."""
    text = "a limit of the configuration cut them"
    assert text not in page(tmp_path, said).text
    won = next(c for c in said["tasks"][1]["candidates"] if c["name"] == "1x1+2x1-r2-used")
    won["experts"] = {"2": 1}
    assert text in page(tmp_path, said).text


def test_a_task_without_probing_says_why(tmp_path: Path, said: dict[str, Any]) -> None:
    assert "a first task has nothing to reuse" in page(tmp_path, said).text
    said["tasks"][1]["probes"] = None
    assert "probe.enabled is off" in page(tmp_path, said).text


def test_a_single_trial_has_nothing_to_compare(tmp_path: Path, said: dict[str, Any]) -> None:
    said["tasks"][0] = task(TASKS[0], said["tasks"][0]["candidates"][:1], [81.25], probing=None)
    figures = page(tmp_path, said).figures
    assert f"Accuracy of {TASKS[0]} by added parameters" in figures
    assert f"What was tried for {TASKS[0]}, setting by setting" not in figures


def test_a_sweep_and_its_file_give_the_same_page(tmp_path: Path) -> None:
    """JSON has no numbers for keys: layers are texts there."""
    made = swept()
    for one in made["tasks"]:
        for found in one["candidates"]:
            found["experts"] = {int(n): count for n, count in found["experts"].items()}
    assert page(tmp_path, made).source == page(tmp_path, swept()).source


def test_writing_again_gives_the_same_and_leaves_nothing_else(
    tmp_path: Path, said: dict[str, Any], drawn_charts: dict[str, str]
) -> None:
    write_sweep_report(tmp_path, said, STREAMS)
    assert [f.name for f in tmp_path.iterdir()] == ["sweep.html"]
    stays_the_same(tmp_path, lambda: write_sweep_report(tmp_path, said, STREAMS), drawn_charts)


def test_nothing_to_report(tmp_path: Path, said: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no task has been swept"):
        write_sweep_report(tmp_path, said | {"tasks": []}, {})
    assert not list(tmp_path.iterdir())


def test_a_missing_field_is_a_sentence(tmp_path: Path, said: dict[str, Any]) -> None:
    del said["tasks"][1]["probes"]  # as an earlier version wrote it
    with pytest.raises(RunFileError, match=r"sweep\.json: lacks .*'probes'"):
        write_sweep_report(tmp_path, said, {})
    assert not list(tmp_path.iterdir())


def test_the_page_looks_good_everywhere(
    tmp_path: Path, said: dict[str, Any], browser: Browser
) -> None:
    write_sweep_report(tmp_path, said, STREAMS)
    require_good_file(browser, tmp_path / "sweep.html", 200)


def test_import_is_light() -> None:
    is_light("cmoe.reports.sweep_page")
