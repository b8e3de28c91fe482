"""A run on one page: `report.html` to read and look at, `report.md` for a model card.

Everything is taken from the run's folder as it lies there; nothing is computed by a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cmoe.common.files import whole
from cmoe.data.samples import Task
from cmoe.evaluation.metrics import forgetting
from cmoe.evaluation.results import answering
from cmoe.evaluation.run import Run, read_run
from cmoe.evaluation.targets import Targets
from cmoe.folder import ALONE
from cmoe.reports.run_figures import pictures

if TYPE_CHECKING:
    from jinja2 import Environment

HTML, MARKDOWN = "report.html", "report.md"

_PAPER = {
    "probe.fraction": "0.1",
    "probe.score": "frequency",
    "probe.count": "fixed by its algorithm, per_probe by its text",
    "probe.init": "used",
    "locator.layer": "-1",
    "locator.pooling": "last",
    "locator.score": "z",
}
"""What the paper says of settings that decide where experts grow and how tasks are found."""


def write_report(
    folder: Path, tasks: Sequence[Task], targets: Targets, store: str | None = None
) -> None:
    """Write `report.html` and `report.md` into a run's folder, each whole or not at all.

    Args:
        folder: Of the run, with at least one task tested.
        tasks: The stream, with the test samples that were answered.
        targets: What those were scored against.
        store: Where the run's log lies, if not in its folder.

    Raises:
        ValueError: No task has been tested yet.
    """
    templates = environment()
    run = read_run(folder, tasks, targets, store)
    facts = _facts(run)
    for name, more in ((HTML, pictures(run, facts)), (MARKDOWN, {})):
        text = templates.get_template(f"{name}.j2").render(run=run, **facts, **more)
        with whole(folder / name) as beside:
            beside.write_text(text, encoding="utf-8")


def environment(*folders: Path) -> Environment:
    """Where pages are made: their templates, with what all of them share, and how values look.

    Args:
        folders: Of templates, before this module's.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    made = Environment(
        loader=FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"fixed": _fixed, "signed": _signed, "cell": _cell}
    return made


# Figures in numbers: what both files say


def _facts(run: Run) -> dict[str, Any]:
    found, names = run.found, run.names
    other = "strict" if found["scoring"] == "official" else "official"
    parameters = _parameters(run)
    parts = sorted({part for row in parameters for part, n in row["parts"].items() if n})
    together = [parameters[i] for i in found["parameters"]["answering"]]
    seconds = {name: found["seconds"].get(name, {}) for name in names}
    seconds = {"base alone": found["seconds"].get(ALONE, {})} | seconds
    located = [row[: len(names)] for row in found["located"]]
    return {
        "metrics": _metrics(found, other),
        "located": located,
        "oracle": found["oracle"][-1] if found["oracle"] else None,
        "forgotten": forgetting(located),
        "parameters": parameters,
        "parts": parts,
        "added": {
            **{part: sum(row["parts"].get(part, 0) for row in together) for part in parts},
            "total": found["parameters"]["added"],
        },
        "seconds": seconds,
        "spent": {p: sum(s.get(p, 0.0) for s in seconds.values()) for p in _phases(seconds)},
        "generated": sum(found["generated"].values()),
        "asked": _asked(run),
        "located_right": _located_right(run) if run.locates else None,
        "fence": max(["```", *(f"{ticks}`" for ticks in re.findall("`+", run.text))], key=len),
        "choices": _choices(run.config) if found["method"] == "cmoe" else [],
    }


def _metrics(found: Mapping[str, Any], other: str) -> list[dict[str, Any]]:
    """The measures by both scorings, as located and by the oracle."""
    rows = []
    for scoring, table in ((found["scoring"], found), (other, found[other])):
        for key, how in (("metrics", "located"), ("oracle_metrics", "oracle")):
            if table[key] is not None:
                rows.append({"scoring": scoring, "how": how, "fwt": None, **table[key]})
    return rows


def _parameters(run: Run) -> list[dict[str, Any]]:
    """What each task adds: scalars by part, and operations per token."""
    flops = run.found["flops_per_token"]
    rows = []
    for name in run.names:
        parts, added = run.found["parameters"]["tasks"][name], flops["added"][name]
        share = 100 * added / flops["base"]
        total = sum(answering(parts).values())
        rows.append({"task": name, "parts": parts, "total": total, "flops": share})
    return rows


def _phases(seconds: Mapping[str, Mapping[str, float]]) -> list[str]:
    """All phases in their order: a later task has more of them than the first."""
    longest = sorted(seconds.values(), key=len, reverse=True)
    return list(dict.fromkeys(phase for phases in longest for phase in phases))


def _asked(run: Run) -> int:
    """Answers that the matrices are made of, had each stage been answered afresh."""
    count = 0
    for number, stage in run.predictions.stages.items():
        for i, samples in enumerate(stage.values()):
            own = {i} if run.locates and i <= number else set()
            count += sum(len({by} | own) for by in samples.by)
    return count


def _located_right(run: Run) -> list[dict[str, Any]]:
    """Per task in percent: located right, unknown; and where most of the wrong ones went."""
    rows, confusion = [], run.found["location"]["confusion"]
    for i, (name, counts) in enumerate(zip(run.names, confusion, strict=True)):
        wrong = {run.names[j]: n for j, n in enumerate(counts) if j != i and n}
        rows.append(
            {
                "task": name,
                "samples": sum(counts),
                "right": 100 * counts[i] / sum(counts),
                "unknown": 100 * fmean(run.last[name].unknown),
                "mistaken": max(wrong, key=lambda n: wrong[n]) if wrong else None,
                "times": max(wrong.values(), default=0),
            }
        )
    return rows


def _choices(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Setting, this run's value, the paper's."""
    rows = []
    for key, paper in _PAPER.items():
        part, name = key.split(".")
        rows.append((key, str(config[part][name]), paper))
    return rows


# How values are written


def _fixed(value: float | None, digits: int = 1) -> str:
    return "\N{EN DASH}" if value is None else f"{value:,.{digits}f}"


def _signed(value: float | None, digits: int = 1) -> str:
    """With its sign; what rounds to nothing has none."""
    text = _fixed(value if value is None else abs(value), digits)
    if value is None or not text.strip("0."):
        return text
    return f"+{text}" if value > 0 else f"\N{MINUS SIGN}{text}"


def _cell(value: object) -> str:
    """Text for a cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")
