"""LoRA experts of one FFN, stacked: any number of experts costs a few matrix products.

An expert is one LoRA pair per linear map of the FFN, and the maps share the token's gates
(method, "Experts and routers"):

    y = P u + sum_e s_e g_e B_e A_e u

The pairs of all experts lie in one tensor `A [R, in]` and one `B [R, out]`, where `R` is the sum
of the experts' ranks: the experts that existed at any earlier time are the first rows, so that an
earlier task computes with the same numbers, in the same shapes, whatever was learned later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmoe.modeling.base import Site, compute_dtype
from cmoe.modeling.kernels.reference import Rows


class GroupedFrom(NamedTuple):
    """Sizes from which sorting tokens by expert beats computing every expert for every token.

    Attributes:
        share: Experts per used expert.
        rows: Tokens per expert.
    """

    share: int
    rows: int


GROUPED_FROM: dict[str, GroupedFrom] = {
    # `cmoe bench experts`, 2 CPU cores, fp32.
    "cpu": GroupedFrom(share=8, rows=4),
    # No "cuda": on one H100 sorting lost at every size that was measured, up to 16 experts of which
    # a token uses 2, and 16,384 tokens, in bf16.
}
"""By kind of device; without an entry every expert is computed for every token."""
GROUPED_ALIGNMENT = 16  # bytes; grouped_mm's demand on strides


class Gates(NamedTuple):
    """Which experts each token uses, and how much.

    A tuple, as sharding hooks look for a module's output tensors in tuples alone.

    Attributes:
        weights: [n, k], 0 for a token without experts.
        experts: [n, k] indices among the layer's experts, distinct in a row.
        total: How many of the layer's experts the batch may use: the first `total`.
    """

    weights: Tensor
    experts: Tensor
    total: int

    def dense(self) -> Tensor:
        """The same by expert: [n, total]."""
        zeros = self.weights.new_zeros(len(self.weights), self.total)
        return zeros.scatter(1, self.experts, self.weights)


class ExpertStack(nn.Module):
    """The shape of a stack of experts: which rows belong to which, and at what scale.

    Args:
        ranks: Rank of each expert.
        scales: `lora_alpha / rank` of each.
        start: The layer's index of this stack's first expert.
        widths: Inputs and outputs of the linear maps that the stack serves.
    """

    scale_e: Tensor
    row_expert: Tensor
    row_scale: Tensor

    def __init__(
        self,
        ranks: Sequence[int],
        scales: Sequence[float],
        start: int,
        widths: Sequence[int],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.ranks = tuple(ranks)
        self.widths = tuple(widths)
        self.scales = tuple(scales)
        self.start = start
        self._ends = (0, *accumulate(self.ranks))
        experts = torch.arange(len(self.ranks))
        row_expert = experts.repeat_interleave(torch.tensor(self.ranks, dtype=torch.long))
        scale_e = torch.tensor(self.scales, dtype=torch.float32)
        self.register_buffer("row_expert", row_expert.to(device), persistent=False)
        self.register_buffer("scale_e", scale_e.to(device), persistent=False)
        self.register_buffer("row_scale", scale_e[row_expert].to(device), persistent=False)

    def __len__(self) -> int:
        return len(self.ranks)

    def rows(self, expert: int) -> slice:
        """One expert's rows."""
        return slice(self._ends[expert], self._ends[expert + 1])

    def first(self, experts: int, learned: int) -> Rows:
        """The rows of the first experts, of which those from `learned` on are being learned."""
        end = self._ends[experts]
        return Rows(self.row_expert[:end], self.row_scale[:end], learned)

    def dispatch(self, gates: Gates, dtype: torch.dtype) -> Dispatch | None:
        """How a batch with these gates runs through this stack; None if it uses none of it."""
        count = min(gates.total - self.start, len(self))
        if count <= 0:
            return None
        experts, weights = gates.experts, gates.weights
        if self.start > 0 or gates.total > len(self):  # there is another stack
            experts = experts - self.start
            mine = (experts >= 0) & (experts < count)
            # The other's slots compute this one's first expert with gate 0.
            experts, weights = experts.where(mine, 0), weights * mine
        weights = (weights * self.scale_e[experts]).to(dtype)
        if self._prefers_grouped(experts, count, dtype):
            return Grouped(experts, weights, count, self.ranks[0])
        gates_ne = weights.new_zeros(len(weights), count).scatter_add(1, experts, weights)
        return Concatenated(gates_ne.index_select(1, self.row_expert[: self._ends[count]]))

    def _prefers_grouped(self, experts_nk: Tensor, count: int, dtype: torch.dtype) -> bool:
        """Whether sorting tokens by expert beats computing all experts for all tokens.

        A function of the device and of shapes alone, and of no later expert's: an earlier task is
        always computed in the same way.
        """
        tokens, k = experts_nk.shape
        ranks = set(self.ranks[:count])
        least = GROUPED_FROM.get(experts_nk.device.type)
        return (
            least is not None
            and count >= least.share * k
            and tokens * k >= least.rows * count
            and len(ranks) == 1
            and all(n * dtype.itemsize % GROUPED_ALIGNMENT == 0 for n in (*ranks, *self.widths))
        )


