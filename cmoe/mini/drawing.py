"""Drawing of small generated pictures: backgrounds, textured shapes, signs, covers and charts.

A `Canvas` keeps labels beside its pixels (what is drawn where), from which boxes and dense training
targets are read. Letters are 5x7 bitmaps on the 8 px patch grid: a tower trained from scratch for
minutes learns to read only where a letter falls into one patch. Everything random comes from the
`random.Random` that the caller gives.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

SIZE = 48
"""Width and height of a picture, in pixels."""
PATCH = 8
"""Side of a patch of the vision tower, in pixels; letters stand on this grid."""
GRID = 4
"""Objects of a scene stand on this grid, in pixels: a box is four multiples of it."""

Pixels = NDArray[np.uint8]

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (235, 215, 40),
    "purple": (140, 50, 170),
    "orange": (240, 140, 30),
    "cyan": (60, 200, 215),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
TEXTURES = ("solid", "striped", "dotted", "checked")
BACKGROUNDS = ("plain", "room", "field", "studio", "street", "photo", "cover", "paper")
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

WORDS = tuple(
    """
    ACE ACT AGE AIM AIR ANT APE ARK ARM ART ASK BAG BAY BED BEE BIG BOX BUS BUY CAP CAR CAT
    COW CRY CUP DAY DEW DIG DOG DRY EAR EGG ELK ELM END EYE FAN FAR FIG FIR FLY FOG FOX FUN
    FUR GAP GEM GYM HAT HAY HEN HOP HUT ICE INK IVY JAM JAR JET JOG JOY KEY KID KIT LAB LAP
    LEG LID LIP LOG LOW MAP MIX MUD MUG NAP NET NEW NOD NUT OAK OAR OIL OLD ONE OWL PAN PAW
    PEA PEN PIE PIN POT RAY RED ROW RUG RUN RYE SAW SEA SKY SKI SUN TAN TAP TEA TEN TIN TOE
    TOY TRY TUB TWO VAN VET WAX WAY WEB WIG WIN YAK YAM YES ZIP ZOO ZOOM BALL BARN BEAR BELL
    BIKE BIRD BLUE BOAT BOOK CAKE CALM CAMP CITY CLAY COIN COLD CORN CRAB DEER DESK DOOR DRUM
    DUCK EAST ECHO EXIT FARM FAST FERN FISH FLAG FROG FUEL GIFT GLOW GOAT GOLD HALF HAWK HERB
    HILL HIVE HOME HOPE IRON JAZZ JUMP JUNE KELP KITE KIWI LAKE LAMB LAMP LEAF LIME LION LUNA
    MAZE MILK MINT MOON MYTH NEST NOON NOVA OATS OPEN OVEN PARK PEAR PLUM POND QUIZ RAFT RAIN
    RICE ROAD ROCK ROPE ROSE SALT SAND SEED SHIP SHOE SNOW SOAP SONG SOUP STAR SWAN TAXI TENT
    TIME TOWN TREE TUNA VASE VINE VOTE WALK WARM WAVE WEST WIND WOLF WOOD WOOL YARN YEAR ZERO
    ZONE
    """.split()  # noqa: SIM905
)
"""The only words that pictures show: random strings can spell what nobody wants to read."""

# Five columns of seven bits for each character, the lowest bit on top.
_GLYPHS = (
    "7e1111117e7f494949363e414141227f4141221c7f494949417f090909013e4149497a7f0808087f00417f41002040413f017f08142241"
    "7f404040407f020c027f7f0408107f3e4141413e7f090909063e4151215e7f09192946464949493101017f01013f4040403f1f2040201f"
    "3f4038403f6314081463070870080761514945433e5149453e00427f400042615149462141454b311814127f1027454545393c4a494930"
    "01710905033649494936064949291e"
)


@dataclass(frozen=True)
class Thing:
    """One drawn object; `box` is left, top, right, bottom in pixels, the last two exclusive."""

    shape: str
    color: str
    texture: str
    box: tuple[int, int, int, int]

    @property
    def center(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass
class Canvas:
    """Pixels `[48, 48, 3]` (float, 0 to 255) and what they show.

    `labels [5, 48, 48]`: color, shape, character, texture, and owner (which of `boxes`); each is 0
    for nothing, else 1 + an index.
    """

    background: str
    pixels: NDArray[np.float32]
    labels: NDArray[np.int16] = field(default_factory=lambda: np.zeros((5, SIZE, SIZE), np.int16))
    boxes: list[tuple[int, int, int, int]] = field(default_factory=list)

    def stamp(
        self,
        box: tuple[int, int, int, int],
        inside: NDArray[np.bool_],
        color: str,
        shape: str | None,
        texture: str,
    ) -> None:
        """Record what the pixels `inside` the box show."""
        left, top, right, bottom = box
        self.boxes.append(box)
        labels = (
            list(COLORS).index(color) + 1,
            SHAPES.index(shape) + 1 if shape else 0,
            0,
            TEXTURES.index(texture) + 1,
            len(self.boxes),
        )
        self.labels[:, top:bottom, left:right][:, inside] = np.array(labels, np.int16)[:, None]

    def image(self) -> Pixels:
        """The finished picture, uint8 `[48, 48, 3]`."""
        return np.clip(self.pixels, 0, 255).astype(np.uint8)


@cache
def _shape_mask(shape: str, side: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[0:side, 0:side]
    center, radius = (side - 1) / 2, side / 2
    dx, dy = np.abs(x - center), np.abs(y - center)
    distance = dx**2 + dy**2
    masks = {
        "circle": distance <= radius**2,
        "ring": (distance <= radius**2) & (distance >= (0.55 * radius) ** 2),
        "square": np.ones((side, side), bool),
        "triangle": dx <= (y + 1) / 2,
        "cross": (dx <= side / 6) | (dy <= side / 6),
        "diamond": dx + dy <= radius,
    }
    return np.asarray(masks[shape], bool)


@cache
def _texture_mask(texture: str, height: int, width: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[0:height, 0:width]
    masks = {
        "solid": np.ones((height, width), bool),
        "striped": y % 6 < 3,
        "dotted": ~((y % 6 < 3) & (x % 6 < 3)),
        "checked": (y // 4 + x // 4) % 2 == 0,
    }
    return np.asarray(masks[texture], bool)


@cache
def _glyph(character: str) -> NDArray[np.bool_]:
    """The 7 rows and 5 columns of a character."""
    start = 10 * CHARACTERS.index(character)
    columns = np.frombuffer(bytes.fromhex(_GLYPHS[start : start + 10]), np.uint8)
    return np.asarray((columns[None, :] >> np.arange(7)[:, None]) & 1 == 1)


def _tint(rng: Random, low: int, high: int) -> NDArray[np.float32]:
    """A pale grey with a slight cast, `[3]`."""
    grey = rng.randint(low, high)
    return np.array([grey + rng.randint(-10, 10) for _ in range(3)], np.float32)


def new_canvas(rng: Random, background: str, color: str | None = None) -> Canvas:
    """An empty picture of one of `BACKGROUNDS`; `color` tints a `cover`."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    base = np.broadcast_to(_tint(rng, 200, 240), (SIZE, SIZE, 3)).copy()
    if background == "room":
        base += np.array([6, 0, -14], np.float32)
        base[rng.randint(30, 36) :] *= np.array([0.78, 0.72, 0.66], np.float32)
    elif background == "field":
        horizon = rng.randint(16, 26)
        base[:horizon] = np.array([200, 222, 248], np.float32) + rng.randint(-8, 6)
        base[horizon:] = np.array([206, 226, 178], np.float32) + rng.randint(-8, 6)
    elif background == "studio":
        distance = np.hypot(x - SIZE / 2, y - rng.randint(12, 30))
        base *= (1 - 0.35 * distance / SIZE)[..., None]
    elif background == "street":
        row = y.astype(int) // 6
        mortar = (y.astype(int) % 6 == 0) | (
            (x.astype(int) + 6 * (row % 2)) % 12 == rng.randint(0, 2)
        )
        base[mortar] *= 0.82
    elif background == "photo":
        base *= np.array([rng.uniform(0.72, 0.98) for _ in range(3)], np.float32)
        base *= (0.82 + 0.18 * (x if rng.random() < 0.5 else SIZE - x) / SIZE)[..., None]
    elif background == "cover":
        cast = np.array(COLORS[color or rng.choice(list(COLORS))], np.float32)
        base = np.broadcast_to(0.35 * cast + 0.65 * 250, (SIZE, SIZE, 3)).copy()
        base[:, :2] *= 0.6
    elif background == "paper":
        base[:] = 250
        base[::PATCH] -= 14
        base[-2:] = 90
    return Canvas(background, base)


