"""A base is served only if a batch answers as the base's own `generate` does."""

from __future__ import annotations

from typing import Any

import pytest
from support.mini_store import make_model, processor

from cmoe.modeling.growing import GrowingVLM
from cmoe.serving.bases import UnservedBaseError
from cmoe.serving.engines.builtin import batch, verification
from cmoe.serving.engines.builtin.verification import require_own_answers


def test_a_base_that_answers_as_by_itself_is_served(model: GrowingVLM) -> None:
    require_own_answers(model, processor(), 512)


def test_rounding_is_no_other_answer() -> None:
    """In 16 bits, as on a GPU, what is padded and what isn't are apart by a few hundredths."""
    model = make_model()
    model.base.bfloat16()
    require_own_answers(model, processor(), 512)


def test_a_base_that_answers_otherwise_in_a_batch_is_refused(
    model: GrowingVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other positions, a cache cut wrongly, a setting forgotten, a base that isn't made for it."""

    def fails(*_: Any) -> Any:
        raise IndexError("list index out of range")

    count = batch.positions_of
    for name, wrong, cause in (
        (
            "positions_of",
            lambda *given: count(*given) * 2,
            "token 1 of the answer to a prompt with",
        ),
        (
            "_pad_states",
            lambda states, n: states[:, :, :1].repeat(1, 1, n, 1),
            "token 3 of the answer",
        ),
        ("positions_of", fails, "in a batch it fails with IndexError"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(batch, name, wrong)
            with pytest.raises(UnservedBaseError, match=cause) as found:
                require_own_answers(model, processor(), 512)
        assert str(found.value).startswith("a base of type 'llava' can't be served: ")
    monkeypatch.setattr(model.base.generation_config, "repetition_penalty", 1.5)
    require_own_answers(model, processor(), 512)
    monkeypatch.setattr(verification, "scores_of", lambda logits, rows: logits.float())
    with pytest.raises(UnservedBaseError, match="token 1 of the answer"):
        require_own_answers(model, processor(), 512)
