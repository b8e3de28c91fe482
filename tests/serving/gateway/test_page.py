"""The page in a real browser, against the real service; its executor locates."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect
from support.looks import require_good_looks, require_touchable
from support.service import RunningService, running_service, service_file
from support.service_client import TOKENS, answer_alone, asking

from cmoe.data.samples import Task
from cmoe.modeling.pretrained import load_base
from cmoe.modeling.settings import MINI_BASE
from cmoe.store.log import Store
from cmoe.store.model import load_model

WAIT_MS = 30_000
COMPLETIONS = "/v1/chat/completions"
expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, stores: dict[str, Store]
) -> Iterator[RunningService]:
    """Without API keys and without a locator deployment: the answering pass finds the task."""
    file = service_file(tmp_path_factory.mktemp("inline"), deployments=("gateway", "executor"))
    store = stores["inline"].url
    with running_service(store, "--config", str(file), "--no-auth") as running:
        yield running


class Visit:
    """The page, loaded anew, and what it did.

    Attributes:
        page: As Playwright drives it.
        requests: What it asked the service for, in order.
        errors: What its console says is wrong.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.requests: list[Request] = []
        self.errors: list[str] = []
        page.set_default_timeout(WAIT_MS)
        page.on("request", lambda request: self.requests.append(request))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._console)
        page.goto(url)
        expect(page.locator("#examples button")).to_have_count(8)
        expect(page.locator("#model option")).to_have_count(4)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def asked(self) -> list[dict[str, Any]]:
        """Bodies of the requests for an answer."""
        sent = [r for r in self.requests if urlsplit(r.url).path == COMPLETIONS]
        return [json.loads(r.post_data or "") for r in sent]

    def origins(self) -> set[str]:
        """Whom it spoke to."""
        urls = [urlsplit(r.url) for r in self.requests]
        return {f"{u.scheme}://{u.netloc}" for u in urls if u.scheme not in ("data", "blob")}

    def answers_next(self, status: int, body: str, **headers: str) -> None:
        """Let the next request for an answer be answered like this."""

        def fulfill(route: Route) -> None:
            route.fulfill(status=status, body=body, headers=headers)

        self.page.route(f"**{COMPLETIONS}", fulfill, times=1)

    def ask(self, question: str) -> None:
        self.page.get_by_label("Question", exact=True).fill(question)
        self.page.get_by_role("button", name="Ask", exact=True).click()


@pytest.fixture
def visit(browser: Browser, service: RunningService) -> Iterator[Visit]:
    """A page that has spoken to the service alone, and had nothing to complain of."""
    page = browser.new_page()
    visit = Visit(page, service.url)
    yield visit
    page.close()
    assert visit.origins() == {service.url}
    assert visit.errors == []


def percents(page: Page) -> list[float]:
    """What the bars say."""
    expect(page.locator("#tasks li")).to_have_count(3)
    return [
        float(found)
        for text in page.locator("#tasks li").all_inner_texts()
        for found in re.findall(r"([\d.]+)%", text)
    ]


def error(message: str) -> str:
    kind = {"type": "", "param": None, "code": None}
    return json.dumps({"error": {"message": message, **kind}})


def chunk(text: str, finish: str | None = None, **more: Any) -> str:
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]
    return f"data: {json.dumps({'choices': choices, **more}, ensure_ascii=False)}\n\n"


def answered(text: str) -> str:
    return chunk(text) + chunk("", "stop") + "data: [DONE]\n\n"


def test_an_example_is_shown_located_and_answered(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="example of ScienceQA").click()
    expect(page.get_by_role("img", name="The picture")).to_be_visible()
    expect(page.get_by_label("Question", exact=True)).to_have_value(re.compile(r"\S"))
    expect(page.locator("#answer")).to_have_text(re.compile(r"\S"))
    expect(page.locator("#task")).to_have_text(re.compile(r"^ScienceQA, \d+\.\d%$"))
    assert sum(percents(page)) == pytest.approx(100, abs=0.2)
    expect(page.locator("#tasks .claims")).to_contain_text("ScienceQA")
    expect(page.locator("#experts .claims")).to_have_text("ScienceQA100.0%")
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
    (asked,) = visit.asked()
    assert (asked["model"], asked["stream"]) == ("cmoe", True)
    picture, text = asked["messages"][0]["content"]
    assert picture["image_url"]["url"] == page.locator("#shown").get_attribute("src")
    assert text["text"] == page.get_by_label("Question", exact=True).input_value()


