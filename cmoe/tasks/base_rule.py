"""What a base's rows are held to, by its own processor and chat template."""

from __future__ import annotations

from cmoe.data.batches import Collator
from cmoe.data.row_rules import BaseRule
from cmoe.data.texts import reserved_tokens
from cmoe.modeling.pretrained import load_processor
from cmoe.modeling.settings import ModelConfig


def base_rule(model: ModelConfig) -> BaseRule:
    """What rows for a base may hold and show.

    Raises:
        MissingModelError: The base isn't there.
    """
    processor = load_processor(model.path, revision=model.revision)
    collator = Collator(processor, max_length=1, max_new_tokens=1)
    return BaseRule(reserved_tokens(processor), collator.require_shown)
