"""A growing model and its log: start a store for a model, load a model from a store."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from cmoe.modeling.front import FrontLocator
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.settings import LocatorConfig, ModelConfig
from cmoe.store.log import BaseId, Store, StoreError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Stored(Protocol):
    """What a store is made for: the growing model, or a rival that keeps its stages in one."""

    base_digest: str

    def settings(self) -> dict[str, Any]: ...


def create_store(
    url: str | os.PathLike[str],
    model: Stored,
    *,
    name: str,
    revision: str,
    config: Mapping[str, Any],
    **storage_options: Any,
) -> Store:
    """Start the log of a model that has learned nothing yet.

    Args:
        url: A path, `s3://bucket/prefix` or `hf://owner/name`.
        name: Hub name or path of the model's base.
        revision: The base's revision, as it was loaded.
        config: The run that will write the store, to look up.

    Raises:
        StoreError: There is a store already.
    """
    base = BaseId(name, revision, model.base_digest)
    return Store.create(url, base=base, settings=model.settings(), config=config, **storage_options)


def base_of(store: Store) -> ModelConfig:
    """The base that a store was written with, as its run was told."""
    if (written := store.header.config.get("model")) is not None:
        return ModelConfig(**written)
    base = store.header.base
    return ModelConfig(base.name, None if base.revision == "default" else base.revision)


def load_model(store: Store, base: PreTrainedModel, prefix: int | None = None) -> GrowingVLM:
    """The model after the first `prefix` tasks of a store, or after all of them.

    The base is frozen and wrapped in place.

    Raises:
        StoreError: It is another base or method's, there are fewer tasks, or a file is damaged.
    """
    count = len(store) if prefix is None else prefix
    if not 0 <= count <= len(store):
        raise StoreError(f"{store.url}: has {len(store)} primitives; can't load {count}")
    settings = _settings(store)
    locator = LocatorConfig(**settings["locator"])
    model = GrowingVLM(
        base,
        top_k=settings["top_k"],
        gates=settings["gates"],
        attention=settings["attention"],
        locator=locator,
    )
    store.require_base(model.base_digest)
    model.append(*(store.read(index) for index in range(count)))
    return model


def load_locator(store: Store, base: PreTrainedModel) -> FrontLocator:
    """What finds a store's tasks, without any of them yet. The base is cut short in place.

    Raises:
        StoreError: It is another base or method's.
    """
    locator = FrontLocator(base, LocatorConfig(**_settings(store)["locator"]))
    store.require_base(locator.base_digest)
    return locator


def _settings(store: Store) -> Mapping[str, Any]:
    """A log's settings; StoreError where another method wrote the store."""
    settings = store.header.settings
    if "top_k" not in settings:
        raise StoreError(f"{store.url}: written by another method ({dict(settings)}), not a log")
    return settings