def test_a_question_that_no_task_claims_is_said_to_be_the_bases(visit: Visit) -> None:
    visit.ask("What is this?")
    expect(visit.page.locator("#task")).to_have_text("No task claims this question")
    expect(visit.page.locator("#why")).to_contain_text("The base model alone answers")
    expect(visit.page.locator("#answer")).to_have_text(re.compile(r"\S"))
    stood = [visit.page.locator(f"#{part}").bounding_box() for part in ("task", "why", "answer")]
    tops = [box["y"] for box in stood if box]
    assert tops == sorted(tops), "who answers is said before what"
    assert len(tops) == 3
    assert sum(percents(visit.page)) == pytest.approx(100, abs=0.2)
    expect(visit.page.locator("#tasks .claims")).to_have_count(0)
    expect(visit.page.locator("#worked")).to_be_hidden()


def test_files_that_are_chosen_dropped_or_pasted_are_shown_and_removed(
    visit: Visit, tmp_path: Path
) -> None:
    page, file = visit.page, tmp_path / "chosen.png"
    Image.new("RGB", (40, 30), "teal").save(file)
    given = base64.b64encode(file.read_bytes()).decode()
    preview = page.get_by_role("img", name="The picture")
    page.get_by_label("Choose a picture").set_input_files(file)
    expect(page.locator("#named")).to_have_text(re.compile("chosen.png, 40.+30"))
    assert preview.get_attribute("src") == f"data:image/png;base64,{given}"
    page.get_by_role("button", name="Remove the picture").click()
    expect(preview).not_to_be_visible()
    give = """([type, name, data]) => {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const carried = new DataTransfer();
        carried.items.add(new File([bytes], name, { type: "image/png" }));
        const event = type === "drop"
            ? new DragEvent(type, { dataTransfer: carried, bubbles: true, cancelable: true })
            : new ClipboardEvent(type, { clipboardData: carried, bubbles: true });
        document.getElementById("picture").dispatchEvent(event);
    }"""
    for kind in ("drop", "paste"):
        page.evaluate(give, [kind, f"{kind}.png", given])
        expect(page.locator("#named")).to_have_text(re.compile(f"{kind}.png, 40.+30"))
        expect(preview).to_be_visible()
    page.evaluate(give, ["drop", "words.txt", base64.b64encode(b"words").decode()])
    expect(page.get_by_role("alert")).to_contain_text("words.txt isn't a picture")


def test_a_picture_larger_than_the_service_takes_is_sent_smaller(
    visit: Visit, tmp_path: Path
) -> None:
    file = tmp_path / "photo.png"
    Image.new("RGB", (4096, 1024), "teal").save(file)
    visit.page.get_by_label("Choose a picture").set_input_files(file)
    expect(visit.page.locator("#named")).to_have_text(re.compile("photo.png, 2048.+512"))
    visit.ask("What is the color of the circle?")
    expect(visit.page.locator("#answer")).to_have_text(re.compile(r"\S"))


def test_nothing_is_sent_without_a_question(visit: Visit) -> None:
    visit.ask("  ")
    expect(visit.page.get_by_role("alert")).to_contain_text("write a question")
    expect(visit.page.get_by_label("Question", exact=True)).to_be_focused()
    assert visit.asked() == []


def test_a_named_task_is_asked_with_the_keyboard_alone(visit: Visit) -> None:
    page = visit.page
    page.get_by_label("Who answers").focus()
    page.keyboard.type("Name it: V")
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("What is this?")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#task")).to_have_text("VizWiz")
    expect(page.locator("#why")).to_contain_text("you named it")
    assert [asked["model"] for asked in visit.asked()] == ["cmoe:VizWiz"]


