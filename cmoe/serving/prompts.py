"""Prompts on their way to an executor: arrays, or text and pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cmoe.modeling.pretrained import squared
from cmoe.serving.messages import Pixels, Prompt, WrittenPrompt

TensorPrompt = Mapping[str, Tensor]
"""A `Prompt` as tensors."""


def to_arrays(prompt: TensorPrompt) -> Prompt:
    return {name: tensor.numpy() for name, tensor in prompt.items()}


def to_tensors(prompt: Prompt) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in prompt.items()}


def to_written(
    text: str, images: Sequence[Image.Image], processor: Any, *, pad: bool
) -> WrittenPrompt:
    """A prompt for an executor that prepares images itself, by the base's own settings.

    Args:
        text: As the base's chat template writes it.
        images: In RGB, in the order of their places.
        processor: Of `load_processor`, with this `pad`.
        pad: As of the model's settings: the base's own don't say it.
    """
    if pad:
        images = [squared(processor.image_processor, image) for image in images]
    return WrittenPrompt(text, tuple(Pixels(image.size, image.tobytes()) for image in images))
