"""Test questions asked as people ask them: located and answered by their own words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from support.mini_store import TASKS, collator, make_data, make_model, make_primitive

from cmoe.data.paraphrases import NATURAL, Paraphraser, instructions_of
from cmoe.experiments.phrasing import asked_naturally
from cmoe.tasks.answer_files import target_of
from cmoe.tasks.registry import score


def test_each_way_is_located_and_answered_by_its_own_words(tmp_path: Path) -> None:
    tasks = {task.name: replace(task, test=task.test[:3]) for task in make_data(tmp_path / "data")}
    model = make_model()
    known = [make_primitive(model, task).instructions for task in tasks.values()]
    targets = {name: {s.id: target_of(s) for s in task.test} for name, task in tasks.items()}
    rows = asked_naturally(model, collator(), tasks, known, targets, "official", 2, 4)
    found = {row.way: row for row in rows}
    assert [*found] == ["official", *NATURAL]

    for way in ("official", "small"):
        right = unknown = told = 0.0
        for name, task in tasks.items():
            words = Paraphraser(instructions_of(task.train))
            opening, ending = instructions_of(task.train).usual
            for sample in task.test:
                asked = words.asked(sample.text, way) if way == "small" else sample.text
                inputs = collator().prompts([replace(sample, text=asked)])
                location = model.locate(inputs)
                right += location.tasks.item() == TASKS.index(name)
                unknown += location.unknown.item()
                if way == "small":  # as a service asks the task that answers
                    asked = f"{opening}{asked}{ending}"
                inputs = collator().prompts([replace(sample, text=asked)])
                new = model.generate(inputs, name, max_new_tokens=4, do_sample=False).sequences
                said = collator().tokenizer.batch_decode(
                    new[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
                )
                told += score(name, "official", [said[0].strip()], [target_of(sample)])[0]
        expected = torch.tensor([right, unknown, told]) * 100 / (3 * len(tasks))
        row = found[way]
        torch.testing.assert_close(torch.tensor([row.located, row.unknown, row.told]), expected)
