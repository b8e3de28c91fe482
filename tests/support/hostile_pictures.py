"""Pictures that attackers send: small files that ask for much time or memory, or aren't sound."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from random import Random

from PIL import Image
from support.picture_files import (
    PALETTE,
    RGB_ALPHA,
    SIGNATURE,
    chunk,
    gif,
    header,
    saved,
    segment,
)

FLOOD = 100_000  # bytes of what is repeated
Make = Callable[[], bytes]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


@lru_cache
def sound(kind: str) -> bytes:
    """A picture of every colour, for all formats alike."""
    return saved(Image.effect_noise((64, 48), 90).convert("RGB"), kind)


def flooded(piece: bytes, bytes_: int = FLOOD) -> bytes:
    """A JPEG with a piece again and again before its own segments."""
    data = sound("JPEG")
    return data[:2] + piece * (bytes_ // len(piece)) + data[2:]


def trailing(piece: bytes, bytes_: int = FLOOD) -> bytes:
    """A JPEG with a piece again and again behind its coded data."""
    return sound("JPEG")[:-2] + piece * (bytes_ // len(piece))


@lru_cache
def scans(side: int, count: int) -> bytes:
    """A progressive JPEG of so many scans: each goes over all of it, for a few bytes."""
    data = saved(Image.new("L", (side, side)), "JPEG", progressive=True)
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    tables = data.find(b"\xff\xc4", starts[-2], starts[-1])
    last = data[tables if tables > 0 else starts[-1] : -2]
    return data[:-2] + last * (count - len(starts)) + b"\xff\xd9"


def arithmetic(side: int, count: int, *, coded: int = 0xCA) -> bytes:
    """A JPEG in arithmetic coding, where all bytes mean something, or said to be in another."""
    data = saved(Image.new("L", (16, 16)), "JPEG", progressive=True)
    frame, first = data.index(b"\xff\xc2"), data.index(b"\xff\xda")
    head = data[:frame] + bytes([0xFF, coded]) + data[frame + 2 : frame + 5]
    head += struct.pack(">HH", side, side) + data[frame + 9 : first]
    finer = segment(0xDA, bytes([1, 1, 0, 1, 63, 0])) + b"\0"
    return (
        head + segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + b"\0" + finer * (count - 1) + b"\xff\xd9"
    )


def claimed(kind: str, width: int, height: int) -> bytes:
    """A picture whose header says another size."""
    data, little = bytearray(sound(kind)), struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    if kind == "PNG":
        return SIGNATURE + header(width, height) + chunk(b"IDAT", zlib.compress(bytes(100)))
    if kind == "GIF":
        return gif((width, height), (width, height))
    if kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "WEBP":
        data[26:30] = little
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def png_of(*chunks: bytes, side: int = 8, kind: int = 2, interlaced: int = 0) -> bytes:
    first = SIGNATURE + header(side, side, kind=kind, interlaced=interlaced)
    return first + b"".join(chunks) + chunk(b"IEND", b"")


def flat_png(side: int, *, kind: int, interlaced: int) -> bytes:
    """A PNG of one colour that inflates a thousandfold, in colours of up to 8 bytes a pixel."""
    bytes_ = {2: 3, 3: 1, 6: 4}[kind] * side * side + side * (2 if interlaced else 1) * 8
    packed = zlib.compress(bytes(bytes_), 9)
    palette = [chunk(b"PLTE", bytes(768))] if kind == PALETTE else []
    pixels = chunk(b"IDAT", packed)
    return png_of(*palette, pixels, side=side, kind=kind, interlaced=interlaced)


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(k + struct.pack("<I", len(d)) + d + bytes(len(d) % 2) for k, d in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def animated_webp(canvas: int, frames: int, piece: bytes = b"") -> bytes:
    """A WebP of so many frames, each of which holds a piece."""
    side = (canvas - 1).to_bytes(3, "little")
    head = (b"VP8X", b"\x02\0\0\0" + side + side), (b"ANIM", bytes(6))
    still = sound("WEBP")[12:]
    frame = bytes(6) + (63).to_bytes(3, "little") + (47).to_bytes(3, "little") + bytes(4)
    return riff(*head, *[(b"ANMF", frame + (piece or still))] * frames)


def gif_blocks(count: int, size: int) -> bytes:
    """A GIF with a comment of many small blocks before its frame."""
    data = gif((8, 8), (8, 8))
    return data[:19] + b"!\xfe" + (bytes([size]) + bytes(size)) * count + b"\0" + data[19:]


def bmp_of(bits: int, packing: int, width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, packing, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 100, 0, 0, 54) + head + bytes(100)


def cyclic_exif() -> bytes:
    """Camera data whose directory names itself as the next one, and holds many large entries."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    many = struct.pack("<HHII", 0x9286, 7, 2**31, 8) * 200
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 201) + entry + many + struct.pack("<I", 8)


