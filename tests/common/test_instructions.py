"""What prompts say beside their questions: found in them, taken away, and put back."""

from __future__ import annotations

import pytest
from hypothesis import given as cases
from hypothesis import strategies as st

from cmoe.common.instructions import Instructions, given
from cmoe.data.settings import TASKS
from cmoe.mini.tasks import LETTER, PHRASE, REGION, UNSURE, make_sample

PROMPTS = {task: [make_sample(task, "train", index).text for index in range(200)] for task in TASKS}
FOUND = {task: Instructions.of(prompts) for task, prompts in PROMPTS.items()}


@pytest.mark.parametrize("task", TASKS)
def test_a_tasks_own_instructions_are_found_and_nothing_else_is_taken_for_one(task: str) -> None:
    for prompt in PROMPTS[task]:
        asked = prompt
        for instruction in (f"\n{UNSURE} {PHRASE}", f"\n{PHRASE}", f"\n{LETTER}"):
            asked = asked.removesuffix(instruction)
        asked = asked.removeprefix(REGION).removeprefix("Context: ")
        assert FOUND[task].split(prompt)[1] == asked


def test_the_usual_instruction_is_what_most_prompts_have() -> None:
    usual = {task: found.usual for task, found in FOUND.items()}
    assert usual["Grounding"] == (REGION, "")
    assert usual["ScienceQA"] == ("", f"\n{LETTER}")
    assert usual["VizWiz"] == usual["GQA"] == ("", f"\n{PHRASE}")
    assert f"{UNSURE} {PHRASE}" in FOUND["VizWiz"].endings, "though some have another"


@cases(task=st.sampled_from(TASKS), index=st.integers(0, 199))
def test_what_is_taken_away_is_what_stood_there(task: str, index: int) -> None:
    prompt = PROMPTS[task][index]
    assert "".join(FOUND[task].split(prompt)) == prompt
    assert FOUND[task].given_in(prompt)
    _, question, _ = FOUND[task].split(prompt)
    assert not given(question, FOUND.values())
    assert not given(question, [None])
    assert given(question.join(FOUND[task].usual), [None, *FOUND.values()])


def test_a_prompt_that_is_a_line_alone_stays_however_many_ask_it() -> None:
    found = Instructions.of(["What is this?"] * 50)
    assert found == Instructions()
    assert found.split("What is this?") == ("", "What is this?", "")
    assert Instructions.of([]).split("Yes or no?\nSay it.")[1] == "Yes or no?\nSay it."
