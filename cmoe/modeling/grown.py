"""A frozen base and what its tasks have added: the prefix of a log, and the task being learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from cmoe.modeling.attention import AdaptedAttention
from cmoe.modeling.base import (
    count_parameters,
    find_attentions,
    find_ffns,
    fingerprint,
    freeze,
)
from cmoe.modeling.ffn import GrowingFFN
from cmoe.modeling.growth import Context, GrowingPart, Growth
from cmoe.modeling.kernels import choice
from cmoe.modeling.locator import make_bank
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE
from cmoe.modeling.settings import GateForm, Kernels, LocatorConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GrownBase(nn.Module):
    """A frozen base plus a prefix of the log of primitives, to which tasks are added.

    A task is named by its index in the order of learning or by its name; `BASE` (-1) is the base
    alone. The task being learned comes behind the learned ones.

    Args:
        base: Any vision-language model whose decoder's FFNs are made of linear maps. It is
            frozen, and its FFNs are wrapped in place.
        top_k: Experts per token, for all tasks.
        gates: How they are made of a router's probabilities, as of `ExpertsConfig`.
        attention: Rank of the adapters that a layer's attention gains where its FFN gains experts;
            0 leaves it alone.
        locator: How samples are matched to tasks.

    Attributes:
        tasks: Names of the learned tasks.
        reject_unknown: Whether the base alone answers a sample that no task claims.

    Raises:
        UnsupportedModelError: The base has no such FFNs, or no such attention.
        ValueError: `top_k`, `attention` or the locator's layer is out of range, or `gates` has no
            such form.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        *,
        top_k: int = 2,
        gates: GateForm = "renormalized",
        attention: int = 0,
        locator: LocatorConfig | None = None,
    ) -> None:
        super().__init__()
        sites, attentions = find_ffns(base), find_attentions(base) if attention else []
        locator = locator or LocatorConfig()
        if not -1 <= locator.layer <= len(sites):
            raise ValueError(
                f"locator.layer is {locator.layer}; this base has 0 to {len(sites) - 1} for the "
                f"input of a layer, -1 or {len(sites)} for the decoder's output"
            )
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}; a token needs at least one expert")
        if attention < 0:
            raise ValueError(f"attention is {attention}; a rank, or 0 for no adapters")
        if gates not in get_args(GateForm):
            raise ValueError(f"gates is {gates!r}; {', '.join(get_args(GateForm))}")
        self.base_digest = fingerprint(base)
        self.base_parameters = count_parameters(base)
        self.base: PreTrainedModel = base
        freeze(base)
        self.top_k, self.gates, self.attention = top_k, gates, attention
        self.locator = replace(locator, layer=len(sites) if locator.layer < 0 else locator.layer)
        self.bank = make_bank(locator)
        self.reject_unknown = False
        self.tasks: tuple[str, ...] = ()
        self._learning: Primitive | None = None  # its tensors are still parameters
        self._context = Context()
        self.ffns = tuple(
            GrowingFFN(s, i, top_k, gates, self._context) for i, s in enumerate(sites)
        )
        self.attentions = tuple(
            AdaptedAttention(s, i, attention, self._context) for i, s in enumerate(attentions)
        )
        self._parts: tuple[GrowingPart, ...] = (*self.ffns, *self.attentions)
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    def use_kernels(self, kernels: Kernels) -> None:
        """Choose what computes the experts, as `ModelConfig.kernels` says; `auto` by itself.

        Raises:
            UnsupportedModelError: `triton` can't be had here, or not for this base.
        """
        if kernels == "triton":
            choice.require_triton(gpu=self.device.type == "cuda")
        for ffn in self.ffns:
            ffn.use_kernels(kernels)

    def settings(self) -> dict[str, Any]:
        """The model-wide choices, as a store keeps them."""
        return {
            "top_k": self.top_k,
            "gates": self.gates,
            "attention": self.attention,
            "locator": asdict(self.locator),
        }

    def grow(
        self,
        task: str,
        experts: Mapping[int, int],
        *,
        rank: int,
        lora_alpha: float,
        seed: int,
        init: Mapping[str, Tensor] | None = None,
        builds_on: str | None = None,
        compete: bool = False,
    ) -> list[nn.Parameter]:
        """Begin a task: add trainable experts, and a router to every layer that has experts.

        Args:
            task: Its name.
            experts: Layer -> number of new experts.
            rank: Their rank.
            lora_alpha: Their scale is `lora_alpha / rank`.
            seed: Of the fresh weights; no global random state is used.
            init: Weights to start from instead, named as in a `Primitive`.
            builds_on: A learned task: its adapters of attention, and with `gates` `residual` its
                experts that always work, do so for this one, too.
            compete: Whether the new experts have to win their tokens where `gates` is `residual`.

        Returns:
            The parameters to train: all that require a gradient.

        Raises:
            ValueError: A task of that name is known or being learned, a layer doesn't exist, there
                is nothing to build on, or a weight of `init` doesn't fit.
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
        primitive = Primitive(task, rank, lora_alpha, {}, {}, {}, builds_on=builds_on)
        growth = Growth(
            experts=experts,
            rank=rank,
            scale=lora_alpha / rank,
            generator=torch.Generator().manual_seed(seed),
            init=init or {},
            builds_on=foundation(primitive, self.tasks),
            compete=compete,
        )
        self._learning = primitive
        try:
            for part in self._parts:
                part.learn(growth)
        except ValueError:
            self.discard()
            raise
        return [p for p in self.parameters() if p.requires_grad]

    def discard(self) -> None:
        """Forget the task being learned."""
        self._learning = None
        for part in self._parts:
            part.discard()

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
        for part in self._parts:
            new_experts, new_router = part.learned()
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

    def _append(self, primitives: Sequence[Primitive]) -> None:
        # First all that can be refused, so that nothing is half added.
        names, builds_on = self.tasks, []
        for primitive in primitives:
            if primitive.task in names:
                raise ValueError(f"task {primitive.task!r} is already learned")
            builds_on.append(foundation(primitive, names))
            names += (primitive.task,)
        for part in self._parts:
            part.check(primitives)
        self.bank.append(*(p.locator for p in primitives if p.locator))
        for part in self._parts:
            part.freeze(primitives, builds_on)
        self.tasks = names


def foundation(primitive: Primitive, tasks: Sequence[str]) -> int:
    """The index of the task that a primitive builds on, or `BASE`.

    Raises:
        ValueError: It isn't one of `tasks`.
    """
    if primitive.builds_on is None:
        return BASE
    if primitive.builds_on not in tasks:
        raise ValueError(
            f"task {primitive.task!r} builds on {primitive.builds_on!r}, which isn't learned; "
            f"learned: {', '.join(tasks) or 'none yet'}"
        )
    return tasks.index(primitive.builds_on)
