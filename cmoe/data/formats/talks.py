"""Conversations as people keep them: LLaVA's and ShareGPT's turns, and OpenAI's messages.

    {"conversations": [{"from": "human" | "gpt", "value": "<image>..."}], "image"? | "images"?}
    {"messages": [{"role": "user" | "assistant", "content": "..." | [parts]}], "images"?}

A part is `{"type": "text", "text"}`, `{"type": "image_url", "image_url": {"url"}}`, or
`{"type": "image", "image"?}`. What a system says stands in front of the first question. Each
`<image>` in a text, and each image part without a picture of its own, is the next of the row's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cmoe.common.errors import DataError
from cmoe.common.nearest import unknown
from cmoe.data.row_rules import shown
from cmoe.data.samples import PLACEHOLDER

_ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_TURNS = {"from": ("from", "value"), "role": ("role", "content", "name", "weight")}
_PARTS = {
    "text": ("type", "text"),
    "image_url": ("type", "image_url"),
    "image": ("type", "image"),
}
_URL = ("url", "detail")


@dataclass
class Talk:
    """What a row says, before it is held to what samples are held to.

    Attributes:
        asked: Questions, each with its field.
        said: Their answers, as many, each with its field.
        images: In the order of their places.
        told: What a system says, with its field.
    """

    asked: list[tuple[str, Any]] = field(default_factory=list)
    said: list[tuple[str, Any]] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)
    told: tuple[str, Any] | None = None


def read_talk(row: Mapping[str, Any], key: str, images: list[Any]) -> Talk:
    """A row's conversation.

    Args:
        row: It.
        key: Where the turns are.
        images: The row's own, which places in the texts point to.

    Raises:
        DataError: The turns aren't a user's and an assistant's by turns, or one of them can't be
            used.
    """
    turns = row[key]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{key} must be a list of turns, this is {shown(turns)}")
    talk, waiting = Talk(), _Waiting(images)
    for number, turn in enumerate(turns):
        where = f"{key}[{number}]"
        role, content, field = _turn(turn, where)
        expected = "assistant" if len(talk.asked) > len(talk.said) else "user"
        if role == "system" and number == 0:
            talk.told = field, _texts(content, field, "what a system says")
            continue
        if role != expected:
            raise DataError(
                f"{where} is a turn of {shown(_said_role(turn))}, and one of the {expected} is "
                "needed: a system's first, if any, then a user's and an assistant's by turns"
            )
        if role == "assistant":
            talk.said.append((field, _texts(content, field, "an answer")))
        else:
            talk.asked.append((field, _asked(content, field, waiting)))
    if len(talk.asked) != len(talk.said) or not talk.asked:
        raise DataError(f"{key} must end with a turn of the assistant, the last is the user's")
    talk.images = waiting.all()
    return talk


class _Waiting:
    """The row's images, which places take in their order."""

    def __init__(self, images: list[Any]) -> None:
        self._row, self._next = images, 0
        self._placed: list[Any] = []

    def take(self) -> None:
        """The next of the row's; none, where there are too few, which is told later."""
        if self._next < len(self._row):
            self._placed.append(self._row[self._next])
        self._next += 1

    def add(self, image: Any) -> None:
        """One that its place brings."""
        self._placed.append(image)

    def all(self) -> list[Any]:
        """In the order of their places; those without one last."""
        return [*self._placed, *self._row[self._next :]]


def _said_role(turn: Mapping[str, Any]) -> Any:
    return turn["from"] if "from" in turn else turn["role"]


def _turn(turn: Any, where: str) -> tuple[str, Any, str]:
    """Whose turn it is, what is said, and the field of that."""
    kind = next((key for key in _TURNS if isinstance(turn, Mapping) and key in turn), None)
    if kind is None:
        raise DataError(
            f"{where} must be from and value, or role and content, this is {shown(turn)}"
        )
    known = _TURNS[kind]
    _require_known(turn, known, where)
    named = turn[kind]
    role = _ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise DataError(f"{where}.{kind} is {shown(named)}; {unknown(str(named), _ROLES)}")
    if "weight" in turn and (role != "assistant" or turn["weight"] != 1):
        raise DataError(
            f"{where}.weight is {shown(turn['weight'])}; every answer is trained on, with weight 1"
        )
    return role, turn.get(known[1]), f"{where}.{known[1]}"


def _require_known(found: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in found:
        if key not in known:
            raise DataError(f"{where}: unknown key {shown(key)}; {unknown(str(key), known)}")


def _parts(content: list[Any], field: str) -> Iterator[tuple[str, Any, str]]:
    """A content's parts: the kind of each, what it holds, and where."""
    for number, part in enumerate(content):
        where = f"{field}[{number}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(kind, str) or kind not in _PARTS:
            raise DataError(
                f"{where} must be a part with type {', '.join(_PARTS)}, this is {shown(part)}"
            )
        _require_known(part, _PARTS[kind], where)
        yield kind, part.get(kind), f"{where}.{kind}"


def _asked(content: Any, field: str, waiting: _Waiting) -> Any:
    """A question, with a placeholder for each of its images."""
    if not isinstance(content, list):
        for _ in range(content.count(PLACEHOLDER) if isinstance(content, str) else 0):
            waiting.take()
        return content
    text, last = "", ""
    for kind, held, where in _parts(content, field):
        if kind == "text":
            if not isinstance(held, str):
                raise DataError(f"{where} must be text, this is {shown(held)}")
            for _ in range(held.count(PLACEHOLDER)):
                waiting.take()
            text += f"\n{held}" if last == "text" else held
        else:
            _image(kind, held, where, waiting)
            text += PLACEHOLDER
        last = kind
    return text


def _image(kind: str, held: Any, where: str, waiting: _Waiting) -> None:
    if kind == "image_url":
        if isinstance(held, Mapping):
            _require_known(held, _URL, where)
            held = held.get("url")
        if not isinstance(held, str):
            raise DataError(f"{where} must have a url, this is {shown(held)}")
    if held is None:
        waiting.take()
    else:
        waiting.add(held)


def _texts(content: Any, field: str, what: str) -> Any:
    """What is said without images; parts are lines."""
    if not isinstance(content, list):
        return content
    lines = []
    for kind, held, where in _parts(content, field):
        if kind != "text" or not isinstance(held, str):
            raise DataError(f"{where}: {what} is text alone, this is {shown(held)}")
        lines.append(held)
    return "\n".join(lines)
