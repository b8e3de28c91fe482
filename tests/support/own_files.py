"""The same samples written in every format, and read as a task of the user's own."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from cmoe.data.coin import read_tasks
from cmoe.data.prepare import prepare
from cmoe.data.row_rules import BaseRule
from cmoe.data.samples import PLACEHOLDER, Sample, Task
from cmoe.data.settings import DataConfig, OwnTask
from cmoe.data.survey import Preparation, survey

TOKENS = ("<s>", "</s>", "<pad>", "<image>")
BASE = BaseRule(TOKENS)
PICTURES = ("a.png", "b.png", "folder/c.png")
TABLE = ("id", "question", "answer", "image")


class Said(NamedTuple):
    """What a row is to say; `turns` are questions with their answers, places in the first alone."""

    id: str
    turns: tuple[tuple[str, str], ...]
    images: tuple[str, ...]


ROWS = [
    Said("1", ((f"Is {PLACEHOLDER} like {PLACEHOLDER}?", "yes"),), ("a.png", "b.png")),
    Said("2", (("What is it?", "a thing"),), ("folder/c.png",)),
    Said("3", (("And without?", "no"),), ()),
]


def write_pictures(root: Path) -> None:
    (root / "folder").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(PICTURES):
        Image.new("RGB", (40, 30), (60 * number, 200, 10)).save(root / name)


def placed(said: Said, between: str = "\n") -> list[tuple[str, str]]:
    """The turns with a placeholder for each image."""
    (question, answer), *further = said.turns
    if PLACEHOLDER not in question:
        question = f"{PLACEHOLDER}{between}" * len(said.images) + question
    return [(question, answer), *further]


def turns(said: Said, keys: tuple[str, str], roles: tuple[str, str]) -> list[dict[str, Any]]:
    return [
        {keys[0]: role, keys[1]: text}
        for pair in placed(said)
        for role, text in zip(roles, pair, strict=True)
    ]


def parts(text: str, images: Sequence[str], part: Callable[[str], Any]) -> list[Any]:
    """A question's texts and images, as OpenAI has them."""
    waiting, found = iter(images), []
    for number, piece in enumerate(text.split(PLACEHOLDER)):
        if number:
            found.append(part(next(waiting)))
        if piece:
            found.append({"type": "text", "text": piece})
    return found


def messages(said: Said, part: Callable[[str], Any]) -> list[Any]:
    found: list[Any] = []
    for number, (question, answer) in enumerate(placed(said, between="")):
        content: Any = question if number else parts(question, said.images, part)
        found += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return found


def json_files(root: Path) -> Mapping[str, Callable[[Said], Any]]:
    """By name of a file what each row is in it."""

    def llava(said: Said) -> Any:
        images = said.images
        named = {"image": images[0] if len(images) == 1 else list(images)} if images else {}
        return {
            "id": said.id,
            **named,
            "conversations": turns(said, ("from", "value"), ("human", "gpt")),
        }

    def data_url(path: str) -> str:
        return f"data:image/png;base64,{base64.b64encode((root / path).read_bytes()).decode()}"

    def written(part: Callable[[str], Any]) -> Callable[[Said], Any]:
        return lambda said: {"id": said.id, "messages": messages(said, part)}

    return {
        "llava.json": llava,
        "llava.jsonl": llava,
        "sharegpt.json": lambda said: {
            "id": said.id,
            "images": list(said.images),
            "conversations": turns(said, ("from", "value"), ("human", "gpt")),
        },
        "users.jsonl": lambda said: {
            "id": said.id,
            "images": list(said.images),
            "conversations": turns(said, ("from", "value"), ("user", "assistant")),
        },
        "factory.json": lambda said: {
            "images": list(said.images),
            "id": said.id,
            "messages": turns(said, ("role", "content"), ("user", "assistant")),
        },
        "bare.jsonl": lambda said: {
            "id": said.id,
            "images": list(said.images),
            "messages": messages(said, lambda _: {"type": "image"}),
        },
        "paths.jsonl": written(lambda path: {"type": "image", "image": path}),
        "urls.jsonl": written(lambda path: {"type": "image_url", "image_url": {"url": path}}),
        "files.jsonl": written(
            lambda path: {"type": "image_url", "image_url": {"url": (root / path).as_uri()}}
        ),
        "data.jsonl": written(lambda path: {"type": "image_url", "image_url": data_url(path)}),
    }


