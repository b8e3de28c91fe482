"""The parts of a text are the whole text, and no part says what is taken back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support.mini_store import processor

from cmoe.serving.engines.answer_text import AnswerText


@given(st.lists(st.integers(0, 1535), max_size=40), st.booleans())
@settings(deadline=None)
def test_parts_of_a_text_are_the_text(ids: list[int], every: bool) -> None:
    tokenizer = processor().tokenizer
    text, parts = AnswerText(tokenizer, ()), []
    for token in ids:
        assert not text.add(token)
        if every or token % 3 == 0:
            parts.append(text.take_part(final=False))
    parts.append(text.take_part(final=True))
    assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=True).strip()


@given(st.text("ab ", max_size=30), st.lists(st.text("ab ", min_size=1, max_size=3), max_size=2))
@settings(deadline=None)
def test_an_answer_ends_before_a_stop_text(answer: str, stop: list[str]) -> None:
    """Of several, before the one that is complete first, as if each character were a token.

    Looked for in the text as the client gets it, where no white space stands in front. However the
    tokens lie, no part ever says what is taken back.
    """
    tokenizer = processor().tokenizer
    ids = tokenizer(answer, add_special_tokens=False).input_ids
    plain = tokenizer.decode(ids).lstrip()
    text, parts = AnswerText(tokenizer, stop), []
    for token in ids:
        stopped = text.add(token)
        parts.append(text.take_part(final=stopped))
        if stopped:
            break
    parts.append(text.take_part(final=True))
    prefixes = (plain[:end] for end in range(len(plain) + 1))
    complete = next((p for p in prefixes if any(map(p.endswith, stop))), None)
    if complete is not None:
        plain = complete.removesuffix(max(filter(complete.endswith, stop), key=len))
    assert "".join(parts) == plain.strip()
