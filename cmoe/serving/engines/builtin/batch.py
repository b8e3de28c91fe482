"""A batch that answers join and leave between tokens: rows of one growing cache.

Rows are padded on the left to the longest of them, so that all take their next token in one pass.
A row's answer is what it would be alone: padding is masked, positions are those that the base's
own `generate` gives the row, and a row meets only its own task's experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cmoe.modeling.growing import GrowingOutput, GrowingVLM
from cmoe.modeling.locator import Location
from cmoe.modeling.routers import Routing
from cmoe.serving.engines.builtin.decoding import positions_of

COLDEST = 1e-5  # a temperature up to this takes the likeliest token, as 0 does
NARROWEST = 1e-9  # a `top_p` up to this does so, too

Prompt = Mapping[str, Tensor]
"""A base's inputs for one prompt: `input_ids` [1, S], `attention_mask`, the picture's."""


def joined(prompts: Sequence[Prompt], pad: int) -> dict[str, Tensor]:
    """The inputs of a batch: what is by token is padded on the left, what is by picture stacked.

    Pictures of several sizes or numbers of tiles are filled up with zeros at their ends, as
    processors do it; a base knows from what comes with them where they end.

    Args:
        prompts: At least one.
        pad: Token that pads.
    """
    width = max(p["input_ids"].shape[1] for p in prompts)
    parts: dict[str, list[Tensor]] = {}
    for prompt in prompts:
        shape = prompt["input_ids"].shape
        for name, tensor in prompt.items():
            if tensor.shape == shape:
                fill = pad if name == "input_ids" else 0
                tensor = F.pad(tensor, (width - shape[1], 0), value=fill)
            parts.setdefault(name, []).append(tensor)
    return {name: torch.cat(_filled(tensors)) for name, tensors in parts.items()}


def _filled(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors of one shape behind their first dimension, which is kept."""
    sides = [max(lengths) for lengths in zip(*(t.shape[1:] for t in tensors), strict=True)]
    return [
        F.pad(t, [n for i in range(t.ndim - 1, 0, -1) for n in (0, sides[i - 1] - t.shape[i])])
        for t in tensors
    ]


def padding(tokenizer: Any) -> int:
    """The token that pads; where a base has none, its masked end does."""
    pad: int | None = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None else pad


class Batch:
    """The running rows: their cache, their padding, their tasks.

    Args:
        model: Answers; its base is one that `require_servable` lets pass.
        pad: Token that pads.
    """

    def __init__(self, model: GrowingVLM, pad: int) -> None:
        self.model, self.pad = model, pad
        self.tasks: list[int] = []
        self.lengths: list[int] = []  # tokens of each row in the cache
        self._mask = torch.empty(0, 0, dtype=torch.long, device=model.device)
        self._last = self._mask  # position of each row's last token, [..., B, 1]
        self._cache: Any = None
        self._routing: Routing | None = None

    def __len__(self) -> int:
        return len(self.tasks)

    @torch.no_grad()
    def join(
        self, prompts: Sequence[Prompt], tasks: Sequence[int] | None
    ) -> tuple[Tensor, Location | None]:
        """Read prompts, and put them behind the rows that are there.

        Args:
            prompts: Of the new rows.
            tasks: Of each, or None to locate them.

        Returns:
            Logits [new, V] of their first tokens, and where they were located, if they were.
        """
        from transformers import DynamicCache

        device = self.model.device
        inputs = {n: t.to(device) for n, t in joined(prompts, self.pad).items()}
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
            mask = torch.cat([_wide(self._mask, width), _wide(mask, width)])
            new: Any  # the layers' common type has no states
            for mine, new in zip(self._cache.layers, cache.layers, strict=True):
                new.keys = torch.cat([_long(mine.keys, width), _long(new.keys, width)])
                new.values = torch.cat([_long(mine.values, width), _long(new.values, width)])
        # Only now: what fails before leaves those that run as they were.
        self._cache, self._mask, self._last, self._routing = cache, mask, last, None
        self.lengths += [p["input_ids"].shape[1] for p in prompts]
        self.tasks += tasks
        return out.logits[:, -1], out.location

    @torch.no_grad()
    def step(self, tokens: Sequence[int]) -> Tensor:
        """Take every row's last token; logits [B, V] of the next ones."""
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
        """Go on with some rows alone, and without the padding that only the others needed."""
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


def _wide(mask_bs: Tensor, width: int) -> Tensor:
    return F.pad(mask_bs, (width - mask_bs.shape[1], 0))


def _long(states_bhsd: Tensor, length: int) -> Tensor:
    return F.pad(states_bhsd, (0, 0, length - states_bhsd.shape[2], 0))


@dataclass(frozen=True)
class Choice:
    """How a row takes its next token.

    Attributes:
        temperature: 0 takes the likeliest.
        top_p: Draws among the likeliest tokens that together have this chance.
        random: Numbers from 0 to 1, the row's own.
    """

    temperature: float
    top_p: float
    random: Callable[[], float]


def draw(logits_bv: Tensor, choices: Sequence[Choice]) -> list[int]:
    """The next token of every row: the likeliest, or one drawn by the row's own numbers.

    What a row draws depends on its logits and its seed alone, whatever runs beside it.
    """
    tokens = logits_bv.argmax(1)
    rows = [i for i, choice in enumerate(choices) if choice.temperature > COLDEST]
    if rows:
        tokens[rows] = _drawn(logits_bv[rows].float(), [choices[i] for i in rows])
    taken: list[int] = tokens.tolist()
    return taken


def _drawn(logits_bv: Tensor, choices: Sequence[Choice]) -> Tensor:
    def column(values: Iterator[float]) -> Tensor:
        return torch.tensor([*values], device=logits_bv.device)[:, None]

    warmth = column(c.temperature for c in choices)
    chances, order = (logits_bv / warmth).softmax(1).sort(1, descending=True)
    below = chances.cumsum(1) - chances
    most = column(max(c.top_p, NARROWEST) for c in choices)  # always the likeliest
    kept = chances * (below < most)
    reached = kept.cumsum(1)
    mark = column(c.random() for c in choices) * reached[:, -1:]
    place = (reached <= mark).sum(1, keepdim=True).clamp_max(logits_bv.shape[1] - 1)
    return order.gather(1, place)[:, 0]
