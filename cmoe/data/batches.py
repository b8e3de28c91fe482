"""Samples to batches: the same prompts in training, features and answers; and who gets which.

Nothing here depends on the number of workers: batches are cut from the whole stream of samples, and
workers take whole batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cmoe.common.errors import DataError
from cmoe.data.image_limits import ImageLimits, limits_of
from cmoe.data.images import ImageError, load_image
from cmoe.data.samples import Sample
from cmoe.data.texts import TextRule, reserved_tokens

IGNORED = -100  # the label of a token that isn't part of an answer
LENGTH_STEP = 32  # prompts are padded to multiples of this many tokens where shapes must be stable


class ReservedTokenError(ValueError):
    """A text that would mean more to the model than to its reader."""


class ConversationError(ValueError):
    """A conversation that a base's chat template doesn't show as it is."""


class ChatTurn(NamedTuple):
    """What one says in a conversation.

    Attributes:
        role: `system`, `user` or `assistant`.
        parts: Texts, and None where the picture stands.
    """

    role: str
    parts: tuple[str | None, ...]


class Tail(NamedTuple):
    """Tokens behind a prompt, and which of them belong to an answer (its end of turn included)."""

    ids: list[int]
    answers: list[bool]


class _Piece(NamedTuple):
    """A piece of a conversation, tokenised behind its `anchor`, as it stands behind it there."""

    anchor: str
    text: str
    answer: bool


class Collator:
    """Turns samples into a base's inputs, by its own processor and chat template.

    Args:
        processor: The base's.
        max_length: Tokens of prompt and answer together.
        max_new_tokens: Room that a generated answer needs.

    Attributes:
        limits: Of pictures; the processor's own cost is among them.
    """

    def __init__(self, processor: Any, max_length: int, max_new_tokens: int) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_length = max_length
        self.max_new_tokens = max_new_tokens
        self.limits = limits_of(processor)
        prompt, whole = self._chat("?", image=False), self._chat("?", "!", image=False)
        # What the template puts before and behind an answer is the same for every sample.
        self._before, after = whole[len(prompt) :].rstrip().split("!")
        self._closes = bool(after)  # whether the template itself ends an answer
        self._after: str = after or self.tokenizer.eos_token
        self._anchor = prompt.rpartition("?")[2]

    def _chat(self, *texts: str, image: bool) -> str:
        """A conversation in the template: question, answer, question, and so on.

        Behind a question the answer's opening stands.
        """
        turns: list[dict[str, Any]] = []
        for number, text in enumerate(texts):
            picture = [{"type": "image"}] if image and number == 0 else []
            role = "assistant" if number % 2 else "user"
            turns.append({"role": role, "content": [*picture, {"type": "text", "text": text}]})
        opens = len(texts) % 2 == 1
        chat: str = self.processor.apply_chat_template(turns, add_generation_prompt=opens)
        return chat

    def tails(self, samples: Sequence[Sample]) -> list[Tail]:
        """What stands behind each sample's prompt when it is trained on."""
        pieces = [list(self._pieces(s)) for s in samples]
        every = [piece for row in pieces for piece in row]
        tokens = iter(self._ids([p.anchor + p.text for p in every]))
        anchors = sorted({p.anchor for p in every})
        skipped = dict(zip(anchors, map(len, self._ids(anchors)), strict=True))
        tails = []
        for row in pieces:
            ids: list[int] = []
            answers: list[bool] = []
            for piece in row:
                new = next(tokens)[skipped[piece.anchor] :]
                ids += new
                answers += [piece.answer] * len(new)
            tails.append(Tail(ids, answers))
        return tails

    def _pieces(self, sample: Sample) -> Iterator[_Piece]:
        """The first answer; then what the template puts before each further one, and that."""
        yield _Piece(self._anchor, f"{self._before}{sample.answer}{self._after}", True)
        said = [sample.text, sample.answer]
        pictured = sample.image is not None
        for turn in sample.further:
            until = self._chat(*said, image=pictured).rstrip()
            longer = self._chat(*said, turn.text, image=pictured)
            if not longer.startswith(until):
                raise DataError(
                    f"sample {sample.id!r}: the base's chat template changes what was said before "
                    "when a turn follows, so that a conversation can't be trained on"
                )
            between = longer[len(until) :]
            yield _Piece(self._after, between if self._closes else between.lstrip(), False)
            yield _Piece(self._anchor, f"{self._before}{turn.answer}{self._after}", True)
            said += turn

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False).input_ids
        return ids

    def prompts(self, samples: Sequence[Sample], length: int | None = None) -> dict[str, Tensor]:
        """Prompts ready to be answered, padded on the left: `input_ids` [B, S] and the pictures.

        Args:
            samples: B of them.
            length: S, at least the longest prompt; None takes that.

        Raises:
            DataError: A picture can't be read, or a prompt is too long; names the sample.
        """
        texts = [self._chat(s.text, image=s.image is not None) for s in samples]
        pictures = [_picture(s, self.limits) for s in samples if s.image is not None]
        padding: dict[str, Any] = {"padding": True}
        if length is not None:
            padding = {"padding": "max_length", "max_length": length}
        inputs = self.processor(
            text=texts,
            images=pictures or None,
            return_tensors="pt",
            padding_side="left",
            **padding,
        )
        self._require_room(samples, inputs["attention_mask"].sum(1), self.max_new_tokens)
        return dict(inputs)

    def answers(self, sequences: Tensor, prompt: int) -> list[str]:
        """The texts behind prompts of so many tokens, padding included, in sequences [B, T]."""
        new = sequences[:, prompt:]
        return [t.strip() for t in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def conversation(
        self, turns: Sequence[ChatTurn], picture: Image.Image | None
    ) -> dict[str, Tensor]:
        """One prompt, to be answered: the inputs of a batch of one.

        A single question behind its picture gives what `prompts` gives for a sample.

        Args:
            turns: As of `written`.
            picture: Stands in its place.

        Raises:
            ReservedTokenError, ConversationError: As `written`.
        """
        return self.inputs(self.written(turns), picture)

    def inputs(self, written: str, picture: Image.Image | None) -> dict[str, Tensor]:
        """The inputs of a conversation that was `written` with the picture's place."""
        pictures = None if picture is None else [picture]
        return dict(self.processor(text=[written], images=pictures, return_tensors="pt"))

    def written(self, turns: Sequence[ChatTurn]) -> str:
        """A conversation in the base's chat template, up to the answer's opening.

        Args:
            turns: The last is a user's; one of the users' has the picture's place.

        Raises:
            ReservedTokenError: A text holds one of the base's own tokens, or what is no text.
            ConversationError: The base's chat template refuses it, or would show the picture in
                another turn.
        """
        for part in (part for turn in turns for part in turn.parts if part is not None):
            if wrong := self.texts.wrong(part):
                raise ReservedTokenError(f"the text {wrong}")
        self._require_place(turns)
        return self._rendered(turns)

    def _rendered(self, turns: Sequence[ChatTurn]) -> str:
        """A conversation in the template, up to the answer's opening."""
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "image"} if part is None else {"type": "text", "text": part}
                    for part in turn.parts
                ],
            }
            for turn in turns
        ]
        try:
            chat: str = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        except TemplateError as error:
            raise ConversationError(f"the base's chat template: {error}") from error
        return chat

    def _require_place(self, turns: Sequence[ChatTurn]) -> None:
        """Refuse a later turn's picture where the template puts pictures first: up to the turn
        before it, the chat must be what it is without the picture.
        """
        asking = [i for i, turn in enumerate(turns) if turn.role == "user"]
        place = next((i for i, turn in enumerate(turns) if None in turn.parts), 0)
        if not asking or place <= asking[0]:
            return
        texts = [ChatTurn(turn.role, (f"#{i}#",)) for i, turn in enumerate(turns)]
        shown = [*texts]
        shown[place] = ChatTurn("user", (None, f"#{place}#"))
        before, mark, _ = self._rendered(texts).partition(f"#{place - 1}#")
        if not self._rendered(shown).startswith(before + mark):
            raise ConversationError(
                "the base's chat template shows a picture in front of the first question alone; "
                "show it there, or ask about it in a conversation of its own"
            )

    @cached_property
    def texts(self) -> TextRule:
        """What a text may hold that this base is asked."""
        return TextRule(reserved_tokens(self.processor))

    def training(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Whole conversations, and `labels` [B, T] of their last T places for the answers alone.

        The first of these places is the prompts' last: nothing before it predicts an answer.

        Raises:
            DataError: As in `prompts`, or prompt and answer together are too long.
        """
        inputs = self.prompts(samples)
        behind = self.tails(samples)
        rows, width = len(behind), max(len(tail.ids) for tail in behind)
        ids = torch.full((rows, width), self.tokenizer.pad_token_id)
        counts = torch.zeros(rows, width, dtype=torch.long)
        answered = torch.zeros(rows, width, dtype=torch.bool)
        for row, tail in enumerate(behind):
            ids[row, : len(tail.ids)] = torch.tensor(tail.ids)
            counts[row, : len(tail.ids)] = 1
            answered[row, : len(tail.ids)] = torch.tensor(tail.answers)
        self._require_room(samples, inputs["attention_mask"].sum(1), counts.sum(1))
        shape = inputs["input_ids"].shape
        none = torch.full((rows, 1), IGNORED)
        more = {"input_ids": ids, "attention_mask": counts}
        for name, tensor in inputs.items():
            if tensor.shape == shape:  # one number per token: so must the tokens behind have
                added = more.get(name, torch.zeros_like(ids)).to(tensor.dtype)
                inputs[name] = torch.cat([tensor, added], 1)
        inputs["labels"] = torch.cat([none, ids.masked_fill(~answered, IGNORED)], 1)
        return inputs

    def _require_room(
        self, samples: Sequence[Sample], lengths: Tensor, needed: Tensor | int
    ) -> None:
        for sample, length, more in zip(
            samples, lengths.tolist(), (torch.zeros_like(lengths) + needed).tolist(), strict=True
        ):
            if length + more > self.max_length:
                raise DataError(
                    f"sample {sample.id!r}: its prompt has {length} tokens and its answer needs "
                    f"{more}; together at most {self.max_length} (data.max_length, the base's own)"
                )


def _picture(sample: Sample, limits: ImageLimits) -> Image.Image:
    assert sample.image is not None
    try:
        return load_image(sample.image, limits)
    except ImageError as error:
        raise DataError(f"sample {sample.id!r}: {error}") from error


def training_order(samples: int, steps: int, batch: int, seed: str) -> NDArray[np.int64]:
    """Which sample each place of each global batch takes: [steps, batch].

    Epochs are permutations of all samples, one behind the other; where an epoch ends within a batch
    the next begins.
    """
    generator = np.random.default_rng(list(seed.encode()))
    epochs = -(-steps * batch // samples)
    order = np.concatenate([generator.permutation(samples) for _ in range(epochs)])
    return order[: steps * batch].reshape(steps, batch)


def slices(count: int, size: int) -> list[range]:
    """0 .. count - 1 in batches of at most `size`, in order."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
