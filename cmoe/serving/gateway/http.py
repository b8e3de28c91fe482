"""The gateway: HTTP on one side, locator and executors on the other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Histogram
from starlette.exceptions import HTTPException

from cmoe.data.batches import Collator, ConversationError, ReservedTokenError
from cmoe.data.image_limits import limits_of
from cmoe.modeling.pretrained import load_config, load_processor
from cmoe.modeling.routers import BASE
from cmoe.serving.engines.builtin.decoding import context_of, require_servable
from cmoe.serving.engines.builtin.store_follower import model_of
from cmoe.serving.gateway import protocol
from cmoe.serving.gateway.completion import DONE, Completion, event
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.images import decoded, opened, picture_bytes
from cmoe.serving.gateway.keys import Keys
from cmoe.serving.gateway.limits import Border, HeldStream, as_refusal, not_found, refused
from cmoe.serving.gateway.metrics import BOUNDS, exposition
from cmoe.serving.messages import Arrays, Located, Question, Said
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store

Handle = DeploymentHandle[Any]
T = TypeVar("T")

logger = logging.getLogger("ray.serve")
PAGE = Path(__file__).with_name("page.html")
# The page brings all that it needs; it may speak to nobody but this service.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
INLINE = 200_000  # pixels of a picture, or bytes of its file, that take a few milliseconds
HEALTH_S = 2.0  # until a deployment that doesn't say how it is counts as away


class Prepared(NamedTuple):
    """A request on its way: the prompt and how many tokens it has."""

    prompt: Arrays
    tokens: int


class Way(NamedTuple):
    """Who answers a request: what the executor is asked, and what is known of the task."""

    question: Question
    located: Located | None


@serve.ingress()
class Gateway:
    """Checks, prepares, locates, asks, and answers in OpenAI's terms."""

    def __init__(
        self,
        config: ServeConfig,
        keys: Keys,
        executor: Handle,
        locator: Handle | None,
    ) -> None:
        self.config, self.limits = config, config.limits
        self._executor, self._locator = executor, locator or executor
        self._inline = locator is None
        named = model_of(Store.follow(config.store), config)
        base = load_config(named.path, revision=named.revision)
        require_servable(base)
        self._context = context_of(base)
        processor = load_processor(named.path, revision=named.revision, pad=named.pad)
        self._collator = Collator(processor, self._context, 1)
        self._image_limits = limits_of(processor, self.limits.image)
        # What arrives while the locators are busy goes there together: a call costs more than a
        # further prompt in it, and a pass of many little more than one of one.
        self._batched: Any = serve.batch(
            max_batch_size=config.batch,
            batch_wait_timeout_s=0.0,
            max_concurrent_batches=config.locating,
        )(self._locate)
        self._tasks: tuple[str, ...] = ()
        self._asking, self._asked = asyncio.Lock(), -HEALTH_S
        self._known: Mapping[str, dict[str, Any] | None] = {}
        self._requests = Counter(
            "cmoe_requests",
            "Requests answered, by task and status.",
            ("task", "status"),  # type: ignore[arg-type]
        )
        self._seconds = Histogram(
            "cmoe_locate_seconds", "Seconds from a prompt's arrival to its task.", BOUNDS
        )
        self._unknown = Counter("cmoe_unknown", "Located prompts that no task claims.")
        self._border = Border(config.limits, keys, self._count)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve calls for the replica's own application."""
        app = FastAPI(title="cmoe", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_exception_handler(RequestError, refused)
        app.add_exception_handler(HTTPException, not_found)
        app.post("/v1/chat/completions")(self.complete)
        app.post("/v1/locate")(self.locate)
        app.get("/v1/models")(self.models)
        app.get("/v1/models/{name}")(self.model)
        app.get("/healthz")(self.health)
        app.get("/readyz")(self.ready)
        app.get("/metrics")(self.metrics)
        app.get("/")(self.page)
        app.get("/examples")(self.examples)
        return app

    # Answering

    async def complete(self, request: Request) -> Response:
        async with self._border.answering(request) as place:
            wanted = protocol.ChatRequest.read(await self._border.body(request))
            asked = protocol.asked(wanted, self.limits)
            talk = protocol.conversation(wanted.messages, self.limits)
            prepared = await self._prepared(talk, asked.tokens)
            way = await self._way(prepared, asked)
            if not wanted.stream:
                answer: Any = self._executor.answer.remote(way.question)
                place.leaving(answer.cancel)
                said: Said = await self._named(await answer)
                return self._whole(wanted, prepared, way, said)
            streaming: Any = self._executor.options(stream=True)
            answer = streaming.stream.remote(way.question)
            place.leaving(answer.cancel)
            # What fails before the first part still has its status.
            first: Said = await self._named(await anext(aiter(answer)))
            _require_success(first)
            place.kept = True
            sse = self._stream(wanted, prepared, way, first, answer, place.deadline)
            return HeldStream(sse, place.leave)

    async def locate(self, request: Request) -> dict[str, Any]:
        """The posterior over tasks of a conversation."""
        async with self._border.answering(request):
            messages = protocol.read_located(await self._border.body(request))
            talk = protocol.conversation(messages, self.limits)
            prepared = await self._prepared(talk, 1)
            located = await self._located(prepared)
            names = await self._names(len(located.scores))
            rows = zip(names, located.posterior, located.scores, strict=False)
            return {
                "object": "cmoe.location",
                "task": self._name(located.task),
                "nearest": self._name(located.nearest),
                "unknown": located.unknown,
                "tasks": [{"task": n, "probability": p, "score": s} for n, p, s in rows],
                "store_version": located.version,
            }

    async def _prepared(self, talk: protocol.Conversation, answer: int) -> Prepared:
        """The prompt of a conversation, as the base reads it."""
        picture, pixels = None, 0
        for url in talk.pictures:
            data = await picture_bytes(url, self.limits)
            header = await self._run(len(data), opened, data, self._image_limits)
            pixels = self._image_limits.resizing.pixels(*header.size)
            picture = await self._run(pixels, decoded, header)
        try:
            make = self._collator.conversation
            prompt = await self._run(pixels, make, talk.turns, picture)
        except (ReservedTokenError, ConversationError) as error:
            raise RequestError(400, str(error), code="invalid_text", param="messages") from error
        except ValueError as error:  # the processor's own, about whatever it met
            logger.warning("a prompt can't be prepared: %r", error)
            raise RequestError(400, "the prompt can't be prepared", param="messages") from error
        tokens = prompt["input_ids"].shape[1]
        limit = min(self.limits.prompt_tokens, self._context - answer)
        if tokens > limit:
            raise RequestError(
                400,
                f"the prompt has {tokens} tokens; with an answer of up to {answer} at most {limit}",
                code="context_length_exceeded",
                param="messages",
            )
        return Prepared({name: t.numpy() for name, t in prompt.items()}, tokens)

    async def _run(self, size: int, call: Callable[..., T], *arguments: Any) -> T:
        """Prepare something: large pictures beside other requests, small ones at once, as handing
        them to a thread and back takes longer than they do.
        """
        if size > INLINE:
            return await asyncio.to_thread(call, *arguments)
        return call(*arguments)

    async def _way(self, prepared: Prepared, asked: protocol.Asked) -> Way:
        """Locate a prompt, unless its task is named or the answering pass does it."""
        located, task, tasks = None, None, 0
        if asked.task is not None:
            names = self._tasks
            if asked.task not in names:
                names = await self._names(len(names) + 1)
            if asked.task not in names:
                raise protocol.no_model(f"{protocol.MODEL}:{asked.task}", names)
            task = names.index(asked.task)
            tasks = task + 1
        elif not self._inline:
            located = await self._located(prepared)
            task, tasks = located.task, len(located.scores)
        question = Question(
            prepared.prompt,
            task,
            tasks,
            asked.tokens,
            asked.temperature,
            asked.top_p,
            asked.seed,
            asked.stop,
        )
        return Way(question, located)

    async def _located(self, prepared: Prepared) -> Located:
        start = time.monotonic()
        located: Located = await self._batched(prepared.prompt)
        self._seconds.observe(time.monotonic() - start)
        if len(await self._names(len(located.scores))) < len(located.scores):
            raise RequestError(503, "a new task is on its way; try again", retry_after=1)
        return located

    async def _locate(self, prompts: list[Arrays]) -> list[Located]:
        located: list[Located] = await self._locator.locate.remote(prompts)
        return located

    async def _named(self, said: Said) -> Said:
        """What an executor said, once the tasks that it located among have names here."""
        if said.located is not None:
            await self._names(len(said.located.scores))
        return said

    async def _names(self, needed: int) -> tuple[str, ...]:
        """Names of the tasks; asks for those that this gateway hasn't heard of."""
        if len(self._tasks) < needed:
            state = await self._locator.state.remote(needed)
            self._tasks = max(self._tasks, tuple(state["tasks"]), key=len)
        return self._tasks

    def _name(self, task: int) -> str | None:
        return None if task == BASE else self._tasks[task]

    # What is said

    def _whole(
        self, wanted: protocol.ChatRequest, prepared: Prepared, way: Way, said: Said
    ) -> Response:
        _require_success(said)
        completion = self._completion(wanted, way, said)
        self._count(200, completion.task)
        assert said.finish is not None
        found = completion.whole(said.text, said.finish, prepared.tokens, said.tokens)
        return JSONResponse(found)

    async def _stream(
        self,
        wanted: protocol.ChatRequest,
        prepared: Prepared,
        way: Way,
        first: Said,
        parts: AsyncIterator[Said],
        deadline: float,
    ) -> AsyncIterator[str]:
        """Server-sent events. A failure behind the first is one of them: the status has gone."""
        completion, said = self._completion(wanted, way, first), first
        yield completion.chunk(first.text, None, first=True)
        status = 499  # the client left, unless it comes to an end
        try:
            async with asyncio.timeout_at(deadline):
                while not said.finish:
                    said = await anext(parts)
                    _require_success(said)
                    if said.text and not said.finish:
                        yield completion.chunk(said.text, None, first=False)
            status = 200
        except Exception as error:
            refusal = as_refusal(error)
            status = refusal.status
            yield event(refusal.body())
            return
        finally:
            self._count(status, completion.task)
        yield completion.chunk("" if said is first else said.text, said.finish, first=False)
        if wanted.usage:
            yield completion.spent(prepared.tokens, said.tokens)
        yield DONE

    def _completion(self, wanted: protocol.ChatRequest, way: Way, said: Said) -> Completion:
        located = way.located or said.located
        found: dict[str, Any] = {"task": None, "located": located is not None, "unknown": False}
        version = said.version
        if located is not None:
            version, nearest = located.version, located.nearest
            found |= {"task": self._name(located.task), "unknown": located.unknown}
            if located.scores:
                found["nearest"] = self._name(nearest)
                found["score"] = located.scores[nearest]
                found["probability"] = located.posterior[nearest]
            if located.unknown:
                self._unknown.inc()
        elif way.question.task is not None:
            found["task"] = self._name(way.question.task)
        found["store_version"] = version
        return Completion(wanted.model, version, found, counted=wanted.usage)

    def _count(self, status: int, task: str = "") -> None:
        self._requests.inc(tags={"task": task, "status": str(status)})

    # What there is

    async def models(self, request: Request) -> dict[str, Any]:
        async with self._border.answering(request):
            state = await self._locator.state.remote()
            names = [protocol.MODEL, *(f"{protocol.MODEL}:{task}" for task in state["tasks"])]
            return {"object": "list", "data": [_model(name) for name in names]}

    async def model(self, request: Request, name: str) -> dict[str, Any]:
        async with self._border.answering(request):
            _, colon, task = name.partition(":")
            state = await self._locator.state.remote()
            if name != protocol.MODEL and not (
                name.startswith(f"{protocol.MODEL}{colon}") and task in state["tasks"]
            ):
                raise protocol.no_model(name, state["tasks"])
            return _model(name)

    async def health(self, request: Request) -> dict[str, Any]:
        """How the deployments are; answers as long as the gateway lives. Who has no key is told no
        more than that.
        """
        found = await self._states()
        whole = all(state and not state["refused"] for state in found.values())
        said = {"status": "ok" if whole else "degraded"}
        try:
            self._border.admit(request)
        except RequestError:
            return said
        return {**said, **found}

    async def ready(self) -> Response:
        """200 where requests can be answered."""
        there = all((await self._states()).values())
        return JSONResponse({"ready": there}, 200 if there else 503)

    async def _states(self) -> Mapping[str, dict[str, Any] | None]:
        """What a replica of each deployment has; asked once in a while, whoever wants to know."""
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if now - self._asked > HEALTH_S / 2:
                handles = {"executor": self._executor, "locator": self._locator}
                if self._inline:
                    del handles["locator"]
                states = await asyncio.gather(*map(_state, handles.values()))
                self._known = dict(zip(handles, states, strict=True))
                self._asked = asyncio.get_running_loop().time()
        return self._known

    async def metrics(self, request: Request) -> Response:
        """Prometheus' figures of the whole service."""
        self._border.admit(request)
        return PlainTextResponse(await exposition(), media_type=PROMETHEUS)

    # The page

    async def page(self) -> Response:
        return HTMLResponse(
            PAGE.read_text(encoding="utf-8"),
            headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"},
        )

    async def examples(self) -> list[dict[str, str]]:
        """Pictures and questions of the mini CoIN, one of each task."""
        from cmoe.serving.gateway.examples import examples

        return await asyncio.to_thread(examples)


def _require_success(said: Said) -> None:
    if said.failure is not None:
        logger.error("an answer failed: %s", said.failure)
        raise RequestError(500, "the answer failed; another try may go well", code="failed")


async def _state(handle: Handle) -> dict[str, Any] | None:
    async def asked() -> Any:
        return await handle.state.remote()

    state: Awaitable[Mapping[str, Any]] = asked()
    try:
        return dict(await asyncio.wait_for(state, HEALTH_S))
    except Exception:  # whatever became of it, it isn't there
        return None


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "cmoe"}
