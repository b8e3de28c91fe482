"""Processes that decode clients' pictures, so that no picture stops the gateway.

There are two lanes. All pictures come to the small one, whose processes decode what takes little
work; what takes more goes on to the large one. In each lane the cheapest picture waits least. A
process that is over its limits is ended and replaced; so is one whose client has gone.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import count
from typing import Any

from PIL import Image

from cmoe.data.image_limits import ImageLimits
from cmoe.serving.gateway.errors import too_busy
from cmoe.serving.gateway.limits import LimitsConfig
from cmoe.serving.gateway.pictures.decoder import JOB, RESULT, DecoderConfig
from cmoe.serving.gateway.pictures.images import TOO_LARGE, bad

SMALL_WORK, SMALL_S = 20_000_000, 1.5
"""Pixels that decoding a small picture goes over, and seconds of the CPU that it may take."""
MEMORY_BYTES, PIXEL_BYTES, FILE_BYTES = 96 * 2**20, 32, 4
"""Memory of a decoder: of its own, and for each pixel and each byte of a picture."""
LARGE_SHARE = 4
"""Of the places for requests one in so many is for a large picture, waiting or under way."""
END_S = 5.0  # in which a decoder without its socket has ended
KEPT = ("PATH", "LD_LIBRARY_PATH")
"""Variables that a decoder has of the gateway's: no key is among them."""


class _DeadError(Exception):
    """A decoder has ended.

    Attributes:
        status: Its exit status; a signal's number below zero.
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"a decoder ended with status {status}")
        self.status = status


class Decoders:
    """All decoders of a gateway.

    Args:
        limits: The limits of a request.
        image: The limits of a picture, which know what the base's processor makes of it.
    """

    def __init__(self, limits: LimitsConfig, image: ImageLimits) -> None:
        memory = MEMORY_BYTES + PIXEL_BYTES * image.pixels + FILE_BYTES * limits.body_bytes
        large = DecoderConfig(image, image.work, limits.picture_s, memory)
        at_once, cpu_s = min(SMALL_WORK, image.work), min(SMALL_S, limits.picture_s)
        small = replace(large, at_once=at_once, cpu_s=cpu_s)
        self._small = _Lane(small, limits.decoders, limits.in_flight)
        self._large = _Lane(large, 1, max(1, limits.in_flight // LARGE_SHARE))

    async def decode(self, picture: str | bytes) -> Image.Image:
        """A picture in three channels.

        Args:
            picture: Its file, or the data URL that holds it.

        Raises:
            RequestError: The picture can't be used, takes too long or too much memory; or too many
                that take long are there already.
        """
        url = isinstance(picture, str)
        job = picture.encode() if isinstance(picture, str) else picture
        said, pixels = await self._small.decode(job, url=url, work=len(job))
        if "work" in said:
            said, pixels = await self._large.decode(job, url=url, work=said["work"])
        if "size" not in said:
            raise bad(said["message"], said["code"])
        size = tuple(said["size"])
        if len(pixels) <= SMALL_WORK:
            return Image.frombytes("RGB", size, pixels)
        return await asyncio.to_thread(Image.frombytes, "RGB", size, pixels)

    def close(self) -> None:
        """End all decoders that have nothing to do."""
        self._small.close()
        self._large.close()


class _Lane:
    """Decoders of pictures that take about as long, and the pictures that wait for one.

    Args:
        config: Of each decoder.
        size: How many there are.
        most: Pictures that may be under way and wait; further ones are refused.
    """

    def __init__(self, config: DecoderConfig, size: int, most: int) -> None:
        self._config, self._free, self._most = config, size, most
        self._idle = [_Decoder(config) for _ in range(size)]
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers, self._inside = count(), 0

    async def decode(self, job: bytes, *, url: bool, work: int) -> tuple[dict[str, Any], bytearray]:
        """What a decoder says of a picture, and its pixels.

        Raises:
            RequestError: The picture takes too long, ends its decoder, or there are too many.
        """
        if self._inside >= self._most:
            raise too_busy()
        self._inside += 1
        try:
            await self._turn(work)
            try:
                return await self._ask(job, url)
            finally:
                self._pass_on()
        finally:
            self._inside -= 1

    async def _turn(self, work: int) -> None:
        """Wait until a decoder is free; who takes the least work comes first."""
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (work, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def _ask(self, job: bytes, url: bool) -> tuple[dict[str, Any], bytearray]:
        try:
            try:
                return await self._ask_one(job, url)
            except _DeadError as dead:
                if dead.status == -signal.SIGPROF:
                    raise
                return await self._ask_one(job, url)  # it may have died of something else
        except _DeadError as dead:
            if dead.status == -signal.SIGPROF:
                raise bad(
                    f"the picture takes longer than {self._config.cpu_s:g} s to decode",
                    TOO_LARGE,
                ) from dead
            raise bad("the picture can't be decoded: it is damaged") from dead

    async def _ask_one(self, job: bytes, url: bool) -> tuple[dict[str, Any], bytearray]:
        decoder = self._idle.pop()
        try:
            result = await decoder.ask(job, url)
        except OSError as error:
            self._idle.append(_Decoder(self._config))
            raise _DeadError(await asyncio.to_thread(decoder.wait)) from error
        except BaseException:  # its client has gone, or the time is over
            self._idle.append(_Decoder(self._config))
            decoder.kill()
            raise
        self._idle.append(decoder)
        return result

    def close(self) -> None:
        while self._idle:
            self._idle.pop().kill()


class _Decoder:
    """A decoder's process, and the socket to it. A job waits in the socket until it has started."""

    def __init__(self, config: DecoderConfig) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-m", "cmoe.serving.gateway.pictures.decoder", config.to_json()],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env=_environment(),
            )

    async def ask(self, job: bytes, url: bool) -> tuple[dict[str, Any], bytearray]:
        """What it says of a picture, and the pixels.

        Raises:
            OSError: It has ended.
        """
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, JOB.pack(url, len(job)))
        await loop.sock_sendall(self._socket, job)
        said, pixels = RESULT.unpack(await self._read(RESULT.size))
        return json.loads(await self._read(said)), await self._read(pixels)

    async def _read(self, size: int) -> bytearray:
        loop, data, done = asyncio.get_running_loop(), bytearray(size), 0
        view = memoryview(data)
        while done < size:
            if not (got := await loop.sock_recv_into(self._socket, view[done:])):
                raise ConnectionResetError
            done += got
        return data

    def wait(self) -> int:
        """Its exit status, when it has closed its end of the socket; a signal's below zero."""
        self._socket.close()
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def kill(self) -> None:
        """End it. Whoever starts the next one takes its exit status."""
        self._socket.close()
        self._process.kill()


def _environment() -> dict[str, str]:
    found = {name: os.environ[name] for name in KEPT if name in os.environ}
    # One thread is enough, and each takes memory.
    return found | {"PYTHONPATH": os.pathsep.join(sys.path), "OPENBLAS_NUM_THREADS": "1"}
