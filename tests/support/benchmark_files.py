"""Miniatures of UCIT, MLLM-DCL and TriGap: the files that each has, by the names it gives them.

The names are those of their authors' pages and configurations (docs/benchmarks.md), written out
here once more: the configurations are held against them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

ROWS = 3


class Files(NamedTuple):
    """A task's files, below the benchmark's folder."""

    train: str
    test: str
    images: str
    """Folder that the rows' paths are relative to."""
    picture: str
    """What these paths are like, with the row's number."""
    captions: str | None = None


def _ucit(folder: str, train: str, picture: str, captions: str | None = None) -> Files:
    at = f"instructions/{folder}"
    beside = f"{at}/{captions}" if captions else None
    return Files(f"{at}/{train}", f"{at}/test_3000.json", "datasets", picture, beside)


UCIT = {
    "ImageNet-R": _ucit("ImageNet-R", "train.json", "ImageNet-R/train/n01443537/{}.jpg"),
    "ArxivQA": _ucit("ArxivQA", "train_4w.json", "ArxivQA/images/1501.0000{}_1.jpg"),
    "VizWiz-Caption": _ucit(
        "VizWiz", "train.json", "VizWiz/train/VizWiz_{}.jpg", "val_coco_type_3000.json"
    ),
    "IconQA": _ucit("IconQA", "train.json", "IconQA/iconqa_data/iconqa/train/fill_in/{}/image.png"),
    "CLEVR-Math": _ucit("CLEVR", "train_4w.json", "CLEVR/images/train/CLEVR_train_00000{}.png"),
    "Flickr30k": _ucit(
        "Flickr30k", "train_brief_4w.json", "Flickr30k/train/{}.jpg", "val_coco_type_3000.json"
    ),
}
"""github.com/Ghy0501/HiDe-LLaVA at 4dd0793, `README.md`."""

MLLM_DCL = {
    domain: Files(f"{domain}/train.json", f"{domain}/test.json", domain, f"images/{picture}")
    for domain, picture in {
        "RS": "1000{}.png",
        "Med": "image_{}.jpg",
        "AD": "{}.jpg",
        "Sci": "AI2D_{}.png",
        "Fin": "{}.png",
    }.items()
}
"""github.com/Ghy0501/MCITlib at 2956dfd, `LoRA-FT/configs/data_configs/MLLM-DCL`."""

TRIGAP = {
    task: Files(
        f"instructions/{task}/{train}.json",
        f"instructions/{task}/{test}.json",
        "datasets",
        f"{task}/images/{{}}.png",
    )
    for task, (train, test) in {
        "PMCVQA": ("train_standard_4w", "test_standard_3k"),
        "DocVQA": ("train_converted_sub", "val_converted"),
        "ChartQA": ("train_standard_4w_sub", "test_standard_3k"),
        "IconQA": ("train_sub", "test_3000"),
        "InfographicVQA": (
            "infographicsVQA_train_converted_sub",
            "infographicsVQA_val_converted",
        ),
        "ArxivQA": ("train_4w_sub", "test_3000"),
        "Roadside": ("train_standard_4w", "test_standard_3k"),
        "ChemVQA": ("train_standard_4w", "test_standard_3k"),
        "FloodNetVQA": ("train_standard_4w_sub", "test_standard_3k"),
        "CLEVR": ("train_4w_sub", "test_3000"),
    }.items()
}
"""github.com/LAMDA-CL/Prism at 7154be2, `config/benchmarks/TriGap.py`."""

LISTED = ("DocVQA", "InfographicVQA")
"""Tasks of TriGap whose answers may be lists (`eval_ucit.py` there)."""

BENCHMARKS: Mapping[str, Mapping[str, Files]] = {
    "ucit": UCIT,
    "mllm_dcl": MLLM_DCL,
    "trigap": TRIGAP,
}


def captions_of(number: int) -> list[str]:
    return [f"A picture of thing {number}.", f"thing {number}, seen from {'far' * number}"]


def write_benchmark(root: Path, name: str) -> None:
    """All tasks of a benchmark, with a few rows each, below a folder."""
    for task, files in BENCHMARKS[name].items():
        pictures = [files.picture.format(number) for number in range(ROWS)]
        for number, picture in enumerate(pictures):
            file = root / files.images / picture
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 20 + number), (40 * number, 90, 200)).save(file)
        rows = [_test(n, picture, task, name) for n, picture in enumerate(pictures)]
        _write(root / files.train, [_train(n, picture) for n, picture in enumerate(pictures)])
        _write(root / files.test, rows)
        if files.captions is not None:
            _write(root / files.captions, _coco(pictures))


def _train(number: int, picture: str) -> Any:
    return {
        "id": number,
        "image": picture,
        "conversations": [
            {"from": "human", "value": f"<image>\nWhat is {number}?\nAnswer with a word."},
            {"from": "gpt", "value": f"thing {number}"},
        ],
    }


def _test(number: int, picture: str, task: str, benchmark: str) -> Any:
    row: dict[str, Any] = {
        "question_id": f"{number}",
        "image": picture,
        "text": f"What is {number}?\nAnswer with a word.",
        "answer": f"thing {number}",
    }
    if benchmark == "trigap" and task in LISTED and number:
        row["answer"] = [f"thing {number}", f"the thing {number}"]
    return row


def _coco(pictures: Sequence[str]) -> Any:
    told = [(n, text) for n in range(len(pictures)) for text in captions_of(n)]
    return {
        "images": [{"id": n + 1, "file_name": Path(p).name} for n, p in enumerate(pictures)],
        "annotations": [
            {"id": at + 1, "image_id": n + 1, "caption": text} for at, (n, text) in enumerate(told)
        ],
    }


def _write(file: Path, found: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found), encoding="utf-8")