class Dispatch:
    """A batch's way through one stack, shared by the linear maps of an FFN."""

    def add_to(self, out_no: Tensor, u_ni: Tensor, A_ri: Tensor, B_ro: Tensor) -> None:
        """Add the experts' share for inputs `u_ni` to `out_no`, in place."""
        raise NotImplementedError


class Concatenated(Dispatch):
    """All experts for all tokens in two matrix products, masked by the gates in between.

    Args:
        gates_nr: A row's expert's gate times its scale; [1, r] where all tokens have the same.
        rows: Of the stack; None takes the first `r`.
    """

    def __init__(self, gates_nr: Tensor, rows: Tensor | None = None) -> None:
        self.gates_nr = gates_nr
        self.rows = slice(gates_nr.shape[1]) if rows is None else rows

    def add_to(self, out_no: Tensor, u_ni: Tensor, A_ri: Tensor, B_ro: Tensor) -> None:
        out_no.addmm_(F.linear(u_ni, A_ri[self.rows]) * self.gates_nr, B_ro[self.rows])


class Grouped(Dispatch):
    """Each expert for its own tokens: tokens sorted by expert, one grouped product a side."""

    def __init__(self, experts: Tensor, weights: Tensor, count: int, rank: int) -> None:
        flat = experts.flatten()
        self.order = flat.argsort(stable=True)
        self.tokens = self.order // experts.shape[1]
        sizes = torch.zeros(count, dtype=torch.int32, device=flat.device)
        sizes = sizes.scatter_add(0, flat, torch.ones_like(flat, dtype=torch.int32))
        self.ends = sizes.cumsum(0, dtype=torch.int32)
        self.gates_m = weights.flatten()[self.order].unsqueeze(1)
        self.count, self.rank, self.slots = count, rank, experts.shape[1]

    def add_to(self, out_no: Tensor, u_ni: Tensor, A_ri: Tensor, B_ro: Tensor) -> None:
        rows = self.count * self.rank
        A_eir = A_ri[:rows].view(self.count, self.rank, -1).transpose(1, 2)
        B_ero = B_ro[:rows].view(self.count, self.rank, -1)
        h_mr = F.grouped_mm(u_ni.index_select(0, self.tokens), A_eir, offs=self.ends)
        y_mo = F.grouped_mm(h_mr * self.gates_m, B_ero, offs=self.ends)
        if y_mo.is_cuda:  # index_add_ adds in no fixed order there
            out_no += slots_summed(y_mo, self.order, self.slots)
        else:
            out_no.index_add_(0, self.tokens, y_mo)


def slots_summed(y_mo: Tensor, order_m: Tensor, slots: int) -> Tensor:
    """Each token's sum [n, o] over its slots, whose rows were sorted by `order_m`."""
    by_token = torch.empty_like(y_mo).index_copy(0, order_m, y_mo)
    return by_token.view(-1, slots, y_mo.shape[1]).sum(1)


