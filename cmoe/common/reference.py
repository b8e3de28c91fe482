"""Reference answers: what experts answered when they were learned, to check an engine by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TOKENS = 8
"""Tokens of a reference answer, at most."""


@dataclass(frozen=True)
class Reference:
    """An answer that always takes the likeliest token.

    Attributes:
        tokens: The answer's.
        logprobs: The natural logarithm of each one's probability.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    def differs(
        self, tokens: Sequence[int], logprobs: Sequence[Mapping[int, float]], limit: float
    ) -> str | None:
        """How another answer to the same prompt differs; None where rounding explains it all.

        Another token is explained where both are about as likely; nothing is compared behind it.

        Args:
            tokens: The other answer's.
            logprobs: Of the likeliest tokens in each place, and of the one that was taken.
            limit: Of the difference between two logarithms.
        """
        for at, (mine, own) in enumerate(zip(self.tokens, self.logprobs, strict=True), 1):
            if at > len(tokens):
                return f"token {at} is missing"
            found, theirs = logprobs[at - 1], tokens[at - 1]
            apart = abs(found.get(mine, float("-inf")) - own)
            if apart > limit:
                return f"token {at} is {apart:.2g} from where its logarithm was; at most {limit:g}"
            if theirs != mine:
                return None
        return None
