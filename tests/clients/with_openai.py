"""OpenAI's Python client, as its README shows it: chats, pictures, turns, streams, responses."""

import json
import sys

from openai import BadRequestError, NotFoundError, OpenAI

asked = json.load(sys.stdin)
client = OpenAI()  # OPENAI_BASE_URL, OPENAI_API_KEY


def chats() -> dict[str, str]:
    found = {}
    chat = {"model": asked["model"], "max_tokens": asked["tokens"]}
    messages = [{"role": "user", "content": asked["question"]}]
    completion = client.chat.completions.create(messages=messages, **chat)
    found["text"] = completion.choices[0].message.content
    picture = {"type": "image_url", "image_url": {"url": asked["picture"]}}
    parts = [picture, {"type": "text", "text": asked["question"]}]
    messages = [{"role": "user", "content": parts}]
    completion = client.chat.completions.create(messages=messages, tools=[], **chat)
    found["picture"] = completion.choices[0].message.content
    stream = client.chat.completions.create(messages=messages, stream=True, **chat)
    found["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    messages.append(completion.choices[0].message)
    messages.append({"role": "user", "content": asked["further"]})
    completion = client.chat.completions.create(messages=messages, **chat)
    found["further"] = completion.choices[0].message.content
    return found


def responses() -> dict[str, str]:
    found = {}
    respond = {"model": asked["model"], "max_output_tokens": asked["tokens"]}
    found["text"] = client.responses.create(input=asked["question"], **respond).output_text
    picture = {"type": "input_image", "image_url": asked["picture"], "detail": "auto"}
    parts = [picture, {"type": "input_text", "text": asked["question"]}]
    history = [{"role": "user", "content": parts}]
    response = client.responses.create(input=history, tools=[], store=False, **respond)
    found["picture"] = response.output_text
    stream = client.responses.create(input=history, stream=True, **respond)
    texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
    found["streamed"] = "".join(texts)
    history += response.output
    history.append({"role": "user", "content": asked["further"]})
    found["further"] = client.responses.create(input=history, **respond).output_text
    return found


def errors() -> list[list[object]]:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    messages = [{"role": "user", "content": [picture]}]
    found = []
    try:
        client.chat.completions.create(model=asked["model"], messages=messages)
    except BadRequestError as error:
        found.append([error.status_code, error.message])
    try:
        client.embeddings.create(model=asked["model"], input="a")
    except NotFoundError as error:
        found.append([error.status_code, error.message])
    return found


answers = {"chats": chats(), "responses": responses()}
print(json.dumps({"answers": answers, "errors": errors()}))
