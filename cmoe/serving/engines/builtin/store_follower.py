"""A served model and the log that it follows, without a restart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cmoe.common.storage import StorageError
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.pretrained import load_base, load_config
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import ModelConfig
from cmoe.serving.engines.builtin.batch import joined
from cmoe.serving.engines.builtin.decoding import require_servable
from cmoe.serving.messages import Arrays, Located, tensors
from cmoe.serving.settings import ServeConfig
from cmoe.store.log import Store
from cmoe.store.model import load_model


@dataclass(frozen=True)
class Version:
    """How much of a log a model has taken: a number of primitives, and the last one's digest."""

    tasks: int
    digest: str

    def __str__(self) -> str:
        return f"{self.tasks}-{self.digest[:12]}"


class Following:
    """A model, and the store that it came from.

    `look` may run in any thread, one at a time; `take` where nobody uses the model meanwhile.

    Args:
        store: Its log.
        model: Its base, with nothing learned yet; it takes what is there.

    Attributes:
        refused: Why what lies in the store is not taken; None where all was.
    """

    def __init__(self, store: Store, model: GrowingVLM) -> None:
        self.model = model
        self.refused: str | None = None
        self._store, self._torn = store, False
        self.take(self.look())

    @property
    def version(self) -> Version:
        return self.version_of(len(self.model.tasks))

    def version_of(self, count: int) -> Version:
        """Of the log's first `count` primitives."""
        header, records = self._store.header, self._store.records()
        return Version(count, records[count - 1].digest if count else header.digest)

    def look(self) -> list[Primitive]:
        """What was committed since, whole and checked; a broken primitive and those behind it wait
        for the day that they are mended.
        """
        found: list[Primitive] = []
        refused = None
        try:
            self._store.refresh()
        except StorageError as error:
            refused = str(error)
        try:
            for index in range(len(self.model.tasks), len(self._store)):
                found.append(self._store.read(index))
        except StorageError as error:
            refused = str(error)
        if refused or not found:  # what was found is judged when it is taken
            self.refused = refused
        return found

    def take(self, primitives: Sequence[Primitive]) -> None:
        """Answer with them from now on; one that doesn't fit the model is refused."""
        for primitive in primitives:
            try:
                self.model.append(primitive)
            except ValueError as error:
                self.refused = f"{self._store.url}: {error}"
                return
            except Exception as error:  # in the middle of it: this model is no version any more
                self.refused = f"{self._store.url}: {error!r}"
                self._torn = True
                return
        if len(self.model.tasks) == len(self._store):
            self.refused = None

    def locate(self, prompts: Sequence[Arrays], pad: int) -> list[Located]:
        """Where prompts belong, all in one pass; without tasks they are unknown."""
        version = str(self.version)
        if not self.model.tasks:
            return [Located(BASE, (), True, version)] * len(prompts)
        inputs = joined([tensors(prompt) for prompt in prompts], pad)
        location = self.model.locate({n: t.to(self.model.device) for n, t in inputs.items()})
        return [
            Located(task, tuple(scores), unknown, version)
            for task, scores, unknown in zip(
                self.model.claimed(location),
                location.scores.tolist(),
                location.unknown.tolist(),
                strict=True,
            )
        ]

    def require_whole(self) -> None:
        """Raises RuntimeError where a primitive was taken in part: the replica must start anew."""
        if self._torn:
            raise RuntimeError(f"a primitive was taken in part: {self.refused}")

    def state(self) -> dict[str, Any]:
        """For health and models."""
        version = asdict(self.version) | {"name": str(self.version)}
        return {"tasks": self.model.tasks, "version": version, "refused": self.refused}


def model_of(store: Store, config: ServeConfig) -> ModelConfig:
    """The base of a store: the configured one, or as the run that wrote it had it."""
    if config.model is not None:
        return config.model
    written = store.header.config.get("model")
    if written is not None:
        return ModelConfig(**written)
    base = store.header.base
    return ModelConfig(base.name, None if base.revision == "default" else base.revision)


def follow(config: ServeConfig) -> tuple[Following, Any]:
    """Load a store's base and model, and the base's processor.

    Raises:
        StoreError: There is no store, or it was made for another base.
        UnservedBaseError: Rows of several lengths can't share the base's cache.
    """
    store = Store.follow(config.store)
    named = model_of(store, config)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    require_servable(load_config(named.path, revision=named.revision))
    base, processor = load_base(
        named.path,
        revision=named.revision,
        dtype=getattr(torch, named.dtype),
        device=device,
        pad=named.pad,
    )
    model = load_model(store, base, prefix=0)
    model.reject_unknown = config.reject_unknown
    return Following(store, model), processor
