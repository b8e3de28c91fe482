"""What a task's prompts say beside their questions: what is asked for, and how to answer.

A benchmark's prompts carry a task's instruction, and the task's experts answer what they were
taught to. People leave it out. What knows the task of a question can put it back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

COMMON = 0.05
"""Share of a task's prompts that has to begin or end in the same words for an instruction."""

USUAL = 0.5
"""Share of the prompts from which on an instruction belongs to every question of the task."""


@dataclass(frozen=True)
class Instructions:
    """How a task's prompts begin and end beside their questions.

    Attributes:
        openings: What many prompts have in front of a colon in their first line, with it; and the
            share of the prompts that have it.
        endings: The last lines that many prompts have, likewise.
    """

    openings: Mapping[str, float] = field(default_factory=dict)
    endings: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, prompts: Sequence[str]) -> Self:
        """The instructions in a task's prompts."""
        endings = (prompt.rpartition("\n")[2] for prompt in prompts if "\n" in prompt)
        return cls(
            _common(map(_opening, prompts), len(prompts)),
            _common(endings, len(prompts)),
        )

    def split(self, prompt: str) -> tuple[str, str, str]:
        """A prompt's opening, its question, and its ending with the line break in front; the first
        and the last are empty where the prompt has none of these instructions there.
        """
        question, _, ending = prompt.rpartition("\n")
        if not question or ending not in self.endings:
            question = prompt
        opening = _opening(question)
        if opening not in self.openings:
            opening = ""
        return opening, question[len(opening) :], prompt[len(question) :]

    def given_in(self, prompt: str) -> bool:
        """Whether a prompt has one of them."""
        opening, _, ending = self.split(prompt)
        return bool(opening or ending)

    @property
    def usual(self) -> tuple[str, str]:
        """What a question of the task has in front of it, and behind it with its line break; empty
        where most have nothing there.
        """
        opening, ending = _usual(self.openings), _usual(self.endings)
        return opening, ending and f"\n{ending}"


def given(prompt: str, known: Iterable[Instructions | None]) -> bool:
    """Whether a prompt has an instruction of any of these tasks; None has none."""
    return any(each.given_in(prompt) for each in known if each is not None)


def lacking(
    prompt: str, own: Instructions | None, known: Iterable[Instructions | None]
) -> tuple[str, str]:
    """What a prompt lacks of its task's usual instruction, as `Instructions.usual`; nothing where
    it has an instruction of any task.

    Args:
        prompt: As it was asked.
        own: Of the task that answers; None where it has none, or where no task does.
        known: Of all tasks.
    """
    return ("", "") if own is None or given(prompt, known) else own.usual


def _opening(prompt: str) -> str:
    """What stands in front of a colon in the first line, with it; nothing without one."""
    first, colon, rest = prompt.partition("\n")[0].partition(": ")
    return first + colon if colon and rest.strip() else ""


def _common(texts: Iterable[str], of: int) -> dict[str, float]:
    """The texts that many have, with their shares; the most common first."""
    counted = Counter(text for text in texts if text)
    return {
        text: round(count / of, 4)
        for text, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
        if count > 1 and count >= COMMON * of
    }


def _usual(shares: Mapping[str, float]) -> str:
    text = max(shares, key=lambda text: (shares[text], text), default="")
    return text if shares.get(text, 0.0) >= USUAL else ""
