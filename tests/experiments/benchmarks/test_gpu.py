"""`cmoe bench gpu`: its tiny form, what it says of figures that it hasn't, and its limits."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.devices import DEVICE

from cmoe.cli.bench import table
from cmoe.cli.main import main
from cmoe.experiments.benchmarks import gpu
from cmoe.experiments.benchmarks.answering import decode, more_waits
from cmoe.experiments.benchmarks.card import Card
from cmoe.experiments.benchmarks.figures import Figure, UnmeasurableError, in_turn, timed
from cmoe.experiments.benchmarks.gpu import Part, costs_on_a_card, parts
from cmoe.experiments.benchmarks.workload import TINY, Sizes, Workload, llava_7b, published_shape

NAMES = [name for part in parts(TINY) for name in part.figures]
ON_GPU = DEVICE.type == "cuda" and torch.cuda.is_available()
BENCH = ["bench", "gpu", "--tiny", "--device", "cuda" if ON_GPU else "cpu"]


@pytest.fixture
def work() -> Workload:
    return Workload("mini", "cpu", torch.float32, TINY)


def test_the_tiny_form_has_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gpu.json"
    assert main([*BENCH, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["gpu"]
    assert [row["figure"] for row in rows] == NAMES
    missing = {row["figure"]: row["not measured"] for row in rows if row["measured"] is None}
    waits = [] if ON_GPU else [name for name in NAMES if name.startswith("host waits")]
    assert missing == dict.fromkeys(waits, "counted on a GPU alone")
    for row in (row for row in rows if row["figure"] not in missing):
        assert math.isfinite(row["measured"]), row
        assert row["rival"] is None or row["unit"] == "more" or positive(row["ratio"]), row
        assert row["unit"] != "ms" or (positive(row["limit"]) and positive(row["of limit"])), row
        assert (row["holds"] is None) == (row["at most"] is None), row
    assert capsys.readouterr().out.endswith(f"\n{table(rows)}\n")


def positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def test_the_table_shows_what_the_json_holds() -> None:
    rows = [Figure(0, "more", rival="base", others=7, most=0).row("a")]
    rows += [Figure(3.0, rival="base", others=2.0, ratio=1.5, most=1.4).row("b")]
    names, *lines = (re.split(r"  +", line.strip()) for line in table(rows).splitlines())
    a, b = (dict(zip(names, line, strict=True)) for line in lines)
    assert (a["measured"], a["rival's"], a["at most"], a["holds"]) == ("0", "7", "0", "yes")
    assert (b["measured"], b["ratio"], b["holds"], b["limit"]) == ("3.000", "1.500", "no", "-")


def test_what_would_pass_the_limit_of_time_is_left_out_by_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*BENCH, "--seconds", "4"]) == 0
    told = capsys.readouterr().err
    for name in NAMES[2:]:
        assert re.search(rf"{re.escape(name)}: not measured, takes about \d+ s, and [0-4] s", told)


def test_a_part_that_fails_says_why_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(work: Workload) -> Sequence[Figure]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore.")

    def imports(work: Workload) -> Sequence[Figure]:
        import no_such_package  # noqa: F401

        raise AssertionError

    def works(work: Workload) -> Sequence[Figure]:
        return [Figure(1.0)]

    made = Part(("a", "b"), fails, 0), Part(("c",), imports, 0), Part(("d",), works, 0)
    monkeypatch.setattr(gpu, "parts", lambda sizes: made)
    rows = costs_on_a_card("cpu", torch.float32, "mini", tiny=True, seconds=60)
    assert {row["figure"]: row["not measured"] for row in rows} == {
        "a": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.",
        "b": "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.",
        "c": "ModuleNotFoundError: No module named 'no_such_package'",
        "d": None,
    }


def test_a_call_that_fails_costs_its_own_row_alone() -> None:
    """As where PEFT's LoRA needs more memory than there is."""

    def fails() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    times = in_turn({"lora": fails, "first": partial(sum, range(9))}, rounds=1)
    lora, first = timed(times, "lora").row("a"), timed(times, "first", "lora", most=1.06).row("b")
    assert (lora["measured"], lora["not measured"]) == (
        None,
        "OutOfMemoryError: CUDA out of memory.",
    )
    assert positive(first["measured"])
    assert (first["ratio"], first["holds"]) == (None, None)
    assert first["not measured"] == "lora: OutOfMemoryError: CUDA out of memory."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--tiny --base mini", "cmoe bench: --tiny is the mini base; leave --base out"),
        ("--device cpu --base ./nowhere", "cmoe bench: ./nowhere: there is no such folder"),
        ("--seconds soon", "cmoe bench: --seconds is 'soon'; a number is needed"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: Any = main(["bench", "gpu", *words.split()])
    except SystemExit as ended:
        status = ended.code
    assert status in (1, 2)
    assert capsys.readouterr().err.startswith(said)


def test_the_random_base_has_the_published_shape() -> None:
    """As its hub's files say: 7,063,427,072 parameters, 576 tokens for an image of 336 pixels."""
    base, processor = published_shape("meta", torch.bfloat16)
    assert sum(p.numel() for p in base.parameters()) == 7_063_427_072
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    assert base.config.image_token_id == processor.image_token_id
    work = Workload(None, "cpu", torch.float32, Sizes())
    work.__dict__["_loaded"] = base, processor
    prompts = work.prompts
    assert prompts["pixel_values"].shape == (16, 3, 336, 336)
    assert (prompts["input_ids"] == processor.image_token_id).sum(1).tolist() == [576] * 16
    assert prompts["input_ids"].max() < llava_7b(3).get_text_config().vocab_size


@torch.no_grad()
def test_a_decode_step_is_limited_by_what_it_reads(work: Workload) -> None:
    """Counted on the base itself: its layers, its output embeddings, and what is cached."""
    work.__dict__["card"] = Card(bandwidth=1.0, rate=math.inf)
    figures = [figure for figure in decode(work) if isinstance(figure, Figure)]
    base, one, mixed = (figure.limit for figure in figures)
    assert base is not None
    assert one == mixed
    read = [work.base.get_decoder().layers, work.base.get_output_embeddings()]
    cache = work.base(**work.prompts, use_cache=True).past_key_values
    cached = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    norms = sum(p.numel() for m in read for p in m.parameters() if p.ndim == 1)
    weights = sum(p.numel() for m in read for p in m.parameters())
    assert base.by == "bytes"
    assert base.seconds == pytest.approx(4 * weights + cached, abs=4 * norms)
    experts = [t for ffn in work.grown.ffns for m in ffn.maps.values() for t in m.buffers()]
    routers = 8 * sum(ffn.hidden_size for ffn in work.grown.ffns)
    assert one is not None
    assert one.seconds - base.seconds == 4 * (sum(t.numel() for t in experts) + routers)


def test_a_twin_has_the_weights_and_leaves_the_base_alone(work: Workload) -> None:
    before = [type(m) for m in work.base.modules()]
    twin = work.grown.base
    theirs = {p.data_ptr() for p in twin.parameters()}
    assert {p.data_ptr() for p in work.base.parameters()} <= theirs
    assert [type(m) for m in work.base.modules()] == before


def test_a_card_is_limited_by_the_slower_of_two() -> None:
    card = Card(bandwidth=10.0, rate=100.0)
    assert card.limit(operations=100, moved=20) == (2.0, "bytes")
    assert card.limit(operations=300, moved=20) == (3.0, "operations")


@pytest.mark.skipif(not ON_GPU, reason="a GPU's host waits alone are counted")
def test_a_wait_of_the_host_is_counted() -> None:
    work = Workload("mini", "cuda", torch.float32, TINY)
    value = torch.ones(3, device="cuda")
    figure = more_waits(work, "sum", value.sum, lambda: [value.sum().item() for _ in range(2)])
    assert (figure.measured, figure.others) == (2, 0)


def test_without_a_gpu_waits_are_not_counted(work: Workload) -> None:
    with pytest.raises(UnmeasurableError, match="on a GPU alone"):
        gpu.host_waits(work)