def draw_thing(
    canvas: Canvas,
    rng: Random,
    shape: str,
    color: str,
    side: int,
    left: int,
    top: int,
    texture: str = "solid",
) -> Thing:
    """Draw a `side` x `side` object with its upper left corner at `(left, top)`."""
    inside, dyed = _shape_mask(shape, side), _texture_mask(texture, side, side)
    paint = np.array(COLORS[color], np.float32) + np.array(
        [rng.randint(-15, 15) for _ in range(3)], np.float32
    )
    view = canvas.pixels[top : top + side, left : left + side]
    view[inside & dyed] = paint
    view[inside & ~dyed] = 0.25 * paint + 0.75 * 245
    thing = Thing(shape, color, texture, (left, top, left + side, top + side))
    canvas.stamp(thing.box, inside, color, shape, texture)
    return thing


def draw_text(
    canvas: Canvas, rng: Random, text: str, column: int, row: int, ink: tuple[int, int, int]
) -> None:
    """Write capitals and digits, one in a patch, from patch `(row, column)` on."""
    dx, dy = rng.randint(1, 2), rng.randint(0, 1)
    for index, character in enumerate(text):
        left, top = (column + index) * PATCH, row * PATCH
        canvas.labels[2, top : top + PATCH, left : left + PATCH] = CHARACTERS.index(character) + 1
        canvas.pixels[top + dy : top + dy + 7, left + dx : left + dx + 5][_glyph(character)] = ink


