"""Messages as clients write them become turns, and a mistake in one is named by its path."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.chat_bodies import ASKING, LIMITS, PICTURE, URL, read, said, talk

from cmoe.data.batches import ChatTurn
from cmoe.serving.gateway.conversation import ImageUrl, conversation, instructed, question
from cmoe.serving.gateway.errors import RequestError

QUESTION: Any = ASKING["messages"][0]
FURTHER = {"role": "user", "content": "And then?"}
SPOKEN = st.one_of(st.none(), st.text("ab ", max_size=3), st.just([PICTURE]))


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def shape(*messages: Any) -> list[tuple[str, tuple[str | None, ...]]]:
    return [(turn.role, turn.parts) for turn in talk(*messages).turns]


def refusal(*messages: Any) -> RequestError:
    with pytest.raises(RequestError) as error:
        talk(*messages)
    assert error.value.message.startswith(f"{error.value.param}: ")
    return error.value


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (
            [{"type": "txt", "text": "a"}],
            '.0.type is "txt"; text or image_url; did you mean text?',
        ),
        (
            [{"type": "text", "text": "a"}, {"type": "img_url", "image_url": {"url": URL}}],
            '.1.type is "img_url"; text or image_url; did you mean image_url?',
        ),
        ([{"type": "input_audio", "input_audio": {}}], '.0.type is "input_audio"; text or image_'),
        ([{"text": "a"}], ".0.type is missing; text or image_url"),
        ([{"type": "text"}], ".0.text is missing"),
        ([{"type": "text", "text": 5}], ".0.text is a number; a string"),
        ([{"type": "text", "text": ["a"]}], ".0.text is a list; a string"),
        ([{"type": "image_url"}], ".0.image_url is missing"),
        ([{"type": "image_url", "image_url": {}}], ".0.image_url.url is missing"),
        ([{"type": "image_url", "image_url": URL}], '.0.image_url is a string; an object, {"url"'),
        ([{"type": "image_url", "image_url": {"url": 5}}], ".0.image_url.url is a number; a str"),
        (
            [{"type": "image_url", "image_url": {"url": URL, "detail": "hi"}}],
            '.0.image_url.detail is "hi"; auto, low or high; did you mean high?',
        ),
        (["a"], ".0 is a string; an object with type, text or image_url"),
        ([], " has 0 items; at least 1 item"),
        (5, " is a number; a string, or a list of parts"),
        ({"type": "text"}, " is an object; a string, or a list of parts"),
        ("half a \ud800 pair", " holds half of a surrogate pair"),
    ],
)
def test_a_mistake_in_content_is_named_by_its_path(content: Any, cause: str) -> None:
    assert said([{"role": "user", "content": content}]).startswith(f"messages.0.content{cause}")


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ({"role": "user", "contents": "a"}, ": messages.0.contents; did you mean content?"),
        ({"role": "usr", "content": "a"}, 'messages.0.role is "usr"; system, developer, user or'),
        ({"role": "tool", "content": "a"}, 'messages.0.role is "tool"; system'),
        ({"content": "a"}, "messages.0.role is missing"),
        ({"role": "user"}, "messages.0.content is missing"),
        ({"role": "user", "content": "a", "name": 5}, "messages.0.name is a number; a string"),
        ({"role": "assistant", "content": "a", "refusal": "no"}, 'messages.0.refusal is "no"'),
        ({"role": "assistant", "tool_calls": [{}]}, "messages.0.tool_calls is [{}]; the model"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]},
            "Unrecognized request argument supplied: messages.0.content.0.cache_control",
        ),
        (
            {"role": "user", "content": [PICTURE | {"image_url": {"uri": URL}}]},
            "messages.0.content.0.image_url.uri; did you mean url?",
        ),
        ("hello", "messages.0 is a string; an object"),
    ],
)
def test_a_mistake_in_a_message_is_named_by_its_path(message: Any, cause: str) -> None:
    assert cause in said([message])


def test_an_assistant_may_have_said_nothing() -> None:
    question, further = QUESTION, FURTHER
    for nothing in ({}, {"content": None}, {"content": ""}):
        assert talk(question, {"role": "assistant"} | nothing, further).turns[1].parts == ("",)


def test_a_picture_keeps_its_turn_and_its_place() -> None:
    first = {"role": "user", "content": "One?"}
    yes = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
    asked = {"type": "text", "text": "And this?"}
    for content, parts in (
        ([PICTURE, asked], (None, "And this?")),
        ([asked, PICTURE], ("And this?", None)),
        ([asked, PICTURE, asked], ("And this?", None, "And this?")),
        ([asked, asked, PICTURE], ("And this?\nAnd this?", None)),
    ):
        made = talk({"role": "developer", "content": [asked]}, first, yes,
                    {"role": "user", "content": content, "name": "me"})  # fmt: skip
        assert [turn.role for turn in made.turns] == ["system", "user", "assistant", "user"]
        assert made.turns[3].parts == parts
        at = f"messages.3.content.{content.index(PICTURE)}.image_url.url"
        assert made.images == [ImageUrl(URL, at)]


def test_turns_are_as_every_chat_template_has_them() -> None:
    system = {"role": "system", "content": "Be brief."}
    hello, asked = {"role": "assistant", "content": "Hi"}, ("user", ("Which?",))
    assert shape(QUESTION, FURTHER) == [("user", ("Which?\nAnd then?",))]
    assert shape(hello, QUESTION) == [("user", ("",)), ("assistant", ("Hi",)), asked]
    assert shape(QUESTION, hello, hello, FURTHER)[1] == ("assistant", ("Hi\nHi",))
    for rules in ([system, system], [system, {"role": "developer", "content": "Be brief."}]):
        told = ("system", ("Be brief.\nBe brief.",))
        assert shape(*rules, QUESTION) == [told, asked]
        assert shape(rules[0], QUESTION, rules[1]) == [told, asked]
    assert shape({"role": "system", "content": None}, QUESTION) == [asked]
    assert shape({"role": "user", "content": None}, QUESTION) == [asked]
    shown = {"role": "user", "content": [PICTURE]}
    assert shape(shown) == [("user", (None,))]
    assert shape(shown, QUESTION) == [("user", (None, "Which?"))]
    assert shape({"role": "user", "content": [PICTURE, {"type": "text", "text": " "}]})


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), SPOKEN), min_size=1))
@settings(deadline=None)
def test_any_conversation_alternates_or_is_refused(said: list[tuple[str, Any]]) -> None:
    """A system turn or none, then users and assistants in turn, and no text is lost."""
    messages = [{"role": role, "content": content} for role, content in said]
    try:
        turns = talk(*messages).turns
    except RequestError:
        assert refusal(*messages).status == 400
        return
    roles = [turn.role for turn in turns if turn.role != "system"]
    assert [turn.role for turn in turns].index("user") == len(turns) - len(roles)
    assert roles == [("user", "assistant")[i % 2] for i in range(len(roles))]
    assert roles[-1] == "user"
    texts = "".join(part or "" for turn in turns for part in turn.parts)
    written = "".join(content for _, content in said if isinstance(content, str))
    assert sorted(texts.replace("\n", "")) == sorted(written)


def test_what_no_answer_can_follow_is_refused_by_its_path() -> None:
    yes = {"role": "assistant", "content": "yes"}
    empty = {"role": "user", "content": " "}
    assert "must be a user's" in refusal(QUESTION, yes).message
    assert "must be a user's" in refusal({"role": "system", "content": "a"}).message
    for nothing in (empty, {"role": "user", "content": None}):
        assert refusal(QUESTION, yes, nothing).param == "messages.2.content"
    many = {"role": "user", "content": [part("a"), *[PICTURE] * (LIMITS.images + 1)]}
    error = refusal(many)
    place = f"messages.0.content.{LIMITS.images + 1}.image_url.url"
    assert (error.param, error.code) == (place, "too_many_images")
    error = refusal(yes | {"content": [PICTURE]}, QUESTION)
    assert error.param == "messages.0.content.0.image_url.url"
    with pytest.raises(RequestError, match="33 messages; at most 32"):
        conversation(read(messages=[QUESTION] * 33).messages, LIMITS)


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("messages", "parts"),
    [
        ([message("user", "Why?")], ("Why?",)),
        ([message("user", [PICTURE])], (None,)),
        ([message("user", [{"type": "text", "text": "Why?"}, PICTURE])], (None, "Why?")),
        ([message("system", "Be brief."), message("user", "Why?")], ("Why?",)),
        (
            [
                message("user", [PICTURE]),
                message("assistant", "A ring."),
                message("user", "Which color?"),
            ],
            (None, "Which color?"),
        ),
        ([message("user", "Look."), message("user", "Which color?")], ("Look.\nWhich color?",)),
    ],
)
def test_a_task_is_found_by_the_last_question_behind_the_picture(
    messages: list[Any], parts: tuple[str | None, ...]
) -> None:
    found = question(talk(*messages).turns)
    assert found.turns == [ChatTurn("user", parts)]
    assert found.images == slice(0, parts.count(None))


def test_a_question_is_about_what_was_shown_last() -> None:
    first = [message("user", [PICTURE, PICTURE]), message("assistant", "Rings.")]
    asked = message("user", [part("Is"), PICTURE, part("like"), PICTURE])
    own = ("Is", None, "like", None)
    for messages, parts, images in (
        ([*first, message("user", "Which?")], (None, None, "Which?"), slice(0, 2)),
        ([*first, message("user", [part("This?"), PICTURE])], (None, "This?"), slice(2, 3)),
        ([*first, asked], own, slice(2, 4)),
        ([asked], own, slice(0, 2)),
    ):
        assert question(talk(*messages).turns) == ([ChatTurn("user", parts)], images)


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("Which?", ("In short: Which?\nSay it.",)),
        ("Which?\n", ("In short: Which?\nSay it.",)),
        ([PICTURE, part("Which?")], (None, "In short: Which?\nSay it.")),
        ([part("Which?"), PICTURE, part("Say.")], ("In short: Which?", None, "Say.\nSay it.")),
        ([PICTURE], (None,)),
    ],
)
def test_an_instruction_stands_around_the_last_question(said: Any, asked: Any) -> None:
    turns = talk({"role": "system", "content": "Rules"}, {"role": "user", "content": said}).turns
    found = instructed(turns, "In short: ", "\nSay it.")
    assert [*found] == [turns[0], ChatTurn("user", asked)]
    assert instructed(turns, "", "") is turns
