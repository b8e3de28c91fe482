"""vLLM as an executor: an `AsyncLLM` whose worker has the store's experts in the decoder.

This module is imported where a service is started, too, and there is no vLLM there: what imports it
does so when an engine is loaded.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self
from uuid import uuid4

from PIL import Image

from cmoe.common.reference import TOKENS, Reference
from cmoe.data.batches import Collator
from cmoe.evaluation.references import reference_prompts
from cmoe.modeling.pretrained import load_config, load_processor
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import ModelConfig
from cmoe.modeling.sources import local_base
from cmoe.serving.bases import UnservedBaseError, base_of, context_of
from cmoe.serving.engines.answer_text import UNFINISHED, AnswerText
from cmoe.serving.engines.registry import register_executor
from cmoe.serving.engines.vllm import families
from cmoe.serving.engines.vllm.settings import SETTINGS, Capacity
from cmoe.serving.messages import AnswerPart, Finish, Sampling, TokenLogprob, WrittenPrompt
from cmoe.serving.prompts import to_written
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store, StoreError

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.logprobs import Logprob
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.stats import RequestStateStats

    from cmoe.serving.engines.vllm.load import Load

logger = logging.getLogger("ray.serve")

WORKER = "cmoe.serving.engines.vllm.worker.Worker"
RANK = 8  # of LoRA pairs that vLLM makes room for itself; ours have their own
LIMITS, LIMIT_16_BITS = {"float32": 0.02}, 0.3
"""Of the difference that rounding explains between logarithms of probabilities, by dtype."""
ALTERNATIVES = 5  # of each token of a reference answer: what may be as likely
PRIVATE = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
"""vLLM tells its makers nothing."""
SHARED = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_WAIT_POLICY": "passive"}
"""Other processes run on the same cores: threads that are bound to theirs, and wait for each other
without letting others run, were ten times slower. Their number is the deployment's `num_cpus`.
"""
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""By itself vLLM has a process for its scheduler and one for its model on CPUs, too, to set the
threads of the latter. `AsyncLLM` has the scheduler in a process of its own whatever this says.
"""


