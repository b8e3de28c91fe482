"""The rivals in the same stream: adapters on every linear map of the decoder, and the base alone.

None of them finds a sample's task. `PerTaskLoRA` is told it, and `JointLoRA` learns all tasks at
once: they are bounds, not rivals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cmoe.data.samples import Sample
from cmoe.methods.method import Forward, Trainer, decoder_flops, seed_of, training_flops
from cmoe.methods.moelora_network import add_moelora
from cmoe.methods.settings import LoRAConfig, MoELoRAConfig
from cmoe.modeling.base import arguments, checkpoint_layers, find_decoder, fingerprint, freeze
from cmoe.modeling.growing import Inputs
from cmoe.modeling.locator import Location
from cmoe.modeling.primitive import Primitive
from cmoe.modeling.routers import BASE

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Peer:
    """What the rivals have in common.

    Args:
        base: Frozen, and not wrapped yet.
    """

    locates = False
    joint = False
    module: Any

    def __init__(self, base: PreTrainedModel) -> None:
        self.base_digest = fingerprint(base)
        self.base_parameters = sum(p.numel() for p in base.parameters())
        self.tasks: tuple[str, ...] = ()
        self._base_flops = decoder_flops(base)
        self._base = base
        freeze(base)

    def enable_gradient_checkpointing(self) -> None:
        checkpoint_layers(self._base)

    def learning_flops(self, task: int, tokens: Mapping[str, int]) -> int:
        """All of their passes have a backward one."""
        return sum(tokens.values()) * training_flops(self._base_flops, self.flops_per_token(task))

    def flops_per_token(self, task: int) -> int:
        """All that is trained works for every token."""
        if task == BASE:
            return self._base_flops
        return 2 * sum(p.numel() for p in self.trained().values())

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in the module."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def expert_similarity(self) -> None:
        return None

    def features(self, inputs: Inputs) -> Tensor:
        raise NotImplementedError("this method doesn't locate: there is no task to locate")

    def locate(self, features: Tensor) -> Location:
        raise NotImplementedError("this method doesn't locate: there is no task to locate")


class ZeroShot(Peer):
    """The base alone, which learns nothing: where everyone begins."""

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__(base)
        self.module = base

    def settings(self) -> dict[str, Any]:
        return {"method": "zero_shot"}

    def append(self, *primitives: Primitive) -> None:
        self.tasks += tuple(p.task for p in primitives)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        self.tasks += (task,)
        return Primitive(task, 0, 0.0, {}, {}, {})

    def answerer(self, stage: int, task: int) -> int:
        return BASE

    @torch.no_grad()
    def generate(self, inputs: Inputs, task: int, **kwargs: Any) -> Tensor:
        sequences: Tensor = self._base.generate(**inputs, **kwargs)  # type: ignore[operator]
        return sequences


class Adapter(Peer):
    """One adapter that goes on training from task to task: what forgetting looks like.

    A stage's primitive is the whole adapter as it then was; only the latest answers.
    """

    config: LoRAConfig | MoELoRAConfig

    def append(self, *primitives: Primitive) -> None:
        if primitives:
            self._load(primitives[-1].experts)
        self.tasks += tuple(p.task for p in primitives)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        trainer.fit("train", samples, self.loss)
        self.tasks += (task,)
        return self._primitive(task, self._exported())

    def loss(self, forward: Forward, inputs: Inputs, tokens: float) -> Tensor:
        """Cross-entropy on the answers."""
        loss: Tensor = forward(**arguments(inputs), num_items_in_batch=tokens).loss
        return loss

    def answerer(self, stage: int, task: int) -> int:
        return stage

    @torch.no_grad()
    def generate(self, inputs: Inputs, task: int, **kwargs: Any) -> Tensor:
        if task != BASE:
            self._take(task)
        with self._off() if task == BASE else nullcontext():
            sequences: Tensor = self.module.generate(**inputs, **kwargs)
        return sequences

    def _take(self, task: int) -> None:
        """See to it that a primitive answers.

        Raises:
            ValueError: It can't any more.
        """
        if task != len(self.tasks) - 1:
            raise ValueError(f"stage {task} is gone: only stage {len(self.tasks) - 1} answers")

    def _primitive(self, task: str, adapter: Mapping[str, Tensor]) -> Primitive:
        return Primitive(task, self.config.rank, self.config.lora_alpha, adapter, {}, {})

    def _exported(self) -> dict[str, Tensor]:
        """The adapter as it is, on the CPU."""
        return {
            name: tensor.detach().to("cpu", copy=True).contiguous()
            for name, tensor in self._weights().items()
        }

    def _weights(self) -> Mapping[str, Tensor]:
        """The adapter's tensors by their names in a primitive."""
        raise NotImplementedError

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        """Take an adapter out of a primitive."""
        raise NotImplementedError

    def _off(self) -> AbstractContextManager[None]:
        """The base alone."""
        raise NotImplementedError


