"""How a request wants its answers sampled: fields of both protocols, and what becomes of them.

Every executor honours some. What a service's executor honours beyond them (`Executor.SAMPLES`) is
passed on to it. Where it doesn't, OpenAI's fields are refused and vLLM's are ignored, and named in
a header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

from cmoe.serving.gateway.fields import (
    Read,
    asks,
    fields,
    flag,
    json_schema,
    many,
    number,
    one_of,
    short,
    shown,
    text,
    whole,
    wrong,
)
from cmoe.serving.gateway.limits import (
    MAX_STOP_LENGTH,
    MAX_STOPS,
    MAX_TOP_K,
    MAX_TOP_LOGPROBS,
    LimitsConfig,
)
from cmoe.serving.messages import Sampling


def stops(value: Any, at: str) -> tuple[str, ...]:
    if isinstance(value, str):
        value, paths = [value], [at]
    else:
        value = many(text, least=0, most=MAX_STOPS)(value, at)
        paths = [f"{at}.{i}" for i in range(len(value))]
    for each, path in zip(value, paths, strict=True):
        if not 0 < len(text(each, path)) <= MAX_STOP_LENGTH:
            wrong(path, f"has {len(each):,} characters; 1 to {MAX_STOP_LENGTH}")
    return tuple(value)


IGNORED: Mapping[str, Read[bool]] = {
    "top_k": asks(whole(-1), -1, 0),
    "min_p": asks(number(0, 1), 0),
    "repetition_penalty": asks(number(0, inf), 1),
    "length_penalty": asks(number(-inf, inf), 1),
    "use_beam_search": asks(flag, False),
    "min_tokens": asks(whole(0), 0),
    "ignore_eos": asks(flag, False),
    "stop_token_ids": asks(many(whole(0), least=0), []),
    "allowed_token_ids": asks(many(whole(0), least=0)),
    "bad_words": asks(many(text, least=0), []),
    "include_stop_str_in_output": asks(flag, False),
    "skip_special_tokens": asks(flag, True),
    "spaces_between_special_tokens": asks(flag, True),
    "truncate_prompt_tokens": asks(whole(-1), -1),
    "priority": asks(whole(-(2**63)), 0),
}
"""vLLM's fields of sampling: where the executor doesn't honour one, it is named in a header."""

SAMPLED: Mapping[str, Read[Any]] = {
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "stop": stops,
    "seed": whole(-(2**63), 2**63 - 1),
    **IGNORED,
}
"""The fields' readers, where the executor honours no more than every one does."""


def _top_k(value: Any, at: str) -> int:
    return max(0, whole(-1, MAX_TOP_K)(value, at))  # -1 is all, too


def _repetition_penalty(value: Any, at: str) -> float:
    found = number(0, 2)(value, at)
    if not found:
        wrong(at, f"is {shown(value)}; more than 0, up to 2")
    return found


HONOURED: Mapping[str, Read[Any]] = {
    "top_k": _top_k,
    "min_p": number(0, 1),
    "repetition_penalty": _repetition_penalty,
}
"""The readers of those that an executor may honour."""

read_top_logprobs = whole(0, MAX_TOP_LOGPROBS)


class TextFormat(NamedTuple):
    """What an answer's text has to be.

    Attributes:
        given: As the client wrote it.
        schema: The JSON schema that it fulfils; None where any text will do.
    """

    given: Mapping[str, Any]
    schema: str | None


PLAIN_TEXT = TextFormat({"type": "text"}, None)
_OBJECT = '{"type":"object"}'  # the schema of `json_object`


def _name(value: Any, at: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text(value, at)):
        wrong(at, f"is {shown(value)}; 1 to 64 letters, digits, _ and -")
    return str(value)


def text_format(most: int, *, nested: bool) -> Read[TextFormat]:
    """A reader of what an answer's text has to be.

    Args:
        most: Bytes that a JSON schema may have.
        nested: Whether name and schema stand in an object of their own, `json_schema`.
    """
    described: dict[str, Read[Any]] = {
        "name": _name,
        "schema": json_schema(most),
        "description": short(most),
        "strict": flag,  # the answer fulfils the schema anyway
    }
    needed = ["name", "schema"]

    def read_described(value: Any, at: str) -> dict[str, Any]:
        return fields(value, at, described, needed=needed)

    def read(value: Any, at: str) -> TextFormat:
        kinds = {"type": one_of("text", "json_object", "json_schema")}
        if not isinstance(value, dict) or value.get("type") != "json_schema":
            found = fields(value, at, kinds, needed=["type"])
            return TextFormat(value, _OBJECT if found["type"] == "json_object" else None)
        if nested:
            readers = {**kinds, "json_schema": read_described}
            found = fields(value, at, readers, needed=["json_schema"])["json_schema"]
        else:
            found = fields(value, at, {**kinds, **described}, needed=needed)
        return TextFormat(value, found["schema"])

    return read


def sampling_of(
    given: Mapping[str, Any],
    tokens: int | None,
    limits: LimitsConfig,
    samples: frozenset[str],
    *,
    logprobs: bool,
    schema: str | None,
) -> Sampling:
    """How a request wants its answer sampled.

    Args:
        given: The request's fields.
        tokens: The most tokens that it asks for, which the limits bound; None takes their default.
        limits: The limits of a request.
        samples: As of `GenerationRequest.read`.
        logprobs: Whether it asks for log probabilities.
        schema: The JSON schema of the answer.

    Raises:
        RequestError: Alternatives are to have log probabilities, and the answer's tokens none.
    """
    top = given.get("top_logprobs", 0)
    if top and not logprobs:
        wrong("top_logprobs", f"is {top}; only where log probabilities are asked for")
    names = {"temperature", "top_p", "seed", "stop", *samples}
    values = {name: given[name] for name in names if name in given} | {
        "max_tokens": min(tokens or limits.answer_default, limits.answer_tokens),
        "logprobs": top if logprobs else None,
        "json_schema": schema,
    }
    return Sampling(**values)


def ignored_of(given: Mapping[str, Any], samples: frozenset[str]) -> tuple[str, ...]:
    return tuple(name for name in IGNORED if given.get(name) and name not in samples)


def warning(ignored: Sequence[str]) -> dict[str, str]:
    """The header that names fields that weren't heeded (RFC 7234, 5.5); none without such."""
    if not ignored:
        return {}
    told = f"ignored, as the executor has no such sampling: {', '.join(ignored)}"
    return {"Warning": f'299 - "{told}"'}
