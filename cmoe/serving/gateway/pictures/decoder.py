"""A process that decodes clients' pictures, and nothing else.

`python -m cmoe.serving.gateway.pictures.decoder` reads jobs from its standard input and writes
results to its standard output, one behind the other. Whatever a picture does, this process alone
suffers: the kernel ends it when a picture's share of the CPU is spent, and refuses it memory beyond
a limit.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO, NamedTuple

from PIL import Image

from cmoe.data.image_limits import ImageLimits, Resizing
from cmoe.data.images import (
    ImageError,
    ImageTooLargeError,
    TooMuchWorkError,
    open_image,
    to_rgb,
)
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.pictures.images import TOO_LARGE, bad, from_data_url

JOB = struct.Struct(">?Q")  # whether it is a data URL, and its bytes
RESULT = struct.Struct(">IQ")  # bytes of what is said, as JSON, and of the pixels behind it
NICENESS = 5  # the gateway's own event loop comes first


@dataclass(frozen=True)
class DecoderConfig:
    """What a decoder may do.

    Attributes:
        image: The limits of a picture.
        at_once: Pixels of work up to which it decodes a picture; of others it says the work alone.
        cpu_s: Seconds of the CPU for a picture; when they are spent the kernel ends the process.
        memory_bytes: Of its data, beside its code.
    """

    image: ImageLimits
    at_once: int
    cpu_s: float
    memory_bytes: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> DecoderConfig:
        values = json.loads(text)
        image = values.pop("image")
        resizing = Resizing(**image.pop("resizing"))
        return cls(image=ImageLimits(**image, resizing=resizing), **values)


class Result(NamedTuple):
    """A picture's size and its pixels in RGB, or else its work or an error.

    Attributes:
        said: `size`, or `work`, or the fields of a `RequestError`.
        pixels: Three bytes each, row by row.
    """

    said: dict[str, Any]
    pixels: bytes = b""


def decoded(job: bytes, *, url: bool, config: DecoderConfig) -> Result:
    """What becomes of a picture.

    Args:
        job: Its file, or the data URL that holds it.
        url: Which of them it is.
        config: What may be done for it.
    """
    try:
        return _decoded(from_data_url(job, config.image.file_bytes) if url else job, config)
    except RequestError as error:
        return _refused(error)
    except ImageTooLargeError as error:
        return _refused(bad(str(error), TOO_LARGE))
    except ImageError as error:
        return _refused(bad(str(error)))
    except MemoryError:  # beside what is decoded
        return _refused(bad("the picture needs too much memory", TOO_LARGE))


def _decoded(data: bytes, config: DecoderConfig) -> Result:
    try:
        image = open_image(data, replace(config.image, work=config.at_once))
    except TooMuchWorkError as error:
        if error.work > config.image.work:
            raise TooMuchWorkError(error.name, error.work, config.image.work) from error
        return Result({"work": error.work})
    found = to_rgb(image)
    return Result({"size": found.size}, found.tobytes())


def _refused(error: RequestError) -> Result:
    return Result({"message": error.message, "code": error.code})


def main(config: DecoderConfig) -> None:
    """Decode one picture after the other, until the input ends."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_DATA, (config.memory_bytes, config.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Image.init()
    jobs, results = sys.stdin.buffer, sys.stdout.buffer
    while head := jobs.read(JOB.size):
        signal.setitimer(signal.ITIMER_PROF, config.cpu_s)  # its signal ends a process
        url, size = JOB.unpack(head)
        _write(results, decoded(jobs.read(size), url=url, config=config))


def _write(results: BinaryIO, result: Result) -> None:
    said = json.dumps(result.said).encode()
    results.write(RESULT.pack(len(said), len(result.pixels)) + said)
    results.write(result.pixels)
    results.flush()


if __name__ == "__main__":
    main(DecoderConfig.of_json(sys.argv[1]))