def draw_things(
    canvas: Canvas, rng: Random, kinds: Iterable[tuple[str, str, str]], sides: Iterable[int]
) -> tuple[Thing, ...]:
    """Draw `(shape, color, texture)` objects of the given sides on the grid, none over another."""
    kinds, sides = list(kinds), list(sides)
    while True:
        corners: list[tuple[int, int, int]] = []
        for side in sides:
            for _ in range(30):
                left, top = (rng.randrange(0, SIZE - side + 1, GRID) for _ in range(2))
                if all(
                    left >= x + other or x >= left + side or top >= y + other or y >= top + side
                    for x, y, other in corners
                ):
                    corners.append((left, top, side))
                    break
        if len(corners) == len(sides):
            break
    return tuple(
        draw_thing(canvas, rng, shape, color, side, left, top, texture)
        for (shape, color, texture), (left, top, side) in zip(kinds, corners, strict=True)
    )


def draw_sign(canvas: Canvas, rng: Random, text: str, color: str) -> tuple[int, int, int, int]:
    """A coloured board with a text; returns its box in pixels."""
    column, row = rng.randint(0, SIZE // PATCH - len(text)), rng.randint(0, SIZE // PATCH - 1)
    left, top = max(0, column * PATCH - 1), max(0, row * PATCH - 1)
    box = (left, top, min(SIZE, (column + len(text)) * PATCH + 1), min(SIZE, (row + 1) * PATCH + 1))
    board = np.ones((box[3] - box[1], box[2] - box[0]), bool)
    canvas.pixels[top : box[3], left : box[2]] = COLORS[color]
    canvas.stamp(box, board, color, None, "solid")
    draw_text(
        canvas,
        rng,
        text,
        column,
        row,
        (0, 0, 0) if color in ("yellow", "cyan") else (255, 255, 255),
    )
    return box


def draw_cover(rng: Random, title: str, author: str, color: str, texture: str) -> Canvas:
    """A book: the title above a textured band, the author's name below it."""
    canvas = new_canvas(rng, "cover", color)
    top, bottom = 2 * PATCH + 2, 4 * PATCH - 1
    dyed = _texture_mask(texture, bottom - top, SIZE)
    canvas.pixels[top:bottom][dyed] = COLORS[color]
    canvas.stamp((0, top, SIZE, bottom), np.ones(dyed.shape, bool), color, None, texture)
    for text, rows, ink in ((title, (0, 1), (10, 10, 10)), (author, (4, 5), (80, 10, 10))):
        draw_text(
            canvas, rng, text, rng.randint(0, SIZE // PATCH - len(text)), rng.choice(rows), ink
        )
    return canvas


def draw_chart(rng: Random, colors: Iterable[str], heights: Iterable[int]) -> Canvas:
    """Three bars from left to right; heights in pixels, up to 44."""
    canvas = new_canvas(rng, "paper")
    for index, (color, height) in enumerate(zip(colors, heights, strict=True)):
        left = 2 + 2 * PATCH * index
        box = (left, SIZE - 2 - height, left + 12, SIZE - 2)
        canvas.pixels[box[1] : box[3], box[0] : box[2]] = COLORS[color]
        canvas.stamp(box, np.ones((height, 12), bool), color, "square", "solid")
    return canvas


def photograph(image: Pixels, rng: Random, quality: str) -> Pixels:
    """A hurried photograph of a picture: `sharp` enough, or hopelessly `blurry` or `dark`."""
    blur, light = {
        "sharp": (rng.uniform(0.2, 0.8), rng.uniform(0.8, 1.0)),
        "blurry": (rng.uniform(6, 9), rng.uniform(0.8, 1.0)),
        "dark": (0.2, rng.uniform(0.04, 0.08)),
    }[quality]
    taken = (
        np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(blur)), np.float32)
        * light
    )
    grain = np.random.default_rng(rng.getrandbits(64)).normal(0, 6, taken.shape)
    return np.clip(taken + grain, 0, 255).astype(np.uint8)
