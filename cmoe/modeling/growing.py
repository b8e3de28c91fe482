"""GrowingVLM: a frozen vision-language model that gains experts, routers and a locator per task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from cmoe.modeling.base import (
    arguments,
    checkpoint_layers,
    features,
    pooled,
    pooling_weights,
    watch_hidden_state,
)
from cmoe.modeling.grown import GrownBase
from cmoe.modeling.locator import Location, claimed, locate
from cmoe.modeling.outputs import Generation, GrowingOutput, Inputs, RoutedPass, Tasks, indices
from cmoe.modeling.routers import BASE, Routing


class GrowingVLM(GrownBase):
    """A frozen base plus a prefix of the log of primitives: it answers and locates, and it learns.

    A task is named by its index in the order of learning or by its name; `BASE` (-1) is the base
    alone. The task being learned comes behind the learned ones. See `GrownBase` for the arguments.
    """

    # Running

    def forward(
        self,
        inputs: Inputs,
        tasks: Tasks | None = None,
        *,
        record: bool = False,
        kept: Mapping[int, int] | None = None,
        **kwargs: Any,
    ) -> GrowingOutput:
        """One pass of the base with the samples' experts.

        Args:
            inputs: What the base takes: `input_ids` [B, S], `attention_mask`, `pixel_values`,
                `labels` [B, T] of the last T places, ...
            tasks: One task for all samples, one for each, what `routing` made of them (for passes
                over the same samples), or None to locate them.
            record: Whether to gather the balance loss and the experts' usage.
            kept: By layer how many of the experts being learned work, where not all of them do;
                their router then chooses among these and the older ones. With none the layer's
                attention is as it was, too.
            kwargs: More of the base's arguments, such as `use_cache`.

        Raises:
            ValueError: An unknown task, another number of tasks than samples, or a location
                that can't be done as configured.
        """
        with self._passing(inputs, tasks, record=record) as run:
            run.routing.kept = kept or {}
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
    def whose_experts(self, inputs: Inputs, tasks: Tasks) -> Tensor:
        """Whose experts work on a batch's tokens.

        Arguments and errors as in `forward`.

        Returns:
            [T], the share that each learned task's experts have in the sum of the gates over all
            tokens and layers; zeros where no expert works.
        """
        usage = self(inputs, tasks, record=True, logits_to_keep=1).usage
        added = {ffn.layer: torch.tensor(ffn.added, device=self.device) for ffn in self.ffns}
        gates_t = torch.zeros(len(self.tasks), device=self.device)
        for each in usage:
            # A task's router has the experts that were there when it was learned.
            owners = torch.repeat_interleave(added[each.layer])[: len(each.gates)]
            gates_t.index_add_(0, owners, each.gates.float())
        return gates_t / gates_t.sum().clamp_min(1e-30)

    @torch.no_grad()
    def features(self, inputs: Inputs) -> Tensor:
        """The prompts' features [B, d], fp32, from the frozen base alone.

        The pass ends at the feature's layer: what comes behind it isn't computed.
        """
        with self._context.using(None):
            return features(self.base, self.locator.layer, self.locator.pooling, inputs)

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
        elif self.locator.inline:
            self._require_bank()
            self._require_inline()
            inline, chosen = True, (BASE,) * batch
        else:
            location = self.locate(inputs)
            chosen = self.claimed(location)
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
        if not 0 <= self.locator.layer <= first:
            raise ValueError(
                f"locator.placement is inline, but the feature is taken at layer "
                f"{self.locator.layer} and layer {first} has experts: take it at layer {first} or "
                "below, or use placement front"
            )

    def claimed(self, location: Location) -> tuple[int, ...]:
        """The task that answers each located sample; the base where none claims it."""
        return claimed(location, reject_unknown=self.reject_unknown)

    def _indices(self, tasks: Tasks, batch: int) -> tuple[int, ...]:
        names = self.tasks + ((self._learning.task,) if self._learning else ())
        return indices(tasks, batch, names)

    # Training

    def train(self, mode: bool = True) -> Self:
        """The frozen base stays in evaluation mode, and with it what it holds."""
        super().train(mode)
        self.base.eval()
        return self

    def enable_gradient_checkpointing(self, layers: int | None = None) -> None:
        """Recompute layers in the backward pass, with the routing of their forward pass.

        Args:
            layers: The first so many of them; None takes all.
        """
        checkpoint_layers(self.base, self._checkpoint_contexts, layers)

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
