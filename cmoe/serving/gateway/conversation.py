"""What was said: messages as clients write them, and the turns that chat templates take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, NoReturn

from cmoe.common.nearest import listed
from cmoe.data.batches import ChatTurn
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.fields import (
    Read,
    Unsupported,
    fields,
    kind_of,
    many,
    one_of,
    text,
    wrong,
)
from cmoe.serving.gateway.limits import LimitsConfig

SYSTEM = ("system", "developer")
ROLES = (*SYSTEM, "user", "assistant")


class Text(NamedTuple):
    """A text in a message, and its path in the body."""

    text: str
    at: str


class ImageUrl(NamedTuple):
    """An image in a message, and the path of its URL in the body."""

    url: str
    at: str


Part = Text | ImageUrl


@dataclass(frozen=True)
class Message:
    """One message: texts and images, in their order.

    Attributes:
        role: One of `ROLES`.
        parts: Texts and images.
        at: Path of its content in the body.
    """

    role: str
    parts: tuple[Part, ...]
    at: str


class PartKind(NamedTuple):
    """A kind of parts of a message.

    Attributes:
        field: The field that holds the text or the image.
        read: That field's reader.
        readers: Readers of further fields.
        unsupported: As of `fields`.
    """

    field: str
    read: Read[Part]
    readers: Mapping[str, Read[Any]] = {}
    unsupported: Mapping[str, Unsupported] = {}


def as_text(value: Any, at: str) -> Text:
    return Text(text(value, at), at)


def content(kinds: Mapping[str, PartKind]) -> Read[tuple[Part, ...]]:
    """A reader of a message's content: a string, or a list of parts of these kinds."""

    def read_part(value: Any, at: str) -> Part:
        if not isinstance(value, dict):
            wrong(at, f"is {kind_of(value)}; an object with type, {listed([*kinds])}")
        if value.get("type") is None:
            wrong(f"{at}.type", f"is missing; {listed([*kinds])}")
        kind = kinds[one_of(*kinds)(value["type"], f"{at}.type")]
        readers = {"type": text, kind.field: kind.read, **kind.readers}
        found = fields(value, at, readers, needed=[kind.field], unsupported=kind.unsupported)
        part: Part = found[kind.field]
        return part

    def read(value: Any, at: str) -> tuple[Part, ...]:
        if isinstance(value, str):
            return (as_text(value, at),)
        if not isinstance(value, list):
            wrong(at, f"is {kind_of(value)}; a string, or a list of parts")
        return tuple(many(read_part)(value, at))

    return read


class Conversation(NamedTuple):
    """A conversation.

    Attributes:
        turns: As chat templates take them.
        texts: As the client wrote them.
        images: Likewise.
        at: Path of the messages in the body.
    """

    turns: list[ChatTurn]
    texts: list[Text]
    images: list[ImageUrl]
    at: str


def conversation(
    messages: Sequence[Message], limits: LimitsConfig, at: str = "messages"
) -> Conversation:
    """The conversation that a request's messages are, in turns as every chat template has them.

    System messages become one, in front. Messages of one role in a row become one turn. An empty
    question stands before an assistant who speaks first.

    Args:
        messages: At least one.
        limits: Of a request.
        at: Path of the messages in the body.

    Raises:
        RequestError: They are too many or too long, or don't end with a question.
    """

    def refuse(message: str, code: str | None = None, path: str = at) -> NoReturn:
        raise RequestError(400, f"{path}: {message}", code=code, param=path)

    if (count := len(messages)) > limits.messages:
        refuse(f"{count} messages; at most {limits.messages}", "too_many_messages")
    texts: list[Text] = []
    images: list[ImageUrl] = []
    for message in messages:
        for part in message.parts:
            if isinstance(part, Text):
                texts.append(part)
            elif message.role == "user":
                images.append(part)
            else:
                told = f"a picture in a message of the {message.role}; only users show them"
                refuse(told, path=part.at)
    if len(images) > limits.images:
        told = f"{len(images)} images; at most {limits.images}"
        refuse(told, "too_many_images", images[limits.images].at)
    if (size := sum(len(part.text.encode()) for part in texts)) > limits.text_bytes:
        refuse(f"{size:,} bytes of text; at most {limits.text_bytes:,}", "text_too_long")
    rules = [message for message in messages if message.role in SYSTEM]
    spoken = [message for message in messages if message.role not in SYSTEM]
    if not spoken or spoken[-1].role != "user":
        refuse("the last message must be a user's")
    turns = [
        ChatTurn(role, _turn_parts(group))
        for role, group in groupby(spoken, lambda message: message.role)
    ]
    if not any(part is None or part.strip() for part in turns[-1].parts):
        refuse("the question is empty", path=spoken[-1].at)
    if turns[0].role == "assistant":
        turns.insert(0, ChatTurn("user", ("",)))
    if (rule := _turn_parts(rules)) != ("",):
        turns.insert(0, ChatTurn("system", rule))
    return Conversation(turns, texts, images, at)


class Question(NamedTuple):
    """A question alone: what a task is learned from.

    Attributes:
        turns: One.
        images: Which of the conversation's images it is about.
    """

    turns: list[ChatTurn]
    images: slice


def question(turns: Sequence[ChatTurn]) -> Question:
    """The last question, about the images that were shown last.

    Several stay where they stand in it. One, and those of a turn before it, stand in front.
    """
    shown = [turn.parts.count(None) for turn in turns]
    last = max((at for at, count in enumerate(shown) if count), default=0)
    images = slice(sum(shown[:last]), sum(shown[: last + 1]))
    if shown[-1] > 1:
        return Question([ChatTurn("user", turns[-1].parts)], images)
    said = question_text(turns)
    front = (None,) * shown[last]
    return Question([ChatTurn("user", (*front, said) if said else front)], images)


def question_text(turns: Sequence[ChatTurn]) -> str:
    """The texts of the last question."""
    return "\n".join(part for part in turns[-1].parts if part)


def instructed(turns: Sequence[ChatTurn], opening: str, ending: str) -> Sequence[ChatTurn]:
    """Turns with an instruction around the last question; the very turns if the instruction is
    empty or the question an image alone.

    Args:
        turns: That end with a question.
        opening: Stands in front of its first text.
        ending: Stands behind its last text.
    """
    *before, last = turns
    parts = list(last.parts)
    texts = [place for place, part in enumerate(parts) if part and part.strip()]
    if not texts or not opening + ending:
        return turns
    parts[texts[0]] = f"{opening}{parts[texts[0]]}"
    parts[texts[-1]] = f"{parts[texts[-1]]}".rstrip() + ending  # where evaluation has it
    return [*before, ChatTurn(last.role, tuple(parts))]


def _turn_parts(messages: Iterable[Message]) -> tuple[str | None, ...]:
    """A turn's texts, and None in its images' places; texts that follow each other become one."""
    joined: list[str | None] = []
    for part in (part for message in messages for part in message.parts):
        if isinstance(part, ImageUrl):
            joined.append(None)
        elif joined and joined[-1] is not None and part.text:
            joined[-1] += f"\n{part.text}"
        elif part.text:
            joined.append(part.text)
    return tuple(joined) or ("",)
