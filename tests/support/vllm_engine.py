"""An engine of vLLM's in this process, and questions that it and a model's `generate` are asked."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from PIL import Image
from support.grown import STREAM, learn
from support.vllm_bases import Family, write_base
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.distributed.parallel_state import cleanup_dist_env_and_memory
from vllm.lora.request import LoRARequest

from cmoe.data.batches import ChatTurn, Collator
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_processor
from cmoe.modeling.routers import BASE
from cmoe.serving.engines.vllm.executor import arguments_of_worker
from cmoe.serving.engines.vllm.loading import prepare_pictures_as_trained
from cmoe.serving.engines.vllm.settings import Capacity
from cmoe.store.log import Store
from cmoe.store.model import create_store

TOKENS, CONTEXT = 12, 512
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
CAPACITY = Capacity(tasks=8, experts=16, rows=128, adapter_rows=32)
SIZES: tuple[tuple[tuple[int, int], ...], ...] = (
    ((40, 30),),
    ((64, 64),),
    (),
    ((30, 90), (64, 40)),
    ((150, 20),),
    (),
)
"""Of each question's images."""
TEXTS = ("What is it?", "Which colours does it have, and where?", "Name the things on the left.")


class Question(NamedTuple):
    """A prompt and who answers it.

    Attributes:
        text: The prompt in the base's chat template.
        images: Its images.
        inputs: The base's own inputs.
        task: Index of the task, or `BASE`.
    """

    text: str
    images: list[Image.Image]
    inputs: dict[str, Tensor]
    task: int

    @property
    def ids(self) -> list[int]:
        return self.inputs["input_ids"][0].tolist()


class Answer(NamedTuple):
    """Tokens of the prompt as vLLM reads it, and of what it answers."""

    prompt: list[int]
    tokens: list[int]


def write_stream(family: Family, folder: Path, gates: Any) -> tuple[GrowingVLM, Store]:
    """A base in a folder, and a store with a stream's primitives beside it.

    With `residual` gates, attention has adapters as well.
    """
    attention = 3 if gates == "residual" else 0
    model = GrowingVLM(write_base(family, folder), top_k=2, gates=gates, attention=attention)
    url = folder / "store"
    store = create_store(url, model, name=str(folder), revision="local", config={})
    for task in STREAM:
        store.append(learn(model, task))
    return model, store


def asked(folder: Path, most: int = 2) -> list[Question]:
    """Each prompt is asked of the base and of three of the four tasks.

    Args:
        folder: Of the base.
        most: Images of a prompt.
    """
    prepare_pictures_as_trained()
    collator = Collator(load_processor(str(folder)), CONTEXT, TOKENS)
    assert type(collator.processor.image_processor).__name__.endswith("Pil")
    questions = []
    for number, place in product(range(len(SIZES)), range(4)):
        sizes, text = SIZES[number], TEXTS[number % len(TEXTS)]
        images = [picture(10 * at + number, size) for at, size in enumerate(sizes[:most])]
        parts = (*[None] * len(images), text)
        content = [{"type": "text", "text": p} if p else {"type": "image"} for p in parts]
        turns = [{"role": "user", "content": content}]
        chat = collator.processor.apply_chat_template(turns, add_generation_prompt=True)
        task = ((BASE, 0, 1, 3), (BASE, 1, 2, 3))[number % 2][place]
        inputs = collator.conversation([ChatTurn("user", parts)], images)
        questions.append(Question(chat, images, inputs, task))
    return questions


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    noise = torch.randint(0, 256, (6, 6, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.to(torch.uint8).numpy()).resize(size, Image.Resampling.BICUBIC)


def by_generate(model: GrowingVLM, question: Question) -> list[int]:
    found = model.generate(question.inputs, question.task, max_new_tokens=TOKENS, do_sample=False)
    return found.sequences[0, len(question.ids) :].tolist()


def by_vllm(
    folder: Path,
    store: Store,
    questions: Sequence[Question],
    *,
    arrivals: int | None = None,
    **settings: Any,
) -> list[Answer]:
    """Answers that run together, in an engine that is gone afterwards.

    Args:
        folder: Of the base.
        store: Of its primitives.
        questions: What is asked.
        arrivals: How many questions come before each step; None lets all come before the first.
        settings: What else vLLM is told.
    """
    sampling = SamplingParams(temperature=0, max_tokens=TOKENS)
    records = store.records()
    waiting: list[dict[str, Any]] = []
    for number, question in enumerate(questions):
        shown = {"multi_modal_data": {"image": question.images}} if question.images else {}
        digest = records[question.task].digest
        request = LoRARequest(digest, question.task + 1, store.url) if question.task >= 0 else None
        prompt = {"prompt": question.text, **shown}
        waiting.append({"request_id": str(number), "prompt": prompt, "lora_request": request})
    found: dict[str, Answer] = {}
    with engine(folder, store, **settings) as llm:
        steps = llm.llm_engine
        while waiting or steps.has_unfinished_requests():
            for arrived in waiting[:arrivals]:
                steps.add_request(params=sampling, **arrived)
            del waiting[:arrivals]
            for each in steps.step():
                if each.finished:
                    tokens = [*each.outputs[0].token_ids]
                    found[each.request_id.partition("-")[0]] = Answer(each.prompt_token_ids, tokens)
    return [found[str(number)] for number in range(len(questions))]


@contextmanager
def engine(folder: Path, store: Store, **settings: Any) -> Iterator[LLM]:
    """An engine with the project's worker."""
    prepare_pictures_as_trained()
    with patch.dict(os.environ, SETTINGS):
        llm = LLM(
            model=str(folder),
            dtype="float32",
            max_model_len=CONTEXT,
            max_num_seqs=16,
            block_size=32,
            enforce_eager=True,
            **arguments_of_worker(store, CAPACITY, 2),
            **settings,
        )
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
            cleanup_dist_env_and_memory()
