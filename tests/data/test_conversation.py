"""A conversation in a base's own template: each text and each picture in its turn."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from PIL import Image
from support.mini_store import collator, processor

from cmoe.data.batches import ChatTurn, Collator, ConversationError
from cmoe.data.samples import Task

# As LLaVA 1.5's and Qwen2-VL's: pictures of a turn first, and where they stand.
PICTURES_FIRST_IN_TURN = (
    "{% for m in messages %}{{ m['role'] }}: "
    "{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %} {% endfor %}"
)
IN_PLACE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %} {% endfor %}"
)
# As some bases' that know one picture alone: in front of everything, or of the first question.
IN_FRONT = (
    "{% for m in messages %}{% for c in m['content'] if c['type'] == 'image' %}<image>"
    "{% endfor %}{% endfor %}{% for m in messages %}{{ m['role'] }}: "
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %} {% endfor %}"
)
PICTURE = Image.new("RGB", (32, 32), "red")
LATER = [
    ChatTurn("system", ("Be short.",)),
    ChatTurn("user", ("One?",)),
    ChatTurn("assistant", ("yes",)),
    ChatTurn("user", ("this", None, "that")),
]


def rendered(template: str, turns: list[ChatTurn], pictures: Any = (PICTURE,)) -> str:
    """The prompt that a base reads, without how often its picture's token stands in it."""
    made = copy.copy(processor())
    made.chat_template = template
    ids = Collator(made, 512, 1).conversation(turns, pictures)["input_ids"][0]
    text: str = made.tokenizer.decode(ids, skip_special_tokens=False)
    while "<image><image>" in text:
        text = text.replace("<image><image>", "<image>")
    return text.removeprefix("<s>").replace("<s>", "").strip()


def test_a_later_picture_stays_in_its_turn() -> None:
    assert rendered(IN_PLACE, LATER) == (
        "system: Be short. user: One? assistant: yes user: this<image>that"
    )
    assert rendered(PICTURES_FIRST_IN_TURN, LATER) == (
        "system: Be short. user: One? assistant: yes user: <image>thisthat"
    )
    own = rendered(processor().chat_template, LATER)
    assert own.index("One?") < own.index("yes") < own.index("<image>") < own.index("that")


def test_what_a_template_refuses_is_told_in_its_words() -> None:
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system.') }}"
    with pytest.raises(ConversationError, match=r"the base's chat template: No system\."):
        rendered(template + "{% endif %}" + IN_PLACE, LATER)


def test_a_picture_that_the_template_would_move_is_refused() -> None:
    with pytest.raises(ConversationError, match="show them in front of the first question"):
        rendered(IN_FRONT, LATER)
    first = [ChatTurn("system", ("Be short.",)), ChatTurn("user", ("One?", None))]
    assert rendered(IN_FRONT, first) == "<image>system: Be short. user: One?"
    assert rendered(IN_FRONT, LATER[:2], ()) == "system: Be short. user: One?"


def test_a_question_is_prompted_as_evaluation_prompts_it(tasks: tuple[Task, ...]) -> None:
    """Token for token and pixel for pixel: else the answers would not be those of the reports."""
    for task in tasks:
        for sample in task.test[:4]:
            pictures = []
            if sample.images:
                with sample.images[0].open("rb") as file:
                    pictures.append(Image.open(file).convert("RGB"))
            parts = (*[None] * len(pictures), sample.text)
            made = collator().conversation([ChatTurn("user", parts)], pictures)
            whole = collator().prompts([sample])
            assert made.keys() == whole.keys()
            assert all(torch.equal(made[name], whole[name]) for name in whole)
