"""An answer's text, as its tokens come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of a part of a character


class AnswerText:
    """The text of an answer's tokens, up to where it stops.

    Held back is what may still change: a part of a character, white space at the end, and the
    beginning of a stop text. So the parts together are the whole answer, stripped. Stop texts are
    looked for in what the client gets, where no white space stands in front.

    Args:
        tokenizer: The base's.
        stop: Texts that end the answer where the first one is complete; they aren't part of it.

    Attributes:
        ids: Tokens so far.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.ids: list[int] = []
        self._tokenizer, self._stop = tokenizer, stop
        self._settled = ""  # text of the tokens before `_open`; it doesn't change any more
        self._context = self._open = 0  # what is decoded anew starts at `_context`
        self._taken = 0  # characters that `take_part` has given

    def add(self, token: int) -> bool:
        """Whether the answer stops with this token."""
        self.ids.append(token)
        if not self._stop:
            return False
        return self._stopped(self._decode().lstrip()) is not None

    def take_part(self, *, final: bool) -> str:
        """The text that is certain by now, without what was taken before."""
        text = self._decode().lstrip()
        if (start := self._stopped(text)) is not None:
            text = text[:start]
        elif not final:
            text = self._without_stop_beginning(text.rstrip(UNFINISHED))
        text = text.strip()
        part = text[self._taken :]
        self._taken = max(self._taken, len(text))
        return part

    def _stopped(self, text: str) -> int | None:
        """Where the stop text begins that is complete first, however the tokens lie."""
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _without_stop_beginning(self, text: str) -> str:
        longest = max(map(len, self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return text[:-length]
        return text

    def _decode(self) -> str:
        """The text so far. Only the last tokens are decoded again: a token's text depends on the
        one before it.
        """
        before = self._decoded(self._context, self._open)
        now = self._decoded(self._context, len(self.ids))
        text = self._settled + now[len(before) :]
        if len(now) > len(before) and not now.endswith(UNFINISHED):
            self._settled = text
            self._context, self._open = self._open, len(self.ids)
        return text

    def _decoded(self, start: int, end: int) -> str:
        text: str = self._tokenizer.decode(self.ids[start:end], skip_special_tokens=True)
        return text