def _jpegs() -> dict[str, Make]:
    exif, junk = b"Exif\0\0", bytes(60_000)
    segments = {
        **{f"empty APP{i}": b"\xff" + bytes([0xE0 + i]) + b"\0\2" for i in (0, 1, 2, 13, 14, 15)},
        "empty comments": b"\xff\xfe\0\2",
        "tiny Exif": segment(0xE1, exif),
        "Exif": segment(0xE1, exif + cyclic_exif()),
        "profiles": segment(0xE2, b"ICC_PROFILE\0\1\xff" + bytes(10)),
        "Photoshop": segment(0xED, b"Photoshop 3.0\08BIM\4\4\0\0\0\0\0\0"),
        "directories of pictures": segment(0xE2, b"MPF\0" + cyclic_exif()),
        "Huffman tables": segment(0xC4, bytes(17)),
        "quantisers": segment(0xDB, bytes(65)),
        "restart intervals": segment(0xDD, b"\0\1"),
        "frames": segment(0xC0, struct.pack(">BHHB", 8, 48, 64, 1) + b"\1\x11\0"),
        "starts": b"\xff\xd8",
        "filling": b"\xff",
        "markers without a length": b"\xff\x01",
        "long comments": segment(0xFE, junk),
    }  # fmt: skip
    tails = {"stuffing": b"\xff\0", "restarts": b"\xff\xd0"}
    tails |= {"filling": b"\xff", "scans": b"\xff\xda\0\2"}
    found: dict[str, Make] = {f"JPEG: {n}": lambda p=p: flooded(p) for n, p in segments.items()}
    found |= {f"JPEG: {n} behind": lambda p=p: trailing(p) for n, p in tails.items()}
    for side, count in ((16, 101), (446, 1000), (446, 8000), (500, 99), (3000, 9), (4000, 99)):
        found[f"JPEG: {count} scans of {side}"] = lambda s=side, c=count: scans(s, c)
    found["JPEG: arithmetic scans"] = lambda: arithmetic(446, 99)
    for code in (0xC3, 0xC5, 0xC7, 0xCB, 0xCF):
        found[f"JPEG: frame {code:x}"] = lambda c=code: arithmetic(64, 2, coded=c)
    return found


