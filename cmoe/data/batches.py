"""Samples to batches: the same prompts in training, features and answers; and who gets which.

Nothing here depends on the number of workers: batches are cut from the whole stream of samples, and
workers take whole batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cmoe.data.coin import DataError, Sample

IGNORED = -100  # the label of a token that isn't part of an answer
LENGTH_STEP = 32  # prompts are padded to multiples of this many tokens where shapes must be stable


class Collator:
    """Turns samples into a base's inputs, by its own processor and chat template.

    Args:
        processor: The base's.
        max_length: Tokens of prompt and answer together.
        max_new_tokens: Room that a generated answer needs.
    """

    def __init__(self, processor: Any, max_length: int, max_new_tokens: int) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.max_length = max_length
        self.max_new_tokens = max_new_tokens
        prompt, whole = self._chat("?", image=False), self._chat("?", image=False, answer="!")
        # What the template puts before and behind an answer is the same for every sample.
        self._before, self._after = whole[len(prompt) :].rstrip().split("!")
        if not self._after:
            self._after = self.tokenizer.eos_token
        self._anchor = prompt.rpartition("?")[2]

    def _chat(self, text: str, *, image: bool, answer: str | None = None) -> str:
        picture = [{"type": "image"}] if image else []
        turns = [{"role": "user", "content": [*picture, {"type": "text", "text": text}]}]
        if answer is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        chat: str = self.processor.apply_chat_template(turns, add_generation_prompt=answer is None)
        return chat

    def answers(self, samples: Sequence[Sample]) -> list[list[int]]:
        """The answers' token ids, with the template's end of turn."""
        texts = [f"{self._anchor}{self._before}{s.answer}{self._after}" for s in samples]
        start = len(self.tokenizer(self._anchor, add_special_tokens=False).input_ids)
        ids = self.tokenizer(texts, add_special_tokens=False).input_ids
        return [row[start:] for row in ids]

    def prompts(self, samples: Sequence[Sample], length: int | None = None) -> dict[str, Tensor]:
        """Prompts ready to be answered, padded on the left: `input_ids` [B, S] and the pictures.

        Args:
            samples: B of them.
            length: S, at least the longest prompt; None takes that.

        Raises:
            DataError: A picture can't be read, or a prompt is too long; names the sample.
        """
        texts = [self._chat(s.text, image=s.image is not None) for s in samples]
        pictures = [_picture(s) for s in samples if s.image is not None]
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

    def training(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Prompts with their answers behind them, and `labels` [B, S] for the answers alone.

        Raises:
            DataError: As in `prompts`, or prompt and answer together are too long.
        """
        inputs = self.prompts(samples)
        answers = self.answers(samples)
        rows, width = inputs["input_ids"].shape[0], max(len(a) for a in answers)
        ids = torch.full((rows, width), self.tokenizer.pad_token_id)
        counts = torch.zeros(rows, width, dtype=torch.long)
        for row, answer in enumerate(answers):
            ids[row, : len(answer)] = torch.tensor(answer)
            counts[row, : len(answer)] = 1
        lengths = torch.tensor([len(a) for a in answers])
        self._require_room(samples, inputs["attention_mask"].sum(1), lengths)
        shape = inputs["input_ids"].shape
        none = torch.full(shape, IGNORED)
        tails = {"input_ids": ids, "attention_mask": counts}
        for name, tensor in inputs.items():
            if tensor.shape == shape:  # one number per token: so must the answer's tokens have
                tail = tails.get(name, torch.zeros_like(ids)).to(tensor.dtype)
                inputs[name] = torch.cat([tensor, tail], 1)
        inputs["labels"] = torch.cat([none, ids.masked_fill(counts == 0, IGNORED)], 1)
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


def _picture(sample: Sample) -> Image.Image:
    assert sample.image is not None
    try:
        with Image.open(sample.image) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"sample {sample.id!r}: picture {sample.image} can't be read: {error}"
        ) from error


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


def loader(
    samples: Sequence[Sample],
    batches: Sequence[Sequence[int]],
    collate: Any,
    workers: int,
) -> Iterator[Any]:
    """The batches, prepared `workers` processes ahead.

    Args:
        samples: What the batches' numbers point at.
        batches: Sample numbers of each batch.
        collate: Makes a batch of a list of samples.
        workers: 0 prepares each batch when it is asked for.
    """
    return iter(
        DataLoader(
            _Samples(samples),
            batch_sampler=batches,  # type: ignore[arg-type]
            collate_fn=collate,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
    )


class _Samples(Dataset[Sample]):
    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]
