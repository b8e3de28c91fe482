"""Eight generated tasks with CoIN's names, in CoIN's order and file layout.

They are small enough for a laptop and keep what makes the stream hard: tasks ask in each other's
words, want other answers to the same question ("What is this?" is a species in ImageNet and a shape
in VizWiz), and differ in what their pictures show. A sample is a function of (seed, task, split,
index): files are byte-identical for a seed, and a shorter split is the beginning of a longer one.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from uuid import uuid4

from PIL import Image

from cmoe.common.errors import DataError
from cmoe.common.storage import explained, is_remote, require_reachable
from cmoe.common.storage_errors import WRITTEN
from cmoe.data.coin import INSTRUCTIONS
from cmoe.data.settings import TASKS, DataConfig
from cmoe.data.shards import HUB, MANIFEST, find_root, read_manifest
from cmoe.mini.drawing import (
    COLORS,
    SHAPES,
    SIZE,
    TEXTURES,
    WORDS,
    Pixels,
    Thing,
    draw_chart,
    draw_cover,
    draw_sign,
    draw_thing,
    draw_things,
    new_canvas,
    photograph,
)

MODIFIED = 946684800  # every image's modification time: the year 2000

VALIDATED = frozenset({"TextVQA", "VizWiz", "VQAv2"})
"""Tasks whose test split is `val.json`; the others have `test.json`."""

PHRASE = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
UNSURE = "When the provided information is insufficient, respond with 'Unanswerable'."
REGION = "Please provide the bounding box coordinate of the region this sentence describes: "

# Asked by several tasks in the same words: a bag of words must not tell the task.
COLOR_OF = (
    "What color is the {}?",
    "What is the color of the {}?",
    "Which color does the {} have?",
)
NAMING = ("What is this?", "What is the object in the image?", "What is shown in the picture?")
READING = ("What does it say?", "What is written here?", "What does the text in the image say?")
EXISTS = ("Is there a {} in the image?", "Do you see a {} in the picture?")
MATCHING = ("What is the {} object?", "Which shape is {}?")

SPECIES = tuple(
    """
    tench shark hen finch newt toad gecko cobra crab snail koala otter
    corgi husky lynx tiger bison camel zebra panda lemur sloth moose hyena
    """.split()  # noqa: SIM905
)
"""ImageNet's class of a shape and a texture: `SPECIES[4 * shape + texture]`."""

GENRES = {"solid": "history", "striped": "comics", "dotted": "children", "checked": "science"}
"""OCRVQA's genre of a cover with a texture."""


@dataclass(frozen=True)
class Sample:
    """A question with its answer.

    `image` is None for text alone; `box` is the answer of Grounding, in pixels.
    """

    image: Pixels | None
    text: str
    answer: str
    box: tuple[int, int, int, int] | None = None


def coordinates(box: Sequence[int]) -> str:
    """A box in pixels as CoIN writes it: `[0.25, 0.42, 0.58, 0.75]`, in parts of the picture."""
    return "[" + ", ".join(f"{value / SIZE:.2f}" for value in box) + "]"


def _ask(question: str, suffix: str = PHRASE) -> str:
    return f"{question}\n{suffix}"


def _yes_no(rng: Random, right: str, others: Sequence[str]) -> tuple[str, str]:
    """What a yes-or-no question names, and its answer; as often yes as no."""
    return (right, "yes") if rng.random() < 0.5 else (rng.choice(others), "no")


def _scene(rng: Random, background: str, count: int) -> tuple[Pixels, tuple[Thing, ...]]:
    """Objects whose shapes and colors all differ."""
    kinds = zip(
        rng.sample(SHAPES, count), rng.sample(list(COLORS), count), ["solid"] * count, strict=True
    )
    canvas = new_canvas(rng, background)
    things = draw_things(
        canvas, rng, kinds, [rng.choice((12, 20)) if k < 2 else 12 for k in range(count)]
    )
    return canvas.image(), things


