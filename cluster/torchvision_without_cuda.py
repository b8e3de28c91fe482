"""Lets PyPI's torchvision be imported beside a build of torch without CUDA.

PyPI has no build of torchvision for torch's CPU build. The one that it has doesn't find the
libraries of its compiled operators then, which no base uses; all else of it works. But its import
needs two of them to be declared.

As a program, this file installs itself into the environment that runs it, if that needs it: then a
file `.pth` beside it lets every Python of the environment import it.
"""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

OPERATORS = ("torchvision::nms", "torchvision::qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name) if name == "torchvision" else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Declaring(spec.loader)
        return spec


class _Declaring(Loader):
    def __init__(self, own: Loader) -> None:
        self._own = own

    def __getattr__(self, name: str) -> object:
        return getattr(self._own, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import torch

        for name in OPERATORS:
            torch.library.define(name, SCHEMA)
        self._own.exec_module(module)


def install() -> None:
    """Install this file where torch has no CUDA and torchvision isn't built for that."""
    import shutil
    import site
    from importlib.metadata import version
    from pathlib import Path

    import torch

    if torch.version.cuda or version("torchvision").endswith("+cpu"):
        return
    folder = Path(site.getsitepackages()[0])
    shutil.copy(__file__, folder)
    own = Path(__file__)
    (folder / f"{own.stem}.pth").write_text(f"import {own.stem}\n")


if __name__ == "__main__":
    install()
else:
    sys.meta_path.insert(0, _Finder())