def _pngs() -> dict[str, Make]:
    bomb = zlib.compress(bytes(2**20), 9)
    floods = {
        "empty pixels": chunk(b"IDAT", b""),
        "empty others": chunk(b"abCd", b""),
        "tiny texts": chunk(b"tEXt", b"a\0b"),
        "text bombs": chunk(b"zTXt", b"a\0\0" + bomb),
        "bombs in languages": chunk(b"iTXt", b"a\0\1\0\0\0" + bomb),
        "profile bombs": chunk(b"iCCP", b"a\0\0" + bomb),
        "camera data": chunk(b"eXIf", cyclic_exif()),
        "frame controls": chunk(b"fcTL", bytes(26)),
        "palettes": chunk(b"PLTE", bytes(768)),
        "headers": header(8, 8),
        "physical sizes": chunk(b"pHYs", bytes(9)),
    }
    pixels = chunk(b"IDAT", zlib.compress(bytes(25 * 8)))
    found: dict[str, Make] = {
        f"PNG: {n}": lambda p=p: png_of(*[p] * max(1, FLOOD // len(p)), pixels)
        for n, p in floods.items()
    }
    for kind in (2, PALETTE, RGB_ALPHA):
        for interlaced in (0, 1):
            name = f"PNG: flat, colours {kind}, interlaced {interlaced}"
            found[name] = lambda k=kind, i=interlaced: flat_png(1500, kind=k, interlaced=i)
    found["PNG: a wrong checksum"] = lambda: sound("PNG").replace(b"IDAT", b"IDAU", 1)
    found["PNG: a length behind the file"] = lambda: SIGNATURE + b"\xff\xff\xff\xffIHDR"
    found["PNG: pixels that inflate without end"] = lambda: png_of(
        chunk(b"IDAT", zlib.compress(bytes(50 * 2**20), 9)[:40_000])
    )
    return found


def _others() -> dict[str, Make]:
    found: dict[str, Make] = {}
    for count, size in ((90_000, 0), (FLOOD, 1), (400, 255)):
        found[f"GIF: {count} blocks of {size}"] = lambda c=count, s=size: gif_blocks(c, s)
    found["GIF: a frame beyond its canvas"] = lambda: gif((1, 1), (60_000, 60_000))
    found["GIF: extensions"] = lambda: b"GIF89a" + bytes(7) + b"!\xf9\0" * (FLOOD // 3)
    found["GIF: blank bytes"] = lambda: b"GIF89a" + bytes(FLOOD)
    for canvas, frames in ((64, 80), (16_000, 1), (2000, 20_000)):
        name = f"WEBP: {frames} frames on {canvas}"
        found[name] = lambda c=canvas, f=frames: animated_webp(c, f, b"x" * 4 if f > 80 else b"")
    found["WEBP: empty chunks"] = lambda: riff(*[(b"ABCD", b"")] * (FLOOD // 8))
    found["WEBP: camera data"] = lambda: riff(
        (b"VP8X", b"\x08\0\0\0" + bytes([63, 0, 0, 47, 0, 0])), (b"EXIF", cyclic_exif() * 20)
    )
    for bits, packing, high in ((8, 1, 64), (4, 2, 64), (24, 0, -60_000), (32, 3, 30_000)):
        name = f"BMP: {bits} bits, packing {packing}, {high} rows"
        found[name] = lambda b=bits, p=packing, h=high: bmp_of(b, p, 3000, h)
    for kind in FORMATS:
        found[f"{kind}: huge"] = lambda k=kind: claimed(k, 16_000, 16_000)
        found[f"{kind}: thin"] = lambda k=kind: claimed(k, 16_000, 1)
        found[f"{kind}: without a side"] = lambda k=kind: claimed(k, 0, 16)
        for share in (0.3, 0.9):
            name = f"{kind}: cut off at {share:.0%}"
            found[name] = lambda k=kind, s=share: sound(k)[: int(len(sound(k)) * s)]
        found[f"{kind}: bytes changed"] = lambda k=kind: _changed(sound(k))
    return found


def _changed(data: bytes) -> bytes:
    random, changed = Random(3), bytearray(data)
    for _ in range(40):
        changed[random.randrange(20, len(changed))] = random.randrange(256)
    return bytes(changed)


HOSTILE: Mapping[str, Make] = _jpegs() | _pngs() | _others()
"""Pictures by what is wrong with them, 200 KB each at most."""


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


HOSTILE_URLS: Mapping[str, Callable[[], str]] = {
    "escaped letters": lambda: "data:image/png;base64," + "%41" * FLOOD,
    "escaped slashes": lambda: "data:image/png;base64," + "%2F" * FLOOD,
    "percent signs": lambda: "data:image/png;base64," + "%" * FLOOD,
    "white space": lambda: "data:image/png;base64," + "\n" * FLOOD,
    "padding": lambda: "data:image/png;base64," + "=" * FLOOD,
    "options": lambda: "data:image/png" + ";" * FLOOD + "base64,QQ==",
    "no comma": lambda: "data:image/png;base64" + "A" * FLOOD,
    "other letters": lambda: "data:image/png;base64," + "\u00e9" * FLOOD,
}
"""Data URLs that aren't what they say, or cost much to read."""
