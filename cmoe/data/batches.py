"""Samples to batches: the same prompts in training, features and answers; and who gets which.

Nothing here depends on the number of workers: batches are cut from the whole stream of samples, and
workers take whole batches.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cmoe.common.errors import DataError
from cmoe.data.image_limits import limits_of
from cmoe.data.image_tokens import Tail, image_tokens, shown_as
from cmoe.data.images import ImageError, load_image
from cmoe.data.padding import batched, pad_token
from cmoe.data.samples import Parts, Picture, Sample
from cmoe.data.texts import TextRule, reserved_tokens

IGNORED = -100  # the label of a token that isn't part of an answer
ROLES = ("user", "assistant")  # by turns
FORMS = 256  # of conversations that are remembered
LENGTH_STEP = 32  # prompts are padded to multiples of this many tokens where shapes must be stable


class ReservedTokenError(ValueError):
    """A text that would mean more to the model than to its reader."""


class ConversationError(ValueError):
    """A conversation that a base's chat template doesn't show as it is."""


class ChatTurn(NamedTuple):
    """What one says in a conversation.

    Attributes:
        role: `system`, `user` or `assistant`.
        parts: Texts, and None where an image stands.
    """

    role: str
    parts: Parts


Form = tuple[tuple[str, tuple[bool, ...]], ...]
"""Of a conversation: each turn's role, and which of its parts are images."""


