"""An accelerator that pretends: numbers of the CPU, and errors where a GPU would have them.

Tensors that were moved or made there say `cuda`, and so does what is computed from them. An
operation of tensors here and there fails as it would on a GPU. So tests find a forgotten device on
a machine that has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

THERE = torch.device("cuda", 0)
INDEXING = {"__getitem__", "__setitem__", "index_put_", "index_put"}  # by indices of either side
MOVING = {"copy_", "__set__", "_has_compatible_shallow_copy_type"}


class Pretended(TorchFunctionMode):
    """As long as it is entered there is a device of the name `cuda`."""

    def __init__(self) -> None:
        super().__init__()
        self._there: dict[int, Any] = {}  # storages, kept so that no other takes their address

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if func == Tensor.device.__get__:
            return THERE if self._is_there(args[0]) else func(*args)
        if func == Tensor.is_cuda.__get__:
            return self._is_there(args[0])
        if func == Tensor.is_cpu.__get__:
            return not self._is_there(args[0])
        if name in ("to", "cpu", "cuda") and isinstance(args[0], Tensor):
            return self._moved(func, name, args, kwargs)
        if kwargs.get("device") is not None:
            there = torch.device(kwargs.pop("device")).type == "cuda"
            return self._marked(func(*args, **kwargs), there)
        sides = {self._is_there(t) for t in _tensors([args, kwargs]) if t.ndim and t.numel()}
        if len(sides) == 2 and name not in INDEXING | MOVING:
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device")
        if name == "__getitem__" and not self._is_there(args[0]) and len(sides) == 2:
            raise RuntimeError("indices should be on the CPU, as the indexed tensor is")
        if name == "numpy" and self._is_there(args[0]):
            raise TypeError("can't convert a cuda tensor to numpy")
        first = next(_tensors([args, kwargs]), None)
        there = True in sides or (first is not None and not sides and self._is_there(first))
        if name in MOVING:
            out = func(*args, **kwargs)
            if func == Tensor.data.__set__:
                self._mark(args[0], self._is_there(args[1]))
            return out
        return self._marked(func(*args, **kwargs), there)

    def _moved(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        tensor, *rest = args
        there = {"cpu": False, "cuda": True}.get(name, self._is_there(tensor))
        given = []
        for value in [] if name == "cuda" else rest:
            if isinstance(value, Tensor):
                there, value = self._is_there(value), value.dtype
            elif isinstance(value, str | torch.device):
                there, value = torch.device(value).type == "cuda", torch.device("cpu")
            given.append(value)
        if name == "to" and kwargs.get("device") is not None:
            there = torch.device(kwargs.pop("device")).type == "cuda"
        out = tensor if name == "cuda" else func(tensor, *given, **kwargs)
        if there != self._is_there(tensor):
            out = out.clone() if out is tensor or out.data_ptr() == tensor.data_ptr() else out
        elif out is tensor:
            return out  # type: ignore[no-any-return]
        self._mark(out, there)
        return out  # type: ignore[no-any-return]

    def _is_there(self, tensor: Tensor) -> bool:
        if not tensor.numel():
            return getattr(tensor, "_pretended", False)
        return tensor.untyped_storage().data_ptr() in self._there

    def _mark(self, tensor: Tensor, there: bool) -> None:
        if not tensor.numel():
            tensor._pretended = there  # type: ignore[attr-defined]
        elif there:
            storage = tensor.untyped_storage()
            self._there[storage.data_ptr()] = storage

    def _marked(self, out: Any, there: bool) -> Any:
        for tensor in _tensors(out) if there else ():
            self._mark(tensor, True)
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