def table(rows: Sequence[Said], separator: str, names: Sequence[str] = TABLE) -> str:
    file = io.StringIO()
    lines = csv.writer(file, delimiter=separator)
    lines.writerow(names)
    for said in rows:
        ((question, answer),) = said.turns
        images = said.images[0] if len(said.images) == 1 else json.dumps(said.images)
        lines.writerow([said.id, question, answer, images if said.images else ""])
    return file.getvalue()


def write_talks(root: Path, rows: Sequence[Said]) -> dict[str, OwnTask]:
    """In every format that takes several turns; the test rows have the first alone."""
    found = {}
    for name, row in json_files(root).items():
        for split in ("train", "test"):
            short = split == "test"
            each = [row(s._replace(turns=s.turns[:1]) if short else s) for s in rows]
            text = json.dumps(each) if name.endswith(".json") else "\n".join(map(json.dumps, each))
            (root / f"{split}-{name}").write_text(text, encoding="utf-8")
        found[name] = OwnTask(f"train-{name}", f"test-{name}", "exact")
    return found


def write_all(root: Path, rows: Sequence[Said]) -> dict[str, OwnTask]:
    """In every format; each row has one question."""
    found = write_talks(root, rows)
    text = [
        {"question_id": s.id, "text": s.turns[0][0], "answer": s.turns[0][1], "image": s.images}
        for s in rows
    ]
    (root / "text.json").write_text(json.dumps(text))
    found["text.json"] = OwnTask("text.json", "text.json", "exact")
    names = ("key", "asked", "said", "shown")
    mapped = dict(zip(TABLE, names, strict=True))
    for name, separator in (("table.csv", ","), ("table.tsv", "\t")):
        (root / name).write_bytes(table(rows, separator).encode())
        found[name] = OwnTask(name, name, "exact")
    (root / "mapped.csv").write_bytes(table(rows, ",", names).encode())
    found["mapped.csv"] = OwnTask("mapped.csv", "mapped.csv", "exact", columns=mapped)
    return found | write_datasets(root, rows)


def write_datasets(root: Path, rows: Sequence[Said]) -> dict[str, OwnTask]:
    """As a data set with its pictures in it: a folder of `save_to_disk`, and Parquet."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    kinds = Features(
        {
            "id": Value("string"),
            "question": Value("string"),
            "answer": Value("string"),
            "image": List(ImageFeature()),
            "about": Value("string"),
        }
    )
    cells = [
        {
            "id": said.id,
            "question": said.turns[0][0],
            "answer": said.turns[0][1],
            "image": [{"bytes": (root / n).read_bytes(), "path": n} for n in said.images],
            "about": "not read",
        }
        for said in rows
    ]
    data = Dataset.from_list(cells, features=kinds)
    data.save_to_disk(root / "saved")
    data.to_parquet(root / "part-0.parquet")
    return {name: OwnTask(name, name, "exact") for name in ("saved", "part-*.parquet")}


def read_own(root: Path, own: OwnTask, **more: Any) -> Task:
    data = DataConfig(root=str(root), own={"Mine": own}, **more)
    return read_tasks(data, 0, base=BASE)[0]


def prepared_own(root: Path, out: Path, own: OwnTask) -> Task:
    """The same task, as what is prepared of it."""
    job = Preparation(root, ".", ("Mine",), str(out), BASE, own={"Mine": own})
    found = survey(job, map, keep=True)
    assert not found.problems
    prepare(job, found, map)
    return read_own(out, own)


def told(sample: Sample) -> tuple[Any, ...]:
    """All that a sample says, with its pictures' bytes."""
    pictures = []
    for image in sample.images:
        with image.open("rb") as file:
            pictures.append(file.read())
    return (
        *(sample.id, sample.text, sample.answer, sample.further, sample.size, sample.answers),
        pictures,
    )
