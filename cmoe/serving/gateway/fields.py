"""Fields of a JSON body: each is read as its type, and a mistake is named by its path.

A reader takes a value and its path, such as `messages.0.content.1.text`. It returns the value or
raises a `RequestError`. Null is the same as a missing field, whatever the key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, NoReturn, TypeVar

from cmoe.common.nearest import did_you_mean, listed, near
from cmoe.common.parsing import parse_json
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.limits import MAX_DEPTH, MAX_ITEMS, MAX_LABELS

T = TypeVar("T")
Read = Callable[[Any, str], T]

SHOWN = 60  # characters of a value in a message


class Unsupported(NamedTuple):
    """A field that isn't supported, but may have a value that changes nothing.

    Attributes:
        why: Why other values are refused.
        harmless: The values that are taken, besides null.
    """

    why: str
    harmless: tuple[Any, ...] = ()

    def read(self, value: Any, at: str) -> None:
        if not any(_same(value, each) for each in self.harmless):
            taken = listed([*map(shown, self.harmless), "null"])
            wrong(at, f"is {shown(value)}; {self.why}, so that {taken} is taken")


def body_of(data: bytes) -> Any:
    """The value of a JSON body.

    Raises:
        RequestError: The body isn't JSON, or a key stands twice in one object.
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
    unsupported: Mapping[str, Unsupported] | None = None,
) -> dict[str, Any]:
    """Read an object's fields; null and unsupported ones are left out.

    Args:
        value: A value that must be an object.
        at: The value's path; empty for a body.
        readers: The reader of each field.
        needed: The fields that must be there.
        unsupported: Further fields that are known.

    Raises:
        RequestError: The value is no object, or a field is unknown, wrong or missing.
    """
    if not isinstance(value, dict):
        wrong(at, f"is {kind_of(value)}; an object")
    unsupported, read = unsupported or {}, {}
    for key, each in value.items():
        path = f"{at}.{key}" if at else key
        if each is None:
            continue
        if key in readers:
            read[key] = readers[key](each, path)
        elif key in unsupported:
            unsupported[key].read(each, path)
        else:
            path = path if len(path) <= 2 * SHOWN else f"{path[: 2 * SHOWN]}..."
            hint = did_you_mean(near(key, [*readers, *unsupported]))
            message = f"Unrecognized request argument supplied: {path}{hint}"
            raise RequestError(400, message, code="invalid_value", param=path)
    for key in needed:
        if key not in read:
            wrong(f"{at}.{key}" if at else key, "is missing")
    return read


def wrong(at: str, message: str) -> NoReturn:
    """Refuse a field with a message that begins with its path."""
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


def whole(least: int, most: int | None = None) -> Read[int]:
    def read(value: Any, at: str) -> int:
        if isinstance(value, float) and value.is_integer():  # JSON has one kind of number
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            wrong(at, f"is {shown(value)}; a whole number")
        if value < least or (most is not None and value > most):
            bound = f"at least {least}" if most is None else f"{least} to {most}"
            wrong(at, f"is {shown(value)}; {bound}")
        return value

    return read


def one_of(*options: str) -> Read[str]:
    def read(value: Any, at: str) -> str:
        if not isinstance(value, str) or value not in options:
            hint = did_you_mean(near(value, options)) if isinstance(value, str) else ""
            wrong(at, f"is {shown(value)}; {listed(options)}{hint}")
        return value

    return read


def labels(value: Any, at: str) -> dict[str, str]:
    """Names that a client gives: an object of strings."""
    if not isinstance(value, dict):
        wrong(at, f"is {kind_of(value)}; an object of strings")
    if len(value) > MAX_LABELS:
        wrong(at, f"has {len(value):,} keys; at most {MAX_LABELS}")
    return {text(key, at): text(each, f"{at}.{key:.{SHOWN}}") for key, each in value.items()}


def short(most: int) -> Read[str]:
    """A reader of texts of at most so many bytes."""

    def read(value: Any, at: str) -> str:
        found = text(value, at)
        if (size := len(found.encode())) > most:
            wrong(at, f"has {size:,} bytes; at most {most:,}")
        return found

    return read


def json_schema(most: int) -> Read[str]:
    """A reader of JSON schemas: the JSON of one, of at most so many bytes."""

    def read(value: Any, at: str) -> str:
        if not isinstance(value, dict):
            wrong(at, f"is {kind_of(value)}; an object, a JSON schema")
        if _is_deeper(value, MAX_DEPTH):
            wrong(at, f"is nested deeper than {MAX_DEPTH} objects and lists")
        try:
            written = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        except ValueError:
            wrong(at, "holds a number that is too large")
        return short(most)(written, at)

    return read


def _is_deeper(value: Any, most: int) -> bool:
    """Whether more than so many objects and lists are in each other."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return not most or any(_is_deeper(each, most - 1) for each in inner)


def asks(read: Read[Any], *neutral: Any) -> Read[bool]:
    """A reader of a field that isn't heeded: whether its value asks for something."""

    def read_one(value: Any, at: str) -> bool:
        found = read(value, at)
        return not any(_same(found, each) for each in neutral)

    return read_one


def many(read: Read[T], least: int = 1, most: int = MAX_ITEMS) -> Read[list[T]]:
    """A reader of lists; it stops at the first mistake."""

    def read_all(value: Any, at: str) -> list[T]:
        if not isinstance(value, list):
            wrong(at, f"is {kind_of(value)}; a list")
        if not least <= len(value) <= most:
            bound = f"at least {least}" if len(value) < least else f"at most {most}"
            wrong(at, f"has {len(value):,} items; {bound} item{'s'[: bound[-1] != '1']}")
        return [read(each, f"{at}.{i}") for i, each in enumerate(value)]

    return read_all


def kind_of(value: Any) -> str:
    """A value's type, in JSON's words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")


def shown(value: Any) -> str:
    """A value in JSON, shortened."""
    written = json.dumps(value, ensure_ascii=True)
    return written if len(written) <= SHOWN else f"{written[:SHOWN]}..."


def _same(value: Any, other: Any) -> bool:
    """Whether two values are equal in JSON, where `true` isn't 1."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)
