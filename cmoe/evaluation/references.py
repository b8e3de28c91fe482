"""A task's reference answers: to two fixed prompts, with a picture and without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from cmoe.common.instructions import Instructions
from cmoe.common.reference import TOKENS, Reference
from cmoe.data.batches import ChatTurn, Collator
from cmoe.data.paraphrases import instructions_of
from cmoe.data.samples import Sample
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.primitive import Primitive

QUESTION = "What is it, and which colours does it have?"
SIZE = 96, 64  # pixels


def reference_prompts(
    collator: Collator, instructions: Instructions | None
) -> list[tuple[str, tuple[Image.Image, ...]]]:
    """The prompts of a task with such instructions, as the base's chat template writes them, and
    their images.
    """
    opening, ending = ("", "") if instructions is None else instructions.usual
    text = f"{opening}{QUESTION}{ending}"
    picture = Image.linear_gradient("L").resize(SIZE).convert("RGB")
    return [
        (collator.written([ChatTurn("user", (None, text))]), (picture,)),
        (collator.written([ChatTurn("user", (text,))]), ()),
    ]


def references_of(
    model: GrowingVLM, collator: Collator, task: int, instructions: Instructions | None
) -> tuple[Reference, ...]:
    """A task's reference answers, by the base's own `generate`.

    Args:
        model: That has learned the task; sharded weights are gathered.
        collator: Prepares prompts.
        task: Index of the task.
        instructions: Its prompts'.
    """
    return tuple(
        _answer(model, collator, task, text, images)
        for text, images in reference_prompts(collator, instructions)
    )


def _answer(
    model: GrowingVLM, collator: Collator, task: int, text: str, images: Sequence[Image.Image]
) -> Reference:
    inputs = {n: t.to(model.device) for n, t in collator.inputs(text, images).items()}
    found: Any = model.generate(
        inputs,
        task,
        max_new_tokens=TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    ).sequences
    logits_nv = torch.cat(found.logits).float()
    tokens_n = found.sequences[0, -len(logits_nv) :]
    logprobs_n = logits_nv.log_softmax(-1).gather(1, tokens_n[:, None])[:, 0]
    return Reference(tuple(tokens_n.tolist()), tuple(round(v, 4) for v in logprobs_n.tolist()))


def told(
    primitive: Primitive, model: GrowingVLM, collator: Collator, samples: Sequence[Sample]
) -> Primitive:
    """A primitive with what a service wants to know of it: its prompts' instructions, and its
    reference answers.

    Args:
        primitive: Of the task that the model learned last.
        model: As of `references_of`.
        collator: Prepares prompts.
        samples: That the task was learned from.
    """
    instructions = instructions_of(samples)
    references = references_of(model, collator, len(model.tasks) - 1, instructions)
    return replace(primitive, instructions=instructions, references=references)