@register_executor("vllm")
class VllmExecutor:
    """An `Executor` that vLLM runs. A request's task is its `LoRARequest`.

    Args:
        engine: The engine.
        load: What it does at the moment.
        stuck_s: As of the settings.
    """

    WRITTEN: ClassVar[bool] = True
    SAMPLES: ClassVar[frozenset[str]] = frozenset(
        {"top_k", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"}
        | {"n", "logprobs", "json_schema"}
    )

    def __init__(self, engine: AsyncLLM, load: Load, stuck_s: float) -> None:
        self._engine, self._load, self._stuck_s = engine, load, stuck_s
        self._tokenizer = engine.get_tokenizer()
        self._penalty = engine.model_config.get_diff_sampling_param().get("repetition_penalty", 1.0)
        self._primitives: list[tuple[str, LoRARequest]] = []

    @staticmethod
    def require_servable(base: PretrainedConfig, images: int) -> None:
        families.require_servable(base, images)

    @classmethod
    async def load(cls, store: Store, config: ServeConfig) -> Self:
        os.environ.update(PRIVATE)
        alone = config.engine.vllm.tensor_parallel == 1
        for name, value in (SHARED | (ONE_PROCESS if alone else {})).items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.engine.vllm.cpu_cache_gib))
        from vllm.v1.engine.async_llm import AsyncLLM

        from cmoe.serving.engines.vllm.load import Load

        base, load = base_of(store, config), Load()
        known = load_config(base.path, revision=base.revision)
        cls.require_servable(known, config.limits.images)
        arguments = await asyncio.to_thread(_arguments, store, config, context_of(known))
        engine = await asyncio.to_thread(
            AsyncLLM.from_engine_args, arguments, stat_loggers=[load.logger]
        )
        made = cls(engine, load, config.engine.stuck_s)
        try:
            await made.grow(store)
            await made._require_reference_answers(store, base, context_of(known))
        except BaseException:
            made.close()
            raise
        return made

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(task for task, _ in self._primitives)

    @property
    def running(self) -> int:
        return self._load.running

    @property
    def waiting(self) -> int:
        return self._load.waiting

    async def submit(
        self, prompt: WrittenPrompt, task: int | None, sampling: Sampling, *, stream: bool
    ) -> AsyncGenerator[AnswerPart]:
        assert task is not None  # this executor doesn't locate
        from vllm.exceptions import VLLMClientError

        parameters = self._parameters(sampling, whole=not (stream or sampling.stop))
        same = sampling.n // parameters.n
        answers = [
            _Answer(self._tokenizer, sampling, task, index, stream) for index in range(parameters.n)
        ]
        left = len(answers)
        with self._load.answer():
            try:
                async with aclosing(self._generate(prompt, parameters, task)) as outputs:
                    async for output in outputs:
                        for new in output.outputs:
                            part = answers[new.index].read(new, output.metrics)
                            if part is None:
                                continue
                            for copy in range(same):
                                yield replace(part, index=max(new.index, copy))
                            left -= part.finish is not None
                        if not left:
                            return
            except VLLMClientError as error:  # of a schema, for example
                yield AnswerPart(failure=str(error), refused=True)

    def _generate(self, prompt: WrittenPrompt, parameters: Any, task: int) -> Any:
        primitive = None if task == BASE else self._primitives[task][1]
        return self._engine.generate(
            _inputs(prompt), parameters, uuid4().hex, lora_request=primitive
        )

    def _parameters(self, sampling: Sampling, *, whole: bool) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        schema, asked = sampling.json_schema, sampling.repetition_penalty
        return SamplingParams(
            # Answers of the likeliest tokens are all the same; vLLM gives one.
            n=1 if sampling.temperature == 0 else sampling.n,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            seed=sampling.seed,
            repetition_penalty=self._penalty if asked == 1 else asked,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            logprobs=sampling.logprobs,
            structured_outputs=schema and StructuredOutputsParams(json=schema),
            # An answer's text is read as the builtin engine's; a single token's by vLLM.
            detokenize=sampling.logprobs is not None,
            output_kind=RequestOutputKind.FINAL_ONLY if whole else RequestOutputKind.DELTA,
        )

    async def grow(self, store: Store) -> None:
        from vllm.lora.request import LoRARequest

        for record in store.records()[len(self._primitives) :]:
            request = LoRARequest(record.digest, record.index + 1, store.url)
            try:
                await self._engine.add_lora(request)
            except Exception as error:
                raise StoreError(f"{store.url}: {record.task!r} isn't taken up: {error}") from error
            self._primitives.append((record.task, request))

    async def _require_reference_answers(
        self, store: Store, base: ModelConfig, context: int
    ) -> None:
        """Compare each task's answers with those of when it was learned.

        Raises:
            UnservedBaseError: One differs by more than rounding explains.
        """
        limit = LIMITS.get(base.dtype, LIMIT_16_BITS)
        processor = await asyncio.to_thread(
            load_processor, base.path, revision=base.revision, pad=base.pad
        )
        collator = Collator(processor, context, 1)

        async def differs(task: int, reference: Reference, prompt: WrittenPrompt) -> str | None:
            sampling = Sampling(TOKENS, logprobs=ALTERNATIVES)
            parameters = self._parameters(sampling, whole=True)
            *_, last = [output async for output in self._generate(prompt, parameters, task)]
            found = last.outputs[0]
            logprobs = [{t: p.logprob for t, p in each.items()} for each in found.logprobs]
            return reference.differs(found.token_ids, logprobs, limit)

        for task, record in enumerate(store.records()):
            if not record.references:
                logger.warning("%s: has no reference answers; unchecked", record.task)
                continue
            prompts = reference_prompts(collator, record.instructions)
            told = await asyncio.gather(
                *(
                    differs(task, reference, to_written(text, images, processor, pad=base.pad))
                    for (text, images), reference in zip(prompts, record.references, strict=True)
                )
            )
            if why := next(filter(None, told), None):
                raise UnservedBaseError(
                    f"vLLM's answer to a prompt of {record.task!r} isn't the one of when it was "
                    f"learned: {why}; compare base, dtype and quantization with the run's"
                )

    def stuck(self) -> str | None:
        if self._engine.errored:
            return f"vLLM has ended: {self._engine.dead_error}"
        if (seconds := self._load.silent_s()) > self._stuck_s:
            return f"vLLM has answers under way, and no step for {seconds:.0f} s"
        return None

    def close(self) -> None:
        """End the engine's processes; answers under way are not finished."""
        self._engine.shutdown()


