"""`cmoe choice`: what a choice of layers is worth, beside random ones of the same size."""

from __future__ import annotations

from collections.abc import Sequence

from cmoe.common.log_lines import say
from cmoe.config.parse import parse_with
from cmoe.experiments.choice.settings import ChoiceConfig


def main(words: Sequence[str], prog: str) -> int:
    config, parts = parse_with({"choice": ChoiceConfig}, words, prog)
    from cmoe.experiments.choice.choice import choice
    from cmoe.reports.choice_page import write_choice_page

    found = choice(config, parts["choice"])
    write_choice_page(config.folder, found)
    say(str(config.folder / "choice.html"))
    return 0
