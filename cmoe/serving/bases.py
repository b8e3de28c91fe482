"""The base behind a service: which one it is, how much it reads, and when it is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmoe.modeling.settings import ModelConfig
from cmoe.serving.settings import ServeConfig
from cmoe.store import model
from cmoe.store.log import Store

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class UnservedBaseError(ValueError):
    """A base that the service can't answer for as the base's own `generate` would."""


def unserved(config: PretrainedConfig, why: str) -> UnservedBaseError:
    """The error that names a base by its type."""
    return UnservedBaseError(f"a base of type {config.model_type!r} can't be served: {why}")


def base_of(store: Store, config: ServeConfig) -> ModelConfig:
    """The configured base, or else the one that the store was written with."""
    return config.model or model.base_of(store)


def context_of(config: PretrainedConfig) -> int:
    """Number of tokens that a prompt and its answer may have together.

    Raises:
        UnservedBaseError: The base doesn't say.
    """
    found = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if found is None:
        raise unserved(config, "its configuration has no max_position_embeddings")
    return int(found)
