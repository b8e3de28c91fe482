"""How people ask what a task's prompts ask: without its instruction, politely, in small letters.

A benchmark asks every question of a task in one way, and what is learned from its prompts alone
may know the task by the way. Paraphrases are made of the prompts themselves: no data is added.

A locator meets them as people ask. Experts meet them with the task's instruction, as a service puts
it back to what it has located.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import overload

from cmoe.common.instructions import Instructions
from cmoe.data.samples import Sample

READ = 2000
"""At most so many prompts tell a task's instructions."""

BEFORE = (
    "Please tell me: ",
    "Could you tell me? ",
    "Hello! ",
    "Hi, I have a question. ",
    "I would like to know: ",
    "Look at this. ",
)
BEHIND = (" Thank you.", " Thanks!", ", please", " Please help me.")
BRIEFLY = (
    "Answer briefly.",
    "Be brief.",
    "In one word.",
    "Give only the answer.",
    "A word or two will do.",
    "Just the answer.",
    "Don't explain it.",
    "Say it in few words.",
    "No long answer.",
)


NATURAL = ("bare", "small", "polite", "chatty", "brief")
"""Ways of asking to judge by; their words aren't among those that paraphrases are made of."""


class Paraphraser:
    """Asks a task's questions in other ways.

    Args:
        instructions: Of the task.
    """

    def __init__(self, instructions: Instructions) -> None:
        self._instructions = instructions

    def bare(self, prompt: str) -> str:
        """A prompt without the task's instructions."""
        return self._instructions.split(prompt)[1]

    def asked(self, prompt: str, way: str) -> str:
        """A prompt in one of the `NATURAL` ways."""
        bare = self.bare(prompt)
        return {
            "bare": bare,
            "small": bare.lower().rstrip(".?! "),
            "polite": f"Please: {bare}",
            "chatty": f"hey there, quick one: {bare[:1].lower()}{bare[1:]}",
            "brief": f"{bare} Keep it short.",
        }[way]

    def instructed(self, prompt: str, random: Random) -> str:
        """The same question as someone might ask it, by chance, between its own instructions."""
        opening, question, ending = self._instructions.split(prompt)
        return opening + self.paraphrase(question, random) + ending

    def paraphrase(self, prompt: str, random: Random) -> str:
        """The same question as someone might ask it, by chance; mostly without instructions."""
        bare = self.bare(prompt)
        asked = bare if random.random() < 0.75 else prompt
        if asked is bare and random.random() < 0.3:
            asked = f"{asked}{random.choice((' ', chr(10)))}{random.choice(BRIEFLY)}"
        asked = random.choice(_ENDS)(asked)
        if random.random() < 0.4:
            asked = random.choice(BEFORE) + asked
        elif random.random() < 0.3:
            asked += random.choice(BEHIND)
        if random.random() < 0.2:
            asked = asked.replace("\n", " ")
        return random.choice(_CASES)(asked)


class Paraphrased(Sequence[Sample]):
    """Samples of which a share is asked otherwise; answers and further turns stay.

    Which of them and how depends on the seed and the sample's place alone.

    Args:
        samples: As a benchmark asks them.
        share: Of them, from 0 to 1.
        seed: Of what is asked how.
        instructed: Whether what is asked stands between the sample's own instructions.

    Attributes:
        original: The samples as they are.
    """

    def __init__(
        self, samples: Sequence[Sample], share: float, seed: str, *, instructed: bool
    ) -> None:
        self.original = samples
        self._share, self._seed = share, seed
        ask = Paraphraser(instructions_of(samples))
        self._ask = ask.instructed if instructed else ask.paraphrase

    def __len__(self) -> int:
        return len(self.original)

    @overload
    def __getitem__(self, at: int) -> Sample: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Sample]: ...
    def __getitem__(self, at: int | slice) -> Sample | Sequence[Sample]:
        places = range(len(self))[at]
        if isinstance(places, range):
            return [self[place] for place in places]
        sample, random = self.original[places], Random(f"{self._seed}/{places}")
        if random.random() >= self._share:
            return sample
        return replace(sample, text=self._ask(sample.text, random))


def original(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Samples as a benchmark asks them."""
    return samples.original if isinstance(samples, Paraphrased) else samples


def instructions_of(samples: Sequence[Sample]) -> Instructions:
    """What a task's prompts say beside their questions, told from `READ` of them at most."""
    own_words = original(samples)
    step = -(-len(own_words) // READ) or 1
    return Instructions.of([sample.text for sample in own_words[::step]])


def _same(text: str) -> str:
    return text


def _unpunctuated(text: str) -> str:
    return text.rstrip(".?! ")


_ENDS: tuple[Callable[[str], str], ...] = (_same, _same, _same, _unpunctuated)
_CASES: tuple[Callable[[str], str], ...] = (_same, _same, _same, str.lower, str.lower, str.upper)
