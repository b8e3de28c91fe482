"""An executor that honours every sampling and answers with what it was asked, and its service.

`python -m support.echoing --store FOLDER --config FILE --port N` serves it.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from codecs import getincrementaldecoder
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from itertools import zip_longest
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from cmoe.modeling.routers import BASE
from cmoe.serving.bench import InstantExecutor
from cmoe.serving.engines.registry import register_executor
from cmoe.serving.launch import read_service, serving
from cmoe.serving.messages import AnswerPart, Prompt, Sampling, TokenLogprob

if TYPE_CHECKING:
    pass

ALL = frozenset(
    {
        "top_k",
        "min_p",
        "repetition_penalty",
        "frequency_penalty",
        "presence_penalty",
        "n",
        "logprobs",
        "json_schema",
    }
)
"""What an executor may honour."""

PIECE = 3  # bytes of a token: a character may be of several
REFUSED = "no schema with $ref is heeded"


def tokens_of(sampling: Sampling, index: int) -> Iterator[AnswerPart]:
    """The tokens of an answer: what was asked, and which answer it is, in JSON."""
    data = json.dumps({"index": index, **asdict(sampling)}, ensure_ascii=False).encode()
    pieces = [data[i : i + PIECE] for i in range(0, len(data), PIECE)]
    decoder = getincrementaldecoder("utf-8")()
    for count, piece in enumerate(pieces, 1):
        chances = ()
        if sampling.logprobs is not None:
            others = [("\N{REPLACEMENT CHARACTER}", -inf), *((f"o{i}", -1.0 - i) for i in range(9))]
            top = tuple(others[: sampling.logprobs])
            chances = (TokenLogprob(piece.decode(errors="replace"), piece, -0.5 / count, top),)
        finish = None if count < len(pieces) else ("stop", "length")[index % 2]
        yield AnswerPart(
            decoder.decode(piece), count, BASE, finish=finish, index=index, logprobs=chances
        )


def joined(parts: Sequence[AnswerPart]) -> AnswerPart:
    """A whole answer."""
    chances = tuple(each for part in parts for each in part.logprobs)
    return replace(parts[-1], text="".join(part.text for part in parts), logprobs=chances)


@register_executor("echo")
class EchoExecutor(InstantExecutor):
    """Answers with what it was asked: the last answer first, or parts of all of them in turn."""

    SAMPLES: ClassVar[frozenset[str]] = ALL

    async def submit(
        self, prompt: Prompt, task: int | None, sampling: Sampling, *, stream: bool
    ) -> AsyncGenerator[AnswerPart]:
        if "$ref" in (sampling.json_schema or ""):
            yield AnswerPart(failure=REFUSED, refused=True)
            return
        answers = [list(tokens_of(sampling, index)) for index in reversed(range(sampling.n))]
        for turn in zip_longest(*answers if stream else ([joined(each)] for each in answers)):
            for part in filter(None, turn):
                yield part


def main() -> None:
    parser = ArgumentParser()
    parser.add_argument("--store", required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    service = read_service(given.config, store=given.store, port=given.port)
    with serving(service):
        print(f"{service.url} answers", flush=True)
        service.wait()


if __name__ == "__main__":
    # The module under its own name, by which Ray's workers find the class.
    import_module("support.echoing").main()