class SequentialLoRA(Adapter):
    """One LoRA, through PEFT.

    Args:
        base: Frozen, and wrapped in place.
        config: The adapter's size.
        seed: Of its fresh weights.
    """

    name = "lora"
    config: LoRAConfig

    def __init__(self, base: PreTrainedModel, config: LoRAConfig, seed: int) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__(base)
        self.config = config
        within = {id(m) for m in find_decoder(base).modules()}
        names = [
            name for name, m in base.named_modules() if isinstance(m, nn.Linear) and id(m) in within
        ]
        settings = LoraConfig(
            r=config.rank, lora_alpha=config.lora_alpha, target_modules=names, lora_dropout=0.0
        )
        with torch.random.fork_rng():  # PEFT draws from the global state
            torch.manual_seed(seed_of(seed, "lora"))
            # In the base's dtype from the start, which it has once it was trained.
            self.module = get_peft_model(base, settings, autocast_adapter_dtype=False)

    def settings(self) -> dict[str, Any]:
        return {"method": self.name, **asdict(self.config)}

    def _weights(self) -> Mapping[str, Tensor]:
        from peft import get_peft_model_state_dict

        weights: Mapping[str, Tensor] = get_peft_model_state_dict(self.module)
        return weights

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(self.module, dict(weights))

    def _off(self) -> AbstractContextManager[None]:
        off: AbstractContextManager[None] = self.module.disable_adapter()
        return off


class PerTaskLoRA(SequentialLoRA):
    """A LoRA for every task, which begins afresh; whoever asks names the task: an oracle."""

    name = "per_task_lora"

    def __init__(self, base: PreTrainedModel, config: LoRAConfig, seed: int) -> None:
        super().__init__(base, config, seed)
        self._fresh = self._exported()
        self._adapters: list[Mapping[str, Tensor]] = []
        self._taken: int | None = None

    def append(self, *primitives: Primitive) -> None:
        self._adapters += [p.experts for p in primitives]
        self.tasks += tuple(p.task for p in primitives)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        self._load(self._fresh)
        primitive = super().learn(task, samples, trainer)
        self._taken = len(self._adapters)
        self._adapters.append(primitive.experts)
        return primitive

    def answerer(self, stage: int, task: int) -> int:
        return task if task <= stage else BASE

    def _take(self, task: int) -> None:
        if task != self._taken:
            self._load(self._adapters[task])
            self._taken = task


class JointLoRA(SequentialLoRA):
    """One LoRA for all tasks, learned at once, as if there were no stream: an upper bound.

    The first primitive has it all, and those behind it are empty.
    """

    name = "multitask"
    joint = True

    def append(self, *primitives: Primitive) -> None:
        if primitives and not self.tasks:
            self._load(primitives[0].experts)
        self.tasks += tuple(p.task for p in primitives)

    def learn(self, task: str, samples: Sequence[Sample], trainer: Trainer) -> Primitive:
        if not self.tasks:
            return super().learn(task, samples, trainer)
        self.tasks += (task,)
        return self._primitive(task, {})

    def answerer(self, stage: int, task: int) -> int:
        return 0 if task <= stage else BASE

    def _take(self, task: int) -> None:
        """The one adapter is always there."""


class MoELoRA(Adapter):
    """One mixture of LoRA experts, as CoIN has it.

    Args:
        base: Frozen, and its decoder's linear maps are wrapped in place.
        config: The adapter's size.
        seed: Of its fresh weights.
    """

    def __init__(self, base: PreTrainedModel, config: MoELoRAConfig, seed: int) -> None:
        super().__init__(base)
        self.config = config
        generator = torch.Generator().manual_seed(seed_of(seed, "moelora"))
        scale = config.lora_alpha / config.rank
        self._switch = add_moelora(
            find_decoder(base), config.experts, config.rank, scale, generator
        )
        self.module = base

    def settings(self) -> dict[str, Any]:
        return {"method": "moelora", **asdict(self.config)}

    def _weights(self) -> Mapping[str, Tensor]:
        return self.trained()

    @torch.no_grad()
    def _load(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trained().items():
            parameter.copy_(weights[name])

    def _off(self) -> AbstractContextManager[None]:
        return self._switch.off()
