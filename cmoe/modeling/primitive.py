"""The unit of the log: what learning one task adds to the model, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cmoe.common.instructions import Instructions
from cmoe.common.reference import Reference

LOCATOR = "locator"
PARTS = ("experts", "routers", LOCATOR)
"""What answers."""
MEMORY = "memory"
"""What only learning goes back to; a part of its own, where there is any."""


@dataclass(frozen=True)
class Primitive:
    """One task's immutable addition to a frozen base (method, "What must hold", rule 2).

    Tensors are on the CPU and keep the dtype they were trained in.

    Attributes:
        task: The task's name.
        rank: Rank `r` of this task's experts.
        lora_alpha: Their scale is `lora_alpha / rank`.
        experts: Per layer with new experts and per linear map `m` of its FFN
            `layers.<l>.<m>.A` [n, r, in] and `layers.<l>.<m>.B` [n, out, r]; with adapters of
            attention the same of its maps as `layers.<l>.attention.<m>.A`, n = 1, at one scale.
        routers: Per layer with experts `layers.<l>` [E_l, d], over all experts that exist there
            once this task is learned.
        locator: The task's entry in the locator's bank; empty where none was trained.
        decision: What was decided and why (scores, threshold, layers), as JSON.
        memory: What learning later tasks needs of this one and answering doesn't; empty for all
            methods but those that keep such a thing (EWC's importances).
        builds_on: An earlier task whose experts stay at work for this one.
        instructions: What the task's prompts say beside their questions, where that is known.
        references: Its reference answers, likewise.
    """

    task: str
    rank: int
    lora_alpha: float
    experts: Mapping[str, Tensor]
    routers: Mapping[str, Tensor]
    locator: Mapping[str, Tensor]
    decision: Mapping[str, Any] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    builds_on: str | None = None
    instructions: Instructions | None = None
    references: tuple[Reference, ...] = ()

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The tensors by part, in the order of `PARTS`, and the memory, where there is one."""
        kept = (MEMORY,) if self.memory else ()
        return {part: getattr(self, part) for part in (*PARTS, *kept)}

    def parameter_counts(self) -> dict[str, int]:
        """Scalars that this primitive adds, by part (method, "What must hold", rule 4)."""
        return {part: sum(t.numel() for t in ts.values()) for part, ts in self.parts().items()}
