"""The mini base: its size, its interface (that of any LLaVA), and that it sees."""

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cmoe.data.settings import TASKS
from cmoe.mini.lessons import make_lesson, make_text_lesson
from cmoe.mini.pretrain import pixel_values
from cmoe.mini.tasks import make_sample
from cmoe.modeling.settings import MINI_BASE

FOLDER = MINI_BASE
SPECIAL = ("<s>", "</s>", "<pad>", "<image>")


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(FOLDER).eval()


def prompt(text: str, image: Image.Image | None = None) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [] if image is None else [{"type": "image", "image": image}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def encode(processor: Any, chats: Any) -> Any:
    return processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )


def answer(processor: Any, model: Any, chats: Any) -> list[str]:
    inputs = encode(processor, chats)
    tokens = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    new = tokens[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]


def test_size(model: Any) -> None:
    assert sum(p.numel() for p in model.parameters()) <= 2_000_000
    assert 6 <= len(model.model.language_model.layers) <= 8
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert {p.suffix for p in FOLDER.iterdir()} <= {".json", ".safetensors", ".jinja", ".md"}


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer(processor: Any, text: str) -> None:
    if any(special in text for special in SPECIAL):
        return
    tokens = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(tokens) == text


def test_special_tokens(processor: Any, model: Any) -> None:
    tokenizer = processor.tokenizer
    assert 1000 <= len(tokenizer) <= 2000
    assert tokenizer.padding_side == "left"
    assert tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id
    assert tokenizer("red")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_prompt_is_llavas(processor: Any) -> None:
    image = Image.new("RGB", (48, 48))
    chat = prompt("What is this?", image)
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "USER: <image>\nWhat is this? ASSISTANT:"
    chat.append({"role": "assistant", "content": [{"type": "text", "text": "a ring"}]})
    assert processor.apply_chat_template(chat) == f"{text} a ring</s>"


@pytest.mark.parametrize("size", [(48, 48), (1, 1), (7, 300), (640, 480), (49, 47)])
def test_pictures_of_any_size(processor: Any, model: Any, size: tuple[int, int]) -> None:
    inputs = encode(processor, prompt("What is this?", Image.new("RGB", size, (200, 40, 40))))
    assert inputs["pixel_values"].shape == (1, 3, 48, 48)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 36
    assert torch.isfinite(model(**inputs).logits).all()


def test_pictures_are_padded_not_cut(processor: Any) -> None:
    """A wide picture keeps its ends and gets equal bars above and below."""
    wide = np.zeros((24, 48, 3), np.uint8)
    wide[:, :4], wide[:, -4:] = (255, 0, 0), (0, 0, 255)
    pixels = encode(processor, prompt("?", Image.fromarray(wide)))["pixel_values"][0]
    assert pixels[:, 24, 0].tolist() == pytest.approx([1, -1, -1], abs=0.01)
    assert pixels[:, 24, 47].tolist() == pytest.approx([-1, -1, 1], abs=0.01)
    assert torch.equal(pixels[:, :12], pixels[:, 36:])


def test_processor_sees_what_training_saw(processor: Any) -> None:
    image = make_sample("GQA", "test", 0).image
    assert image is not None
    pixels = encode(processor, prompt("?", Image.fromarray(image)))["pixel_values"]
    assert torch.allclose(pixels, pixel_values([image]), atol=1e-5)


def test_text_alone_and_padding_change_nothing(processor: Any, model: Any) -> None:
    chats = [prompt("Repeat: zebra."), prompt("Repeat: otter red history koala circle.")]
    alone = [answer(processor, model, [chat])[0] for chat in chats]
    assert answer(processor, model, chats) == alone
    assert alone[0] == "zebra"


def test_generation_is_deterministic(processor: Any, model: Any) -> None:
    image = make_sample("VQAv2", "test", 1).image
    assert image is not None
    chats = [prompt("Describe.", Image.fromarray(image))]
    assert answer(processor, model, chats) == answer(processor, model, chats)


def test_prompts_are_short(processor: Any) -> None:
    for task in TASKS:
        samples = [make_sample(task, "test", index) for index in range(50)]
        lengths = [len(processor.tokenizer(sample.text)["input_ids"]) + 39 for sample in samples]
        assert sum(lengths) / len(lengths) < 85


def test_a_coordinate_is_one_token(processor: Any) -> None:
    box = make_sample("Grounding", "test", 0).answer
    assert len(processor.tokenizer(f" {box}", add_special_tokens=False)["input_ids"]) == 9


# Chance is 1 of 8 colors, 1 of 6 shapes, below 1 of 200 words, and far below 1 of 100 boxes.
@pytest.mark.parametrize(
    ("skill", "least"), [("color", 0.8), ("shape", 0.8), ("read", 0.6), ("box", 0.4)]
)
def test_it_sees(processor: Any, model: Any, skill: str, least: float) -> None:
    chats, truths = [], []
    for index in range(300):
        lesson = make_lesson(Random(f"unseen/{index}"))
        turn = next((turn for turn in lesson.turns if turn.skill == skill), None)
        if turn is not None and lesson.image is not None and len(chats) < 40:
            chats.append(prompt(turn.question, Image.fromarray(lesson.image)))
            truths.append(turn.answer)
    right = [a == b for a, b in zip(answer(processor, model, chats), truths, strict=True)]
    assert len(right) == 40
    assert sum(right) / len(right) >= least


def test_lessons_ask_no_question_of_a_task() -> None:
    asked = {
        make_sample(task, "train", index).text.split("\n")[0].rstrip(".").lower()
        for task in TASKS
        for index in range(300)
    }
    for index in range(600):
        for make in (make_lesson, make_text_lesson):
            for turn in make(Random(f"unseen/{index}")).turns:
                assert turn.question.split("\n")[0].rstrip(".").lower() not in asked
