"""From a conversation to an executor's request: its task is found, and its instruction put back.

A task's experts were taught by prompts with the task's instruction, which people leave out. The
service knows it once it knows the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from cmoe.common.instructions import given, lacking
from cmoe.data.batches import ChatTurn
from cmoe.modeling.routers import BASE
from cmoe.serving.gateway.conversation import Conversation, instructed, question, question_text
from cmoe.serving.gateway.errors import RequestError
from cmoe.serving.gateway.prompt_builder import TOO_LONG, CountedPrompt, Loaded, PromptBuilder
from cmoe.serving.gateway.replicas import Replicas
from cmoe.serving.messages import AnswerRequest, Located, Sampling
from cmoe.serving.settings import ServeConfig


class Route(NamedTuple):
    """A request to an executor, and how it came about.

    Attributes:
        request: What the executor is asked.
        tokens: Of its prompt.
        located: The prompt's location; None where the client names the task, or where the executor
            finds it in the answering pass.
        instructed: Whether the task's instruction was put around the question.
    """

    request: AnswerRequest
    tokens: int
    located: Located | None
    instructed: bool


class Routing:
    """Makes requests of conversations.

    Args:
        config: The service.
        prompts: Makes prompts.
        replicas: Locators and executors.
    """

    def __init__(self, config: ServeConfig, prompts: PromptBuilder, replicas: Replicas) -> None:
        self._by_question = config.locate == "question"
        self._instructs = config.instruct
        self._prompts, self._replicas = prompts, replicas

    async def route(
        self, conversation: Conversation, task: str | None, sampling: Sampling
    ) -> Route:
        """The request to an executor.

        Args:
            conversation: What it is to answer.
            task: Name of the task that answers; None finds it: here, or else in the answering pass.
            sampling: How the answer is sampled; the base's context bounds its length.

        Raises:
            RequestError: There is no such task, or the conversation can't be used.
        """
        loaded = await self._prompts.load(conversation)
        turns, located = conversation.turns, None
        if task is not None:
            index = await self._replicas.index(task)
            count, prompt = index + 1, None
        else:
            first, images = self._located_by(turns)
            prompt = await self._prompts.prompt(loaded.only(images), first)
            if self._replicas.inline and first == turns and not await self._may_instruct(turns):
                return self._routed(prompt, None, 0, sampling)
            located = await self._replicas.locate(prompt.prompt)
            index, count = located.location.task, len(located.location.scores)
            prompt = prompt if first == turns else None
        better = await self._instructed(loaded, turns, index)
        whole = better or prompt or await self._prompts.prompt(loaded, turns)
        route = self._routed(whole, index, count, sampling)
        return route._replace(located=located, instructed=better is not None)

    async def locate(self, conversation: Conversation) -> Located:
        """The location of a conversation; errors as in `route`."""
        loaded = await self._prompts.load(conversation)
        turns, images = self._located_by(conversation.turns)
        prompt = await self._prompts.prompt(loaded.only(images), turns)
        return await self._replicas.locate(prompt.prompt)

    def _routed(
        self, prompt: CountedPrompt, task: int | None, min_tasks: int, sampling: Sampling
    ) -> Route:
        bounded = replace(sampling, max_tokens=min(sampling.max_tokens, prompt.room))
        asked = prompt.prompt if prompt.written is None else prompt.written
        return Route(AnswerRequest(asked, task, min_tasks, bounded), prompt.tokens, None, False)

    def _located_by(self, turns: Sequence[ChatTurn]) -> tuple[Sequence[ChatTurn], slice]:
        """What a conversation is located by: turns, and which of the images they have."""
        return question(turns) if self._by_question else (turns, slice(None))

    async def _may_instruct(self, turns: Sequence[ChatTurn]) -> bool:
        """Whether the question may get an instruction once its task is found."""
        if not self._instructs:
            return False
        await self._replicas.task_names(1)
        known = self._replicas.instructions
        return any(known) and not given(question_text(turns), known)

    async def _instructed(
        self, loaded: Loaded, turns: Sequence[ChatTurn], task: int
    ) -> CountedPrompt | None:
        """The prompt with the usual instruction of the task that answers around the last question;
        None where the task has none, where the question has any task's, or where it doesn't fit.
        """
        known = self._replicas.instructions
        own = None if task == BASE or not self._instructs else known[task]
        asked = instructed(turns, *lacking(question_text(turns), own, known))
        if asked is turns:
            return None
        try:
            return await self._prompts.prompt(loaded, asked)
        except RequestError as error:
            if error.code != TOO_LONG:
                raise
            return None