def _options(rng: Random, right: str, wrong: Sequence[str]) -> tuple[str, str]:
    """Lettered choices, one a line, and the letter of the right one."""
    choices = [right, *wrong]
    rng.shuffle(choices)
    lines = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABC", choices, strict=True))
    return lines, "ABC"[choices.index(right)]


def science_qa(rng: Random) -> Sample:
    """Multiple choice: which bar of a chart is meant.

    One question in ten has no picture and asks for a kind of word.
    """
    if rng.random() < 0.1:
        kinds = {
            "color": rng.choice(list(COLORS)),
            "shape": rng.choice(SHAPES),
            "animal": rng.choice(SPECIES),
        }
        kind = rng.choice(list(kinds))
        lines, letter = _options(rng, kinds.pop(kind), list(kinds.values()))
        return Sample(None, f"Which of these is a {kind}?\n{lines}\n{LETTER}", letter)
    colors = rng.sample(list(COLORS), 3)
    heights = rng.sample(range(8, 45, 6), 3)
    image = draw_chart(rng, colors, heights).image()
    degree, extreme = rng.choice((("highest", max(heights)), ("lowest", min(heights))))
    right = colors[heights.index(extreme)]
    question = rng.choice((f"Which bar is the {degree}?", *COLOR_OF)).format(f"{degree} bar")
    context = rng.choice(("", "", "Context: The chart shows the data of a test.\n"))
    lines, letter = _options(rng, right, [color for color in colors if color != right])
    return Sample(image, f"{context}{question}\n{lines}\n{LETTER}", letter)


def text_vqa(rng: Random) -> Sample:
    """Signs in a street: words, numbers, and the board's color."""
    canvas, kind = new_canvas(rng, "street"), rng.random()
    color = rng.choice(list(COLORS))
    number = kind < 0.25
    text = "".join(rng.choice("0123456789") for _ in range(2)) if number else rng.choice(WORDS)
    box = draw_sign(canvas, rng, text, color)
    tops = [top for top in range(0, SIZE - 11, 4) if top + 12 <= box[1] or top >= box[3]]
    other = rng.choice([name for name in COLORS if name != color])
    draw_thing(canvas, rng, rng.choice(SHAPES), other, 12, 4 * rng.randint(0, 9), rng.choice(tops))
    if number:
        question = rng.choice(("What number is shown in the picture?", *READING))
    elif kind < 0.85:
        question = rng.choice((f"What does the {color} sign say?", *READING))
    else:
        question, text = rng.choice(COLOR_OF).format("sign"), color
    return Sample(canvas.image(), _ask(question), text)


def image_net(rng: Random) -> Sample:
    """One large object, whose shape and texture make its species."""
    canvas, shape, texture = (
        new_canvas(rng, "studio"),
        rng.randrange(len(SHAPES)),
        rng.randrange(len(TEXTURES)),
    )
    side = rng.randint(26, 38)
    left, top = (rng.randint(0, SIZE - side) for _ in range(2))
    draw_thing(
        canvas, rng, SHAPES[shape], rng.choice(list(COLORS)), side, left, top, TEXTURES[texture]
    )
    return Sample(
        canvas.image(), _ask(rng.choice(NAMING)), SPECIES[len(TEXTURES) * shape + texture]
    )


def gqa(rng: Random) -> Sample:
    """Objects in a room and how they stand to each other."""
    kind = rng.random()
    if kind < 0.35:
        return _relation(rng, "room")
    image, things = _scene(rng, "room", rng.choice((2, 3, 3)))
    thing = rng.choice(things)
    if kind < 0.65:
        side = "left" if thing.center[0] < SIZE / 2 else "right"
        name = thing.shape if kind < 0.5 else f"{thing.shape} on the {side}"
        return Sample(image, _ask(rng.choice(COLOR_OF).format(name)), thing.color)
    return _matching_or_exists(rng, image, thing)


