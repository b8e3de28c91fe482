"""What a base's processor writes for each image of a conversation, apart from its texts.

A processor expands an image's token to as many as the image has features, which may depend on how
many images there are. Its token is none of any text, so that texts and images are tokenised apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor


class Tail(NamedTuple):
    """Tokens behind a prompt.

    Attributes:
        ids: The tokens.
        answers: Which of them belong to an answer, its end of turn included.
        more: Further inputs that have a value for each token, where that isn't 0.
    """

    ids: list[int]
    answers: list[bool]
    more: Mapping[str, list[int]] = {}


class ImageTokens(NamedTuple):
    """Images of a conversation as a base reads them.

    Attributes:
        each: Per-token inputs of each image, by name: `input_ids` and what else has a value for
            each token.
        inputs: All others: pixels, sizes.
    """

    each: list[dict[str, list[int]]]
    inputs: dict[str, Tensor]

    def prompt(self, tokenizer: Any, text: str, shown: str, count: int) -> dict[str, Tensor]:
        """The inputs of a prompt about the first `count` images, which has all images' pixels.

        Args:
            tokenizer: The base's.
            text: The prompt in the base's chat template.
            shown: What stands for an image in it.
            count: Number of images in it.
        """
        first, *others = text.split(shown)
        ids = [tokenizer(first).input_ids]
        ids += tokenizer(others, add_special_tokens=False).input_ids if others else []
        values = self._between(ids, self.each[:count])
        return {name: torch.tensor([row]) for name, row in values.items()} | self.inputs

    def tail(self, tail: Tail, tokenizer: Any, shown: str, start: int) -> Tail:
        """What stands behind that prompt, with the tokens of the images from `start` on."""
        token = tokenizer.convert_tokens_to_ids(shown)
        texts: list[list[int]] = [[]]
        answers: list[bool] = []
        left = iter(self.each[start:])
        for one, answer in zip(tail.ids, tail.answers, strict=True):
            if one == token:
                texts.append([])
                answers += [False] * len(next(left)["input_ids"])
            else:
                texts[-1].append(one)
                answers.append(answer)
        values = self._between(texts, self.each[start:])
        ids = values.pop("input_ids")
        values.pop("attention_mask", None)
        return Tail(ids, answers, values)

    def _between(
        self, texts: Sequence[list[int]], each: Sequence[dict[str, list[int]]]
    ) -> dict[str, list[int]]:
        """Per-token inputs of texts with an image between each two."""
        made: dict[str, list[int]] = {name: [] for name in self.each[0]}
        for number, ids in enumerate(texts):
            plain = {"input_ids": ids, "attention_mask": [1] * len(ids)}
            for name, values in made.items():
                values += plain.get(name, [0] * len(ids))
                if number < len(each):
                    values += each[number][name]
        return made


def shown_as(processor: Any, chat: str) -> str:
    """What stands for an image in a text, before the processor expands it.

    Args:
        processor: The base's.
        chat: A conversation with an image, in the base's chat template.

    Raises:
        ValueError: The template shows no image.
    """
    tokens = (getattr(processor, name, None) for name in ("boi_token", "image_token"))
    for token in tokens:
        if isinstance(token, str) and token in chat:
            return token
    raise ValueError("the base's chat template shows no image")


def image_tokens(processor: Any, shown: str, images: Sequence[Image.Image]) -> ImageTokens:
    """Expand images.

    Args:
        processor: The base's.
        shown: What stands for an image in a text (`shown_as`).
        images: Of one conversation.

    Raises:
        ValueError: The processor doesn't take so many.
    """
    mark = processor.tokenizer.eos_token
    text = mark + mark.join([shown] * len(images)) + mark
    found = dict(processor(text=[text], images=[[*images]], return_tensors="pt"))
    ids = found["input_ids"]
    ends = (ids[0] == processor.tokenizer.eos_token_id).nonzero()[:, 0].tolist()
    if len(ends) < len(images) + 1:
        raise ValueError(f"{len(images)} images were read as {max(0, len(ends) - 1)}")
    # A tokenizer may end every text with this token, too.
    spans = [*pairwise(ends)][: len(images)]
    per_token = {name: t[0].tolist() for name, t in found.items() if t.shape == ids.shape}
    return ImageTokens(
        [{n: values[a + 1 : b] for n, values in per_token.items()} for a, b in spans],
        {name: tensor for name, tensor in found.items() if name not in per_token},
    )
