"""The two trainings of the mini base: the tower on dense labels, then decoder on lessons.

Tokens of one lesson share the picture: its turns follow the picture's tokens in one sequence, and a
mask keeps each turn from seeing the others, so four turns cost about as much as two prompts.
Matrices are trained by Muon, everything else by AdamW.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from cmoe.mini.drawing import BACKGROUNDS, COLORS, GRID, SHAPES, TEXTURES, Pixels, Thing
from cmoe.mini.lessons import BINS, LABELS, Lesson

WARMUP = 30
LENGTH_POOL = 4
OPTIONS = "A", "B", "C"
SUBJECT_LAYER, SUBJECT_WEIGHT, OPTION_WEIGHT = 4, 0.2, 0.5
SUBJECT_SIZES = (len(COLORS), len(SHAPES), len(TEXTURES), BINS, BINS, BINS, BINS)
NOTHING = (-1,) * len(SUBJECT_SIZES)


@dataclass(frozen=True)
class Recipe:
    """Sizes and rates of both trainings.

    Attributes:
        lessons: Lessons with a picture, each seen about twice by either training.
        text_lessons: Lessons without a picture; one step in `text_every` has two batches of them.
        held_out: Lessons of the measurement.
        tower_steps, tower_batch, tower_rate: Steps, pictures a step, Muon's learning rate.
        steps, batch, rate: The same for projector and decoder, in lessons.
    """

    lessons: int = 20_000
    text_lessons: int = 6_000
    text_every: int = 5
    held_out: int = 600
    tower_steps: int = 500
    tower_batch: int = 64
    tower_rate: float = 0.01
    steps: int = 1_000
    batch: int = 32
    rate: float = 0.012


class _Optimizers:
    """Muon for matrices, AdamW for embeddings, output rows, norms and biases; linear decay."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], rate: float, steps: int) -> None:
        others = ("embed", "head")
        matrices = [p for n, p in named if p.ndim == 2 and not any(o in n for o in others)]
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen]
        self._parameters = [p for _, p in named]
        self._all: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=rate, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(rest, lr=0.3 * rate, betas=(0.9, 0.98), weight_decay=0.01),
        )
        self._rates = [optimizer.param_groups[0]["lr"] for optimizer in self._all]
        self._steps = steps

    def step(self, step: int, loss: Tensor) -> None:
        left = 1 - step / self._steps
        factor = min((step + 1) / WARMUP, 1.0, max(0.02, 4 / 3 * left))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, rate in zip(self._all, self._rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()


def pixel_values(images: Sequence[Pixels]) -> Tensor:
    """48x48 pictures as the image processor gives them, `[n, 3, 48, 48]` in -1 to 1."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_tower(
    tower: nn.Module, width: int, lessons: Sequence[Lesson], recipe: Recipe, seed: int
) -> dict[str, float]:
    """Teach every patch what it shows, where it is, and the box of the object it belongs to.

    `tower` gives hidden states of `width`, the first of a picture being its class token.

    Returns:
        Accuracy of each label on the last `held_out` lessons, where there is something to see.
    """
    images = [lesson.image for lesson in lessons if lesson.image is not None]
    targets = torch.from_numpy(np.stack([x.patches for x in lessons if x.patches is not None]))
    patches = targets.shape[1]
    sizes = (*LABELS, len(BACKGROUNDS), *[BINS] * 4, patches)
    targets = torch.cat(
        [targets, torch.arange(patches).view(1, -1, 1).expand(len(targets), -1, 1)], 2
    )
    head = nn.Linear(width, sum(sizes))
    named = [*tower.named_parameters(), *((f"head.{n}", p) for n, p in head.named_parameters())]
    optimizers = _Optimizers(named, recipe.tower_rate, recipe.tower_steps)
    # Most patches show nothing; a letter is one of 36 and the rarest.
    weights = [torch.ones(size) for size in sizes]
    for weight in weights[:4]:
        weight[0] = 0.3
    scale = (1.0, 1.0, 2.0, 1.0, 0.3, 0.5, 0.5, 0.5, 0.5, 0.3)

    def logits(rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        seen = tower(pixel_values([images[row] for row in rows])).last_hidden_state[:, 1:]
        return tuple(head(seen).split(sizes, -1))

    rng, last = np.random.default_rng(seed), len(images) - recipe.held_out
    for step in range(recipe.tower_steps):
        rows = rng.integers(0, last, recipe.tower_batch)
        losses = [
            s * F.cross_entropy(x.flatten(0, 1), y.flatten(), w, ignore_index=-1)
            for x, y, w, s in zip(
                logits(rows), targets[rows].unbind(-1), weights, scale, strict=True
            )
        ]
        optimizers.step(step, torch.stack(losses).sum())
    names = ["color", "shape", "character", "texture", "background"]
    names += ["left", "top", "right", "bottom"]
    accuracies = {}
    with torch.no_grad():
        rows = np.arange(last, len(images))
        for index, (name, guess) in enumerate(zip(names, logits(rows)[:9], strict=True)):
            truth = targets[rows][..., index]
            seen = truth > (0 if index < 4 else -1)
            accuracies[name] = float((guess.argmax(-1)[seen] == truth[seen]).float().mean())
    return accuracies


@dataclass(frozen=True)
class _Row:
    """One lesson as tokens: `group` is 0 for the shared prefix and `1 + turn` for a turn.

    `answer` is 1 for the tokens to be learned. `subject [s, 7]` tells what the question is about
    on its last words and the marker; `chosen` is 1 on the last token of the right option and 0 on
    that of a wrong one. Both are -1 elsewhere.
    """

    tokens: NDArray[np.int64]
    group: NDArray[np.int64]
    position: NDArray[np.int64]
    answer: NDArray[np.int64]
    subject: NDArray[np.int64]
    chosen: NDArray[np.int64]


def _encode(
    tokenizer: PreTrainedTokenizerFast, lessons: Sequence[Lesson], image_tokens: int
) -> list[_Row]:
    @cache
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    opening = [tokenizer.bos_token_id, *ids("USER: ")]
    (image,) = ids("<image>")
    picture = [image] * image_tokens + ids("\n")
    return [_row(ids, tokenizer.eos_token_id, opening, picture, lesson) for lesson in lessons]


def _row(
    ids: Callable[[str], list[int]],
    end: int,
    opening: list[int],
    picture: list[int],
    lesson: Lesson,
) -> _Row:
    tokens = opening if lesson.image is None else opening + picture
    start = len(tokens)
    group, position, answered = [0] * start, list(range(start)), [0] * start
    about, chosen = [NOTHING] * start, [-1] * start
    (period,), (newline,) = ids("."), ids("\n")
    for index, turn in enumerate(lesson.turns):
        question, marker = ids(turn.question), ids(" ASSISTANT:")
        answer = [*ids(f" {turn.answer}"), end]
        length = len(question) + len(marker) + len(answer)
        tokens = tokens + question + marker + answer
        group += [index + 1] * length
        position += range(start, start + length)
        about += [NOTHING] * length
        begin, stop = len(about) - length, len(question)
        if turn.subject is not None:
            named = question.index(period) - 1
            places = (named, named + 1) if turn.second else (named, stop - 1, stop)
            for place in places:
                about[begin + place] = _description(turn.subject)
        chosen += [-1] * length
        if turn.answer in OPTIONS:
            ends = [place - 1 for place, token in enumerate(question) if token == newline]
            for option, place in zip(OPTIONS, [*ends[1:], stop - 1], strict=True):
                chosen[begin + place] = int(option == turn.answer)
        if turn.second is not None:
            for place in (stop - 2, stop - 1):
                about[begin + place] = _description(turn.second)
        answered += [0] * (length - len(answer)) + [1] * len(answer)
    return _Row(
        np.array(tokens, np.int64),
        np.array(group, np.int64),
        np.array(position, np.int64),
        np.array(answered, np.int64),
        np.array(about, np.int64),
        np.array(chosen, np.int64),
    )


def _description(thing: Thing) -> tuple[int, ...]:
    """Indices of color, shape and texture, and the four bins of the box."""
    names = (
        list(COLORS).index(thing.color),
        SHAPES.index(thing.shape),
        TEXTURES.index(thing.texture),
    )
    return names + tuple(round(value / GRID) for value in thing.box)


@dataclass(frozen=True)
class _Batch:
    """Rows padded to one length: all `[b, s]` but `subject [b, s, 7]`
    and `mask [b, 1, s, s]` (True: attend).
    """

    tokens: Tensor
    group: Tensor
    position: Tensor
    answer: Tensor
    subject: Tensor
    chosen: Tensor
    mask: Tensor


def _collate(rows: Sequence[_Row]) -> _Batch:
    length = max(len(row.tokens) for row in rows)

    def pad(name: str, fill: int) -> Tensor:
        values = [getattr(row, name) for row in rows]
        width = [(0, 0)] * (values[0].ndim - 1)
        padded = [np.pad(v, [(0, length - len(v)), *width], constant_values=fill) for v in values]
        return torch.from_numpy(np.stack(padded))

    group = pad("group", -1)
    same = (group[:, :, None] == group[:, None, :]) | (group[:, None, :] == 0)
    mask = (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    return _Batch(
        pad("tokens", 0),
        group,
        pad("position", 0),
        pad("answer", 0),
        pad("subject", -1),
        pad("chosen", -1),
        mask,
    )


class Classroom:
    """The model with its lessons as tokens and the frozen tower's features of their pictures."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        lessons: Sequence[Lesson],
    ) -> None:
        self.model, self.lessons = model, lessons
        self.option_head = nn.Linear(model.lm_head.in_features, 2)
        self.subject_head = nn.Linear(model.lm_head.in_features, sum(SUBJECT_SIZES))
        self.image_token = model.config.image_token_id
        self.rows = _encode(tokenizer, lessons, model.config.image_seq_length)
        pictured = [i for i, lesson in enumerate(lessons) if lesson.image is not None]
        self.seen = {index: number for number, index in enumerate(pictured)}
        images = [lesson.image for lesson in lessons if lesson.image is not None]
        with torch.no_grad():
            self.features = torch.cat(
                [self._look(images[start : start + 200]) for start in range(0, len(images), 200)]
            )

    def _look(self, images: Sequence[Pixels]) -> Tensor:
        seen: Tensor = self.model.model.vision_tower(pixel_values(images)).last_hidden_state
        return seen[:, 1:]

    def hidden(self, indices: Sequence[int]) -> tuple[_Batch, Tensor, Tensor]:
        """The decoder's hidden states of lessons, last and middle, `[b, s, d]`.

        Either all lessons have a picture or none has.
        """
        batch = _collate([self.rows[i] for i in indices])
        inputs = self.model.get_input_embeddings()(batch.tokens)
        if indices[0] in self.seen:
            features = self.features[[self.seen[i] for i in indices]]
            projected = self.model.model.multi_modal_projector(features)
            places = (batch.tokens == self.image_token)[..., None].expand_as(inputs)
            inputs = inputs.masked_scatter(places, projected)
        decoder = self.model.model.language_model
        outputs = decoder(
            inputs_embeds=inputs,
            attention_mask=batch.mask,
            position_ids=batch.position,
            use_cache=False,
            output_hidden_states=True,
        )
        return batch, outputs.last_hidden_state, outputs.hidden_states[SUBJECT_LAYER]

    def loss(self, indices: Sequence[int]) -> Tensor:
        """Cross-entropy of the answers' tokens, of the questions' subjects, and of the options.

        The second makes the words of a question find their object, the third compares an option
        with it: told by answers alone, the decoder guesses for longer than this training lasts.
        """
        batch, hidden, middle = self.hidden(indices)
        kept = batch.answer[:, 1:] == 1
        logits = self.model.lm_head(hidden[:, :-1][kept])
        loss = F.cross_entropy(logits, batch.tokens[:, 1:][kept])
        known = batch.subject[..., 0] >= 0
        if known.any():
            guesses = self.subject_head(middle[known]).split(SUBJECT_SIZES, -1)
            truths = batch.subject[known].unbind(-1)
            errors = [F.cross_entropy(g, t) for g, t in zip(guesses, truths, strict=True)]
            loss = loss + SUBJECT_WEIGHT * torch.stack(errors).sum()
        offered = batch.chosen >= 0
        if offered.any():
            guess = self.option_head(middle[offered])
            loss = loss + OPTION_WEIGHT * F.cross_entropy(guess, batch.chosen[offered])
        return loss

    @torch.no_grad()
    def exact(self, indices: Sequence[int]) -> dict[str, tuple[int, int]]:
        """Right answers and turns by skill; right is every answer token the likeliest."""
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for start in range(0, len(indices), 100):
            chosen = indices[start : start + 100]
            batch, hidden, _ = self.hidden(chosen)
            guess = self.model.lm_head(hidden[:, :-1]).argmax(-1)
            wrong = (guess != batch.tokens[:, 1:]) & (batch.answer[:, 1:] == 1)
            for row, index in enumerate(chosen):
                for number, turn in enumerate(self.lessons[index].turns):
                    missed = wrong[row] & (batch.group[row, 1:] == number + 1)
                    counts[turn.skill][0] += int(not missed.any())
                    counts[turn.skill][1] += 1
        return {skill: (right, turns) for skill, (right, turns) in counts.items()}


