"""Build the mini base, a LLaVA of under two million parameters, from nothing.

`python -m cmoe.mini.build_base --out DIR [--seed 0]` writes weights, tokenizer, processor
and model card. Nothing is downloaded; what it learns from is drawn by `cmoe.mini.lessons`.
"""

from __future__ import annotations

import multiprocessing
import platform
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from random import Random

import torch
import transformers
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from cmoe.common.command_line import Parser
from cmoe.data.settings import TASKS
from cmoe.mini.drawing import PATCH, SIZE
from cmoe.mini.lessons import COMMON, Lesson, make_lesson, make_text_lesson
from cmoe.mini.pretrain import Classroom, Recipe, train_language, train_tower
from cmoe.mini.tasks import make_sample

PAD, BOS, EOS, IMAGE = SPECIAL = "<pad>", "<s>", "</s>", "<image>"
VOCABULARY = 1536
WIDTH, FFN_WIDTH, LAYERS, HEADS = 96, 256, 6, 4
TOWER_WIDTH, TOWER_LAYERS = 128, 3
EMBEDDING_SCALE = 0.2
CHUNK = 1000

# The markers of the two speakers, a coordinate, and each letter of a word in capitals are pieces of
# their own: reading is then naming letters. The rest is words, single digits, signs and spaces.
PIECES = "|".join(
    (
        r" ?ASSISTANT:|USER: ?",
        r"[01]\.\d\d|,? (?=[01]\.\d\d)",
        r" ?\p{Lu}(?=\p{Lu})|(?<=\p{Lu})\p{Lu}(?!\p{Ll})",
        r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+",
        r"\s+(?!\S)|\s+",
    )
)

CHAT_TEMPLATE = """
{%- for message in messages -%}
{%- if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif -%}
{%- if message['content'] is string %}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif -%}
""".strip().replace("'<image>\n'", "'<image>\\n'")


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# The mini base

A LLaVA (CLIP tower, projector of two layers, Llama) small enough to learn a stream of tasks on a
laptop's processor. It knows generated 48x48 pictures of colored shapes, words, book covers and bar
charts, and short commands about them; it is a stand-in for a real vision-language model in tests,
examples and the default run, and no use beyond. Pictures of any size are padded to a square and
resized; the tokenizer is a byte-level BPE of {vocabulary} entries and takes any text. Answers
follow `ASSISTANT:` with a space and end with `</s>`.

Written by `python -m cmoe.mini.build_base --seed {seed}`, as all figures below were measured
by it. The pictures are drawn by `cmoe.mini.drawing`, the lessons made by `cmoe.mini.lessons`;
nothing was downloaded, and no sample or question of the eight tasks was learned from.

## Size
{parameters}

## Recipe
The tower learns dense labels of its patches, then stays frozen; projector and decoder learn the
lessons. Muon trains matrices, AdamW the rest.

{recipe}

## Measured
On held-out lessons, the tower's labels where there is something to see:

{labels}

Turns of held-out lessons answered exactly, by skill:

{skills}

Samples of the mini tasks answered exactly without any training on them, which is what the stream
starts from:

{answers}

## Time
{machine}.

