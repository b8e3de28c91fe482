"""What a method is to the stream that runs it, and what the stream offers to a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Protocol

from torch import Tensor, nn

from cmoe.data.samples import Sample
from cmoe.modeling.base import count_parameters, find_layers
from cmoe.modeling.locator import Location
from cmoe.modeling.outputs import Inputs
from cmoe.modeling.primitive import Primitive

Forward = Callable[..., Any]
Loss = Callable[[Forward, Inputs, Tensor], Tensor]
"""The loss of one micro-batch.

Called with the module as the trainer runs it, inputs with `labels`, and the answer tokens, a scalar
on the device, to divide their summed cross-entropy by: the mean over micro-batches is then the
global batch's token mean.
"""


class Trainer(Protocol):
    """The worker group as a method sees it.

    Every rank calls the same things in the same order, and gets the same results.
    """

    def fit(
        self, phase: str, samples: Sequence[Sample], loss: Loss, steps: int | None = None
    ) -> None:
        """Train the module's parameters that require a gradient.

        Args:
            phase: Names the training in logs and checkpoints; once per task.
            samples: What to train on.
            loss: Of one micro-batch.
            steps: Optimizer steps; None takes the training's own.

        Raises:
            FloatingPointError: The loss isn't finite; names phase and step.
        """
        ...

    def map(
        self,
        phase: str,
        samples: Sequence[Sample],
        compute: Callable[[Inputs], Tensor],
        *,
        answers: bool = False,
        first: bool = False,
    ) -> list[Tensor]:
        """`compute` of every batch of prompts, in order, fp32.

        Args:
            phase: Names the pass.
            samples: What to go over.
            compute: Of one batch.
            answers: The prompts come with their answers.
            first: The results come to rank 0 alone, for `once`; the others get none.
        """
        ...

    def total(
        self, phase: str, samples: Sequence[Sample], compute: Callable[[Inputs], Tensor]
    ) -> Tensor:
        """The sum of `compute` over single samples with their answers, on the device.

        It is the one pass in which `compute` may ask for gradients; not with sharded weights.
        """
        ...

    def once(self, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """What rank 0 makes, on every rank."""
        ...

    def recall(self, task: str) -> Sequence[Sample]:
        """An earlier task's training samples, for a method that is told them.

        Raises:
            ValueError: The method isn't, or there is no earlier task of this name.
        """
        ...

    def noted(self, name: str) -> Any:
        """What `note` kept of this task before it was interrupted; None at its first try."""
        ...

    def note(self, name: str, value: Any) -> Any:
        """Keep a value for when the task resumes, and return it as JSON gives it back.

        It is kept with the next checkpoint of a training.
        """
        ...


class Method(Protocol):
    """A way to learn a stream of tasks.

    Learning a task ends in one primitive, and the primitives so far are all that the method knows:
    after `append` of them it goes on as if it had never stopped.

    Attributes:
        module: The network that is trained and that answers.
        base_digest: Of the frozen base.
        base_parameters: Scalars of the frozen base.
        locates: Whether a sample's task is found by the method; if not, `answerer` says what
            answers.
        joint: Whether all tasks are learned at once, in the place of the first; for those behind
            it there are no samples then.
        tasks: Names of the learned tasks.
    """

    base_digest: str
    base_parameters: int
    locates: bool
    joint: bool

    @property
    def module(self) -> nn.Module: ...

    @property
    def tasks(self) -> tuple[str, ...]: ...

    def settings(self) -> dict[str, Any]:
        """What a reader of the store needs beside the primitives."""
        ...

    def enable_gradient_checkpointing(self, layers: int | None = None) -> None:
        """Recompute activations in the backward pass."""
        ...

    def flops_per_token(self, task: int) -> int:
        """Operations of a forward pass per token: the base's decoder's for -1, and what a task's
        primitive adds to them. Two per weight that a token meets; attention's own aren't counted.
        """
        ...

    def learning_flops(self, task: int, tokens: Mapping[str, int]) -> int:
        """Operations that learning a task took, counted as in `flops_per_token`.

        Args:
            task: That is learned.
            tokens: That its passes went over, by phase.
        """
        ...

    def expert_similarity(self) -> list[float | None] | None:
        """Per layer the mean cosine between two experts (None with fewer); None without experts."""
        ...

    def append(self, *primitives: Primitive) -> None:
        """Add primitives learned before."""
        ...

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        """Learn a task; its primitive is part of the method when this returns."""
        ...

    def answerer(self, stage: int, task: int) -> int:
        """Of a method that doesn't locate: which primitive answers a task's samples after a stage,
        -1 for the base.
        """
        ...

    def at_work(self, stage: int) -> set[int]:
        """The primitives whose weights answer, whatever is asked, after a stage."""
        ...

    def features(self, inputs: Inputs) -> Tensor:
        """What `locate` finds a task by: [B, d]."""
        ...

    def locate(self, features: Tensor) -> Location:
        """The tasks of features [B, d]."""
        ...

    def generate(self, inputs: Inputs, task: int, **kwargs: Any) -> Tensor:
        """Sequences [B, S] from the base's `generate`, with a task's primitive; -1 is the base."""
        ...


def decoder_flops(base: nn.Module) -> int:
    """Operations per token of the decoder's layers: two per weight."""
    return 2 * sum(count_parameters(layer) for layer in find_layers(base))


def training_flops(base: int, added: int) -> int:
    """Operations per token of a training pass, from those of a forward pass.

    Frozen weights pass gradients on, as much as the forward pass again; trained ones take them too.
    """
    return 2 * base + 3 * added


def seed_of(*parts: object) -> int:
    """A seed of its own for every use: the same parts give the same seed, anywhere."""
    return int.from_bytes(sha256("/".join(map(str, parts)).encode()).digest()[:6])
