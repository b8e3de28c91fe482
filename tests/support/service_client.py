"""A client of a running service: requests of any kind, and load."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import openai
import psutil
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from support.mini_store import collator
from support.service import RunningService
from torch import Tensor

from cmoe.data.batches import ChatTurn
from cmoe.data.samples import Sample
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.routers import BASE
from cmoe.serving.load import Outcome, drive

KEY = "a key for tests"
TOKENS = 12  # of an answer

Response = tuple[int, Any, Mapping[str, str]]
"""Status, JSON and headers."""


@dataclass(frozen=True)
class ServiceClient:
    """A client with an API key.

    Attributes:
        running: The service that it asks.
        key: The API key.
    """

    running: RunningService
    key: str

    @property
    def url(self) -> str:
        return self.running.url

    def openai_client(self, key: str | None = None) -> openai.OpenAI:
        """OpenAI's own client, with this key or another."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key or self.key, max_retries=0)

    def post(self, path: str, body: bytes | Iterator[bytes], **headers: str) -> Response:
        """Send a body, whatever it is made of; an empty header isn't sent."""
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self._request("POST", path, body, {k: v for k, v in sent.items() if v})

    def get(self, path: str) -> tuple[int, Any]:
        status, found, _ = self.request("GET", path)
        return status, found

    def request(self, method: str, path: str) -> Response:
        """Send a request without a body."""
        return self._request(method, path, None, {"Authorization": f"Bearer {self.key}"})

    def _request(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Response:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read()), dict(response.getheaders())
        finally:
            connection.close()

    def metrics(self) -> dict[str, float]:
        """Values of Prometheus' samples, by name and task: `name/task`."""
        headers = {"Authorization": f"Bearer {self.key}"}
        with urlopen(Request(f"{self.url}/metrics", headers=headers)) as response:
            families = text_string_to_metric_families(response.read().decode())
        return {
            f"{sample.name}/{sample.labels.get('task', '')}": sample.value
            for family in families
            for sample in family.samples
        }

    def replicas(self) -> dict[str, psutil.Process]:
        return self.running.replicas()

    def chat(self, messages: Any, **more: Any) -> Response:
        body = json.dumps({"model": "cmoe", "messages": messages} | more)
        return self.post("/v1/chat/completions", body.encode())

    def state(self, deployment: str = "executor") -> dict[str, Any]:
        """What a replica of a deployment says of itself; nothing where none does."""
        return self.get("/healthz")[1][deployment] or {}

    def drive(self, bodies: Sequence[bytes], clients: int) -> list[Outcome]:
        return drive(self.url, bodies, clients=clients, key=self.key)

    def load(
        self, bodies: Sequence[bytes], clients: int = 8
    ) -> tuple[threading.Thread, list[Outcome]]:
        """Requests of several clients, while something else happens."""
        replies: list[Outcome] = []
        thread = threading.Thread(target=lambda: replies.extend(self.drive(bodies, clients)))
        thread.start()
        return thread, replies


def asking(sample: Sample) -> list[Any]:
    """A sample's question as messages."""
    content: list[Any] = [{"type": "text", "text": sample.text}]
    if sample.images:
        with sample.images[0].open("rb") as file:
            url = "data:image/png;base64," + base64.b64encode(file.read()).decode()
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": content}]


def conversation(
    sample: Sample, turns: Sequence[tuple[str, str]], shown: int
) -> tuple[dict[str, Tensor], list[Any]]:
    """A prompt of roles and texts, and its messages; one turn shows the sample's picture first."""
    spoken = [
        ChatTurn(role, (None, text) if i == shown else (text,))
        for i, (role, text) in enumerate(turns)
    ]
    messages: list[Any] = [{"role": role, "content": text} for role, text in turns]
    (messages[shown],) = asking(replace(sample, text=turns[shown][1]))
    with sample.images[0].open("rb") as file:
        return collator().conversation(spoken, [Image.open(file).convert("RGB")]), messages


def ask(client: openai.OpenAI, sample: Sample, model: str = "cmoe", **more: Any) -> Any:
    """The service's answer to a sample's question."""
    given = {"max_tokens": TOKENS} | more
    return client.chat.completions.create(model=model, messages=asking(sample), **given)


def answer_alone(
    model: GrowingVLM, sample: Sample, task: int | str | None = None
) -> tuple[str, str | None]:
    """Answer and task of a sample alone, by the base's own `generate`; no task for the base."""
    return answer_to(model, collator().prompts([sample]), task)


def answer_to(
    model: GrowingVLM,
    inputs: dict[str, Tensor],
    task: int | str | None = None,
    tokens: int = TOKENS,
) -> tuple[str, str | None]:
    """The same for a prompt."""
    found = model.generate(inputs, task, max_new_tokens=tokens, do_sample=False)
    new = found.sequences[:, inputs["input_ids"].shape[1] :]
    (text,) = collator().tokenizer.batch_decode(new, skip_special_tokens=True)
    (by,) = found.tasks
    return text.strip(), None if by == BASE else model.tasks[by]
