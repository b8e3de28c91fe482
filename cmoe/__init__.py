"""cmoe: continual learning of vision-language models by a growing mixture of LoRA experts.

The public names are loaded when they are first used: `import cmoe` loads neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cmoe.version import __version__

if TYPE_CHECKING:
    from cmoe.config.tree import RunConfig
    from cmoe.methods.registry import register_method
    from cmoe.modeling.growing import GrowingVLM
    from cmoe.modeling.pretrained import load_base
    from cmoe.store.log import Store
    from cmoe.store.model import load_model
    from cmoe.tasks.registry import register_task
    from cmoe.tasks.scorer import Target
    from cmoe.tasks.scorer_registry import register_scorer

__all__ = [
    "GrowingVLM",
    "RunConfig",
    "Store",
    "Target",
    "__version__",
    "load_base",
    "load_model",
    "register_method",
    "register_scorer",
    "register_task",
]

_MODULES = {
    "GrowingVLM": "cmoe.modeling.growing",
    "RunConfig": "cmoe.config.tree",
    "Store": "cmoe.store.log",
    "Target": "cmoe.tasks.scorer",
    "load_base": "cmoe.modeling.pretrained",
    "load_model": "cmoe.store.model",
    "register_method": "cmoe.methods.registry",
    "register_scorer": "cmoe.tasks.scorer_registry",
    "register_task": "cmoe.tasks.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cmoe' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
