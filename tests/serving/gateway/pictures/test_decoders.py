"""Decoders hold their limits whatever a picture holds, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any

import psutil
import pytest
from PIL import Image
from support.hostile_pictures import (
    FORMATS,
    HOSTILE,
    HOSTILE_URLS,
    data_url,
    flooded,
    scans,
    sound,
    trailing,
)
from support.image_modes import same
from support.jobs import until
from support.picture_files import saved

from cmoe.data.images import open_image, to_rgb
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.limits import LimitsConfig
from cmoe.serving.gateway.pictures import decoders as module
from cmoe.serving.gateway.pictures.decoders import Decoders

LIMITS = LimitsConfig(in_flight=256)
COSTLY = replace(LIMITS, picture_work=10**10, decoders=1)
WAIT_S, PAUSE_S = 30.0, 1.0
"""Seconds that a small picture may wait for others on a busy machine, and the event loop itself."""
GROWTH = 100 * 2**20


class Started:
    """Decoders, and their processes as the system sees them."""

    def __init__(self, limits: LimitsConfig) -> None:
        self._others = _running()
        self.decoders = Decoders(limits, limits.image)
        self.decode = self.decoders.decode

    def processes(self) -> list[psutil.Process]:
        return [psutil.Process(pid) for pid in sorted(_running() - self._others)]


def _running() -> set[int]:
    """Decoders among this process's children."""
    found = set()
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if "cmoe.serving.gateway.pictures.decoder" in process.cmdline():
                found.add(process.pid)
    return found


@contextmanager
def started(limits: LimitsConfig) -> Iterator[Started]:
    made = Started(limits)
    try:
        yield made
    finally:
        made.decoders.close()


@pytest.fixture(scope="module")
def usual() -> Iterator[Started]:
    """Decoders with a gateway's usual limits; they outlive an event loop."""
    with started(LIMITS) as made:
        yield made


@lru_cache
def slow() -> bytes:
    """A picture that takes half a second and more."""
    return scans(4000, 60)


async def outcome(decoders: Started, picture: str | bytes) -> tuple[int, int] | RequestError:
    """A picture's size, or why it is refused."""
    try:
        return (await decoders.decode(picture)).size
    except RequestError as error:
        return error


async def longest_pause(work: Awaitable[Any]) -> float:
    """Seconds of the CPU that the event loop took for one step at most, until some work was done.

    However busy the machine is beside it.
    """
    task, longest = asyncio.ensure_future(work), 0.0
    while not task.done():
        begun = time.thread_time()
        await asyncio.sleep(0.01)
        longest = max(longest, time.thread_time() - begun)
    await task
    return longest


async def waits(decoders: Started, beside: Awaitable[Any]) -> float:
    """Seconds that a small picture took at most, again and again until some work was done."""
    task, longest = asyncio.ensure_future(beside), 0.0
    while not task.done():
        begun = time.monotonic()
        assert (await decoders.decode(sound("PNG"))).size == (64, 48)
        longest = max(longest, time.monotonic() - begun)
    await task
    return longest


async def held(
    decoders: Started, pictures: Sequence[str | bytes]
) -> list[tuple[int, int] | RequestError]:
    """What becomes of pictures that come all at once, while everybody else is served as well."""
    await decoders.decode(sound("PNG"))
    before = psutil.Process().memory_info().rss
    found: list[tuple[int, int] | RequestError] = []

    async def send() -> None:
        found.extend(await asyncio.gather(*(outcome(decoders, p) for p in pictures)))

    async def beside() -> None:
        assert await waits(decoders, send()) < WAIT_S

    assert await longest_pause(beside()) < PAUSE_S
    assert psutil.Process().memory_info().rss - before < GROWTH, "memory of the gateway"
    rest = [p.memory_info().rss for p in decoders.processes()]
    assert len(rest) == LIMITS.decoders + 1
    assert max(rest) < 2 * GROWTH, "memory of a decoder"
    return found


def test_a_hundred_hostile_pictures_at_once_are_refused_or_decoded_within_limits(
    usual: Started,
) -> None:
    made = {name: make() for name, make in HOSTILE.items()}
    assert len(made) >= 100
    found = dict(zip(made, asyncio.run(held(usual, list(made.values()))), strict=True))
    for name, each in found.items():
        if isinstance(each, tuple):
            assert each[0] * each[1] <= LIMITS.picture_pixels, name
        else:
            assert (each.status, each.param) == (400, "messages"), name
            assert each.code in ("invalid_image", "image_too_large"), name
    refused = [name for name, each in found.items() if isinstance(each, RequestError)]
    assert 60 < len(refused) < len(found), "some are sound beside what is wrong with them"


def test_the_largest_files_hold_nobody_up(usual: Started) -> None:
    """8 MB, of which each byte may stand for something."""
    size = LIMITS.picture_bytes - 5000
    files = [
        flooded(piece, size) for piece in (b"\xff\xe0\0\2", b"\xff", b"\xff\xe1\0\x08Exif\0\0")
    ]
    files += [trailing(piece, size) for piece in (b"\xff\0", b"\xff\xd0")]
    assert all(LIMITS.picture_bytes - 20_000 < len(f) <= LIMITS.picture_bytes for f in files)
    urls = ["data:image/png;base64," + piece * (3 * 2**20) for piece in ("%41", "%2F", "\n\n\n")]
    urls += [make() for make in HOSTILE_URLS.values()]
    for each in asyncio.run(held(usual, [*files, *urls])):
        assert isinstance(each, tuple) or each.status == 400