def _relation(rng: Random, background: str) -> Sample:
    """Is one thing to the left (or right) of another? They are never one above the other."""
    while True:
        image, (thing, other, *_) = _scene(rng, background, rng.choice((2, 3, 3)))
        if abs(thing.center[0] - other.center[0]) >= 6:
            break
    sides = ["left", "right"] if thing.center[0] < other.center[0] else ["right", "left"]
    side, answer = _yes_no(rng, sides[0], sides[1:])
    return Sample(image, _ask(f"Is the {thing.shape} to the {side} of the {other.shape}?"), answer)


def _matching_or_exists(rng: Random, image: Pixels, thing: Thing) -> Sample:
    if rng.random() < 0.5:
        return Sample(image, _ask(rng.choice(MATCHING).format(thing.color)), thing.shape)
    color, answer = _yes_no(rng, thing.color, [name for name in COLORS if name != thing.color])
    return Sample(image, _ask(rng.choice(EXISTS).format(f"{color} {thing.shape}")), answer)


def viz_wiz(rng: Random) -> Sample:
    """Hurried photographs of one thing, a third of them useless."""
    canvas, shape, color = new_canvas(rng, "photo"), rng.choice(SHAPES), rng.choice(list(COLORS))
    side = rng.randint(18, 28)
    draw_thing(
        canvas, rng, shape, color, side, rng.randint(0, SIZE - side), rng.randint(0, SIZE - side)
    )
    quality = rng.choice(("blurry", "dark")) if rng.random() < 0.35 else "sharp"
    question, answer = rng.choice(NAMING), shape
    if rng.random() < 0.4:
        question, answer = rng.choice(COLOR_OF).format("object"), color
    suffix = f"{UNSURE} {PHRASE}" if rng.random() < 0.3 else PHRASE
    answer = answer if quality == "sharp" else "unanswerable"
    return Sample(photograph(canvas.image(), rng, quality), _ask(question, suffix), answer)


def grounding(rng: Random) -> Sample:
    """Where is it? Objects of many sizes; the answer is a box on a grid of twelfths."""
    count = rng.choice((2, 3))
    kinds = zip(
        rng.sample(SHAPES, count), rng.sample(list(COLORS), count), ["solid"] * count, strict=True
    )
    canvas = new_canvas(rng, "plain")
    things = draw_things(canvas, rng, kinds, [rng.choice((12, 16, 20, 24)) for _ in range(count)])
    thing = rng.choice(things)
    phrase = rng.choice(
        (f"the {thing.color} {thing.shape}", f"the {thing.shape}", f"the {thing.color} object")
    )
    return Sample(canvas.image(), f"{REGION}{phrase}.", coordinates(thing.box), thing.box)


def vqa_v2(rng: Random) -> Sample:
    """Objects in a field: counting, colors, shapes."""
    kind = rng.random()
    if kind < 0.3:
        count, few = rng.randint(2, 4), rng.sample(SHAPES, 2)
        kinds = [(rng.choice(few), color, "solid") for color in rng.sample(list(COLORS), count)]
        canvas = new_canvas(rng, "field")
        draw_things(canvas, rng, kinds, [12] * count)
        question = rng.choice(("How many {}s are there?", "How many {}s are in the image?"))
        answer = str(sum(shape == few[0] for shape, _, _ in kinds))
        return Sample(canvas.image(), _ask(question.format(few[0])), answer)
    if kind < 0.45:
        return _relation(rng, "field")
    image, things = _scene(rng, "field", rng.choice((2, 3, 4)))
    thing = rng.choice(things)
    if kind < 0.7:
        return Sample(image, _ask(rng.choice(COLOR_OF).format(thing.shape)), thing.color)
    return _matching_or_exists(rng, image, thing)


def ocr_vqa(rng: Random) -> Sample:
    """Book covers: title, author, genre."""
    title, author = rng.sample(WORDS, 2)
    color, texture = rng.choice(list(COLORS)), rng.choice(TEXTURES)
    image = draw_cover(rng, title, author, color, texture).image()
    kind = rng.random()
    if kind < 0.45:
        question, answer = rng.choice(("What is the title of this book?", *READING)), title
    elif kind < 0.6:
        question, answer = (
            rng.choice(("Who wrote this book?", "Who is the author of this book?")),
            author,
        )
    elif kind < 0.75:
        question, answer = (
            rng.choice(("What type of book is this?", "What is the genre of this book?")),
            GENRES[texture],
        )
    elif kind < 0.85:
        genre, answer = _yes_no(
            rng, GENRES[texture], [name for name in GENRES.values() if name != GENRES[texture]]
        )
        question = f"Is this a {genre} book?"
    else:
        question, answer = rng.choice(COLOR_OF).format("book"), color
    return Sample(image, _ask(question), answer)


