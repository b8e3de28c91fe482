"""Chat requests that a service refuses, with what it says."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from random import Random
from typing import Any

from PIL import Image

LIMITS = {
    "in_flight": 24,
    "answer_tokens": 400,
    "text_bytes": 1000,
    "picture_pixels": 250_000,
    "picture_bytes": 200_000,
    "body_bytes": 400_000,
    "hosts": ["localhost", "127.0.0.1"],
}
"""Limits of the service that refuses them."""


def png(width: int, height: int, *, claimed: tuple[int, int] | None = None) -> bytes:
    """A picture of one colour; its header may claim another size than its data has."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    data = file.getvalue()
    if claimed is None:
        return data
    head = b"IHDR" + struct.pack(">II", *claimed) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


def showing(data: bytes | str, kind: str = "image/png") -> list[Any]:
    url = data if isinstance(data, str) else f"data:{kind};base64,{base64.b64encode(data).decode()}"
    part = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]


def saved(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()


BAD_REQUESTS: dict[str, tuple[Any, int, str]] = {
    "a bomb": (
        showing(png(4, 4, claimed=(60_000, 60_000))),
        400,
        "60000 x 60000 pixels; at most 250,000",
    ),
    "a smaller bomb": (showing(png(4, 4, claimed=(9000, 9000))), 400, "9000 x 9000 pixels"),
    "a picture over the limit": (showing(png(600, 600)), 400, "600 x 600 pixels; at most 250,000"),
    "a thin picture": (
        showing(png(2, 60_000)),
        400,
        "2 x 60000 pixels, of which the base's processor makes up to 3,600,000,000",
    ),
    "a long picture": (showing(png(2, 90_000)), 400, "each side at most 65,535"),
    "one pixel": (showing(png(1, 1)), 400, "each side needs 2"),
    "no pixel": (showing(png(4, 4, claimed=(0, 4))), 400, "picture"),
    "a file over the limit": (showing(b"\x89PNG" + b"x" * 250_000), 400, "larger than 200,000"),
    "a damaged picture": (showing(png(64, 64)[:-40]), 400, "damaged"),
    "text as a picture": (showing(b"hello there"), 400, "not a picture"),
    "another format": (showing(saved("TIFF"), "image/tiff"), 400, "formats are JPEG, PNG, WEBP"),
    "a format under another's name": (showing(saved("PPM")), 400, "not a picture"),
    "no base64": (showing("data:image/png;base64,####"), 400, "isn't base64"),
    "a file's URL": (showing("file:///etc/passwd"), 400, "a data URL, http or https"),
    "another kind of data": (showing("data:text/html;base64,aGk="), 400, "data:image/"),
    "an unlisted host": (showing("http://example.com/a.png"), 400, "aren't fetched from"),
    "a private address": (showing("http://127.0.0.1:8265/"), 400, "isn't public"),
    "a private name": (showing("http://localhost:8265/"), 400, "isn't public"),
    "a user in a URL": (showing("http://me@localhost/a.png"), 400, "aren't fetched from"),
    "five pictures": (
        [{"role": "user", "content": showing(png(4, 4))[0]["content"] * 5}],
        400,
        "5 images; at most 4",
    ),
    "pictures apart": (
        [{"role": "user", "content": showing(png(4, 4))[0]["content"] * 2}],
        400,
        "doesn't show images where they stand",
    ),
    "pictures that are large together": (
        [{"role": "user", "content": showing(png(450, 450))[0]["content"] * 2}],
        400,
        "the images together have",
    ),
    "an assistant's picture": (
        [{"role": "assistant", "content": showing(png(4, 4))[0]["content"]}],
        400,
        "only users show them",
    ),
    "the picture's token": ([{"role": "user", "content": "see <image> here"}], 400, "'<image>'"),
    "the end's token": ([{"role": "user", "content": "end</s>"}], 400, "'</s>'"),
    "much text": ([{"role": "user", "content": "x" * 2000}], 400, "2,000 bytes of text"),
    "many tokens": ([{"role": "user", "content": "#~ " * 320}], 400, "tokens; with an answer"),
    "many messages": (
        [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(41)],
        400,
        "41 messages; at most 32",
    ),
    "no message": ([], 400, "at least 1 item"),
    "an assistant last": (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        400,
        "must be a user's",
    ),
    "no question": ([{"role": "user", "content": " "}], 400, "question is empty"),
    "an unknown role": ([{"role": "tool", "content": "a"}], 400, "messages.0.role"),
    "an unknown part": ([{"role": "user", "content": [{"type": "audio"}]}], 400, "messages.0"),
    "an argument of the processor": (
        [{"role": "user", "content": "a", "images_kwargs": {"size": 10**9}}],
        400,
        "Unrecognized request argument supplied: messages.0.images_kwargs",
    ),
}
"""Messages of each request, the status, and a part of the error's message."""

BAD_BODIES: list[tuple[bytes, dict[str, str], int]] = [
    (b"{", {}, 400),
    (b"\xff\xfe", {}, 400),
    (b'{"model":' + b"[" * 100_000, {}, 400),
    (b'{"model":"cmoe","messages":[' + b"{}," * 100_000 + b"{}]}", {}, 400),
    (b"{" + b",".join(b'"a%d":0' % i for i in range(20_000)) + b"}", {}, 400),
    (b"[1]", {}, 400),
    (b"{}", {"Content_Type": "text/plain"}, 415),
    (b"{}", {"Authorization": ""}, 401),
    (b"{}", {"Authorization": "Basic abc"}, 401),
]
"""Bodies and headers that are no request, and the status."""


def fuzzed(good: bytes, rng: Random) -> bytes:
    """A good request with bytes changed or cut off, or with a field of another kind."""
    kinds: list[Any] = [None, True, -1, 10**30, 1.5, "x", [], {}, [[]], "\x00", "\ud800".encode(
        "utf-16", "surrogatepass").decode("utf-16", "replace")]  # fmt: skip
    way = rng.randrange(4)
    if way == 0:
        data = bytearray(good)
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    if way == 1:
        return good[: rng.randrange(len(good))]
    value = json.loads(good)
    if way == 2:
        value[rng.choice([*value, "stop", "seed", "top_p", "stream", "n"])] = rng.choice(kinds)
    else:
        part = value["messages"][0]
        part[rng.choice(["role", "content", "name"])] = rng.choice(kinds)
    return json.dumps(value).encode()
