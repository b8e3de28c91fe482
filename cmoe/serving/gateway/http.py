"""The gateway: OpenAI's HTTP interface in front of locators and executors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from ray import serve
from starlette.exceptions import HTTPException

from cmoe.common import metrics
from cmoe.serving.bases import base_of
from cmoe.serving.gateway.admission import Admission, SlotStream
from cmoe.serving.gateway.chat import ChatRequest, read_explained, read_located
from cmoe.serving.gateway.conversation import conversation
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.failures import error_response, route_error, to_request_error
from cmoe.serving.gateway.keys import Keys
from cmoe.serving.gateway.metrics import exposition, made
from cmoe.serving.gateway.pictures.memory import return_large_blocks
from cmoe.serving.gateway.prompt_builder import PromptBuilder
from cmoe.serving.gateway.protocol import (
    Answer,
    GenerationRequest,
    Usage,
    model_names,
    no_model,
)
from cmoe.serving.gateway.replicas import Handle, Replicas
from cmoe.serving.gateway.responses import ResponseRequest
from cmoe.serving.gateway.routing import Route, Routing
from cmoe.serving.gateway.sampling import warning
from cmoe.serving.messages import Reply, Sampling
from cmoe.serving.replica_port import keep_on_loopback
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store

logger = logging.getLogger("ray.serve")
PAGE = Path(__file__).with_name("page")
# The page contains all that it needs, and may connect to this service alone.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
COUNTED = (
    *(metrics.REQUESTS, metrics.REFUSED, metrics.LOCATED, metrics.UNKNOWN),
    *(metrics.PROMPT_TOKENS, metrics.ANSWER_TOKENS, metrics.REQUEST_TIME),
)
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@serve.ingress()
class Gateway:
    """Checks requests, prepares prompts, locates them, and answers in OpenAI's format.

    Args:
        config: The service.
        keys: Who may ask.
        executor: The executors.
        locator: The locators; None where the executors locate.
        writes: Whether the executors prepare pictures themselves.
        samples: The executors' `SAMPLES`.
    """

    def __init__(
        self,
        config: ServeConfig,
        keys: Keys,
        executor: Handle,
        locator: Handle | None,
        *,
        writes: bool,
        samples: frozenset[str],
    ) -> None:
        keep_on_loopback()
        return_large_blocks()
        self._limits, self._samples = config.limits, samples
        base = base_of(Store.follow(config.store), config)
        prompts = PromptBuilder(base, config.limits, writes=writes)
        self._replicas = Replicas(config, executor, locator)
        self._routing = Routing(config, prompts, self._replicas)
        self._admission = Admission(config.limits, keys, self._refuse)
        self._metrics = {metric: made(metric) for metric in COUNTED}

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve calls for the replica's own application."""
        known_host = Depends(self._admission.require_host)
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[known_host])
        app.add_exception_handler(RequestError, error_response)
        app.add_exception_handler(HTTPException, route_error)
        app.post("/v1/chat/completions")(self.complete)
        app.post("/v1/responses")(self.respond)
        app.post("/v1/locate")(self.locate)
        app.post("/v1/experts")(self.experts)
        reading: dict[str, Callable[..., Any]] = {
            "/v1/models": self.models,
            "/v1/models/{name}": self.model,
            "/healthz": self.health,
            "/readyz": self.ready,
            "/metrics": self.metrics,
            "/": self.page,
            "/examples": self.examples,
        }
        for path, answer in reading.items():
            app.api_route(path, methods=["GET", "HEAD"])(answer)
        return app

    # Answers

    async def complete(self, request: Request) -> Response:
        """A chat completion, whole or as a stream."""
        return await self._generate(request, ChatRequest)

    async def respond(self, request: Request) -> Response:
        """A response, whole or as a stream."""
        return await self._generate(request, ResponseRequest)

    async def _generate(self, request: Request, kind: type[GenerationRequest]) -> Response:
        """An answer in one of the two protocols."""
        took = partial(self._took, time.monotonic())
        async with self._admission.slot(request) as slot:
            slot.on_free(took)
            asked = kind.read(slot.body, self._limits, self._samples)
            task, headers = asked.task, warning(asked.ignored)
            made = conversation(asked.messages, self._limits, kind.MESSAGES)
            route = await self._routing.route(made, task, asked.sampling)
            if not asked.stream:
                whole = self._replicas.answer(route.request)
                slot.on_free(whole.cancel)
                answers = await whole
                answer = self._answer(asked, route, await self._checked(*answers))
                parts = sorted((reply.part for reply in answers), key=lambda part: part.index)
                usage = Usage(route.tokens, sum(part.tokens for part in parts))
                self._count(200, answer.task, usage)
                return JSONResponse(answer.whole(parts, usage), headers=headers)
            replies = self._replicas.stream(route.request)
            slot.on_free(replies.cancel)
            # A failure before the first part still gets its own status.
            first = await self._checked(await anext(aiter(replies)))
            answer = self._answer(asked, route, first)
            events = self._events(answer, route, first, replies, slot.deadline)
            return SlotStream(events, slot, headers)

    async def _checked(self, first: Reply, *further: Reply) -> Reply:
        """The first of replies without a failure, with names for the tasks in its location."""
        await self._replicas.learn_names(first)
        for reply in (first, *further):
            _require_success(reply)
        return first

    async def _events(
        self,
        answer: Answer,
        route: Route,
        first: Reply,
        replies: AsyncIterator[Reply],
        deadline: float,
    ) -> AsyncIterator[str]:
        """Server-sent events. A failure after the first is an event: the status has been sent."""
        part, open_, tokens = first.part, route.request.sampling.n, 0
        status = 499  # the client left, unless the answers come to an end
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    told = answer.add(part)
                    if part.finish:
                        open_, tokens = open_ - 1, tokens + part.tokens
                    if not open_:
                        break
                    if told:
                        yield told
                    reply = await anext(replies)
                    _require_success(reply)
                    part = reply.part
            status = 200
        except Exception as error:
            failure = to_request_error(error)
            status = failure.status
            self._metrics[metrics.REFUSED].inc(tags={"code": failure.code or ""})
            yield answer.fail(failure)
            return
        finally:
            usage = Usage(route.tokens, tokens)
            self._count(status, answer.task, usage)
        yield told + answer.end(usage)

    def _answer(self, asked: GenerationRequest, route: Route, reply: Reply) -> Answer:
        """What writes the answer: it knows which task answers, and how that was found."""
        version, location = reply.version, reply.part.location
        if route.located is not None:
            version, location = route.located.version, route.located.location
        name = self._replicas.task_name
        found: dict[str, Any] = {"task": None, "located": location is not None, "unknown": False}
        if location is not None:
            found |= {"task": name(location.task), "unknown": location.unknown}
            if location.scores:
                found["nearest"] = name(location.nearest)
                found["score"] = location.scores[location.nearest]
                found["share"] = location.shares[location.nearest]
            self._metrics[metrics.LOCATED].inc(tags={"task": found["task"] or "base"})
            if location.unknown:
                self._metrics[metrics.UNKNOWN].inc()
        elif route.request.task is not None:
            found["task"] = name(route.request.task)
        found |= {"instructed": route.instructed, "store_version": version}
        return asked.answer(version, found)

    async def locate(self, request: Request) -> dict[str, Any]:
        """How the tasks compare for a conversation."""
        async with self._admission.slot(request) as slot:
            messages = read_located(slot.body)
            located = await self._routing.locate(conversation(messages, self._limits))
            location, name = located.location, self._replicas.task_name
            names = await self._replicas.task_names(len(location.scores))
            rows = zip(names, location.shares, location.scores, strict=False)
            return {
                "object": "cmoe.location",
                "task": name(location.task),
                "nearest": name(location.nearest),
                "unknown": location.unknown,
                "tasks": [{"task": n, "share": p, "score": s} for n, p, s in rows],
                "store_version": located.version,
            }

    async def experts(self, request: Request) -> dict[str, Any]:
        """Whose experts work on a conversation, where a task is named: a pass over its prompt."""
        async with self._admission.slot(request) as slot:
            task, messages = read_explained(slot.body)
            made = conversation(messages, self._limits)
            route = await self._routing.route(made, task, Sampling(1))
            asked, index = route.request, route.request.task
            assert index is not None
            shares = await self._replicas.whose_experts(asked.prompt, index)
            if shares is None:
                told = "this service's executor can't tell whose experts work"
                raise RequestError(400, told, code="unsupported")
            names = await self._replicas.task_names(len(shares))
            rows = zip(names, shares, strict=False)
            return {
                "object": "cmoe.experts",
                "task": task,
                "tasks": [{"task": name, "share": share} for name, share in rows],
            }

    def _count(self, status: int, task: str, usage: Usage) -> None:
        self._metrics[metrics.REQUESTS].inc(tags={"task": task, "status": str(status)})
        for metric, tokens in (
            (metrics.PROMPT_TOKENS, usage.prompt),
            (metrics.ANSWER_TOKENS, usage.answer),
        ):
            if tokens:
                self._metrics[metric].inc(tokens, {"task": task})

    def _refuse(self, error: RequestError) -> None:
        self._metrics[metrics.REQUESTS].inc(tags={"task": "", "status": str(error.status)})
        self._metrics[metrics.REFUSED].inc(tags={"code": error.code or ""})

    def _took(self, begun: float) -> None:
        self._metrics[metrics.REQUEST_TIME].observe(time.monotonic() - begun)

    # Models

    async def models(self, request: Request) -> dict[str, Any]:
        """`cmoe`, which locates, and one model for each task."""
        async with self._admission.slot(request):
            names = model_names(await self._replicas.latest_tasks())
            return {"object": "list", "data": [_model(name) for name in names]}

    async def model(self, request: Request, name: str) -> dict[str, Any]:
        async with self._admission.slot(request):
            tasks = await self._replicas.latest_tasks()
            if name not in model_names(tasks):
                raise no_model(name, tasks)
            return _model(name)

    # Operation

    async def health(self, request: Request) -> dict[str, Any]:
        """The state of the deployments; answers as long as the gateway lives. A client without a
        key hears only whether all is well.
        """
        found = await self._replicas.states()
        well = all(state and not state["refused"] for state in found.values())
        status = {"status": "ok" if well else "degraded"}
        try:
            self._admission.require_key(request)
        except RequestError:
            return status
        return {**status, **found}

    async def ready(self) -> Response:
        """Status 200 where every task can be answered; how old the replicas' oldest look is."""
        ready, states = await self._replicas.ready(), (await self._replicas.states()).values()
        looked = max((state["looked_s_ago"] for state in states if state), default=None)
        body = {"ready": ready, "looked_s_ago": looked}
        return JSONResponse(body, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """The metrics of the whole service, for Prometheus."""
        self._admission.require_key(request)
        return PlainTextResponse(await exposition(), media_type=PROMETHEUS)

    # The page

    async def page(self) -> Response:
        return HTMLResponse(
            _page(),
            headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"},
        )

    async def examples(self) -> list[dict[str, str]]:
        """Images and questions of the mini CoIN, one of each task."""
        from cmoe.serving.examples import examples

        return await asyncio.to_thread(examples)


@cache
def _page() -> str:
    """The page in one answer: its style and its script stand in it."""
    html, style, script = (
        (PAGE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    html = html.replace('<link rel="stylesheet" href="page.css">', f"<style>\n{style}</style>")
    return html.replace('<script src="page.js"></script>', f"<script>\n{script}</script>")


def _require_success(reply: Reply) -> None:
    if (failure := reply.part.failure) is not None:
        if reply.part.refused:
            raise RequestError(400, failure, code="invalid_value")
        logger.error("an answer failed: %s", failure)
        raise RequestError(500, "the answer failed; another try may go well", code="failed")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "cmoe"}