class _Piece(NamedTuple):
    """A piece of a conversation, tokenised behind its `anchor`, as it stands behind it there.

    An image in it stands as in a chat.
    """

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
        prompt, whole = self._chat(("?",)), self._chat(("?",), ("!",))
        # What the template puts before and behind an answer is the same for every sample.
        self._before, after = whole[len(prompt) :].rstrip().split("!")
        self._closes = bool(after)  # whether the template itself ends an answer
        self._after: str = after or self.tokenizer.eos_token
        self._anchor = prompt.rpartition("?")[2]
        self._pad = pad_token(self.tokenizer)
        self._forms: dict[Form, str | None] = {}

    def _chat(self, *turns: Parts) -> str:
        """A conversation in the template: question, answer, question, and so on.

        Behind a question the answer's opening stands.
        """
        return self._rendered(_by_turns(turns), opens=len(turns) % 2 == 1)

    def tails(self, samples: Sequence[Sample]) -> list[Tail]:
        """What stands behind each sample's prompt when it is trained on.

        An image in it is one token here; `training` gives it its own.
        """
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
        turns = sample.turns
        for said in range(2, len(turns), 2):
            until, longer = self._chat(*turns[:said]).rstrip(), self._chat(*turns[: said + 1])
            if not longer.startswith(until):
                raise DataError(
                    f"sample {sample.id!r}: the base's chat template changes what was said before "
                    "when a turn follows, so that a conversation can't be trained on"
                )
            between, answer = longer[len(until) :], turns[said + 1][0]
            yield _Piece(self._after, between if self._closes else between.lstrip(), False)
            yield _Piece(self._anchor, f"{self._before}{answer}{self._after}", True)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False).input_ids
        return ids

    def prompts(self, samples: Sequence[Sample], length: int | None = None) -> dict[str, Tensor]:
        """Prompts ready to be answered, padded on the left: `input_ids` [B, S] and the images.

        Args:
            samples: B of them.
            length: S, at least the longest prompt; None takes that.

        Raises:
            DataError: An image can't be read, the base doesn't take a sample's images, or a prompt
                is too long; names the sample.
        """
        texts = [self._question(sample) for sample in samples]
        images = [self._images(sample, sample.asked_about) for sample in samples]
        if any(len(row) > 1 for row in images):
            rows = [self.inputs(text, row) for text, row in zip(texts, images, strict=True)]
            inputs = batched(rows, self._pad, length)
        else:
            padding: dict[str, Any] = {"padding": True}
            if length is not None:
                padding = {"padding": "max_length", "max_length": length}
            inputs = self.processor(
                text=texts,
                images=[image for row in images for image in row] or None,
                return_tensors="pt",
                padding_side="left",
                **padding,
            )
        self._require_room(samples, inputs["attention_mask"].sum(1), self.max_new_tokens)
        return dict(inputs)

    def _question(self, sample: Sample) -> str:
        """A sample's prompt in the template; errors as `require_shown`, with the sample's id."""
        try:
            self.require_shown(sample)
        except DataError as error:
            raise DataError(f"sample {sample.id!r}: {error}") from error
        return self._chat(sample.question)

    def require_shown(self, sample: Sample) -> None:
        """Refuse a sample whose images the base doesn't take, or not in their places.

        Raises:
            DataError: Says why.
        """
        try:
            self._require_places(_by_turns(sample.turns))
        except ConversationError as error:
            raise DataError(str(error)) from error

    def _images(self, sample: Sample, images: Sequence[Picture]) -> list[Image.Image]:
        try:
            return [load_image(image, self.limits) for image in images]
        except ImageError as error:
            raise DataError(f"sample {sample.id!r}: {error}") from error

    def answers(self, sequences: Tensor, prompt: int) -> list[str]:
        """The texts behind prompts of so many tokens, padding included, in sequences [B, T]."""
        new = sequences[:, prompt:]
        return [t.strip() for t in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def conversation(
        self, turns: Sequence[ChatTurn], images: Sequence[Image.Image] = ()
    ) -> dict[str, Tensor]:
        """One prompt, to be answered: the inputs of a batch of one.

        A single question gives what `prompts` gives for a sample.

        Args:
            turns: As of `written`.
            images: Stand in their places.

        Raises:
            ReservedTokenError, ConversationError: As `written`.
        """
        return self.inputs(self.written(turns), images)

    def inputs(self, written: str, images: Sequence[Image.Image] = ()) -> dict[str, Tensor]:
        """The inputs of a conversation that was `written` with the images' places."""
        shown = [[*images]] if images else None
        return dict(self.processor(text=[written], images=shown, return_tensors="pt"))

    def written(self, turns: Sequence[ChatTurn]) -> str:
        """A conversation in the base's chat template, up to the answer's opening.

        Args:
            turns: The last is a user's; those of users have the images' places.

        Raises:
            ReservedTokenError: A text holds one of the base's own tokens, or what is no text.
            ConversationError: The base's chat template refuses it, or would show an image in
                another place; or the base doesn't take so many.
        """
        for part in (part for turn in turns for part in turn.parts if part is not None):
            if wrong := self.texts.wrong(part):
                raise ReservedTokenError(f"the text {wrong}")
        self._require_places(turns)
        return self._rendered(turns, opens=True)

    def _rendered(self, turns: Sequence[ChatTurn], *, opens: bool) -> str:
        """A conversation in the template; behind it the answer's opening, where one follows."""
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
            chat: str = self.processor.apply_chat_template(messages, add_generation_prompt=opens)
        except TemplateError as error:
            raise ConversationError(f"the base's chat template: {error}") from error
        return chat

    def _require_places(self, turns: Sequence[ChatTurn]) -> None:
        """Refuse images that the template would show elsewhere, or that the base doesn't take.

        What matters is where texts and images stand, not which they are: each form of a
        conversation is looked at once.
        """
        form = tuple((turn.role, tuple(part is None for part in turn.parts)) for turn in turns)
        count = sum(sum(parts) for _, parts in form)
        first = next((parts for role, parts in form if role == "user"), ())
        if count == sum(first) <= 1:
            return
        if form not in self._forms:
            if len(self._forms) == FORMS:
                self._forms.clear()
            self._forms[form] = self._wrong(form)
        if wrong := self._forms[form]:
            raise ConversationError(wrong)

    def _wrong(self, form: Form) -> str | None:
        """What is wrong with the places of a conversation's images; None for nothing.

        Within a turn, one image may stand anywhere, and several that stand together before or
        behind its text.
        """
        numbers = iter(range(sum(len(parts) for _, parts in form)))
        turns = [
            ChatTurn(role, tuple(None if p else f"#{next(numbers)}#" for p in parts))
            for role, parts in form
        ]
        shown, count = self._shown, sum(turn.parts.count(None) for turn in turns)
        found = re.findall(rf"#\d+#|{re.escape(shown)}", self._rendered(turns, opens=True))
        for turn in turns:
            there = [None if part == shown else part for part in found[: len(turn.parts)]]
            del found[: len(turn.parts)]
            runs = len([*groupby(part is None for part in turn.parts)])
            together = runs <= 2 or turn.parts.count(None) == 1
            kept = [*turn.parts] == there
            if not (kept or (together and Counter(turn.parts) == Counter(there))):
                return (
                    "the base's chat template doesn't show images where they stand: show them in "
                    "front of the first question, or ask about them in a conversation of their own"
                )
        try:
            image_tokens(self.processor, shown, [Image.new("RGB", (32, 32))] * count)
        except Exception as error:  # the processor's own, whatever it is
            return f"the base doesn't take {count} images in a conversation: {error}"
        return None

    @cached_property
    def _shown(self) -> str:
        """What stands for an image in a text."""
        return shown_as(self.processor, self._chat((None, "?")))

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
        inputs, behind = self._conversations(samples)
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
        known = {"input_ids": ids, "attention_mask": counts}
        for name, tensor in inputs.items():
            if tensor.shape == shape:  # one number per token: so must the tokens behind have
                added = known.get(name, torch.zeros_like(ids)).to(tensor.dtype)
                for row, tail in enumerate(behind):
                    if name in tail.more:
                        added[row, : len(tail.ids)] = torch.tensor(tail.more[name])
                inputs[name] = torch.cat([tensor, added], 1)
        inputs["labels"] = torch.cat([none, ids.masked_fill(~answered, IGNORED)], 1)
        return inputs

    def _conversations(self, samples: Sequence[Sample]) -> tuple[dict[str, Tensor], list[Tail]]:
        """The prompts of samples, and what stands behind them."""
        tails = self.tails(samples)
        if all(len(sample.asked_about) == len(sample.images) for sample in samples):
            return self.prompts(samples), tails
        rows = []
        for number, sample in enumerate(samples):
            prompt, images = self._question(sample), self._images(sample, sample.images)
            if len(sample.asked_about) == len(images):
                rows.append(self.inputs(prompt, images))
                continue
            tokens = image_tokens(self.processor, self._shown, images)
            here = len(sample.asked_about)
            rows.append(tokens.prompt(self.tokenizer, prompt, self._shown, here))
            tails[number] = tokens.tail(tails[number], self.tokenizer, self._shown, here)
        return batched(rows, self._pad), tails

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


def _by_turns(turns: Sequence[Parts]) -> list[ChatTurn]:
    """A user's turns and an assistant's, by turns."""
    return [ChatTurn(ROLES[number % 2], parts) for number, parts in enumerate(turns)]


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