def train_language(classroom: Classroom, recipe: Recipe, seed: int) -> dict[str, tuple[int, int]]:
    """Train projector and decoder; the tower stays as it is.

    Returns:
        Right answers and turns by skill on the last `held_out` lessons with a picture.
    """
    model = classroom.model
    model.model.vision_tower.requires_grad_(False)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    named += [(f"head.{name}", p) for name, p in classroom.subject_head.named_parameters()]
    named += [(f"option.head.{name}", p) for name, p in classroom.option_head.named_parameters()]
    optimizers = _Optimizers(named, recipe.rate, recipe.steps)
    pictured = np.array([i for i in range(len(classroom.rows)) if i in classroom.seen])
    written = np.array([i for i in range(len(classroom.rows)) if i not in classroom.seen])
    rng, last = np.random.default_rng(seed + 1), len(pictured) - recipe.held_out
    lengths = np.array([len(row.tokens) for row in classroom.rows])
    waiting: list[NDArray[np.int64]] = []
    for step in range(recipe.steps):
        if step % recipe.text_every == 0:
            batch = rng.choice(written, 2 * recipe.batch, replace=False)
        else:
            if not waiting:
                # Lessons of like length share a batch: less padding.
                drawn = rng.choice(pictured[:last], LENGTH_POOL * recipe.batch, replace=False)
                drawn = drawn[np.argsort(lengths[drawn], kind="stable")]
                waiting = list(rng.permutation(drawn.reshape(LENGTH_POOL, -1)))
            batch = waiting.pop()
        loss = classroom.loss(batch.tolist())
        optimizers.step(step, loss)
        if step % 50 == 49:
            print(f"step {step + 1} of {recipe.steps}: loss {loss.item():.3f}", flush=True)
    return classroom.exact(pictured[last:].tolist())
