"""One training phase on DeepSpeed, and a sharded model's passes between phases.

DeepSpeed's engines leave hooks on the module; `close` removes them, or every phase's optimizer
would stay in memory for the rest of the stream.
"""

from __future__ import annotations

import gc
import inspect
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmoe.modeling.base import find_optional
from cmoe.training.settings import TrainingConfig

TAG = "state"  # DeepSpeed's folder in a checkpoint
BUCKET = 500_000_000  # gradients that DeepSpeed reduces at once at most, its own default


def prepare() -> Any:
    """Import DeepSpeed for the device there is, over the process group that is there already."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops

    # A kernel that gloo ranks on one machine could use: compiling it takes half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=None, verbose=False)
    return deepspeed


class Engine:
    """A DeepSpeed engine for the parameters of `module` that require a gradient.

    Args:
        module: What is trained. With ZeRO 3 its frozen weights stay sharded afterwards.
        config: How.
        steps: Length of the schedule.
        workers: Size of the process group.
        converted: Whether `load` will take what `convert` made.
    """

    def __init__(
        self,
        module: nn.Module,
        config: TrainingConfig,
        steps: int,
        workers: int,
        *,
        converted: bool = False,
    ) -> None:
        deepspeed = prepare()
        self.module = module
        self.zero = config.zero
        self.accumulation = config.accumulation(workers)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        warmup = round(config.warmup * steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, warmup)
        )
        settings = _settings(module, config.zero) | {
            "train_micro_batch_size_per_gpu": config.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": config.clip,
            "checkpoint": {"load_universal": converted},
        }
        module.train()
        self._hidden = _hide_optional(module, config.zero)
        self.engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, lr_scheduler=schedule, config=settings
        )

    def step(self, losses: Iterator[Tensor]) -> Tensor:
        """One optimizer step; its loss on this rank, on the device."""
        total = torch.zeros((), device=self.engine.device)
        for loss in losses:
            self.engine.backward(loss)
            self.engine.step()
            total += loss.detach().float()
        return total / self.accumulation

    def save(self, folder: Path) -> None:
        """This rank's share of the engine's state; every rank saves."""
        self.engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote with the same number of workers, or `convert` made of it."""
        self.engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)

    def close(self) -> None:
        """Free the engine; the trained parameters are whole again on every rank."""
        _free(self.engine, self.module, self._hidden, self.zero)
        self.module.eval()
        del self.engine, self.parameters
        gc.collect()


def convert(folder: Path, into: Path) -> None:
    """Make of what `save` wrote on some workers a checkpoint for any number of them.

    It is DeepSpeed's universal one; with ZeRO 0 what `save` wrote is one already.
    """
    prepare()
    from argparse import Namespace

    from deepspeed.checkpoint.ds_to_universal import main

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        main(
            Namespace(
                input_folder=str(folder / TAG),
                output_folder=str(into / TAG),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


@contextmanager
def running(module: nn.Module, zero: int) -> Iterator[None]:
    """Let a module run outside of training: with ZeRO 3 each layer is gathered as it is reached."""
    if zero < 3:
        yield
        return
    deepspeed = prepare()
    settings = _settings(module, zero) | {"train_micro_batch_size_per_gpu": 1}
    hidden = _hide_optional(module, zero)
    engine, *_ = deepspeed.initialize(model=module, config=settings)
    try:
        yield
    finally:
        _free(engine, module, hidden, zero)


def _hide_optional(module: nn.Module, zero: int) -> list[tuple[nn.Module, str]]:
    """Keep from ZeRO 3 what a batch without pictures leaves out, until `_free`.

    A rank with such a batch doesn't run the vision tower and would not take part in gathering its
    shards: the others would wait for ever, or get another weight's. As plain attributes these
    parts work as before, and nobody finds them among the modules.
    """
    if zero < 3:
        return []
    from transformers import PreTrainedModel

    base = next(m for m in module.modules() if isinstance(m, PreTrainedModel))
    parts = find_optional(base)
    for parent, name in parts:
        parent.__dict__[name] = parent._modules.pop(name)
    return parts


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up to 1, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _settings(module: nn.Module, zero: int) -> dict[str, Any]:
    dtype = next(module.parameters()).dtype
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return {
        "zero_optimization": {
            "stage": zero,
            "stage3_param_persistence_threshold": 0,
            # Allocated whole: by default half a billion elements, however few are trained.
            "reduce_bucket_size": min(max(learning, 1), BUCKET),
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "steps_per_print": 1_000_000_000,
    }


def _free(
    engine: Any, module: nn.Module, hidden: Sequence[tuple[nn.Module, str]], zero: int
) -> None:
    """Destroy an engine and its traces; parameters that require a gradient are whole again."""
    learning = [p for p in module.parameters() if p.requires_grad] if zero == 3 else []
    with prepare().zero.GatheredParameters(learning, modifier_rank=None):
        whole = {id(p): p.detach().clone() for p in learning}
    engine.destroy()
    for child in module.modules():
        for name in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_backward_hooks",
            "_backward_pre_hooks",
        ):
            _remove_engine_hooks(getattr(child, name))
        for name in ("pre_bwd_fn", "post_bwd_fn"):  # made once per module, by its first engine
            child.__dict__.pop(name, None)
        if child.__dict__.pop("_original_parameters", None) is not None:
            child._parameters = dict(child._parameters)
    for p in module.parameters():
        for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            _remove_engine_hooks(getattr(p, name, None))
        p.grad = None
        p.__dict__.pop("_z3_optimizer", None)
    for child in module.modules():
        for name, p in list(child.named_parameters(recurse=False)):
            if id(p) in whole:
                setattr(child, name, nn.Parameter(whole[id(p)]))
    for parent, name in hidden:
        parent._modules[name] = parent.__dict__.pop(name)
    if zero == 3:
        from deepspeed.runtime.zero.partitioned_param_coordinator import (
            PartitionedParameterCoordinator,
        )

        # Caches of the class, inside decorated methods, would hold every engine's weights.
        for method in filter(inspect.isfunction, vars(PartitionedParameterCoordinator).values()):
            for inner in inspect.getclosurevars(method).nonlocals.values():
                if hasattr(inner, "cache_clear"):
                    inner.cache_clear()


def _remove_engine_hooks(hooks: dict[int, Any] | None) -> None:
    """Remove DeepSpeed's hooks; a model may have its own, which transformers installs once."""
    hooks = {} if hooks is None else hooks
    for key, hook in list(hooks.items()):
        if (getattr(hook, "__module__", None) or "").startswith("deepspeed"):
            del hooks[key]
