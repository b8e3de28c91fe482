"""One training phase on DeepSpeed, and a sharded model's passes between phases.

DeepSpeed's engines leave hooks on the module; `close` removes them, or every phase's optimizer
would stay in memory for the rest of the stream.
"""

from __future__ import annotations

import gc
import inspect
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmoe.modeling.base import find_optional
from cmoe.training.optimizer import MasterAdamW
from cmoe.training.settings import TrainingConfig

TAG = "state"  # DeepSpeed's folder in a checkpoint
LINEAR = F.linear
_SHARE = re.compile(r"zero_pp_rank_(\d+)_mp_rank_\d+_(optim|model)_states\.pt$")
BUCKET = 500_000_000  # gradients that DeepSpeed reduces at once at most, its own default


def prepare(device: torch.device | None = None) -> Any:
    """Import DeepSpeed over the process group that is there already.

    Args:
        device: Where it is to work, if it is said; once in a process. By itself DeepSpeed takes a
            GPU that is there, and brings the module to it.
    """
    if not torch.cuda.is_available() or (device is not None and device.type == "cpu"):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    import deepspeed.ops
    import deepspeed.runtime.bf16_optimizer as bf16
    import deepspeed.runtime.compiler as compiler
    import deepspeed.runtime.engine as engine
    import deepspeed.runtime.zero.partition_parameters as sharding

    # It prints, and forgets the device's peak memory, whenever such an optimizer is made.
    bf16.see_memory_usage = _nothing
    sharding.zero3_linear_wrap = _sharded_linear()
    engine.DeepSpeedEngine._broadcast_model = _broadcast_learning
    # Muon's kernels are compiled where it is imported, to ask whether an optimizer is Muon: for
    # that torch's whole compiler is imported, seconds of every start.
    compiler.compile = _uncompiled
    # A kernel that gloo ranks on one machine could use: compiling it takes half a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed(dist_backend=None, verbose=False)
    return deepspeed


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Take a place."""


def _broadcast_learning(engine: Any) -> None:
    """Give all ranks rank 0's learning weights.

    DeepSpeed sends frozen ones, too, for every engine: a whole base, which all ranks have read from
    the same files and held to the store's digest. On a CPU what is received is a copy, where the
    ranks of a machine would share the files' pages.
    """
    import deepspeed.comm as comm

    for p in engine.module.parameters():
        if p.requires_grad:
            comm.broadcast(p.data.view(torch.uint8), 0, group=engine.seq_data_parallel_group)


def _uncompiled() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What leaves a function as it is."""
    return lambda function: function


@cache
def _sharded_linear() -> Callable[..., Tensor]:
    """What ZeRO 3 puts in the place of `F.linear`: in its backward pass it gathers the weight anew.

    DeepSpeed's own adds a bias behind the product, which rounds twice in bf16: a base would answer
    in another way than without ZeRO 3.
    """
    from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3

    class Sharded(LinearFunctionForZeroStage3):
        @staticmethod
        def forward(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
            return LINEAR(input, weight, bias)

    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return Sharded.apply(input, weight, bias)  # type: ignore[no-any-return]

    return linear


class Engine:
    """A DeepSpeed engine for the parameters of `module` that require a gradient.

    Args:
        module: What is trained. With ZeRO 3 its frozen weights stay sharded afterwards.
        config: How.
        steps: Length of the schedule.
        workers: Size of the process group.
        converted: Whether `load` will take what `convert` made.

    Attributes:
        learning_rate: Of the latest update.
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
        deepspeed = prepare(next(module.parameters()).device)
        self.module = module
        self.zero = config.zero
        self.accumulation = config.accumulation(workers)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        # ZeRO's optimizers keep fp32 copies of bf16 weights themselves.
        masters = config.zero == 0 and _dtype(module) != torch.float32
        optimizer = (MasterAdamW if masters else torch.optim.AdamW)(
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
        module.eval()  # what is frozen drops nothing out, and what learns has nothing to
        self._hidden = _hide_optional(module, config.zero)
        self.engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, lr_scheduler=schedule, config=settings
        )
        self._losses: list[Tensor] = []  # of the micro-batches since the last update
        self.learning_rate = 0.0

    @property
    def model(self) -> Callable[..., Any]:
        """The module as a loss has to call it."""
        return self.engine  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch; `accumulation` of them make an update."""
        if not self._losses and isinstance(self.engine.optimizer, MasterAdamW):
            self.engine.optimizer.allocate_gradients()
        self.engine.backward(loss)
        self._losses.append(loss.detach().float())
        if len(self._losses) < self.accumulation:
            self.engine.step()  # counts the micro-batch, and changes nothing

    def update(self) -> Tensor:
        """One optimizer step on the mean over micro-batches; their mean loss, on the device."""
        self.learning_rate = float(self.engine.get_lr()[0])
        self.engine.step()
        total = torch.zeros((), device=self.engine.device)
        for loss in self._losses:
            total += loss
        self._losses = []
        return total / self.accumulation

    def save(self, folder: Path) -> None:
        """This rank's share of the engine's state; every rank saves."""
        self.engine.save_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote with the same number of workers, or `convert` made of it."""
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # it prints a trace
            self.engine.load_checkpoint(str(folder), tag=TAG, load_module_strict=False)

    def close(self) -> None:
        """Free the engine; the trained parameters are whole again on every rank."""
        _free(self.engine, self.module, self._hidden, self.zero)
        for p in self.parameters:
            p.grad_dtype = p.dtype
        del self.engine, self.parameters
        gc.collect()


def of_another(rank: int, name: str) -> bool:
    """Whether a file of what `save` wrote is another rank's share, which this one doesn't read."""
    share = _SHARE.search(name)
    return share is not None and int(share[1]) != rank


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
def gathering(module: nn.Module, zero: int) -> Iterator[None]:
    """Let a module run outside of training: with ZeRO 3 each layer is gathered as it is reached."""
    if zero < 3:
        yield
        return
    deepspeed = prepare(next(module.parameters()).device)
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
    learning = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return {
        "zero_optimization": {
            "stage": zero,
            "stage3_param_persistence_threshold": 0,
            # Allocated whole: by default half a billion elements, however few are trained.
            "reduce_bucket_size": min(max(learning, 1), BUCKET),
        },
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": zero > 0 and _dtype(module) == torch.bfloat16},
        # By default gradients of micro-batches and of workers are summed in the weights' dtype.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 1_000_000_000,
    }


def _dtype(module: nn.Module) -> torch.dtype:
    """Of what is computed; the weights of a quantised base are integers."""
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


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
        F.linear = LINEAR  # DeepSpeed leaves its own there
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