@pytest.mark.parametrize("kind", FORMATS)
def test_pixels_are_those_of_pillow(usual: Started, kind: str) -> None:
    async def both() -> list[Image.Image]:
        return [await usual.decode(p) for p in (sound(kind), data_url(sound(kind)))]

    for image in asyncio.run(both()):
        assert same(image, to_rgb(open_image(sound(kind), LIMITS.image)))


def test_the_largest_picture_fits_into_a_decoders_memory(usual: Started) -> None:
    """In the modes that take most: 16 bits, of which some are transparent, and four channels."""
    grey = saved(Image.new("I;16", (4000, 4000)), "PNG", transparency=5)
    clear = saved(Image.new("RGBA", (4000, 4000)), "WEBP", lossless=True, method=0, quality=0)

    async def sizes() -> list[tuple[int, int]]:
        return [(await usual.decode(each)).size for each in (grey, clear)]

    assert asyncio.run(sizes()) == [(4000, 4000)] * 2


def test_a_decoder_knows_no_key_and_ends_with_its_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMOE_API_KEYS", "secret")
    with started(LIMITS) as decoders:
        asyncio.run(decoders.decode(sound("BMP")))
        found = decoders.processes()
        assert all("secret" not in p.environ().values() for p in found)
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in found))


def test_a_picture_that_takes_too_long_ends_its_decoder_alone() -> None:
    async def run(decoders: Started) -> None:
        await decoders.decode(sound("PNG"))
        before = {p.pid for p in decoders.processes()}
        for each in await asyncio.gather(*(outcome(decoders, slow()) for _ in range(3))):
            assert isinstance(each, RequestError)
            assert (each.status, each.code) == (400, "image_too_large")
            assert "takes longer than 0.1 s to decode" in each.message
        assert (await decoders.decode(sound("PNG"))).size == (64, 48)
        after = {p.pid for p in decoders.processes()}
        assert len(after) == len(before)
        assert len(after & before) == 1, "the one for large pictures alone was replaced"

    with started(replace(COSTLY, picture_s=0.1)) as decoders:
        asyncio.run(run(decoders))


def test_a_decoder_loads_nothing_that_it_does_not_need() -> None:
    """It starts again after each picture that is over its limits, beside a busy gateway."""
    told = "import sys, cmoe.serving.gateway.pictures.decoder; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, check=True
    )
    assert not {"torch", "ray", "fastapi", "transformers"} & {*loaded.stdout.split()}


def test_a_picture_that_needs_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIXEL_BYTES", 0)
    large = saved(Image.new("RGB", (4000, 4000)), "PNG")

    async def run(decoders: Started) -> None:
        found = await outcome(decoders, large)
        assert isinstance(found, RequestError)
        assert (found.status, found.code) == (400, "image_too_large")
        assert "memory" in found.message
        assert (await decoders.decode(sound("PNG"))).size == (64, 48)

    with started(COSTLY) as decoders:
        asyncio.run(run(decoders))


def test_killed_decoders_are_replaced() -> None:
    async def run(decoders: Started) -> None:
        for _ in range(2):
            for process in decoders.processes():
                process.send_signal(signal.SIGKILL)
            for _ in range(3):
                assert (await decoders.decode(sound("JPEG"))).size == (64, 48)

    with started(COSTLY) as decoders:
        asyncio.run(run(decoders))


def test_the_decoder_of_a_client_that_has_gone_is_free_at_once() -> None:
    async def run(decoders: Started) -> None:
        await decoders.decode(sound("PNG"))
        before = {p.pid for p in decoders.processes()}
        left = [asyncio.ensure_future(decoders.decode(slow())) for _ in range(3)]
        await asyncio.sleep(0.2)
        for each in left:
            each.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        assert (await decoders.decode(slow())).size == (4000, 4000)
        after = {p.pid for p in decoders.processes()}
        assert len(after) == len(before)
        assert after != before, "what it was doing isn't waited for"

    with started(COSTLY) as decoders:
        asyncio.run(run(decoders))


def test_large_pictures_get_429_before_they_take_all_places() -> None:
    async def run(decoders: Started) -> None:
        large = [asyncio.ensure_future(outcome(decoders, slow())) for _ in range(5)]
        done, _ = await asyncio.wait(large, return_when=asyncio.FIRST_COMPLETED)
        assert all(
            isinstance(e := each.result(), RequestError) and e.status == 429 for each in done
        )
        assert (await decoders.decode(sound("GIF"))).size == (64, 48)
        for each in large:
            each.cancel()
        await asyncio.gather(*large, return_exceptions=True)

    with started(replace(COSTLY, in_flight=8)) as decoders:
        asyncio.run(run(decoders))
