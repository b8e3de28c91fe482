"""What is the same for every token, and what its merging into weights rounds."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from support.tiny_models import make_base
from torch import Tensor, nn

from cmoe.modeling.fixed import LowRank, NotFixedError, merge
from cmoe.modeling.routers import BASE, Routing, TaskRouters

WIDTH, TOKENS = 8, 64


def dense(routers: TaskRouters, task: int, hidden_bsd: Tensor) -> Tensor:
    """Gates of all experts [n, E], as a forward pass has them; without a router none."""
    gates = routers(hidden_bsd, Routing.of([task], torch.device("cpu")))
    if gates is None:
        return torch.zeros(TOKENS, 0)
    return torch.zeros(TOKENS, gates.total).scatter(1, gates.experts, gates.weights)


@pytest.mark.parametrize(
    ("form", "top_k", "added", "builds_on"),
    [
        *product(
            ("renormalized", "softmax", "residual"),
            (1, 2, 3),
            ((1, 1, 1), (2, 0, 1), (0, 1, 0), (1, 0, 3)),
            ((BASE, BASE, BASE), (BASE, 0, 1)),
        )
    ],
)
def test_gates_are_called_fixed_where_all_tokens_have_the_same(
    form: str, top_k: int, added: tuple[int, ...], builds_on: tuple[int, ...]
) -> None:
    rng = torch.Generator().manual_seed(0)
    routers = TaskRouters(0, WIDTH, top_k, form, torch.zeros(1))  # type: ignore[arg-type]
    sizes = [sum(added[: n + 1]) for n in range(len(added))]
    weights = [torch.randn(n, WIDTH, generator=rng) if n else None for n in sizes]
    routers.freeze(weights, builds_on)
    hidden_bsd = torch.randn(1, TOKENS, WIDTH, generator=rng)
    for task, size in enumerate(sizes):
        gates_ne = dense(routers, task, hidden_bsd)
        fixed = routers.fixed(task)
        if fixed is None:
            assert not torch.equal(gates_ne[:1].expand_as(gates_ne), gates_ne)
        else:
            wanted = torch.tensor([float(expert in fixed) for expert in range(size)])
            assert torch.equal(gates_ne, wanted.expand_as(gates_ne))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merging_rounds_a_weight_once(dtype: torch.dtype) -> None:
    base = make_base().to(dtype)
    before = {name: p.clone() for name, p in base.named_parameters()}
    rng = torch.Generator().manual_seed(1)
    names = [n for n, m in base.named_modules() if isinstance(m, nn.Linear) and ".layers.1." in n]
    updates = {}
    for name in names:
        out, width = base.get_submodule(name).weight.shape
        A, B = torch.randn(4, width, generator=rng), torch.randn(out, 4, generator=rng)
        updates[name] = LowRank(A.to(dtype), B.to(dtype), 0.6)
    merge(base, updates)
    for name, weight in base.named_parameters():
        module = name.removesuffix(".weight")
        if module not in updates:
            assert torch.equal(weight, before[name])
            continue
        update = updates[module]
        delta = update.B.double() @ update.A.double() * 0.6 / 4
        wanted = before[name].double() + delta
        # Half a unit in the last place, and what a sum of four products in fp32 is off at most.
        within = torch.finfo(dtype).eps / 2 * wanted.abs() + 8 * torch.finfo(torch.float32).eps * (
            before[name].double().abs() + 0.15 * (update.B.double().abs() @ update.A.double().abs())
        )
        assert ((weight.double() - wanted).abs() <= within).all()
        assert not torch.equal(weight, before[name])


def test_a_weight_that_two_parts_share_is_not_merged_into() -> None:
    base = make_base()
    base.lm_head.weight = base.get_input_embeddings().weight
    update = LowRank(torch.ones(1, base.lm_head.in_features), torch.ones(64, 1), 1.0)
    before = base.lm_head.weight.clone()
    with pytest.raises(NotFixedError, match=r"embed_tokens\.weight and lm_head\.weight are one"):
        merge(base, {"lm_head": update})
    assert torch.equal(base.lm_head.weight, before)