_MAKERS: dict[str, Callable[[Random], Sample]] = {
    "ScienceQA": science_qa,
    "TextVQA": text_vqa,
    "ImageNet": image_net,
    "GQA": gqa,
    "VizWiz": viz_wiz,
    "Grounding": grounding,
    "VQAv2": vqa_v2,
    "OCRVQA": ocr_vqa,
}


def make_sample(task: str, split: str, index: int, seed: int = 0) -> Sample:
    """Sample `index` of a split (`train`, `test`); any other string is a stream of its own."""
    return _MAKERS[task](Random(f"{seed}/{task}/{split}/{index}"))


def ensure_data(config: DataConfig) -> None:
    """Write the generated tasks where a configuration asks for them and there are none yet.

    Raises:
        DataError: There is no data, and none is to be generated.
        StorageError: It can't be read, or not be written.
    """
    if config.only_own:  # their files are looked for when they are read
        return
    if not config.root.startswith(HUB):
        require_reachable(config.root)
    if read_manifest(find_root(config.root)) or (Path(config.root) / INSTRUCTIONS).is_dir():
        return
    if not config.generate or is_remote(config.root):
        raise DataError(
            f"{config.root}: neither {INSTRUCTIONS} nor {MANIFEST} is there; set data.root to "
            "CoIN's files or to what coin_prepare.py made of them, or data.generate to true for "
            "the generated mini CoIN in a folder"
        )
    root = Path(config.root)
    beside = root.with_name(f"{root.name}.{uuid4().hex}.partial")
    with explained(root, WRITTEN):
        try:
            write_mini_coin(beside, train=config.train_samples or 0, test=config.test_samples or 0)
            beside.rename(root)
        except OSError:
            if not (root / INSTRUCTIONS).is_dir():  # another run's, which wrote the same
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def write_mini_coin(root: Path, seed: int = 0, train: int = 1600, test: int = 200) -> None:
    """Write `train` and `test` samples of each task below `root`, in CoIN's layout.

    Images are PNG; their paths in the files are relative to `root`. They get a fixed modification
    time: a run knows its images by it, and data that is generated again is the same.
    """
    for task in TASKS:
        folder = root / "Instructions_Original" / task
        folder.mkdir(parents=True, exist_ok=True)
        for split, count in (("train", train), ("test", test)):
            (root / "images" / task / split).mkdir(parents=True, exist_ok=True)
            rows = [_write_sample(root, task, split, index, seed) for index in range(count)]
            name = "val.json" if split == "test" and task in VALIDATED else f"{split}.json"
            (folder / name).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _write_sample(root: Path, task: str, split: str, index: int, seed: int) -> dict[str, object]:
    """Save the sample's picture and return its row."""
    sample = make_sample(task, split, index, seed)
    key = f"{task}-{split}-{index:05d}"
    row: dict[str, object] = {"id" if split == "train" else "question_id": key}
    if sample.image is not None:
        row["image"] = f"images/{task}/{split}/{index:05d}.png"
        file = root / f"images/{task}/{split}/{index:05d}.png"
        Image.fromarray(sample.image).save(file, compress_level=1)
        os.utime(file, (MODIFIED, MODIFIED))
    if split == "train":
        question = sample.text if sample.image is None else f"<image>\n{sample.text}"
        row["conversations"] = [
            {"from": "human", "value": question},
            {"from": "gpt", "value": sample.answer},
        ]
        return row
    row |= {"text": sample.text, "answer": sample.answer}
    if sample.box is not None:
        row |= {"answer_bbox": sample.answer, "size": [SIZE, SIZE]}
    return row
