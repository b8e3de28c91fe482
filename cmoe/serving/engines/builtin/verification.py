"""A check before a service starts: a batch answers a few prompts as the base's own `generate` does.

Evaluation answers with `generate`. A batch that rows join and leave relies on how a base counts
positions, masks and caches. That differs from base to base; the answers must not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cmoe.data.batches import ChatTurn, Collator
from cmoe.data.padding import pad_token
from cmoe.modeling.base import quantization_of
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.routers import BASE
from cmoe.serving.bases import UnservedBaseError, unserved
from cmoe.serving.engines.builtin.batch import Batch
from cmoe.serving.engines.builtin.decoding import Decoding, scores_of
from cmoe.serving.prompts import TensorPrompt

ROUNDING = {torch.float64: 1e-3, torch.float32: 1e-3}
ROUNDING_16_BITS = 0.2
"""The distance of scores that rounding explains, by the base's dtype; LLM.int8() rounds activations
to 8 bits, where the last bit of another order of sums becomes a step: 0.02 was measured.

Between a prompt alone and in a batch, distances of up to 3e-6 in float32 and 0.03 in bfloat16 were
measured; with positions in one dimension where a base has three, 0.5 in both.
"""


@dataclass
class _Row:
    """A prompt, and what `generate` answers.

    Attributes:
        name: The prompt's name in an error.
        prompt: The base's inputs.
        task: Index of the primitive that answers; None locates the prompt.
        length: Number of the answer's tokens.
        tokens: The tokens that `generate` took.
        scores: The scores [V] by which it took each.
        answered_by: Index of the primitive that answered.
        location: The locator's scores [tasks], where the prompt was located.
        compared: Number of tokens whose scores were compared.
    """

    name: str
    prompt: TensorPrompt
    task: int | None
    length: int
    tokens: list[int] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    answered_by: int = BASE
    location: Tensor | None = None
    compared: int = 0


def require_own_answers(model: GrowingVLM, processor: Any, context: int) -> None:
    """Compare a batch's scores with those of the base's own `generate`, token by token.

    Rows with and without an image, of several lengths, with a named and a located task join
    together and one after the other, and leave at different times.

    Args:
        model: The model with all its tasks; nothing else uses it meanwhile.
        processor: The base's.
        context: Number of tokens that a prompt and its answer may have.

    Raises:
        UnservedBaseError: Scores differ by more than rounding explains. Names the base's type and
            what differs.
    """
    collator = Collator(processor, context, 1)
    decoding = Decoding(model.base)
    rounds = _prompts(collator, len(model.tasks))
    for row in (row for rows in rounds for row in rows):
        _generate(model, decoding, row)
    try:
        _answer(model, decoding, Batch(model, pad_token(collator.tokenizer)), rounds)
    except (UnservedBaseError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a base raises that isn't made for it
        raise unserved(model.base.config, f"in a batch it fails with {error!r}") from error


def _prompts(collator: Collator, tasks: int) -> list[list[_Row]]:
    """Rows of the newest task and of the base, which join together; and rows that join later."""

    def prompt(text: str, size: tuple[int, int] | None = None) -> TensorPrompt:
        images = []
        if size is not None:
            images.append(Image.linear_gradient("L").resize(size).convert("RGB"))
        return collator.conversation([ChatTurn("user", (*[None] * len(images), text))], images)

    located = None if tasks else BASE
    colours = "Which colours does it have, and where are they?"
    return [
        [
            _Row("a prompt with a picture", prompt("What is it?", (96, 64)), tasks - 1, 4),
            _Row("a prompt of text", prompt(f"Name {'many ' * 20}things."), BASE, 6),
        ],
        [
            _Row("a short prompt of text", prompt("Why?"), located, 3),
            _Row("a long prompt with a picture", prompt(colours, (140, 224)), located, 5),
        ],
    ]


def _generate(model: GrowingVLM, decoding: Decoding, row: _Row) -> None:
    """Let `generate` answer with as many tokens as are wanted: an end token is never taken."""
    from transformers import LogitsProcessor, LogitsProcessorList

    class Record(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            row.scores.append(scores[0].clone())
            scores[:, list(decoding.ends)] = -torch.inf
            return scores

    answer = model.generate(
        {name: tensor.to(model.device) for name, tensor in row.prompt.items()},
        row.task,
        max_new_tokens=row.length,
        do_sample=False,
        logits_processor=LogitsProcessorList([Record()]),
    )
    row.tokens, row.answered_by = answer.sequences[0, -row.length :].tolist(), answer.tasks[0]
    row.location = None if answer.location is None else answer.location.scores[0]


def _answer(
    model: GrowingVLM, decoding: Decoding, batch: Batch, rounds: Sequence[Sequence[_Row]]
) -> None:
    """Give a batch the tokens that `generate` took, and compare the scores that it gives back."""
    running: list[_Row] = []
    waiting = list(rounds)
    while running or waiting:
        if running:
            logits = batch.step([row.tokens[row.compared - 1] for row in running])
            _compare(model, decoding, running, logits)
        if waiting:
            new = waiting.pop(0)
            tasks = [row.task for row in new if row.task is not None]
            logits, location = batch.join([row.prompt for row in new], tasks or None)
            for i, row in enumerate(new):
                if location is not None and row.location is not None:
                    _require_near(
                        model, f"the location of {row.name}", location.scores[i], row.location
                    )
            # A prompt that rounding locates elsewhere is answered by another task.
            same = [
                i for i, row in enumerate(new) if row.answered_by == batch.tasks[len(running) + i]
            ]
            _compare(model, decoding, [new[i] for i in same], logits[same])
            running += new
        stay = [i for i, row in enumerate(running) if 0 < row.compared < row.length]
        batch.keep(stay)
        running = [running[i] for i in stay]


def _compare(
    model: GrowingVLM, decoding: Decoding, rows: Sequence[_Row], logits_bv: Tensor
) -> None:
    """Compare the scores of each row's next token."""
    scores_bv = logits_bv.float()
    if decoding.changes_scores:
        prompts = [row.prompt["input_ids"][0].tolist() for row in rows]
        changed = [
            (decoding.processors(ids, row.length), [*ids, *row.tokens[: row.compared]])
            for ids, row in zip(prompts, rows, strict=True)
        ]
        scores_bv = scores_of(logits_bv, changed)
    for row, scores_v in zip(rows, scores_bv, strict=True):
        what = f"token {row.compared + 1} of the answer to {row.name}"
        _require_near(model, what, scores_v, row.scores[row.compared])
        row.compared += 1


def _require_near(model: GrowingVLM, what: str, found_v: Tensor, expected_v: Tensor) -> None:
    apart, limit = distance(found_v, expected_v), ROUNDING.get(model.base.dtype, ROUNDING_16_BITS)
    if quantization_of(model.base_digest) == "int8":
        limit = ROUNDING_16_BITS
    if not apart <= limit:
        raise unserved(
            model.base.config,
            f"{what} has other scores in a batch than by its own generate ({apart:.2g} apart, at "
            f"most {limit:g})",
        )


def distance(found_v: Tensor, expected_v: Tensor) -> float:
    """Norm of the scores' difference over the norm of the expected scores; infinite where other
    tokens are ruled out.
    """
    possible = expected_v.isfinite()
    if not torch.equal(possible, found_v.isfinite()):
        return torch.inf
    size = expected_v[possible].norm().clamp_min(1e-9)
    return float((found_v - expected_v)[possible].norm() / size)
