"""Fields of a JSON body: each is read by what it must be, and a mistake is named by its path.

A reader takes a value and its path, as `messages.0.content.1.text`, and gives the value back or
raises a `RequestError`. Null is what isn't there: it says nothing, under whatever key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, TypeVar

from cmoe.common.parsing import parse_json
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.known_keys import did_you_mean

T = TypeVar("T")
Read = Callable[[Any, str], T]

MOST = 256
"""Of anything in a list, whatever the limits are: a body holds hundreds of thousands of `{}`."""
SHOWN = 60  # characters of a value in a message


class Neutral(NamedTuple):
    """A field that is known, and that only some values of ask for nothing.

    Attributes:
        why: All others are refused.
        values: Those that are taken, besides null.
    """

    why: str
    values: tuple[Any, ...] = ()

    def read(self, value: Any, at: str) -> None:
        if not any(_same(value, each) for each in self.values):
            taken = listed([*map(shown, self.values), "null"])
            wrong(at, f"is {shown(value)}; {self.why}, so that {taken} is taken")


def body_of(data: bytes) -> Any:
    """A body's value.

    Raises:
        RequestError: It is no JSON, or a key stands twice in one object.
    """
    try:
        return parse_json(data)
    except ValueError as error:
        raise RequestError(400, f"the body isn't JSON: {error}", code="bad_json") from error


def fields(
    value: Any,
    at: str,
    readers: Mapping[str, Read[Any]],
    *,
    needed: Collection[str] = (),
    neutral: Mapping[str, Neutral] | None = None,
) -> dict[str, Any]:
    """An object's fields that say something.

    Args:
        value: What should be the object.
        at: Its path; empty for a body.
        readers: By field.
        needed: Those of them that must be there.
        neutral: Further fields.
    """
    if not isinstance(value, dict):
        wrong(at, f"is {kind_of(value)}; an object")
    neutral, read = neutral or {}, {}
    for key, each in value.items():
        path = f"{at}.{key}" if at else key
        if each is None:
            continue
        if key in readers:
            read[key] = readers[key](each, path)
        elif key in neutral:
            neutral[key].read(each, path)
        else:
            path = path if len(path) <= 2 * SHOWN else f"{path[: 2 * SHOWN]}..."
            hint = did_you_mean(key, [*readers, *neutral])
            message = f"Unrecognized request argument supplied: {path}{hint}"
            raise RequestError(400, message, code="invalid_value", param=path)
    for key in needed:
        if key not in read:
            wrong(f"{at}.{key}" if at else key, "is missing")
    return read


def wrong(at: str, message: str) -> NoReturn:
    """Raises a `RequestError` about a field."""
    message = f"{at or 'the body'} {message}"
    raise RequestError(400, message, code="invalid_value", param=at or None)


def text(value: Any, at: str) -> str:
    if not isinstance(value, str):
        wrong(at, f"is {kind_of(value)}; a string")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            wrong(at, "holds half of a surrogate pair, which is no character")
    return value


def flag(value: Any, at: str) -> bool:
    if not isinstance(value, bool):
        wrong(at, f"is {shown(value)}; true or false")
    return value


def number(least: float, most: float) -> Read[float]:
    def read(value: Any, at: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            wrong(at, f"is {shown(value)}; a number of {least:g} to {most:g}")
        if not least <= value <= most:
            wrong(at, f"is {shown(value)}; {least:g} to {most:g}")
        return float(value)

    return read


def whole(least: int, most: int) -> Read[int]:
    def read(value: Any, at: str) -> int:
        if isinstance(value, float) and value.is_integer():  # JSON has one kind of number
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            wrong(at, f"is {shown(value)}; a whole number")
        if not least <= value <= most:
            wrong(at, f"is {shown(value)}; {least} to {most}")
        return value

    return read


def one_of(*options: str) -> Read[str]:
    def read(value: Any, at: str) -> str:
        if not isinstance(value, str) or value not in options:
            hint = did_you_mean(value, options) if isinstance(value, str) else ""
            wrong(at, f"is {shown(value)}; {listed(options)}{hint}")
        return value

    return read


def many(read: Read[T], least: int = 1, most: int = MOST) -> Read[list[T]]:
    """A list; its first mistake ends the reading."""

    def read_all(value: Any, at: str) -> list[T]:
        if not isinstance(value, list):
            wrong(at, f"is {kind_of(value)}; a list")
        if not least <= len(value) <= most:
            bound = f"at least {least}" if len(value) < least else f"at most {most}"
            wrong(at, f"has {len(value):,} items; {bound} item{'s'[: bound[-1] != '1']}")
        return [read(each, f"{at}.{i}") for i, each in enumerate(value)]

    return read_all


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")


def shown(value: Any) -> str:
    """A value as JSON has it, or its beginning."""
    written = json.dumps(value, ensure_ascii=True)
    return written if len(written) <= SHOWN else f"{written[:SHOWN]}..."


def listed(words: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _same(value: Any, other: Any) -> bool:
    """Whether two values are one in JSON, where `true` isn't 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
