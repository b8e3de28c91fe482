"""A batch that answers join and leave between tokens: rows of one growing cache.

Rows are padded on the left to the longest of them, so that all take their next token in one pass.
A row's answer is what it would be alone: padding is masked, positions are those that the base's own
`generate` gives the row, and a row uses only the experts that its own task may use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmoe.data.padding import batched
from cmoe.modeling.growing import GrowingVLM
from cmoe.modeling.locator import Location
from cmoe.modeling.outputs import GrowingOutput
from cmoe.modeling.routers import Routing
from cmoe.serving.engines.builtin.decoding import positions_of
from cmoe.serving.prompts import TensorPrompt


class Batch:
    """The running rows: their cache, their padding, their tasks.

    Args:
        model: The model that answers; `require_servable` lets its base pass.
        pad: Token that pads.

    Attributes:
        tasks: Index of each row's primitive.
        lengths: Number of each row's tokens in the cache, without padding.
    """

    def __init__(self, model: GrowingVLM, pad: int) -> None:
        self.model, self.pad = model, pad
        self.tasks: list[int] = []
        self.lengths: list[int] = []
        self._mask = torch.empty(0, 0, dtype=torch.long, device=model.device)  # [B, S]
        self._last = self._mask  # position of each row's last token, [..., B, 1]
        self._cache: Any = None
        self._routing: Routing | None = None

    def __len__(self) -> int:
        return len(self.tasks)

    @torch.no_grad()
    def join(
        self, prompts: Sequence[TensorPrompt], tasks: Sequence[int] | None
    ) -> tuple[Tensor, Location | None]:
        """Read prompts, and append them as new rows.

        Args:
            prompts: One for each new row.
            tasks: Index of each new row's primitive; None locates the prompts.

        Returns:
            Logits [new, V] of the rows' first tokens, and the prompts' location if asked for.
        """
        from transformers import DynamicCache

        device = self.model.device
        inputs = {n: t.to(device) for n, t in batched(prompts, self.pad).items()}
        mask, cache = inputs["attention_mask"], DynamicCache()
        positions = positions_of(self.model.base, inputs)
        out = self.model(
            inputs | {"position_ids": positions},
            tasks,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        if tasks is None:
            tasks = self.model.claimed(out.location)
        last = positions[..., -1:]
        if self._cache is not None:
            last = torch.cat([self._last, last], -2)
            width = max(self._mask.shape[1], mask.shape[1])
            mask = torch.cat([_pad_mask(self._mask, width), _pad_mask(mask, width)])
            new: Any  # the layers' common type has no states
            for mine, new in zip(self._cache.layers, cache.layers, strict=True):
                new.keys = torch.cat([_pad_states(mine.keys, width), _pad_states(new.keys, width)])
                new.values = torch.cat(
                    [_pad_states(mine.values, width), _pad_states(new.values, width)]
                )
        # Only now: what fails before leaves those that run as they were.
        self._cache, self._mask, self._last, self._routing = cache, mask, last, None
        self.lengths += [p["input_ids"].shape[1] for p in prompts]
        self.tasks += tasks
        return out.logits[:, -1], out.location

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Read every row's latest token; returns logits [B, V] of the next ones."""
        if self._routing is None:
            self._routing = self.model.routing(self.tasks, len(self))
        self._mask, self._last = F.pad(self._mask, (0, 1), value=1), self._last + 1
        self.lengths = [n + 1 for n in self.lengths]
        ids = torch.tensor(tokens, device=self.model.device)[:, None]
        inputs = {
            "input_ids": ids,
            "attention_mask": self._mask,
            "position_ids": self._last,
        }
        out: GrowingOutput = self.model(
            inputs, self._routing, past_key_values=self._cache, use_cache=True
        )
        return out.logits[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows and drop the others, with the padding that only they needed."""
        if len(rows) == len(self):
            return
        self.tasks = [self.tasks[row] for row in rows]
        self.lengths = [self.lengths[row] for row in rows]
        self._routing = None
        if not rows:
            self._cache = None
            return
        start = self._mask.shape[1] - max(self.lengths)
        which = torch.tensor(rows, device=self.model.device)
        self._mask, self._last = self._mask[which, start:], self._last[..., which, :]
        for layer in self._cache.layers:
            layer.keys = layer.keys[which, :, start:]
            layer.values = layer.values[which, :, start:]


def _pad_mask(mask_bs: Tensor, width: int) -> Tensor:
    return F.pad(mask_bs, (width - mask_bs.shape[1], 0))


def _pad_states(states_bhsd: Tensor, length: int) -> Tensor:
    return F.pad(states_bhsd, (0, 0, length - states_bhsd.shape[2], 0))
