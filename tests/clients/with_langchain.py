"""LangChain's ChatOpenAI, as its documentation shows it, over both protocols."""

import json
import sys

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from openai import BadRequestError

asked = json.load(sys.stdin)
picture = {"type": "image_url", "image_url": {"url": asked["picture"]}}
shown = HumanMessage(content=[picture, {"type": "text", "text": asked["question"]}])
further = HumanMessage(asked["further"])


def converse(llm: ChatOpenAI) -> dict[str, str]:
    answer = llm.bind_tools([]).invoke([SystemMessage(""), shown])
    return {
        "text": llm.invoke(asked["question"]).text,
        "picture": answer.text,
        "streamed": "".join(chunk.text for chunk in llm.stream([shown])),
        "further": llm.invoke([shown, answer, further]).text,
    }


def errors() -> list[list[object]]:
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    try:
        ChatOpenAI(model=asked["model"]).invoke([HumanMessage(content=[broken])])
    except BadRequestError as error:
        return [[error.status_code, error.message]]
    return []


chats = ChatOpenAI(model=asked["model"], max_tokens=asked["tokens"])
responses = ChatOpenAI(model=asked["model"], max_tokens=asked["tokens"], use_responses_api=True)
answers = {"chats": converse(chats), "responses": converse(responses)}
print(json.dumps({"answers": answers, "errors": errors()}))
