"""Folders that other tools load: PEFT's adapters, transformers' models, on a disk or on the hub."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cmoe.common.files import whole_folder
from cmoe.common.remote.hub import ATTRIBUTES, README, Hub
from cmoe.common.storage import HUB, StorageError
from cmoe.modeling.base import fingerprint
from cmoe.modeling.fixed import Updates, merge
from cmoe.modeling.pretrained import load_base, load_shape
from cmoe.modeling.quantized import dequantize
from cmoe.store.export import without_paths
from cmoe.store.log import Store
from cmoe.store.model import base_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARD = "4GB"
"""Of a merged model's weights in one file, at most."""


@contextmanager
def folder_for(out: str) -> Iterator[Path]:
    """A folder to write into: it becomes `out` once it is whole, of the hub as one commit.

    Args:
        out: A folder, or `hf://owner/name`.

    Raises:
        StorageError: Something else is there, or it can't be written.
    """
    if not out.startswith(HUB):
        with whole_folder(Path(out)) as folder:
            yield folder
        return
    place = Hub.at(out)
    place.require_writable()
    with tempfile.TemporaryDirectory(prefix="cmoe-") as temporary:
        folder = Path(temporary)
        yield folder
        paths = sorted(each for each in folder.rglob("*") if each.is_file())
        files = {path.relative_to(folder).as_posix(): path for path in paths}
        if others := place.files().keys() - files - {ATTRIBUTES}:
            raise StorageError(
                f"{out}: has something else in it ({', '.join(sorted(others)[:3])}); give an empty "
                "repository"
            )
        if taken := place.commit(files.items(), "Export", replaced=(README,)):
            raise StorageError(f"{out}/{taken}: is of another export; give an empty repository")


def write_model(store: Store, updates: Updates, folder: Path) -> None:
    """A store's base, in its run's dtype, with updates in its weights; and its processor.

    Those of a quantised base are the rounded ones, which the updates were learned beside.

    It takes memory for the base once. `AutoModelForImageTextToText.from_pretrained(folder)` loads
    it.

    Raises:
        StoreError: The base is another one by now.
        NotFixedError: As of `merge`.
    """
    named = base_of(store)
    dtype = named.dtype if store.header.config.get("model") else "auto"
    base, processor = load_base(
        named.path,
        revision=named.revision,
        dtype=dtype,
        pad=named.pad,
        quantization=named.quantization,
    )
    store.require_base(fingerprint(base))
    if named.quantization is not None:
        dequantize(base)
    merge(base, updates)
    base.save_pretrained(folder, max_shard_size=SHARD)
    processor.save_pretrained(folder)


def write_adapters(store: Store, found: Mapping[str, Callable[[], Updates]], folder: Path) -> None:
    """Adapters of a store's base, each in the folder of its name; "" is the folder itself."""
    named = base_of(store)
    shape = load_shape(named.path, revision=named.revision)
    name = str(without_paths(named.name))
    for task, updates in found.items():
        write_peft(folder / task, updates(), shape, name=name, revision=named.revision)


def write_peft(
    folder: Path, updates: Updates, shape: PreTrainedModel, *, name: str, revision: str | None
) -> None:
    """Write an adapter as PEFT does, for `PeftModel.from_pretrained(base, folder)`.

    Args:
        folder: Made where there is none.
        updates: The tensors are written as they are.
        shape: The base without weights.
        name: The base's.
        revision: Of the base.
    """
    import safetensors.torch
    from peft import LoraConfig

    ranks = {module: len(update.A) for module, update in updates.items()}
    alphas = {module: update.alpha for module, update in updates.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    settings = LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]
        target_modules=sorted(updates),
        rank_pattern={re.escape(m): r for m, r in ranks.items() if r != rank},
        alpha_pattern={re.escape(m): a for m, a in alphas.items() if a != alpha},
        lora_dropout=0.0,
        inference_mode=True,
        base_model_name_or_path=name,
        revision=revision,
        auto_mapping={
            "base_model_class": type(shape).__name__,
            "parent_library": type(shape).__module__,
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    settings.save_pretrained(str(folder))
    tensors = {
        f"base_model.model.{module}.lora_{side}.weight": getattr(update, side)
        for module, update in updates.items()
        for side in "AB"
    }
    safetensors.torch.save_file(
        tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"}
    )
