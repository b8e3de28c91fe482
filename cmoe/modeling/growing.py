"""GrowingVLM: a frozen vision-language model that gains experts, routers and a locator per task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Self, get_args

import torch
from torch import Tensor, nn

from cmoe.modeling.base import (
    arguments,
    checkpoint_layers,
    find_ffns,
    fingerprint,
    freeze,
    hidden_state,
    pooled,
    pooling_weights,
    watch_hidden_state,
)
from cmoe.modeling.ffn import Context, GrowingFFN
from cmoe.modeling.locator import Location, locate, make_bank
from cmoe.modeling.outputs import Generation, GrowingOutput, Inputs, RoutedPass, Tasks, indices
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE, Routing
from cmoe.modeling.settings import GateForm, LocatorConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GrowingVLM(nn.Module):
    """A frozen base plus a prefix of the log of primitives.

    A task is named by its index in the order of learning or by its name; `BASE` (-1) is the base
    alone. The task being learned comes behind the learned ones.

    Args:
        base: Any vision-language model whose decoder's FFNs are made of linear maps. It is
            frozen, and its FFNs are wrapped in place.
        top_k: Experts per token, for all tasks.
        gates: How they are made of a router's probabilities, as of `ExpertsConfig`.
        locator: How samples are matched to tasks.

    Attributes:
        tasks: Names of the learned tasks.
        reject_unknown: Whether the base alone answers a sample that no task claims.

    Raises:
        UnsupportedModelError: The base has no such FFNs.
        ValueError: `top_k` or the locator's layer is out of range, or `gates` has no such form.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        *,
        top_k: int = 2,
        gates: GateForm = "renormalized",
        locator: LocatorConfig | None = None,
    ) -> None:
        super().__init__()
        sites = find_ffns(base)
        locator = locator or LocatorConfig()
        if not -1 <= locator.layer <= len(sites):
            raise ValueError(
                f"locator.layer is {locator.layer}; this base has 0 to {len(sites) - 1} for the "
                f"input of a layer, -1 or {len(sites)} for the decoder's output"
            )
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; a token needs at least one expert")
        if gates not in get_args(GateForm):
            raise ValueError(f"gates is {gates!r}; {', '.join(get_args(GateForm))}")
        self.base_digest = fingerprint(base)
        self.base_parameters = sum(p.numel() for p in base.parameters())
        self.base: PreTrainedModel = base
        freeze(base)
        self.top_k, self.gates = top_k, gates
        self.locator = replace(locator, layer=len(sites) if locator.layer < 0 else locator.layer)
        self.bank = make_bank(locator)
        self.reject_unknown = False
        self.tasks: tuple[str, ...] = ()
        self._learning: Primitive | None = None  # its tensors are still parameters
        self._context = Context()
        self.ffns = tuple(
            GrowingFFN(s, i, top_k, gates, self._context) for i, s in enumerate(sites)
        )
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    def settings(self) -> dict[str, Any]:
        """The model-wide choices, as a store keeps them."""
        return {"top_k": self.top_k, "gates": self.gates, "locator": asdict(self.locator)}

    # Running

    def forward(
        self,
        inputs: Inputs,
        tasks: Tasks | None = None,
        *,
        record: bool = False,
        without: Iterable[int] = (),
        **kwargs: Any,
    ) -> GrowingOutput:
        """One pass of the base with the samples' experts.

        Args:
            inputs: What the base takes: `input_ids` [B, S], `attention_mask`, `pixel_values`,
                `labels` [B, T] of the last T places, ...
            tasks: One task for all samples, one for each, what `routing` made of them (for passes
                over the same samples), or None to locate them.
            record: Whether to gather the balance loss and the experts' usage.
            without: Layers where the experts being learned are switched off; their router then
                chooses among the older ones.
            kwargs: More of the base's arguments, such as `use_cache`.

        Raises:
            ValueError: An unknown task, another number of tasks than samples, or a location
                that can't be done as configured.
        """
        with self._passing(inputs, tasks, record=record) as run:
            run.routing.without = frozenset(without)
            out = self.base(**arguments(inputs) | kwargs)
        usage = tuple(run.routing.record or ())
        balance = torch.stack([u.balance for u in usage]).sum() if usage else None
        return GrowingOutput(
            out.logits, out.loss, balance, usage, out.past_key_values, run.location
        )

    @torch.no_grad()
    def generate(self, inputs: Inputs, tasks: Tasks | None = None, **kwargs: Any) -> Generation:
        """Answer a batch of prompts with the base's own `generate` and its cache.

        Arguments and errors as in `forward`; `kwargs` are `generate`'s.
        """
        settings = self.base.generation_config
        copies = max(  # generate repeats a sample for its beams and its returned sequences
            kwargs.get(n) or getattr(settings, n, None) or 1
            for n in ("num_beams", "num_return_sequences")
        )
        with self._passing(inputs, tasks, copies=copies) as run:
            sequences = self.base.generate(**inputs, **kwargs)  # type: ignore[operator]
        return Generation(sequences, run.routing.tasks[::copies], run.location)

    @torch.no_grad()
    def features(self, inputs: Inputs) -> Tensor:
        """The prompts' features [B, d], fp32, from the frozen base alone.

        The pass ends at the feature's layer: what comes behind it isn't computed.
        """
        weights_bs = pooling_weights(inputs, self.locator.pooling, self.base.config)
        with self._context.using(None):
            return pooled(hidden_state(self.base, self.locator.layer, inputs), weights_bs)

    def routing(self, tasks: Tasks, batch: int) -> Routing:
        """What the passes over a batch of samples share, so that it is worked out once.

        Raises:
            ValueError: As in `forward`.
        """
        return Routing.of(self._indices(tasks, batch), self.device)

    def locate(self, inputs: Inputs) -> Location:
        """Find the prompts' tasks with the base in front, whatever `placement` says.

        Raises:
            ValueError: A task has no entry in the locator's bank.
        """
        return self.locate_features(self.features(inputs))

    def locate_features(self, features_bd: Tensor) -> Location:
        """As `locate`, from features that are known already."""
        self._require_bank()
        return locate(self.bank, features_bd)

    @contextmanager
    def _passing(
        self, inputs: Inputs, tasks: Tasks | None, *, record: bool = False, copies: int = 1
    ) -> Iterator[RoutedPass]:
        """Give the base's layers their routing, located first or on the way if need be."""
        batch = len(inputs["input_ids"])
        location, inline = None, False
        if isinstance(tasks, Routing):
            with self._context.using(tasks):
                yield RoutedPass(tasks)
            return
        if tasks is not None:
            chosen = self._indices(tasks, batch)
        elif self.locator.placement == "front":
            location = self.locate(inputs)
            chosen = self.claimed(location)
        else:
            self._require_bank()
            self._require_inline()
            inline, chosen = True, (BASE,) * batch
        run = RoutedPass(Routing.of(_repeated(chosen, copies), self.device), location)
        if record:
            run.routing.tokens, run.routing.record = inputs.get("attention_mask"), []
        with ExitStack() as stack:
            stack.enter_context(self._context.using(run.routing))
            if inline:
                stack.enter_context(self._locating(inputs, run, copies))
            yield run

    @contextmanager
    def _locating(self, inputs: Inputs, run: RoutedPass, copies: int) -> Iterator[None]:
        """Set the pass's tasks when it first comes to the feature's layer."""
        weights_bs = pooling_weights(inputs, self.locator.pooling, self.base.config)

        @torch.no_grad()
        def arrive(hidden_bsd: Tensor) -> None:
            if run.location is None:
                features = pooled(hidden_bsd[::copies], weights_bs)
                run.location = locate(self.bank, features)
                found = Routing.of(_repeated(self.claimed(run.location), copies), self.device)
                run.routing.tasks, run.routing.ids = found.tasks, found.ids

        with watch_hidden_state(self.base, self.locator.layer, arrive):
            yield

    def _require_bank(self) -> None:
        if not self.tasks or len(self.bank) != len(self.tasks):
            raise ValueError(
                f"{len(self.tasks)} tasks are learned and {len(self.bank)} have a locator entry: "
                "samples can't be located, name their tasks"
            )

    def _require_inline(self) -> None:
        grown = (f.layer for f in self.ffns if len(f.frozen))
        first = min(grown, default=len(self.ffns))
        if self.locator.layer > first:
            raise ValueError(
                f"locator.placement is inline, but the feature is taken at layer "
                f"{self.locator.layer} and layer {first} has experts: take it at layer {first} or "
                "below, or use placement front"
            )

    def claimed(self, location: Location) -> tuple[int, ...]:
        """The task that answers each located sample; the base where none claims it."""
        tasks = location.tasks
        if self.reject_unknown:
            tasks = tasks.masked_fill(location.unknown, BASE)
        # The one synchronisation of a pass: the shapes of what follows depend on the tasks.
        return tuple(tasks.tolist())

    def _indices(self, tasks: Tasks, batch: int) -> tuple[int, ...]:
        names = self.tasks + ((self._learning.task,) if self._learning else ())
        return indices(tasks, batch, names)

    # Growing

    def grow(
        self,
        task: str,
        experts: Mapping[int, int],
        *,
        rank: int,
        lora_alpha: float,
        seed: int,
        init: Mapping[str, Tensor] | None = None,
        always: bool = True,
    ) -> list[nn.Parameter]:
        """Begin a task: add trainable experts, and a router to every layer that has experts.

        Args:
            task: Its name.
            experts: Layer -> number of new experts.
            rank: Their rank.
            lora_alpha: Their scale is `lora_alpha / rank`.
            seed: Of the fresh weights; no global random state is used.
            init: Weights to start from instead, named as in a `Primitive`.
            always: Whether the new experts always work, where `gates` is `residual`.

        Returns:
            The parameters to train: all that require a gradient.

        Raises:
            ValueError: A task of that name is known or being learned, a layer doesn't exist, or
                a weight of `init` doesn't fit.
        """
        if self._learning is not None:
            raise ValueError(f"task {self._learning.task!r} is still being learned")
        if task in self.tasks:
            raise ValueError(f"task {task!r} is already learned")
        if rank < 1 or min(experts.values(), default=0) < 0:
            raise ValueError(
                f"rank {rank} and {dict(experts)} experts: at least 1, and none below 0"
            )
        if unknown := sorted(set(experts) - set(range(len(self.ffns)))):
            raise ValueError(f"no decoder layer {unknown}; there are 0 to {len(self.ffns) - 1}")
        generator = torch.Generator().manual_seed(seed)
        self._learning = Primitive(task, rank, lora_alpha, {}, {}, {})
        try:
            for ffn in self.ffns:
                count = experts.get(ffn.layer, 0)
                ffn.learn(count, rank, lora_alpha / rank, init or {}, generator, always=always)
        except ValueError:
            self.discard()
            raise
        return [p for p in self.parameters() if p.requires_grad]

    def discard(self) -> None:
        """Forget the task being learned."""
        self._learning = None
        for ffn in self.ffns:
            ffn.discard()

    def commit(
        self, locator: Mapping[str, Tensor], decision: Mapping[str, Any] | None = None
    ) -> Primitive:
        """End a task: its weights become part of the frozen stacks and a primitive of the log.

        Args:
            locator: Its entry, from `bank.fit`; empty for a model that never locates.
            decision: What was decided and why, as JSON.

        Raises:
            ValueError: No task is being learned, or the entry doesn't fit; nothing is lost.
        """
        primitive = replace(self.learning(), locator=locator, decision=decision or {})
        self._append([primitive])
        self.discard()  # only now: a refused entry must not cost the training
        return primitive

    def learning(self) -> Primitive:
        """A copy of the task being learned as it stands, without locator and decision.

        Raises:
            ValueError: No task is being learned.
        """
        if self._learning is None:
            raise ValueError("no task is being learned; call grow first")
        experts: dict[str, Tensor] = {}
        routers: dict[str, Tensor] = {}
        for ffn in self.ffns:
            new_experts, new_router = ffn.learned(self._learning.rank)
            experts |= new_experts
            routers |= new_router
        return replace(self._learning, experts=experts, routers=routers)

    def append(self, *primitives: Primitive) -> None:
        """Add learned tasks, in order: the model after `t` primitives of a log is its prefix.

        Raises:
            ValueError: A primitive doesn't fit behind what is there; names the tensor.
        """
        if self._learning is not None:
            raise ValueError(f"task {self._learning.task!r} is still being learned")
        self._append(primitives)

    def _check(self, primitives: Sequence[Primitive]) -> None:
        counts = [len(f.frozen) for f in self.ffns]
        names = set(self.tasks)
        for primitive in primitives:
            if primitive.task in names:
                raise ValueError(f"task {primitive.task!r} is already learned")
            names.add(primitive.task)
            counts = [f.check(primitive, n) for f, n in zip(self.ffns, counts, strict=True)]

    def _append(self, primitives: Sequence[Primitive]) -> None:
        # First all that can be refused, so that nothing is half added.
        self._check(primitives)
        self.bank.append(*(p.locator for p in primitives if p.locator))
        for ffn in self.ffns:
            ffn.freeze(primitives)
        self.tasks += tuple(p.task for p in primitives)

    # Training

    def train(self, mode: bool = True) -> Self:
        """The frozen base stays in evaluation mode, and with it what it holds."""
        super().train(mode)
        self.base.eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute each layer in the backward pass, with the routing of its forward pass."""
        checkpoint_layers(self.base, self._checkpoint_contexts)

    def _checkpoint_contexts(
        self,
    ) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        routing = self._context.routing
        if routing is not None and routing.record is not None:
            # It records again, as each tensor must be computed again, but into a list that goes
            # with the layer: in the first one it would keep every recomputed layer in memory.
            routing = replace(routing, record=[])
        return nullcontext(), self._context.using(routing)


def _repeated(tasks: Sequence[int], copies: int) -> tuple[int, ...]:
    return tuple(task for task in tasks for _ in range(copies))
