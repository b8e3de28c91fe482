"""What a text may hold: nothing that means more to the model than to its reader.

The same rule for rows of a task, whatever file they come from, and for what a service is asked.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp", "Zs"})
"""Unicode's categories of characters that leave no mark."""


def reserved_tokens(processor: Any) -> tuple[str, ...]:
    """Tokens that mean something to a base and nothing to a reader.

    The tokenizer's special ones; those that stand for pictures and other inputs; and those of its
    added ones that its chat template writes.

    Args:
        processor: The base's.
    """
    tokenizer = processor.tokenizer
    template = str(getattr(processor, "chat_template", None) or tokenizer.chat_template or "")
    found = {str(token) for token in tokenizer.all_special_tokens}
    for part in (tokenizer, processor):
        named = (value for name, value in vars(part).items() if name.endswith("_token"))
        found |= {str(value) for value in named if value is not None and not _is_number(value)}
    for token in tokenizer.added_tokens_decoder.values():
        if token.special or token.content in template:
            found.add(token.content)
    return tuple(sorted(token for token in found if token.strip()))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


class TextRule:
    """What a text may hold.

    Args:
        tokens: That it may not: `reserved_tokens` of the base.
    """

    def __init__(self, tokens: Iterable[str] = ()) -> None:
        # The longest first: of `<|image|>` and `<|image|>s` the error names what was written.
        ordered = sorted(set(tokens), key=lambda token: (-len(token), token))
        self._tokens = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def wrong(self, text: str) -> str:
        """What is wrong with a text, as the end of a sentence about it; '' if nothing is."""
        if self._tokens is not None and (found := self._tokens.search(text)):
            return f"holds {found.group()!r}, which is a token of the model's own"
        if "\0" in text:
            return "holds a NUL character"
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                return f"holds half of a surrogate pair, {text[error.start]!r}"
        return ""


def is_blank(text: str) -> bool:
    """Whether a reader would see nothing: no text at all, or only characters without a mark."""
    bare = text.strip()
    if not bare or bare[0].isalnum():
        return not bare
    return not bare.isprintable() and all(unicodedata.category(c) in INVISIBLE for c in bare)
