"""A service's settings. Its limits are in `gateway/limits.py`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from cmoe.common.bounds import require
from cmoe.modeling.settings import ModelConfig
from cmoe.serving.engines.vllm.settings import VllmConfig
from cmoe.serving.gateway.limits import LimitsConfig
from cmoe.serving.known_keys import require_known

if TYPE_CHECKING:
    from collections.abc import Mapping

LocateBy = Literal["question", "conversation"]


@dataclass(frozen=True)
class EngineConfig:
    """How an executor's replica answers.

    Attributes:
        kind: Name of the executor: `builtin`, on CPUs and GPUs, or `vllm`, in an environment that
            has it.
        max_batch: The most answers that run together.
        max_tokens: The most tokens in the batch's cache, padding included. A request waits until it
            fits, with the longest answer that it may get. Builtin alone, as are the next two.
        join_at_once: The most prompts that are read in one pass, while running answers wait.
        join_wait_s: Seconds that a prompt may wait for others to be read with, while answers run:
            reading several costs little more than reading one.
        stuck_s: Seconds that a pass may take before the replica counts as unhealthy.
        vllm: What else vLLM is told.
    """

    kind: str = "builtin"
    max_batch: int = 32
    max_tokens: int = 65_536
    join_at_once: int = 16
    join_wait_s: float = 0.03
    stuck_s: float = 60.0
    vllm: VllmConfig = field(default_factory=VllmConfig)

    def __post_init__(self) -> None:
        require(self, "engine", "max_batch", "max_tokens", "join_at_once", least=1)
        require(self, "engine", "stuck_s", above=0)
        require(self, "engine", "join_wait_s", least=0)


@dataclass(frozen=True)
class AuthConfig:
    """Who may use the service.

    Attributes:
        required: Whether a request needs an API key. If not, the service must listen on loopback
            alone.
        keys_file: A file with the sha256 of a key in hex on each line; the rest is a comment.
            The variable `CMOE_API_KEYS` may hold further keys, separated by commas.
        hosts: Names by which a service without keys may be asked, without ports, beside localhost
            and this machine's loopback addresses. With keys, every name is taken.
    """

    required: bool = True
    keys_file: str | None = None
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServeConfig:
    """A service.

    Attributes:
        store: Folder, `s3://` prefix or `hf://owner/name` of the store that answers.
        model: The store's base; null takes the one that the store was written with.
        device: Device of locators and executors; null takes the GPU where a replica has one.
        locate: What a conversation's task is found by: its last `question`, with its image, as
            system messages and earlier turns are of no task; or the whole `conversation`.
        instruct: Put the instruction that a task was taught with around a question of the task that
            has none, as people leave it out.
        reject_unknown: Let the base alone answer a sample that no task claims; otherwise the
            likeliest task answers it, as in evaluation.
        poll_s: Seconds between two looks for new primitives.
        look_s: Seconds that a look may take. Then requests wait for it no longer, and `/healthz`
            shows that the storage doesn't answer; the look goes on.
        batch: The most prompts that are located together.
        locating: Number of such batches that a gateway replica keeps at the locators: fewer make
            larger batches, more keep more locator replicas busy.
        limits: What a request may be.
        engine: How an executor answers.
        auth: Who may use the service.
    """

    store: str
    model: ModelConfig | None = None
    device: str | None = None
    locate: LocateBy = "question"
    instruct: bool = True
    reject_unknown: bool = True
    poll_s: float = 2.0
    look_s: float = 15.0
    batch: int = 32
    locating: int = 1
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)

    def __post_init__(self) -> None:
        needed = self.limits.prompt_tokens + self.limits.answer_tokens
        name, most = "max_tokens", self.engine.max_tokens
        if self.engine.kind == "vllm":
            name, most = "vllm.max_model_len", self.engine.vllm.max_model_len or needed
        if needed > most:
            raise ValueError(
                f"limits.prompt_tokens and limits.answer_tokens are {needed} together; at most "
                f"engine.{name}, {most}"
            )
        require(self, "", "poll_s", "look_s", above=0)
        require(self, "", "batch", "locating", least=1)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ServeConfig:
        """A service from a plain tree, as Ray's file of the service has it.

        Raises:
            ValueError: A key is unknown, or a value has another type or is out of range.
        """
        from jsonargparse import ArgumentParser

        require_known(values, cls, "args")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls, None)
        try:
            made = parser.instantiate(parser.parse_object(dict(values)))
        except Exception as error:  # jsonargparse's own kinds
            raise ValueError(f"args: {error}") from error
        return cls(**{each.name: made[each.name] for each in fields(cls)})
