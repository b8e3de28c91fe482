"""What a task is made of: questions about pictures, and where their pictures lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

PLACEHOLDER = "<image>"
"""Where a question's text says that an image stands, as LLaVA's and CoIN's files write it."""


class Turn(NamedTuple):
    """A question and its answer behind the first ones of a conversation."""

    text: str
    answer: str


@dataclass(frozen=True)
class StoredPicture:
    """A picture in a Parquet shard, read when it is opened.

    Attributes:
        shard: URL of the file.
        group: Its row group.
        row: Within the group.
        name: Path by which CoIN knows the picture.
    """

    shard: str
    group: int
    row: int
    name: str

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """The picture's file, as it was before it was stored; as `Path.open`."""
        return BytesIO(_group(self.shard, self.group)[self.row].as_py())

    def __str__(self) -> str:
        return f"{self.name} ({self.shard})"


@dataclass(frozen=True)
class EmbeddedPicture:
    """A picture in a cell of an Arrow file, which is mapped into memory and read when it is opened.

    Attributes:
        file: The Arrow file, on this machine.
        column: Of the cell.
        row: Of the file.
        index: In the cell's list; None where the cell holds one picture.
        size: Of the picture's file, in bytes.
        name: What the data set calls it, and its row: the same on every machine.
    """

    file: str
    column: str
    row: int
    index: int | None
    size: int
    name: str

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """The picture's file, as the data set holds it; as `Path.open`."""
        cell = arrow_table(self.file).column(self.column)[self.row]
        if self.index is not None:
            cell = cell.values[self.index]
        found = cell.as_py()
        return BytesIO(found["bytes"] if isinstance(found, dict) else found)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class InlinePicture:
    """A picture that its row holds itself, as a `data:` URL. It stays in memory.

    Attributes:
        digest: sha256 of its file, by which it is compared.
        data: Its file.
    """

    digest: str
    data: bytes = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """The same on every machine."""
        return f"data:{self.digest}"

    def open(self, mode: Literal["rb"] = "rb") -> BinaryIO:
        """The picture's file; as `Path.open`."""
        return BytesIO(self.data)

    def __str__(self) -> str:
        return f"of a data: URL (sha256 {self.digest[:12]})"


Picture = Path | StoredPicture | EmbeddedPicture | InlinePicture
"""An image's file."""

Parts = tuple[str | None, ...]
"""What is said in a turn: texts, and None where an image stands."""


def name_of(file: Picture) -> str:
    """What errors call a picture; a path that can't be shown as it is, is quoted."""
    shown = str(file)
    return f"picture {shown if shown.isprintable() else ascii(shown)}"


@dataclass(frozen=True)
class Sample:
    """One question, about images or about nothing but its text.

    Attributes:
        id: As in the file; unique in its split.
        text: The question. Each `PLACEHOLDER` in a question stands for the next image; where no
            question has one, the images stand in front of the first.
        answer: What the model should say.
        images: The images' files, in the order of their places.
        size: Width and height of the original image, where the file says so (boxes).
        further: What follows in the conversation. It is trained on; the first question alone is
            located and judged, as test samples have no more.
        answers: What people answered, where that is known and judged by; `answer` is one of them.
    """

    id: str
    text: str
    answer: str
    images: tuple[Picture, ...] = ()
    size: tuple[int, int] | None = None
    further: tuple[Turn, ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def turns(self) -> tuple[Parts, ...]:
        """Questions and answers by turns."""
        questions = [self.text, *(turn.text for turn in self.further)]
        answers = [self.answer, *(turn.answer for turn in self.further)]
        asked = [parts_of(question) for question in questions]
        if not any(PLACEHOLDER in question for question in questions):
            asked[0] = (*[None] * len(self.images), self.text)
        pairs = zip(asked, answers, strict=True)
        return tuple(part for question, answer in pairs for part in (question, (answer,)))

    @property
    def question(self) -> Parts:
        """The first question."""
        return self.turns[0]

    @property
    def asked_about(self) -> tuple[Picture, ...]:
        """The images of the first question."""
        return self.images[: self.question.count(None)]


def parts_of(text: str) -> Parts:
    """A text whose placeholders are images: what stands between them, without what is empty."""
    first, *others = text.split(PLACEHOLDER)
    parts = [first, *(part for other in others for part in (None, other))]
    return tuple(part for part in parts if part != "")


@dataclass(frozen=True)
class Task:
    """One task of the stream.

    Attributes:
        name: Its name.
        train: What it is trained on.
        test: What it is judged on.
        scorer: The name of what judges it; "" is the one registered for the task's name.
    """

    name: str
    train: Sequence[Sample]
    test: Sequence[Sample]
    scorer: str = ""


# A group holds about a megabyte, and neighbours are often asked for together.
@lru_cache(maxsize=16)
def _group(shard: str, group: int) -> Any:
    from cmoe.common.storage import explained
    from cmoe.common.storage_errors import READ

    with explained(shard, READ):
        return _file(shard).read_row_group(group, columns=["bytes"]).column(0)


def arrow_table(file: str) -> Any:
    """The table of an Arrow file, mapped into memory; of the file as it is now."""
    found = os.stat(file)
    return _mapped(file, found.st_mtime_ns, found.st_ino)


@lru_cache(maxsize=64)
def _mapped(file: str, time: int, number: int) -> Any:
    import pyarrow as pa

    return pa.ipc.open_stream(pa.memory_map(file)).read_all()


@lru_cache(maxsize=64)
def _file(shard: str) -> Any:
    """An open shard. Its ranges are read as they are asked for: nothing is read ahead."""
    import pyarrow.parquet as pq

    from cmoe.common.storage import filesystem

    fs, path = filesystem(shard)
    return pq.ParquetFile(fs.open(path, "rb", cache_type="none"))
