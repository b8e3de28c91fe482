"""LiteLLM, as its documentation shows an endpoint that is compatible with OpenAI's."""

import json
import sys

import litellm

asked = json.load(sys.stdin)
model = f"openai/{asked['model']}"


def chats() -> dict[str, str]:
    found = {}
    chat = {"model": model, "max_tokens": asked["tokens"]}
    messages = [{"role": "user", "content": asked["question"]}]
    completion = litellm.completion(messages=messages, **chat)
    found["text"] = completion.choices[0].message.content
    picture = {"type": "image_url", "image_url": {"url": asked["picture"]}}
    parts = [picture, {"type": "text", "text": asked["question"]}]
    messages = [{"role": "user", "content": parts}]
    completion = litellm.completion(messages=messages, tools=[], **chat)
    found["picture"] = completion.choices[0].message.content
    stream = litellm.completion(messages=messages, stream=True, **chat)
    found["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    messages.append(completion.choices[0].message)
    messages.append({"role": "user", "content": asked["further"]})
    completion = litellm.completion(messages=messages, **chat)
    found["further"] = completion.choices[0].message.content
    return found


def responses() -> dict[str, str]:
    found = {}
    respond = {"model": model, "max_output_tokens": asked["tokens"]}
    found["text"] = litellm.responses(input=asked["question"], **respond).output_text
    picture = {"type": "input_image", "image_url": asked["picture"]}
    parts = [picture, {"type": "input_text", "text": asked["question"]}]
    history = [{"role": "user", "content": parts}]
    response = litellm.responses(input=history, **respond)
    found["picture"] = response.output_text
    stream = litellm.responses(input=history, stream=True, **respond)
    texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
    found["streamed"] = "".join(texts)
    history += response.output
    history.append({"role": "user", "content": asked["further"]})
    found["further"] = litellm.responses(input=history, **respond).output_text
    return found


def errors() -> list[list[object]]:
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    try:
        litellm.completion(model=model, messages=[{"role": "user", "content": [broken]}])
    except litellm.BadRequestError as error:
        return [[error.status_code, error.message]]
    return []


answers = {"chats": chats(), "responses": responses()}
print(json.dumps({"answers": answers, "errors": errors()}))