def test_refusals_and_broken_answers_are_told_in_words(visit: Visit) -> None:
    page, alert = visit.page, visit.page.get_by_role("alert")
    visit.answers_next(429, error("too many requests at a time"), **{"Retry-After": "1"})
    visit.ask("What is this?")
    expect(alert).to_have_text(
        "The service is busy: too many requests at a time. Try again in 1 second."
    )
    visit.answers_next(200, chunk("half") + f"data: {error('the answer <b>failed</b>')}\n\n")
    visit.ask("What is this?")
    expect(alert).to_have_text("the answer <b>failed</b>.")
    expect(page.locator("#answer")).to_have_text("half")
    visit.answers_next(200, chunk("half"))
    visit.ask("What is this?")
    expect(alert).to_contain_text("broke off")
    visit.answers_next(502, "<h1>Bad gateway</h1>")
    visit.ask("What is this?")
    expect(alert).to_have_text("The service answered with status 502.")
    visit.ask("x" * 20_000)  # the service itself
    expect(alert).to_contain_text("bytes of text; at most")
    page.context.set_offline(True)
    visit.ask("What is this?")
    expect(alert).to_contain_text("can't be reached")
    page.context.set_offline(False)
    told = [text for text in visit.errors if text.startswith("Failed to load resource")]
    assert visit.errors == told, "the browser tells of each status, and the page adds nothing"
    visit.errors.clear()


def test_an_answer_cut_into_single_bytes_is_whole(visit: Visit) -> None:
    """Characters and events end where they like on the network."""
    sent = chunk("Größe ") + answered("✓ 🦊")
    visit.page.evaluate(
        """(sent) => {
            const real = window.fetch;
            window.fetch = (path, request) => path.includes("completions")
                ? Promise.resolve(new Response(new ReadableStream({ start(stream) {
                    for (const byte of new TextEncoder().encode(sent))
                        stream.enqueue(new Uint8Array([byte]));
                    stream.close();
                } })))
                : real(path, request);
        }""",
        sent,
    )
    visit.ask("What is this?")
    expect(visit.page.locator("#answer")).to_have_text("Größe ✓ 🦊")


