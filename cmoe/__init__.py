"""cmoe: continual learning of vision-language models by a growing mixture of LoRA experts.

The public names are loaded when they are first used: `import cmoe` loads neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cmoe.config.tree import RunConfig
    from cmoe.modeling.growing import GrowingVLM
    from cmoe.modeling.pretrained import load_base
    from cmoe.store.log import Store
    from cmoe.store.model import load_model

__version__ = "0.1.0"

__all__ = [
    "GrowingVLM",
    "RunConfig",
    "Store",
    "__version__",
    "load_base",
    "load_model",
]

_MODULES = {
    "GrowingVLM": "cmoe.modeling.growing",
    "RunConfig": "cmoe.config.tree",
    "Store": "cmoe.store.log",
    "load_base": "cmoe.modeling.pretrained",
    "load_model": "cmoe.store.model",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cmoe' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