def arguments_of_worker(store: Store, capacity: Capacity, images: int) -> dict[str, Any]:
    """What vLLM is told so that its decoder has the store's experts.

    Args:
        store: The store.
        capacity: What there is room for.
        images: Of a prompt at most.
    """
    from cmoe.serving.engines.vllm.loading import FORMAT

    return {
        "load_format": FORMAT,
        "worker_cls": WORKER,
        "limit_mm_per_prompt": {"image": images},
        "enable_lora": True,
        "max_loras": capacity.tasks,
        "max_lora_rank": RANK,
        "additional_config": {SETTINGS: {"store": store.url, "capacity": asdict(capacity)}},
        "seed": 0,
    }


def _arguments(store: Store, config: ServeConfig, context: int) -> AsyncEngineArgs:
    """What vLLM is told."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    from cmoe.serving.engines.vllm.loading import prepare_pictures_as_trained

    prepare_pictures_as_trained()
    base, engine, limits = base_of(store, config), config.engine.vllm, config.limits
    wanted = engine.max_model_len or limits.prompt_tokens + limits.answer_tokens
    return AsyncEngineArgs(
        model=local_base(base.path, weights=True),
        revision=base.revision,
        dtype=base.dtype,
        max_model_len=min(wanted, context),
        max_num_seqs=config.engine.max_batch,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        enable_prefix_caching=engine.prefix_caching,
        quantization=engine.quantization,
        tensor_parallel_size=engine.tensor_parallel,
        distributed_executor_backend="uni" if engine.tensor_parallel == 1 else "mp",
        enforce_eager=engine.eager or current_platform.is_cpu(),
        # JSON in one line: white space would be endless where it is likely.
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
        disable_log_stats=True,
        **arguments_of_worker(store, engine.capacity, limits.images),
    )


def _inputs(prompt: WrittenPrompt) -> Any:
    if not prompt.images:
        return {"prompt": prompt.text}
    images = [Image.frombytes("RGB", each.size, each.rgb) for each in prompt.images]
    return {"prompt": prompt.text, "multi_modal_data": {"image": images}}


class _Answer:
    """An answer so far.

    Args:
        tokenizer: The base's.
        sampling: How it is sampled.
        task: Index of the primitive that answers.
        index: Which of the request's answers it is.
        stream: Whether parts of the text are wanted as they come.
    """

    def __init__(
        self, tokenizer: Any, sampling: Sampling, task: int, index: int, stream: bool
    ) -> None:
        self._text, self._most = AnswerText(tokenizer, sampling.stop), sampling.logprobs or 0
        self._arrived, self._stream = time.monotonic(), stream
        self._part = AnswerPart(task=task, index=index)
        self._logprobs: list[TokenLogprob] = []

    def read(self, new: CompletionOutput, metrics: RequestStateStats | None) -> AnswerPart | None:
        """The part that new tokens add; None where nothing is to be told yet, or any more.

        Raises:
            RuntimeError: vLLM broke the answer off.
        """
        last, now = self._part, time.monotonic() - self._arrived
        if last.finish:
            return None
        if new.finish_reason not in (None, "stop", "length"):
            raise RuntimeError(f"vLLM ended an answer with {new.finish_reason!r}")
        finish: Finish | None = new.finish_reason
        tokens = last.tokens
        for place, token in enumerate(new.token_ids):
            tokens += 1
            # The token that ends an answer is none of its text.
            if finish == "stop" and place + 1 == len(new.token_ids):
                break
            if new.logprobs:
                self._logprobs.append(_logprob(token, new.logprobs[place], self._most))
            if self._text.add(token):
                finish = "stop"
                break
        first_s, queued_s = last.first_token_s or now, 0.0
        if metrics is not None:
            first_s = metrics.first_token_latency or first_s
            queued_s = max(0.0, metrics.scheduled_ts - metrics.queued_ts)
        told = finish or self._stream
        self._part = replace(
            last,
            text=self._text.take_part(final=finish is not None) if told else "",
            tokens=tokens,
            queued_s=queued_s,
            first_token_s=first_s,
            last_token_s=now,
            finish=finish,
        )
        if not finish and not (self._stream and (self._part.text or not last.tokens)):
            return None
        part = replace(self._part, logprobs=tuple(self._logprobs))
        self._logprobs.clear()
        return part


def _logprob(token: int, found: Mapping[int, Logprob], most: int) -> TokenLogprob:
    """A token's, and those of the likeliest ones; of a part of a character no bytes are known."""
    rows = {each: (p.decoded_token or "", p.logprob) for each, p in found.items()}
    text, logprob = rows[token]
    top = sorted(rows.values(), key=lambda row: -row[1])[:most]
    return TokenLogprob(text, b"" if UNFINISHED in text else text.encode(), logprob, tuple(top))
