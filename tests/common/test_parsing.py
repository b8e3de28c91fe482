"""JSON and YAML: the values that other readers find, and keys that stand once."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cmoe.common.parsing import parse_json, parse_yaml

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Other control characters have no form in YAML.
    | st.text(st.characters(exclude_categories=("Cs", "Cc"))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=10,
)


@given(PLAIN)
def test_the_values_are_those_that_were_written(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_yaml(yaml.safe_dump(value)) == value


def test_a_key_that_stands_twice_among_very_many_is_found_at_once() -> None:
    """A search for each of them would take hours."""
    text = json.dumps({f"a{i}": 0 for i in range(200_000)})[:-1] + ', "a199999": 1}'
    with pytest.raises(ValueError, match="'a199999' stands twice"):
        parse_json(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '[{"b": {"a": 1, "c": 2, "a": 3}}]',
        '{"a": 1, "\\u0061": 2}',
    ],
)
def test_a_key_of_json_stands_once(text: str) -> None:
    with pytest.raises(ValueError, match="'a' stands twice"):
        parse_json(text)


@pytest.mark.parametrize("text", ["{", "", "NaN", '{"a": -Infinity}', "[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the reader's own words
        parse_json(text)


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("training:\n  steps: 1\ntraining:\n  clip: 2\n", "training", 3),
        ("a:\n  - {b: 1, c: 2, b: 3}\n", "b", 2),
        ('a: 1\n"a": 2\n', "a", 2),
    ],
)
def test_a_key_of_yaml_stands_once(text: str, key: str, line: int) -> None:
    with pytest.raises(ValueError, match=rf"(?s)'{key}' stands here.*line {line}, "):
        parse_yaml(text)


def test_a_merge_may_be_overridden() -> None:
    text = "x: {y: {z: &z {<<: {a: 1}, a: 2}}}\nmore: {<<: *z, b: 3}\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml(text)["more"] == {"a": 2, "b": 3}


@pytest.mark.parametrize("text", ["a: [", "a: !!python/object:os.system {}", "a: " + "[" * 5_000])
def test_what_is_no_plain_yaml_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the reader's own words
        parse_yaml(text)