def test_an_answer_can_be_stopped(visit: Visit) -> None:
    page = visit.page
    page.route(f"**{COMPLETIONS}", lambda route: None, times=1)  # never answered
    visit.ask("What is this?")
    expect(page.locator("#note")).to_have_text("Waiting for the service ...")
    expect(page.locator("#why")).to_have_text("Locating ...")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#why")).to_have_text("")
    expect(page.locator("#note")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Stop")).not_to_be_visible()
    visit.ask("What is this?")
    expect(page.locator("#answer")).to_have_text(re.compile(r"\S"))


def test_a_key_is_asked_for_when_it_is_needed_and_kept_in_memory_alone(visit: Visit) -> None:
    page = visit.page
    expect(page.get_by_label("API key")).not_to_be_visible()
    visit.answers_next(401, error("no API key"))
    visit.ask("What is this?")
    expect(page.get_by_role("alert")).to_have_text("no API key.")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("a-key")
    page.keyboard.press("Enter")
    expect(page.locator("#answer")).to_have_text(re.compile(r"\S"))
    expect(page.get_by_label("API key")).not_to_be_visible()
    posts = [r for r in visit.requests if urlsplit(r.url).path == COMPLETIONS]
    assert [r.headers.get("authorization") for r in posts] == [None, "Bearer a-key"]
    kept = "[Object.keys(localStorage), Object.keys(sessionStorage), document.cookie]"
    assert page.evaluate(kept) == [[], [], ""]
    assert [text for text in visit.errors if "401" not in text] == []
    visit.errors.clear()


def test_an_executor_locates_where_its_store_says_so(
    service: RunningService, stores: dict[str, Store], tasks: tuple[Task, ...]
) -> None:
    """The answering pass finds the task, and answers as the model alone does."""
    model = load_model(stores["inline"], load_base(MINI_BASE)[0])
    model.reject_unknown = True
    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    answered_by = set()
    for task in tasks:
        found: Any = client.chat.completions.create(
            model="cmoe", messages=asking(task.test[0]), max_tokens=TOKENS
        )
        text, by = answer_alone(model, task.test[0])
        assert (found.choices[0].message.content, found.cmoe["task"]) == (text, by)
        assert found.cmoe["located"]
        answered_by.add(by)
    assert len(answered_by - {None}) > 1


@pytest.mark.parametrize("size", [(400, 100), (100, 400), (60, 60)])
def test_a_box_is_drawn_where_it_lies_in_the_picture(
    visit: Visit, tmp_path: Path, size: tuple[int, int]
) -> None:
    """The picture is fitted into its place: what is beside it is no part of it."""
    page, file, box = visit.page, tmp_path / "picture.png", (0.25, 0.42, 0.58, 0.75)
    Image.new("RGB", size, "teal").save(file)
    page.get_by_label("Choose a picture").set_input_files(file)
    visit.answers_next(200, answered("[0.25, 0.42, 0.58, 0.75]"))
    visit.ask("Where is it?")
    expect(page.get_by_role("img", name="The box of the answer")).to_be_visible()
    place = page.locator("#shown").bounding_box()
    assert place
    scale = min(place["width"] / size[0], place["height"] / size[1])
    left = place["x"] + (place["width"] - scale * size[0]) / 2
    top = place["y"] + (place["height"] - scale * size[1]) / 2
    for line in page.locator("#box rect").all():
        drawn = line.evaluate("(rect) => [...Object.values(rect.getBoundingClientRect().toJSON())]")
        x, y, width, height = drawn[:4]
        found = [x - left, y - top, x + width - left, y + height - top]
        sides = [scale * size[n % 2] for n in range(4)]
        assert [f / s for f, s in zip(found, sides, strict=True)] == pytest.approx(box, abs=0.02)
    visit.answers_next(200, answered("It is teal."))
    visit.ask("And its color?")
    expect(page.locator("#answer")).to_have_text("It is teal.")
    expect(page.locator("#box")).to_have_count(0)


@pytest.mark.parametrize("said", ["3, 4", "[0.5, 0.5, 0.2, 0.9]", "[12, 30, 50, 60]", "1, 2, 3, 4"])
def test_what_is_no_box_is_not_drawn(visit: Visit, said: str) -> None:
    page = visit.page
    page.get_by_role("button", name="example of Grounding").click()
    expect(page.locator("#further")).to_be_visible()
    visit.answers_next(200, answered(said))
    visit.ask("Where is it?")
    expect(page.locator("#answer")).to_have_text(said)
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#box")).to_have_count(0)


def test_a_further_question_is_asked_behind_what_was_said(visit: Visit) -> None:
    page = visit.page
    more = page.get_by_label("Further question")
    expect(more).not_to_be_visible()
    page.get_by_role("button", name="example of ScienceQA").click()
    first = page.get_by_label("Question", exact=True).input_value()
    more.fill("Why?")
    more.press("Control+Enter")
    expect(page.locator("#turns li")).to_have_count(1)
    expect(page.locator("#further")).to_be_visible()
    expect(more).to_have_value("")
    said = page.locator("#turns .said").inner_text()
    expect(page.locator("#turns .asked")).to_have_text(first)
    more.fill("Are you sure?")
    page.get_by_role("button", name="Ask further").click()
    expect(page.locator("#turns li")).to_have_count(2)
    expect(page.locator("#asked")).to_have_text("Are you sure?")
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false")
    asked = [body["messages"] for body in visit.asked()]
    assert [[message["role"] for message in messages] for messages in asked] == [
        ["user", *["assistant", "user"] * n] for n in range(3)
    ]
    assert asked[1][0] == asked[0][0], "the picture, once"
    assert asked[1][1:] == [
        {"role": "assistant", "content": said},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    page.get_by_role("button", name="Begin anew").click()
    expect(page.locator("#turns li")).to_have_count(0)
    expect(more).not_to_be_visible()
    visit.ask("What is this?")
    expect(page.locator("#answer")).to_have_text(re.compile(r"\S"))
    assert len(visit.asked()[-1]["messages"]) == 1


def test_the_page_looks_good_everywhere(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("button", name="example of Grounding").click()
    expect(page.locator("#further")).to_be_visible()
    expect(page.locator("#tasks li")).to_have_count(3)
    require_good_looks(page, texts=30)
    page.set_viewport_size({"width": 390, "height": 800})
    require_touchable(page)