class ExpertLinear(nn.Module):
    """A frozen linear map with stacks of LoRA experts: frozen ones, and those being learned.

    Frozen experts are buffers (no gradient, no optimizer state, not sharded); those of the task
    being learned are parameters of this module, so that sharding hooks gather them in time.
    """

    frozen_A: Tensor
    frozen_B: Tensor

    def __init__(self, linear: nn.Linear, call: LayerCall) -> None:
        super().__init__()
        self.linear = linear
        self.A: nn.Parameter | None = None
        self.B: nn.Parameter | None = None
        like: dict[str, Any] = {"dtype": compute_dtype(linear), "device": linear.weight.device}
        for side, width in (("A", linear.in_features), ("B", linear.out_features)):
            self.register_buffer(f"frozen_{side}", torch.empty(0, width, **like), persistent=False)
        self._call = call

    def forward(self, u: Tensor) -> Tensor:
        # The gradients of what reads it are summed here, apart from other modules': in bf16 another
        # order gives other sums, and ZeRO 3's hooks sum by modules.
        u = u.view_as(u)
        out: Tensor = self.linear(u)
        if not self._call.active:
            return out
        u_ni, out_no = u.reshape(-1, u.shape[-1]), out.view(-1, out.shape[-1])
        if self._call.frozen is not None:
            self._call.frozen.add_to(out_no, u_ni, self.frozen_A, self.frozen_B)
        if self._call.learning is not None:
            assert self.A is not None
            assert self.B is not None
            self._call.learning.add_to(out_no, u_ni, self.A, self.B)
        return out

    def first(self, rows: int) -> tuple[Tensor, Tensor]:
        """`A [R, in]` and `B [R, out]` of the first rows: frozen ones, then those being learned."""
        older = len(self.frozen_A)
        if self.A is None or self.B is None or rows <= older:
            return self.frozen_A[:rows], self.frozen_B[:rows]
        A, B = self.A[: rows - older], self.B[: rows - older]
        if older == 0:
            return A, B
        return torch.cat([self.frozen_A, A]), torch.cat([self.frozen_B, B])

    def learn(self, A_nri: Tensor, B_nor: Tensor) -> None:
        """Take new experts as parameters: `A [n, r, in]`, `B [n, out, r]`."""
        A, B = self._stacked([A_nri], [B_nor])
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)

    def freeze(self, A_nri: Sequence[Tensor], B_nor: Sequence[Tensor]) -> None:
        """Append finished experts to the frozen stack, once for all of them."""
        A, B = self._stacked(A_nri, B_nor)
        self.frozen_A = torch.cat([self.frozen_A, A])
        self.frozen_B = torch.cat([self.frozen_B, B])

    def discard(self) -> None:
        """Forget the experts being learned."""
        self.A = self.B = None

    def learned(self, rank: int) -> tuple[Tensor, Tensor]:
        """The experts being learned, unstacked: `A [n, r, in]`, `B [n, out, r]`."""
        assert self.A is not None
        assert self.B is not None
        return _unstacked(self.A.detach(), self.B.detach(), rank)

    def expert(self, rows: slice) -> tuple[Tensor, Tensor]:
        """One frozen expert: `A [1, r, in]`, `B [1, out, r]`."""
        return _unstacked(self.frozen_A[rows], self.frozen_B[rows], rows.stop - rows.start)

    def _stacked(self, As: Sequence[Tensor], Bs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        to = self.frozen_A
        A = torch.cat([A.flatten(0, 1) for A in As]).to(to)
        B = torch.cat([B.transpose(1, 2).flatten(0, 1) for B in Bs]).to(to)
        return A.contiguous(), B.contiguous()


def _unstacked(A_ri: Tensor, B_ro: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    return A_ri.unflatten(0, (-1, rank)), B_ro.unflatten(0, (-1, rank)).transpose(1, 2)


def wrapped(site: Site, call: LayerCall) -> dict[str, ExpertLinear]:
    """The linear maps of a part of a layer, by name; each is wrapped in place."""
    maps: dict[str, ExpertLinear] = {}
    for name in site.maps:
        parent, _, leaf = name.rpartition(".")
        linear = site.module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        maps[name] = ExpertLinear(linear, call)
        setattr(site.module.get_submodule(parent), leaf, maps[name])
    return maps


def widths_of(maps: Mapping[str, ExpertLinear]) -> tuple[int, ...]:
    """Inputs and outputs of the maps, one behind the other."""
    linears = [m.linear for m in maps.values()]
    return tuple(n for m in linears for n in (m.in_features, m.out_features))


class LayerCall:
    """What the linear maps of an FFN or an attention share during one call of it."""

    frozen: Dispatch | None = None
    learning: Dispatch | None = None

    @property
    def active(self) -> bool:
        return self.frozen is not None or self.learning is not None


def fresh_pair(
    count: int, rank: int, linear: nn.Linear, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Experts that change nothing yet: `A [n, r, in]` uniform as in LoRA, `B [n, out, r]` zero."""
    bound = linear.in_features**-0.5
    A = torch.rand(count, rank, linear.in_features, generator=generator)
    return A.mul_(2 * bound).sub_(bound), torch.zeros(count, linear.out_features, rank)
