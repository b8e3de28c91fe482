"""Reference answers are `generate`'s, and tell rounding from another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.mini_store import collator, make_model, make_primitive

from cmoe.common.reference import TOKENS, Reference
from cmoe.data.samples import Task
from cmoe.evaluation.references import reference_prompts

CHANCES = [{1: log(0.6), 2: log(0.3)}, {3: log(0.5), 4: log(0.49)}, {5: log(0.9), 6: log(0.05)}]
OWN = Reference((1, 3, 5), (log(0.6), log(0.5), log(0.9)))


def test_they_are_the_answers_of_the_task_with_their_chances(tasks: tuple[Task, ...]) -> None:
    """The logarithms come from a pass over prompt and answer together, without a cache."""
    model = make_model()
    for task in tasks[:2]:
        primitive = make_primitive(model, task)
        prompts = reference_prompts(collator(), primitive.instructions)
        for (text, images), reference in zip(prompts, primitive.references, strict=True):
            inputs = collator().inputs(text, images)
            length = inputs["input_ids"].shape[1]
            plain = model.generate(inputs, task.name, max_new_tokens=TOKENS, do_sample=False)
            assert plain.sequences[0, length:].tolist() == [*reference.tokens]
            longer = inputs | {
                "input_ids": plain.sequences,
                "attention_mask": torch.ones_like(plain.sequences),
            }
            logits = model(longer, task.name).logits[0, length - 1 : -1]
            chosen = torch.tensor(reference.tokens)[:, None]
            expected = logits.log_softmax(-1).gather(1, chosen)[:, 0].tolist()
            assert [*reference.logprobs] == pytest.approx(expected, abs=1e-3)


def test_a_prompt_has_its_task_s_usual_instruction(tasks: tuple[Task, ...]) -> None:
    primitive = make_primitive(make_model(), tasks[0])
    assert primitive.instructions is not None
    _, ending = primitive.instructions.usual
    for text, _ in reference_prompts(collator(), primitive.instructions):
        assert ending.strip() in text
    assert [len(images) for _, images in reference_prompts(collator(), None)] == [1, 0]


@given(noise=st.lists(st.floats(-0.009, 0.009), min_size=3, max_size=3))
def test_rounding_is_no_difference(noise: list[float]) -> None:
    near = [
        {token: chance + n for token, chance in row.items()}
        for row, n in zip(CHANCES, noise, strict=True)
    ]
    assert OWN.differs((1, 3, 5), near, 0.01) is None


@pytest.mark.parametrize(
    ("tokens", "chances", "told"),
    [
        ((1, 3, 5), [CHANCES[0], {3: log(0.4)}, CHANCES[2]], "token 2 is 0.22 from"),
        ((1, 3, 6), [*CHANCES[:2], {6: log(0.9), 5: log(0.05)}], "token 3 is 2.9 from"),
        ((1, 3, 7), [*CHANCES[:2], {7: log(0.9)}], "token 3 is inf from"),
        ((1, 3), CHANCES[:2], "token 3 is missing"),
    ],
)
def test_another_answer_is_told(
    tokens: Sequence[int], chances: Sequence[Mapping[int, float]], told: str
) -> None:
    assert told in (OWN.differs(tokens, chances, 0.05) or "")


def test_of_two_tokens_as_likely_either_may_come() -> None:
    """What follows another token is another answer."""
    chances = [CHANCES[0], CHANCES[1], {9: log(0.99)}]
    assert OWN.differs((1, 4, 9), chances, 0.05) is None