{seconds}
"""


def _draw(job: tuple[Callable[[Random], Lesson], str]) -> list[Lesson]:
    make, stream = job
    return [make(Random(f"{stream}/{index}")) for index in range(CHUNK)]


def draw_lessons(recipe: Recipe, seed: int) -> list[Lesson]:
    """All lessons: those without a picture, then those with one; each chunk a stream of its own."""
    wanted = ((make_text_lesson, recipe.text_lessons), (make_lesson, recipe.lessons))
    jobs = [
        (make, f"{seed}/{make.__name__}/{chunk}")
        for make, count in wanted
        for chunk in range(-(-count // CHUNK))
    ]
    with multiprocessing.Pool(2) as pool:
        return [lesson for chunk in pool.imap(_draw, jobs) for lesson in chunk]


def build_tokenizer(lessons: list[Lesson]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that takes any text, trained on lessons and common English words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"USER: {t.question} ASSISTANT: {t.answer}" for x in lessons[::4] for t in x.turns]
    texts += [f"{word} {word} {word.capitalize()}" for word in COMMON] * 20
    texts += [word.capitalize() for word in COMMON] * 20
    texts += [" [0.25, 0.42, 0.58, 0.75]"] * 100
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        extra_special_tokens={"image_token": IMAGE},
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_processor(
    tokenizer: PreTrainedTokenizerBase, chat_template: str = CHAT_TEMPLATE
) -> LlavaProcessor:
    """Pictures of any size are padded to a square and resized."""
    square = {"height": SIZE, "width": SIZE}
    image_processor = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": SIZE},
        crop_size=square,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=chat_template,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """An untrained LLaVA: CLIP's tower, a projector of two layers, a Llama."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=2 * TOWER_WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=TOWER_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=FFN_WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index(IMAGE),
        image_seq_length=(SIZE // PATCH) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    # The usual 0.02 drowns a word in what the first layer adds to it, and words find nothing then.
    torch.nn.init.normal_(model.model.language_model.embed_tokens.weight, std=EMBEDDING_SCALE)
    return model


def zero_shot(folder: Path, seed: int, samples: int = 100) -> dict[str, float]:
    """Share of exactly right greedy answers on each task's samples, with the model as saved."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    shares = {}
    for task in TASKS:
        drawn = [make_sample(task, "card", index, seed) for index in range(samples)]
        drawn = [sample for sample in drawn if sample.image is not None]
        prompts = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": x.text}]}]
            for x in drawn
        ]
        inputs = processor(
            images=[[Image.fromarray(x.image)] for x in drawn if x.image is not None],
            text=processor.apply_chat_template(prompts, add_generation_prompt=True),
            padding=True,
            return_tensors="pt",
        )
        tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        answers = processor.batch_decode(
            tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right = sum(a.strip() == x.answer for a, x in zip(answers, drawn, strict=True))
        shares[task] = right / len(drawn)
    return shares


def _table(head: tuple[str, str], rows: dict[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows.items()])


def build(out: Path, recipe: Recipe, seed: int) -> None:
    """Build everything and write it to `out`, the model card last."""
    # One thread: the matrices are small, and sums in one order make the build repeatable.
    torch.set_num_threads(1)
    start = time.perf_counter()
    seconds: dict[str, str] = {}

    def lap(name: str) -> None:
        seconds[name] = f"{time.perf_counter() - start - sum(map(float, seconds.values())):.0f}"

    lessons = draw_lessons(recipe, seed)
    tokenizer = build_tokenizer(lessons)
    model = build_model(tokenizer, seed)
    lap("drawing, tokenizer")
    parts = model.model
    labels = train_tower(parts.vision_tower, TOWER_WIDTH, lessons, recipe, seed)
    lap("tower")
    skills = train_language(Classroom(model, tokenizer, lessons), recipe, seed)
    lap("projector and decoder")
    model.save_pretrained(out)
    build_processor(tokenizer).save_pretrained(out)
    answers = zero_shot(out, seed)
    lap("zero-shot")

    sizes = {
        "vision tower": parts.vision_tower,
        "projector": parts.multi_modal_projector,
        "embedding": model.get_input_embeddings(),
        "decoder layers": parts.language_model.layers,
        "output layer": model.lm_head,
        "all": model,
    }
    counts = {name: f"{sum(p.numel() for p in m.parameters()):,}" for name, m in sizes.items()}
    right, turns = (sum(column) for column in zip(*skills.values(), strict=True))
    exact = {name: f"{r / n:.2f} of {n}" for name, (r, n) in sorted(skills.items())}
    card = CARD.format(
        seed=seed,
        vocabulary=len(tokenizer),
        parameters=_table(("part", "parameters"), counts),
        recipe=_table(("field", "value"), {k: str(v) for k, v in asdict(recipe).items()}),
        labels=_table(("label of a patch", "accuracy"), {k: f"{v:.3f}" for k, v in labels.items()}),
        skills=_table(("skill", "exact"), exact | {"all": f"{right / turns:.2f} of {turns}"}),
        answers=_table(("task", "exact"), {k: f"{v:.2f}" for k, v in answers.items()}),
        seconds=_table(("part", "seconds"), seconds),
        machine=f"{platform.machine()}, one thread, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    )
    (out / "README.md").write_text(card, encoding="utf-8")


def main() -> None:
    parser = Parser(description="Build the mini base from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and card")
    parser.add_argument("--seed", type=int, default=0, help="seed of lessons and training")
    arguments = parser.parse_args()
    build(arguments.out, Recipe(), arguments.seed)


if __name__ == "__main__":
    main()
