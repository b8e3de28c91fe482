"""What the mini base learns before any task: generic skills, in wordings that no task uses.

A lesson is one picture with several independent turns. Skills are seeing (color, shape, texture,
position, box, number), comparing, reading, bars, scenes, quality, and handling words alone
(repeating them, option letters): answer words that were never repeated would have dead rows in
the frozen output layer, and no adapter below it could ever say them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from cmoe.mini.drawing import (
    BACKGROUNDS,
    COLORS,
    GRID,
    PATCH,
    SHAPES,
    SIZE,
    TEXTURES,
    WORDS,
    Canvas,
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
from cmoe.mini.tasks import GENRES, SPECIES

TURNS = 4
"""Turns of one lesson."""
NAMES = tuple(COLORS)
_OTHERS = ("yes", "no", "true", "false", "unanswerable", "left", "right", "top", "bottom", "animal")
REPEATED = (*SPECIES, *GENRES.values(), *NAMES, *SHAPES, *TEXTURES, *_OTHERS)
"""Words that every adapter may need to say or to tell apart."""

COMMON = tuple(
    """
    a about above across after again against all almost along already also always am an and
    animal another answer any anyone anything are around as ask at author away back bad bag ball
    bar be because bed been before began behind being below best better between big bird black
    blue board boat body book both bottle bottom bounding box boy bread bring brown building bus
    but by call called came can cannot car card cat chair chart child choices choose city clean
    clear clock close clothes coat cold color come contains context coordinate corner could
    count cover cup cut dark data day deep describe describes did different dinner direction
    directly dish do does dog done door down draw drink drive each early earth easy eat eight
    else empty end enough even ever every example eye face fact fall family far fast feel few
    find fire first fish five floor flower fly follow food foot for found four friend from front
    fruit full game gave genre get girl give given glass go good got grass great green group
    grow had half hand happy hard has hat have he head hear heavy held help her here high him
    his hold home horse hot hour house how hundred idea if image in information inside
    insufficient into is it item its just keep kind kitchen knew know label land large last late
    learn least leave left letter life light like line list little live long look made make man
    many map mark may me mean measure meat men middle might milk mind minute money month moon
    more morning most mother move much music must my name near need never new next night nine no
    north not nothing now number object of off often old on once one only open option or orange
    order other our out over own page paper part pass past people person phone photo phrase
    picture piece place plane plant plate play please point position possible present price
    product provide provided put question quick quite ran read ready real really red region
    respond right river road room round run said same sat saw say scene school sea second see
    seem seen sentence set seven shape she shirt shoe shop short should show shown side sign
    single sit six size sky sleep slow small smell snow so some someone something song soon
    sound south space stand star start state stay step still stone stop store story street
    strong such summer sun sure surface table take talk tall tell ten text than thank that the
    their them then there these they thing think third this those thought three through time
    title to today together told too took top touch toward town toy train tree true try turn two
    type under until up upon us use using very view visible voice wait walk wall want warm was
    wash watch water way we wear week well went were west what wheel when where which while
    white who whole whose why wide will wind window winter with without woman wood word work
    world would write written wrong wrote year yellow yes yet you young your zero
    """.split()  # noqa: SIM905
)
"""Ordinary English, for the tokenizer and for repeating."""

LABELS = (len(COLORS) + 1, len(SHAPES) + 1, 37, len(TEXTURES) + 1)
"""Classes of the dense labels color, shape, character and texture; class 0 is nothing."""
BINS = SIZE // GRID + 1
"""Values of a box coordinate."""


@dataclass(frozen=True)
class Turn:
    """One question of a lesson, asked and answered without regard to the others.

    `subject` is what the words before the question's first period mean, `second` what those before
    its last one mean, each if there is one such thing.
    """

    skill: str
    question: str
    answer: str
    subject: Thing | None = None
    second: Thing | None = None


@dataclass(frozen=True)
class Lesson:
    """A picture (None: words alone), its turns, and what each of its 36 patches shows.

    `patches [36, 9]`: color, shape, character, texture, background, and the four box coordinates
    of the object there (bins of 4 px, or -1 where there is none).
    """

    image: Pixels | None
    turns: tuple[Turn, ...]
    patches: NDArray[np.int64] | None


def make_lesson(rng: Random) -> Lesson:
    """A random lesson with a picture."""
    make = rng.choices((_scene, _sign, _cover, _single, _chart), (56, 16, 10, 7, 11))[0]
    canvas, image, turns = make(rng)
    if rng.random() < 0.15:
        turns[-1] = _words(rng)
    return Lesson(image, tuple(turns), _patches(canvas))


def make_text_lesson(rng: Random) -> Lesson:
    """A random lesson without a picture."""
    return Lesson(None, tuple(_words(rng) for _ in range(TURNS)), None)


def _patches(canvas: Canvas) -> NDArray[np.int64]:
    """Dense labels of a picture: what covers a patch most, nothing if below 10 of 64 pixels."""
    side = SIZE // PATCH
    pixels = canvas.labels.reshape(-1, side, PATCH, side, PATCH).transpose(0, 1, 3, 2, 4)
    cells = pixels.reshape(-1, PATCH * PATCH).astype(np.int64)
    counts = np.zeros((len(cells), 40), np.int64)
    np.add.at(counts, (np.arange(len(cells))[:, None], cells), 1)
    counts[:, 0] = 9
    color, shape, character, texture, owner = counts.argmax(1).reshape(5, -1)
    background = np.full_like(color, BACKGROUNDS.index(canvas.background))
    nowhere = (-GRID, -GRID, -GRID, -GRID)
    boxes = np.array([nowhere, *canvas.boxes], np.float64)[owner] / GRID
    return np.column_stack(
        [color, shape, character, texture, background, np.rint(boxes).astype(np.int64)]
    )


def _words(rng: Random) -> Turn:
    """Repeat words, or find one of three options."""
    if rng.random() < 0.4:
        pool = COMMON if rng.random() < 0.3 else REPEATED
        words = " ".join(rng.choice(pool) for _ in range(rng.randint(1, 5)))
        return Turn("repeat", f"Repeat: {words}.", words)
    choices = rng.sample(rng.choice((NAMES, SHAPES, SPECIES, REPEATED)), 3)
    if rng.random() < 0.5:
        return _options(rng, "options", choices, choices[0], f"Match {choices[0]}.")
    lines = "\n".join(f"{letter}. {word}" for letter, word in zip("ABC", choices, strict=True))
    order = rng.sample(range(3), 3)
    wanted, letters = " ".join(choices[k] for k in order), " ".join("ABC"[k] for k in order)
    return Turn("options", f"Match {wanted}.\n{lines}", letters)


def _options(
    rng: Random,
    skill: str,
    choices: Sequence[str],
    right: str,
    task: str,
    subject: Thing | None = None,
) -> Turn:
    """`task` and three lettered choices; the answer is the letter of `right`."""
    mixed = rng.sample(choices, len(choices))
    lines = "\n".join(f"{letter}. {word}" for letter, word in zip("ABC", mixed, strict=True))
    return Turn(skill, f"{task}\n{lines}", "ABC"[mixed.index(right)], subject)


def _scene(rng: Random) -> tuple[Canvas, Pixels, list[Turn]]:
    """One to four objects; a third of the scenes has few shapes, to have something to count."""
    canvas, count = new_canvas(rng, rng.choice(BACKGROUNDS[:6])), rng.choice((1, 2, 2, 3, 3, 4))
    few = rng.random() < 0.35
    pool = rng.sample(SHAPES, 2) if few else SHAPES
    shapes = [rng.choice(pool) for _ in range(count)] if few else rng.sample(pool, count)
    textures = [rng.choice(TEXTURES) if rng.random() < 0.25 else "solid" for _ in shapes]
    kinds = zip(shapes, rng.sample(NAMES, count), textures, strict=True)
    sizes = [rng.choice((12, 16, 20, 24) if count < 4 and k < 2 else (12,)) for k in range(count)]
    things = draw_things(canvas, rng, kinds, sizes)
    skills = rng.choices(_SCENE_SKILLS, _SCENE_WEIGHTS, k=TURNS)
    return canvas, canvas.image(), [skill(rng, canvas, things) for skill in skills]


def _phrase(rng: Random, thing: Thing, things: Sequence[Thing]) -> str:
    """Words that mean this thing alone."""
    phrases = [thing.color, f"{thing.color} {thing.shape}"]
    if sum(other.shape == thing.shape for other in things) == 1:
        phrases += [thing.shape, thing.shape]
    return rng.choice(phrases)


def _corner(thing: Thing) -> str:
    x, y = thing.center
    return f"{'top' if y < SIZE / 2 else 'bottom'} {'left' if x < SIZE / 2 else 'right'}"


def _attribute(rng: Random, canvas: Canvas, things: Sequence[Thing]) -> Turn:
    """Color by shape, or shape by color."""
    thing = rng.choice(things)
    alone = [other for other in things if sum(t.shape == other.shape for t in things) == 1]
    if alone and rng.random() < 0.6:
        thing = rng.choice(alone)
        return Turn("color", f"Name the color: {thing.shape}.", thing.color, thing)
    return Turn("shape", f"Name the shape: {thing.color}.", thing.shape, thing)


def _texture(rng: Random, canvas: Canvas, things: Sequence[Thing]) -> Turn:
    thing = rng.choice(things)
    phrase = _phrase(rng, thing, things)
    return Turn("texture", f"Name the pattern: {phrase}.", thing.texture, thing)


def _numbers(thing: Thing) -> str:
    return " ".join(f"{value / SIZE:.2f}" for value in thing.box)


def _frame(rng: Random, canvas: Canvas, things: Sequence[Thing]) -> Turn:
    thing = rng.choice(things)
    return Turn("box", f"Frame: {_phrase(rng, thing, things)}.", _numbers(thing), thing)


def _locate(rng: Random, canvas: Canvas, things: Sequence[Thing]) -> Turn:
    thing = rng.choice(things)
    return Turn("corner", f"Locate: {_phrase(rng, thing, things)}.", _corner(thing), thing)


def _count(rng: Random, canvas: Canvas, things: Sequence[Thing]) -> Turn:
    shape = rng.choice(things).shape if rng.random() < 0.8 else rng.choice(SHAPES)
    number = sum(thing.shape == shape for thing in things)
    return Turn("count", f"Count: {shape}s.", str(number))


def _claim(rng: Random, canvas: Canvas, things: Sequence[Thing]) -> Turn:
    """True or false: such a thing exists, or stands so to another."""
    thing = rng.choice(things)
    wide = [(a, b) for a in things for b in things if abs(a.center[0] - b.center[0]) >= 6]
    if wide and rng.random() < 0.6:
        one, other = rng.choice(wide)
        side = rng.choice(("left", "right"))
        true = (side == "left") == (one.center[0] < other.center[0])
        names = [_phrase(rng, one, things), _phrase(rng, other, things)]
        question = f"True or false: {names[0]}. {side.capitalize()} of {names[1]}."
        return Turn("relation", question, str(true).lower(), one, other)
    true = rng.random() < 0.5
    present = {(other.color, other.shape) for other in things}
    color, shape = thing.color, thing.shape
    while not true and (color, shape) in present:
        color, shape = rng.choice(NAMES), rng.choice((shape, rng.choice(SHAPES)))
    return Turn("existence", f"True or false: {color} {shape}.", str(true).lower())


def _caption(rng: Random, canvas: Canvas, things: Sequence[Thing]) -> Turn:
    """All objects from left to right, each word asking for the next: name, other name, box.

    One adjacent word to look up is the easiest form of finding a thing by its property; without it
    the decoder stays at guessing among the objects of a scene.
    """
    by_color = rng.random() < 0.5
    ordered = sorted(things, key=lambda thing: thing.center)
    names = [(t.color, t.shape) if by_color else (t.shape, t.color) for t in ordered]
    answer = " ".join(
        f"{one} {other} {_numbers(thing)}"
        for (one, other), thing in zip(names, ordered, strict=True)
    )
    return Turn("caption", f"Describe by {'color' if by_color else 'shape'}.", answer)


def _setting(rng: Random, canvas: Canvas, things: Sequence[Thing]) -> Turn:
    return Turn("setting", "Name the setting.", canvas.background)


def _choose_color(rng: Random, canvas: Canvas, things: Sequence[Thing]) -> Turn:
    thing = rng.choice(things)
    corner = sum(_corner(other) == _corner(thing) for other in things) == 1
    name = _corner(thing) if corner else f"{thing.color} {thing.shape}"
    wrong = rng.sample([color for color in NAMES if color != thing.color], 2)
    task = f"Match the color: {name}."
    return _options(rng, "choice", [thing.color, *wrong], thing.color, task, thing)


_SceneSkill = Callable[[Random, Canvas, Sequence[Thing]], Turn]
_SCENE_SKILLS: tuple[_SceneSkill, ...] = (
    _attribute,
    _frame,
    _claim,
    _count,
    _locate,
    _texture,
    _choose_color,
    _caption,
    _setting,
)
_SCENE_WEIGHTS = (20, 26, 20, 9, 4, 3, 8, 7, 3)


def _sign(rng: Random) -> tuple[Canvas, Pixels, list[Turn]]:
    """A board with a word or a number, and perhaps an object."""
    canvas, color = new_canvas(rng, rng.choice(BACKGROUNDS[:6])), rng.choice(NAMES)
    number = rng.random() < 0.3
    text = "".join(rng.choices("0123456789", k=2)) if number else rng.choice(WORDS)
    box = draw_sign(canvas, rng, text, color)
    turns = [
        Turn("read", "Read.", text),
        Turn("read", "Read the letters.", text),
        Turn("board", "Name the color: board.", color),
        _setting(rng, canvas, ()),
    ]
    tops = [top for top in range(0, SIZE - 11, GRID) if top + 12 <= box[1] or top >= box[3]]
    if rng.random() < 0.7:
        other = rng.choice([name for name in NAMES if name != color])
        thing = draw_thing(
            canvas, rng, rng.choice(SHAPES), other, 12, GRID * rng.randint(0, 9), rng.choice(tops)
        )
        turns[3] = _attribute(rng, canvas, (thing,))
    return canvas, canvas.image(), turns


def _cover(rng: Random) -> tuple[Canvas, Pixels, list[Turn]]:
    title, author = rng.sample(WORDS, 2)
    color, texture = rng.choice(NAMES), rng.choice(TEXTURES)
    canvas = draw_cover(rng, title, author, color, texture)
    turns = [
        Turn("read", "Read the first line.", title),
        Turn("read", "Read the last line.", author),
        Turn("texture", "Name the pattern.", texture),
        rng.choice((Turn("color", "Name the color.", color), _setting(rng, canvas, ()))),
    ]
    return canvas, canvas.image(), turns


def _single(rng: Random) -> tuple[Canvas, Pixels, list[Turn]]:
    """One object, often large, half of the time as a photograph that may have failed."""
    photo = rng.random() < 0.5
    canvas = new_canvas(rng, "photo" if photo else rng.choice(BACKGROUNDS[:6]))
    shape, color = rng.choice(SHAPES), rng.choice(NAMES)
    texture = "solid" if photo else rng.choice(TEXTURES)
    side = rng.randint(18, 38)
    left, top = (rng.randint(0, SIZE - side) for _ in range(2))
    thing = draw_thing(canvas, rng, shape, color, side, left, top, texture)
    image, quality = canvas.image(), "sharp"
    if photo:
        quality = rng.choice(("sharp", "sharp", "sharp", "blurry", "dark"))
        image = photograph(image, rng, quality)
    judgement = Turn("quality", "Judge the quality.", quality)
    if quality != "sharp":
        canvas.labels[:] = 0
        return canvas, image, [judgement, _words(rng), _words(rng), _words(rng)]
    whole = Turn("single", "Describe.", f"{color} {texture} {shape}")
    others = [judgement, _attribute(rng, canvas, (thing,)), _texture(rng, canvas, (thing,))]
    turns = [whole, rng.choice(others), _attribute(rng, canvas, (thing,)), others[2]]
    return canvas, image, turns


def _chart(rng: Random) -> tuple[Canvas, Pixels, list[Turn]]:
    """Bars by height, by place, and by option letter."""
    colors, heights = rng.sample(NAMES, 3), rng.sample(range(8, 45, 6), 3)
    canvas = draw_chart(rng, colors, heights)
    bars = [
        Thing("square", color, "solid", box)
        for color, box in zip(colors, canvas.boxes, strict=True)
    ]
    falling = sorted(bars, key=lambda bar: bar.box[1])
    order = rng.choice((("by height", falling), ("in order", bars)))
    extremes = (("high", falling[0]), ("low", falling[-1]))
    places = tuple(zip(("left", "middle", "right"), bars, strict=True))
    turns = [
        _name_bar(rng.choice(extremes)),
        _name_bar(rng.choice(places)),
        _match_bar(rng, colors, rng.choice(extremes)),
        rng.choice(
            (
                _match_bar(rng, colors, rng.choice(places)),
                Turn("bars", f"List the bars {order[0]}.", " ".join(bar.color for bar in order[1])),
                _words(rng),
            )
        ),
    ]
    return canvas, canvas.image(), turns


def _name_bar(named: tuple[str, Thing]) -> Turn:
    name, bar = named
    return Turn("bars", f"Name the bar: {name}.", bar.color, bar)


def _match_bar(rng: Random, colors: Sequence[str], named: tuple[str, Thing]) -> Turn:
    name, bar = named
    return _options(rng, "bar choice", colors, bar.color, f"Match the bar: {name}.", bar)
